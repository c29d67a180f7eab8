"""From scores to widths, against trying every selection."""

from __future__ import annotations

import functools
import itertools
import re
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateurs as sc
from secateurs.methods import select
from secateurs.methods.registry import resolve
from secateurs.methods.select import Widths, fill, select_within_budget

SIZES = (4, 6, 3)


@functools.cache
def graph() -> sc.ChannelGraph:
    a, b, c = SIZES
    net = nn.Sequential(
        *(nn.Conv2d(3, a, 3), nn.ReLU(), nn.Conv2d(a, b, 3), nn.ReLU(), nn.Conv2d(b, c, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 5)),
    )
    return sc.trace(net, torch.zeros(1, 3, 9, 9))


def widths(budget: sc.Budget) -> Widths:
    return Widths(graph(), [g for g in graph().groups if g.prunable], budget)


def every(step: int) -> list[tuple[int, ...]]:
    """All widths that there are: whole steps, or the whole group."""
    return list(itertools.product(*[sorted({*range(step, n, step), n}) for n in SIZES]))


budgets = st.builds(
    sc.Budget,
    macs=st.one_of(st.floats(0.3, 1.0), st.integers(5_000, 40_000)),
    params=st.one_of(st.none(), st.floats(0.3, 1.0)),
    align=st.sampled_from([1, 1, 2, 3, 4]),
)
score = st.one_of(st.integers(0, 5).map(float), st.floats(-1, 1))
scores = st.tuples(*[st.lists(score, min_size=n, max_size=n) for n in SIZES])


@settings(max_examples=300, deadline=None)
@given(budgets, scores)
def test_meet(budget: sc.Budget, drawn: tuple[list[float], ...]) -> None:
    w = widths(budget)
    base = graph().cost()
    fitting = [k for k in every(budget.align) if budget.allows(w.cost(np.array(k)), base)]
    if not fitting:
        with pytest.raises(sc.BudgetError):
            w.check()
        return
    w.check()
    values = {g.name: np.array(s) for g, s in zip(w.groups, drawn, strict=True)}
    found = select_within_budget(w, values)
    kept = tuple(len(found[g.name]) for g in w.groups)

    assert kept in fitting  # never over, never empty, aligned
    larger = [k for k in fitting if k != kept and all(a >= b for a, b in zip(k, kept, strict=True))]
    assert not larger  # no channel more of any group, nor of several
    for name, index in found.items():
        assert (np.diff(index) > 0).all()
        gone = np.setdiff1d(np.arange(len(values[name])), index)
        if len(gone):
            assert values[name][index].min() >= values[name][gone].max()  # the best of each group stay


@functools.cache
def wider() -> sc.ChannelGraph:
    """Groups wide enough for a floor of several channels."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 47, 3), nn.ReLU(), nn.Conv2d(47, 32, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
    )
    return sc.trace(net, torch.zeros(1, 3, 9, 9))


def widest(budget: sc.Budget | None, **options: float) -> Widths:
    return Widths(wider(), [g for g in wider().groups if g.prunable], budget, **options)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.002, 1.0), st.sampled_from(["macs", "params"]), st.sampled_from([1, 2, 4, 7]), st.randoms())
def test_no_group_is_below_its_floor_if_the_budget_allows_it(
    limit: float, kind: str, align: int, random: Random
) -> None:
    budget = sc.Budget(**{kind: limit}, align=align)  # type: ignore[arg-type]
    w, free = widest(budget), widest(budget, floor=0.0)
    if not free.fits(free.least):  # not by any selection, and the floor doesn't change that
        with pytest.raises(sc.BudgetError):
            w.check()
        return
    w.check()
    # One group's scores are all below the others': without a floor it would be left with one step.
    low = random.choice(w.groups).name
    scores = {g.name: np.array([random.random() - 9 * (g.name == low) for _ in range(g.size)]) for g in w.groups}
    found = select_within_budget(w, scores)
    kept = np.array([len(found[g.name]) for g in w.groups])

    assert w.fits(kept)
    assert ((kept % align == 0) | (kept == w.sizes)).all()
    for i in np.flatnonzero(kept < w.sizes):  # one more step of any group would be over
        more = kept.copy()
        more[i] = min(more[i] + align, w.sizes[i])
        assert not w.fits(more)
    tenth = np.minimum(w.sizes, -(-np.array([-(-n // 10) for n in w.sizes.tolist()]) // align) * align)
    if w.fits(tenth):
        assert (kept >= tenth).all()
    else:  # lowered for all alike, and no further than needed
        assert (kept >= w.least).all()
        assert w.fits(w.least)
        shares = [k / n for n in w.sizes.tolist() for k in range(n + 1) if (w.least < w.above(k / n)).any()]
        assert not w.fits(w.above(min(shares)))


def test_the_floor_is_a_tenth_of_each_group() -> None:
    assert widest(sc.Budget(macs=0.5)).least.tolist() == [2, 5, 4]
    assert widest(sc.Budget(macs=0.5, align=4)).least.tolist() == [4, 8, 4]
    assert widest(sc.Budget(macs=0.5), floor=0.2).least.tolist() == [4, 10, 7]
    assert widest(None).least.tolist() == [1, 1, 1]  # a method's own threshold decides


def test_the_floor_leaves_the_lowest_budget_as_it_is() -> None:
    lowest = widest(sc.Budget(macs=0.5)).cost(np.ones(3, dtype=np.int64)).macs
    tightest = widest(sc.Budget(macs=lowest))
    tightest.check()
    assert tightest.least.tolist() == [1, 1, 1]
    with pytest.raises(sc.BudgetError):
        widest(sc.Budget(macs=lowest - 1)).check()


@pytest.mark.parametrize("figure", ["macs", "params"])
def test_what_keeps_a_budget_from_being_met_is_named(figure: str) -> None:
    """And the lowest without it, which is what there is then."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3),
        nn.GroupNorm(2, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).eval()  # fmt: skip
    x, budget = torch.randn(1, 3, 12, 12), sc.Budget(**{figure: 0.05})
    with pytest.raises(sc.BudgetError) as caught:
        sc.prune(net, x, "l2", budget)
    said = "0, 5 cannot be cut: inexact: group norm computes its statistics over channels (allow_inexact=True allows the cut). "
    said += f"Without that, the lowest would be about {figure}="
    assert said in str(caught.value)
    without = float(str(caught.value).rpartition("=")[2].rstrip("."))
    with pytest.raises(sc.BudgetError) as caught:
        sc.prune(net, x, "l2", sc.Budget(**{figure: 0.01}), allow_inexact=True)
    assert caught.value.lowest == {figure: without}
    assert "cannot be cut" not in str(caught.value)


@pytest.mark.parametrize("method", ["l2", "bn-scale", "epruner", "oracle", "aofp", "npn", "onestep"])
def test_every_method_keeps_the_floor(method: str) -> None:
    """Even for a layer whose channels all look useless to it."""
    torch.manual_seed(0)
    conv = [
        layer for i, o in ((3, 20), (20, 40), (40, 30)) for layer in (nn.Conv2d(i, o, 3), nn.BatchNorm2d(o), nn.ReLU())
    ]
    net = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(30, 5))
    with torch.no_grad():
        net[3].weight *= 1e-6
        net[4].weight *= 1e-6
    x = torch.randn(16, 3, 9, 9)
    batches = [(x, torch.arange(16) % 5)] * 4
    settings = {"oracle": {"examples": 16, "granularity": 16}, "l2": {}, "bn-scale": {}, "epruner": {}}.get(
        method, {"epochs": 1}
    )
    chosen = resolve(method, **settings)
    result = sc.prune(net, x[:2], chosen, sc.Budget(macs=0.3), sc.Data(batches, batches[:1]), progress=False)
    widths = {name: len(k) for name, k in result.plan.groups.items()}
    assert all(widths.get(g.name, g.size) >= -(-g.size // 10) for g in sc.trace(net, x[:2]).groups)


def test_the_lowest_scores_go_first_whatever_their_group() -> None:
    """Without alignment, what is cut beyond the budget's need is only what did not fit back."""
    w = widths(sc.Budget(macs=0.6))
    values = {g.name: np.linspace(1, 2, g.size) for g in w.groups}
    values[w.groups[1].name] = np.linspace(0, 0.1, SIZES[1])  # all of the second group is worse than all else
    kept = select_within_budget(w, values)
    assert [len(kept[g.name]) for g in w.groups][::2] == [SIZES[0], SIZES[2]]
    assert len(kept[w.groups[1].name]) < SIZES[1]


def test_equal_scores_keep_the_first_channels() -> None:
    w = widths(sc.Budget(macs=0.5))
    for index in select_within_budget(w, {g.name: np.zeros(g.size) for g in w.groups}).values():
        assert index.tolist() == list(range(len(index)))


def test_no_budget_keeps_all() -> None:
    w = Widths(graph(), [g for g in graph().groups if g.prunable], None)
    assert [len(v) for v in select_within_budget(w, {g.name: np.zeros(g.size) for g in w.groups}).values()] == list(
        SIZES
    )


def test_a_network_that_is_within_the_budget_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a latency model, networks that are cut a little may take longer than the whole one."""
    w = widths(sc.Budget(macs=0.5))
    monkeypatch.setattr(w, "fits", lambda kept: bool((kept == w.sizes).all() or (kept <= w.sizes // 2).all()))
    scores = {g.name: np.arange(g.size, dtype=float) for g in w.groups}
    assert [len(kept) for kept in select_within_budget(w, scores).values()] == list(SIZES)


def test_fill_gives_to_the_most_worthy_first() -> None:
    w = widths(sc.Budget(macs=0.5))
    low = np.ones(3, dtype=np.int64)
    for first in range(3):
        kept = low.copy()
        fill(w, kept, [np.full(n, float(i == first)) for i, n in enumerate(SIZES)])
        only = low.copy()  # as much of that group as fits beside one channel of each other
        while only[first] < SIZES[first] and w.fits(only + np.eye(3, dtype=np.int64)[first]):
            only[first] += 1
        assert kept[first] == only[first]


def test_nothing_to_cut() -> None:
    empty = Widths(graph(), [], sc.Budget(macs=0.5))
    with pytest.raises(sc.BudgetError, match="No channel group is prunable"):
        empty.check()


def refusal(budget: sc.Budget, scope: str = "all") -> str:
    groups = [g for g in graph().groups if g.prunable]
    with pytest.raises(sc.BudgetError) as caught:
        Widths(graph(), groups if scope == "all" else groups[:1], budget).check()
    return str(caught.value)


def test_another_scope_is_named_where_it_would_help() -> None:
    assert "scope='all' may allow less" in refusal(sc.Budget(macs=0.001), "internal")
    assert "scope" not in refusal(sc.Budget(macs=0.001))
    nothing = sc.trace(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 2, 2))
    with pytest.raises(
        sc.BudgetError, match=r"mostly because: reaches the model's output\. See `secateurs inspect`\.$"
    ):
        Widths(nothing, [], sc.Budget(macs=0.5)).check()


def test_alignment_is_named_where_it_is_in_the_way() -> None:
    named = re.search(r"align=2 sets this limit: with align=1 the lowest is macs=([\d.]+) or params=([\d.]+)\.$",
                      refusal(sc.Budget(macs=0.05, align=2)))  # fmt: skip
    assert named is not None
    widths(sc.Budget(macs=float(named[1]))).check()
    widths(sc.Budget(params=float(named[2]))).check()
    for step in (6, 100):
        told = refusal(sc.Budget(macs=0.9, align=step))
        assert f"align={step} is too coarse: no group has more than 6 channels, so none can be cut." in told
    widths(sc.Budget(macs=1.0, align=100)).check()


def test_alignment_where_there_is_nothing_to_align() -> None:
    """A method that cuts stripes can meet a budget without a prunable group."""
    least = graph().cost(np.ones(len(graph().groups), dtype=np.int64))
    Widths(graph(), [], sc.Budget(macs=0.9, align=2)).check(lowest=least)


class _Linear:
    """Widths of two groups without a staircase: a channel of the first costs ten times as much as one of the second."""

    step, sizes, least = np.array([4, 4]), np.array([32, 32]), np.array([4, 4])
    most, price = sizes, np.array([10.0, 1.0])
    base = 0.0
    groups = ({}, {})  # without layers in which they meet

    def __init__(self, limit: float) -> None:
        self.graph = SimpleNamespace(clock=object())
        self.budget = SimpleNamespace(
            needs_target=True, limits=lambda base: limit, figures=lambda cost: np.array([float(cost)])
        )

    def cost(self, widths: np.ndarray) -> float:
        return float((self.price * widths).sum())

    def fits(self, widths: np.ndarray) -> bool:
        return self.cost(widths) <= self.budget.limits(None)


def test_without_a_staircase_the_knapsack_keeps_what_the_scores_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not trade costly channels for cheap ones: how much costs count is the ranking's business."""
    monkeypatch.setattr(select, "_pairs", lambda widths: [])
    worth = [np.linspace(1, 0, 32, endpoint=False), np.linspace(1, 0, 32, endpoint=False)]
    kept = np.array([16, 16])
    widths = _Linear(limit=176.0)
    assert widths.fits(kept)
    assert select.on_edges(widths, kept.copy(), worth).tolist() == kept.tolist()  # type: ignore[arg-type]
