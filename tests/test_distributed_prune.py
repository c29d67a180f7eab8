"""NPN on two processes with half of each batch is NPN on one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import secateurs as sc
from tests.test_resume_prune import loader

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]

CASES: dict[str, dict[str, Any]] = {
    "per sample": {},
    "per batch": {"gates": "batch"},
    "uneven": {},  # rows that two processes cannot share evenly
    "split": {},  # loaders that read their own rows only
    "internal": {},
}


def prune(case: str, rank: int = 0, world: int = 1, folder: Path | None = None, resume: bool = False) -> sc.Result:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sc.build("zoo:small_cnn", num_classes=4)
    data = loader()
    if case == "uneven":
        data = sc.Data(train=[(x[:15], y[:15]) for x, y in data.train], val=[(x[:7], y[:7]) for x, y in data.val])
    if case == "split":
        for source in (data.train, data.val):
            source.rank, source.world_size = rank, world
    scope: Literal["internal"] | None = "internal" if case == "internal" else None
    return sc.prune(
        model, torch.zeros(1, 3, 32, 32), sc.NPN(epochs=2, calibration=40, open=0.3, precision="fp32", **CASES[case]),
        sc.Budget(macs=0.5), data=data, recover=sc.Recover(epochs=1, lr=0.01, precision="fp32"), scope=scope, progress="silent",
        folder=folder, resume=resume, save_steps=4,
    )  # fmt: skip


CHILD = """
import json
import os
import sys
from pathlib import Path
from safetensors.torch import save_model
from tests.test_distributed_prune import CASES, prune
import torch

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
out = Path(sys.argv[1])
for case in CASES:
    result = prune(case, rank, world, out / "runs" / case)
    name = f"{case}-{rank}"
    save_model(result.model, out / f"{name}.safetensors")
    record = {"plan": result.plan.to_json(), "history": result.history, "error": result.error, "top1": result.after.top1}
    (out / f"{name}.json").write_text(json.dumps(record))
again = prune("per sample", rank, world, out / "runs" / "per sample", resume=True)
save_model(again.model, out / f"again-{rank}.safetensors")
torch.distributed.destroy_process_group()
"""


def launch(*command: str, timeout: int = 150) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run(
        [*LAUNCH, sys.executable, *command], cwd=root, capture_output=True, text=True, check=False, timeout=timeout
    )


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    done = launch("-c", CHILD, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    for case in CASES:
        one = prune(case)
        records = [json.loads((tmp_path / f"{case}-{rank}.json").read_text()) for rank in (0, 1)]
        weights = [load_file(tmp_path / f"{case}-{rank}.safetensors") for rank in (0, 1)]
        assert records[0]["plan"] == records[1]["plan"] == one.plan.to_json(), case
        for name, value in one.model.state_dict().items():
            assert torch.equal(weights[0][name], weights[1][name]), (case, name)
            torch.testing.assert_close(weights[0][name], value, rtol=1e-4, atol=1e-4, msg=f"{case} {name}: {{}}".format)
        (gates,) = [h for h in one.history if h.get("event") == "gates"]
        lams = {h["lam"] for record in records for h in record["history"] if "lam" in h}
        assert len(lams) == 1, case  # both steer alike, to the bit
        for record in records:
            (theirs,) = [h for h in record["history"] if h.get("event") == "gates"]
            assert theirs.pop("lam") == pytest.approx(gates["lam"], rel=1e-3), case
            assert theirs == pytest.approx({k: v for k, v in gates.items() if k != "lam"}, abs=2e-3), case
            assert record["top1"] == pytest.approx(one.after.top1, abs=1e-3), case
            for a, b in zip(record["history"], one.history, strict=True):
                if "train_loss" in b:
                    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3), case
    first, again = (load_file(tmp_path / f"{name}-0.safetensors") for name in ("per sample", "again"))
    assert all(torch.equal(first[k], again[k]) for k in first)  # a finished run, resumed
