"""Groups of which two channels must stay: plans, costs, budgets, limits and methods keep to it, and users see why."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.cli.inspect import _record, _verdict, lowest
from secateurs.methods import Limits, Task
from secateurs.methods.registry import resolve
from secateurs.plans import Plan


class Squeezed(nn.Module):
    """A forward that squeezes the channels of `b` if there is a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.nb = nn.Conv2d(6, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.na(self.a(x)).relu()
        x = self.nb(self.b(x)).relu()
        return self.head(x.mean((2, 3), keepdim=True).squeeze())


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Squeezed().eval()


@pytest.fixture
def graph(model: nn.Module) -> sc.PrunableGraph:
    return sc.trace(model, x())


def x(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_plans_and_costs_below_it_are_refused(model: nn.Module, graph: sc.PrunableGraph) -> None:
    assert {g.name: g.least for g in graph.groups} == {"a": 1, "b": 2, "head": 1}
    with pytest.raises(
        sc.PlanError, match=r"1 of the 16 channels of group b, which needs at least 2: .*test_least.py:"
    ):
        graph.plan({"b": [3]})
    with pytest.raises(sc.PlanError, match=r"an integer in 2…16, not 1 \(the code does not work with a single channel"):
        graph.cost({"b": 1})
    plan = graph.plan({"a": [0], "b": [3, 9]})
    assert sc.verify(model, plan, x()) <= 1e-5
    assert sc.count(sc.apply(model, plan), x()) == graph.cost({"a": 1, "b": 2})


def test_a_plan_carries_it(model: nn.Module, graph: sc.PrunableGraph) -> None:
    plan = graph.plan({"a": [0], "b": [3, 9]})
    assert plan.least == {"b": 2}
    assert Plan.from_json(plan.to_json()) == plan
    assert "least" not in json.loads(graph.plan({"a": [0]}).to_json())  # as before
    kept = {p: {a: (3,) if i == (3, 9) else i for a, i in axes.items()} for p, axes in plan.kept.items()}
    narrow = dataclasses.replace(plan, groups={**plan.groups, "b": (3,)}, kept=kept)
    for refused in (
        lambda: sc.apply(model, narrow),
        lambda: sc.cut_(model, narrow),
        lambda: Plan.from_json(narrow.to_json()),
    ):
        with pytest.raises(sc.PlanError, match="keeps 1 of the channels of group b, which needs at least 2"):
            refused()


def test_limits_and_budgets(model: nn.Module, graph: sc.PrunableGraph) -> None:
    task = Task(model, graph, sc.Budget(macs=0.5))
    assert task.widths.lowest.tolist() == [1, 2]
    assert task.widths.above(0.0).tolist() == [1, 2]
    bottom = task.widths.cost(np.array([1, 2])).macs
    Task(model, graph, sc.Budget(macs=bottom)).widths.check()
    with pytest.raises(sc.BudgetError):
        Task(model, graph, sc.Budget(macs=bottom - 1)).widths.check()
    for limits in (Limits(ratios={"*": 0.01}), Limits(min_channels=1), Limits(max_cut=1.0)):
        bounds = limits.on(graph)
        assert (bounds["a"].least, bounds["b"].least) == (1, 2)
        assert Task(model, graph, None, bounds=bounds).widths.lowest.tolist() == [1, 2]


@pytest.mark.parametrize("name", sc.methods())
def test_every_method_keeps_to_it(name: str, model: nn.Module, graph: sc.PrunableGraph) -> None:
    """At the lowest budget that there is."""
    task = Task(model, graph, sc.Budget(macs=0.5))
    budget = sc.Budget(macs=task.widths.cost(task.widths.lowest).macs)
    settings = {"oracle": {"examples": 8, "granularity": 4}}
    trains = {"npn", "aofp", "onestep", "pff"}
    chosen = resolve(name, **({"epochs": 1} if name in trains else settings.get(name, {})))
    batches = [(x(8), torch.arange(8) % 5)] * 4
    result = sc.prune(model, x(), chosen, budget, sc.Data(batches, batches[:1]), progress=False)
    widths = {n: len(k) for n, k in result.plan.groups.items()}
    assert widths == {"a": 1, "b": 2} or (chosen.cuts == "stripes" and widths["b"] > 2)


def test_inspect_shows_it(graph: sc.PrunableGraph) -> None:
    assert lowest(graph, "all") == graph.cost({"a": 1, "b": 2})
    assert _verdict(graph["b"], None).startswith("yes, keeps at least 2: the code does not work with a single channel")
    assert _verdict(graph["a"], None) == "yes"
    groups = {g["name"]: g for g in _record("squeezed", [[3, 8, 8]], graph, {}, {})["groups"]}
    assert [groups[name]["least"] for name in "ab"] == [1, 2]
    assert groups["a"]["least_reason"] is None
    assert "test_least.py:" in groups["b"]["least_reason"]


def test_another_scope_is_no_way_out_of_a_least_width() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)
            self.head = nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.head(x + self.c(self.b(x).relu()))

    net = Residual().eval()
    with pytest.raises(sc.BudgetError, match=r"min_channels=8 leaves no channel group to cut") as refused:
        sc.prune(net, x(), "l1", sc.Budget(macs=0.5), scope="internal", min_channels=8)
    assert "scope" not in str(refused.value)
    with pytest.raises(sc.BudgetError, match=r"scope='all' may help"):
        sc.prune(net, x(), "l1", sc.Budget(macs=0.5), scope="internal", min_channels={"b": 8})


class Bare(nn.Module):
    """Branches that ask for their widths; the code of one raises where a single channel is left."""

    def __init__(self, one: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, 6 + i, 3, padding=1) for i in range(6))
        self.heads = nn.ModuleList(nn.Linear(6 + i, 4) for i in range(6))
        self.one = one

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) → (N, 4)
        out = x.new_zeros(len(x), 4)
        for i, (part, head) in enumerate(zip(self.parts, self.heads, strict=True)):
            y = part(x).mean((2, 3))  # (N, C)
            channels = [*range(y.shape[1])]
            out = out + head(y) * bool(channels if i != self.one else channels[1])
        return out


@pytest.mark.parametrize("one", range(6))
def test_every_group_in_doubt_is_tried_with_a_single_channel(one: int) -> None:
    torch.manual_seed(0)
    graph = sc.trace(Bare(one).eval(), x())
    assert [graph[f"parts.{i}"].least for i in range(6)] == [1 + (i == one) for i in range(6)]
