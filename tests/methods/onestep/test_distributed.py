"""Learning β, mimicking and distilling on two processes with half of each batch is doing so on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateurs as sc
from tests.processes import on_two
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


def case(name: str, _rank: int, _world: int, folder: Path) -> sc.Result:
    return prune(folder.with_name("run"), resume=name == "again")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    found = on_two(f"{__name__}:case", ["first", "again"], tmp_path)
    one = prune()
    for first, again in zip(found["first"], found["again"], strict=True):
        assert first.plan == one.plan.to_json()
        (theirs,), (ours,) = ([h for h in hs if h.get("event") == "crucial"] for hs in (first.history, one.history))
        assert theirs["nodes"] == ours["nodes"]
        assert theirs["scores"] == pytest.approx(ours["scores"], abs=1e-5)
        for a, b in zip(first.history, one.history, strict=True):
            assert a.get("phase") == b.get("phase")
            assert a.get("train_loss", 0) == pytest.approx(b.get("train_loss", 0), rel=1e-3)
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(first.weights[name], value, rtol=1e-3, atol=1e-4, msg=f"{name}: {{}}".format)
            assert torch.equal(first.weights[name], again.weights[name])
