"""Of two processes the first reconstructs, and both have the same network: that of one process alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateurs as sc
from tests.processes import on_two
from tests.test_resume_prune import loader


def prune(recover: sc.Reconstruct) -> sc.Result:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sc.build("zoo:small_cnn", num_classes=4)
    return sc.prune(
        model, torch.zeros(1, 3, 32, 32), "l1", sc.Budget(macs=0.5), data=loader(), recover=recover, calibrate=False,
        progress="silent", device="cpu",
    )  # fmt: skip


def case(name: str, rank: int, _world: int, _folder: Path) -> sc.Result:
    if name == "fails":
        with pytest.raises(
            Exception, match="no such network" if rank == 0 else "first process: ValueError: no such network"
        ):
            failing()
        return prune(sc.Reconstruct(images=16))
    return prune(sc.Reconstruct(images=48))


def failing() -> None:
    from secateurs.recovery.reconstruct.phase import _shared

    def work() -> list[dict[str, object]]:
        raise ValueError("no such network")

    _shared(torch.nn.Linear(1, 1), work)


@pytest.mark.slow
def test_two_processes_have_the_network_of_one(tmp_path: Path) -> None:
    found = on_two(f"{__name__}:case", ["works", "fails"], tmp_path)
    one = prune(sc.Reconstruct(images=48))
    a, b = found["works"]
    for name, value in one.model.state_dict().items():
        assert torch.equal(a.weights[name], b.weights[name])
        torch.testing.assert_close(a.weights[name], value, rtol=1e-4, atol=1e-5)
    ours, theirs = ([entry["layers"] for entry in x.history if "layers" in entry] for x in (a, b))
    assert ours == theirs != []
