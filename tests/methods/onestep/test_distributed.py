"""Learning β, mimicking and distilling on two processes with half of each batch is doing so on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import secateurs as sc
from tests.test_distributed_prune import launch
from tests.test_resume_prune import loader


def prune(folder: Path | None = None, resume: bool = False) -> sc.Result:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sc.build("zoo:small_cnn", num_classes=4)
    data = loader()
    # Rows that two processes cannot share evenly.
    data = sc.Data(train=[(x[:15], y[:15]) for x, y in data.train], val=[(x[:7], y[:7]) for x, y in data.val])
    phases = [
        sc.Mimic(epochs=2, optimizer="sgd", lr=0.02, precision="fp32"),  # Adam's first steps blow rounding up
        sc.Distil(epochs=1, lr=0.01, precision="fp32"),
        sc.Recover(epochs=1, lr=0.01, precision="fp32"),
    ]
    return sc.prune(
        model, torch.zeros(1, 3, 32, 32), sc.OneStep(epochs=2, lr=0.01, precision="fp32"), sc.Budget(macs=0.5), data=data,
        recover=phases, progress="silent", folder=folder, resume=resume, save_steps=4,
    )  # fmt: skip


CHILD = """
import json
import os
import sys
from pathlib import Path
from safetensors.torch import save_model
from tests.methods.onestep.test_distributed import prune
import torch

rank = int(os.environ["RANK"])
out = Path(sys.argv[1])
for name, resume in (("first", False), ("again", True)):
    result = prune(out / "run", resume)
    save_model(result.model, out / f"{name}-{rank}.safetensors")
    (out / f"{name}-{rank}.json").write_text(json.dumps({"plan": result.plan.to_json(), "history": result.history}))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    done = launch("-c", CHILD, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    one = prune()
    for rank in (0, 1):
        record = json.loads((tmp_path / f"first-{rank}.json").read_text())
        assert record["plan"] == one.plan.to_json()
        (theirs,), (ours,) = ([h for h in hs if h.get("event") == "crucial"] for hs in (record["history"], one.history))
        assert theirs["nodes"] == ours["nodes"]
        assert theirs["scores"] == pytest.approx(ours["scores"], abs=1e-5)
        for a, b in zip(record["history"], one.history, strict=True):
            assert a.get("mode") == b.get("mode")
            assert a.get("train_loss", 0) == pytest.approx(b.get("train_loss", 0), rel=1e-3)
        weights = load_file(tmp_path / f"first-{rank}.safetensors")
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=f"{name}: {{}}".format)
        again = load_file(tmp_path / f"again-{rank}.safetensors")
        assert all(torch.equal(weights[name], again[name]) for name in weights)
