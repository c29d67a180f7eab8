"""NPN on two processes with half of each batch is NPN on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import secateurs as sc
from tests.processes import on_two
from tests.test_resume_prune import loader

CASES: dict[str, dict[str, Any]] = {
    "per sample": {"gates": "sample"},
    "per batch": {},
    "paper": {**sc.NPN.presets["paper"]},
    "uneven": {"pruner_images": 1},  # rows that two processes cannot share evenly
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


def case(name: str, rank: int, world: int, folder: Path) -> sc.Result:
    if name == "again":  # a finished run, resumed
        return prune("per sample", rank, world, folder.with_name("per sample"), resume=True)
    return prune(name, rank, world, folder)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    found = on_two(f"{__name__}:case", [*CASES, "again"], tmp_path)
    for name in CASES:
        one, both = prune(name), found[name]
        assert both[0].plan == both[1].plan == one.plan.to_json(), name
        for key, value in one.model.state_dict().items():
            assert torch.equal(both[0].weights[key], both[1].weights[key]), (name, key)
            torch.testing.assert_close(
                both[0].weights[key], value, rtol=1e-4, atol=1e-4, msg=f"{name} {key}: {{}}".format
            )
        (gates,) = [h for h in one.history if h.get("event") == "gates"]
        lams = [[h["lam"] for h in outcome.history if "lam" in h] for outcome in both]
        assert lams[0] == lams[1] != [], name  # both steer alike, to the bit
        for outcome in both:
            (theirs,) = [h for h in outcome.history if h.get("event") == "gates"]
            assert theirs.pop("lam") == pytest.approx(gates["lam"], rel=1e-3), name
            histograms = theirs.pop("histograms")
            assert {k: sum(v) for k, v in histograms.items()} == {k: sum(v) for k, v in gates["histograms"].items()}
            rest = {k: v for k, v in gates.items() if k not in ("lam", "histograms")}
            assert theirs == pytest.approx(rest, abs=2e-3), name
            assert outcome.top1 == pytest.approx(one.after.top1, abs=1e-3), name
            for a, b in zip(outcome.history, one.history, strict=True):
                if "train_loss" in b:
                    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3), name
    first, again = found["per sample"][0].weights, found["again"][0].weights
    assert all(torch.equal(first[key], again[key]) for key in first)
