"""torch-pruning in a comparison: the channels that it chooses are those that it cuts."""

from __future__ import annotations

import pytest
import torch

import secateurs as sc
from secateurs.methods.method import Task
from secateurs.studies.comparison.peers import TorchPruning
from tests.studies.comparing import batches, run, tiny

pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.filterwarnings("ignore")  # its own


@pytest.mark.parametrize("importance", ["group-l2", "fpgm", "taylor"])
def test_its_selection_is_its_cut(importance: str) -> None:
    torch.manual_seed(0)
    model, x = tiny(width=16).eval(), torch.randn(1, 3, 8, 8)
    graph, method = sc.trace(model, x), TorchPruning(importance=importance)
    task = Task(model, graph, sc.Budget(macs=0.5), "all", batches(), 0, x)
    selection = method.select(task)
    small, own = sc.apply(model, selection.plan(graph)), method.cut(task)
    assert 0.35 < sc.count(small, x).macs / sc.count(model, x).macs <= 0.5
    for name, value in own.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value)
    assert all(p.grad is None and p.requires_grad for p in own.parameters())


def test_its_own_cut_trains_what_the_network_trains() -> None:
    model, x = tiny(width=16).eval(), torch.randn(1, 3, 8, 8)
    next(model.children()).requires_grad_(False)
    task = Task(model, sc.trace(model, x), sc.Budget(macs=0.5), "all", None, 0, x)
    frozen = [name for name, p in TorchPruning().cut(task).named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight", "0.bias"]


def test_both_ways_in_a_comparison() -> None:
    pytest.importorskip("sklearn")
    names = ["torch-pruning:group-l2", "torch-pruning:group-l2:own"]
    found = run(None, methods=names, budgets=[0.5], seeds=1)
    ours, own = found.rows
    assert ours.failed == own.failed == ()
    assert (ours.macs, ours.cut) == (own.macs, own.cut)
    assert ours.calibrated is not None
    assert own.calibrated is None
    assert ours.passes.mean == pytest.approx(2, abs=0.01)
    assert own.passes.mean == pytest.approx(2, abs=0.01)
    assert found.cells[1].figures["recovery"][0]["share"] == 0
