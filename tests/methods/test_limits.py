"""Which groups may be cut, and how far: what limits mean for a network, and that every selection keeps to them."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sc
from secateurs.methods import Task
from secateurs.methods.select import Widths, select_within_budget
from secateurs.testing.networks import images, network


class Net(nn.Module):
    """A stem, a residual block, a grouped convolution, a head of two linear layers."""

    def __init__(self, a: int = 12, b: int = 20, c: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, a, 3, padding=1), nn.BatchNorm2d(a), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, a, 3, padding=1))
        self.deep = nn.Sequential(nn.Conv2d(a, c, 1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1, groups=2), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(c, c + 2), nn.ReLU(), nn.Linear(c + 2, 4))

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) → (N, 4)
        x = self.stem(x)
        x = F.relu(self.block(x) + x)
        return self.head(self.deep(x).mean((2, 3)))


@functools.cache
def made(*sizes: int) -> tuple[Net, Any]:
    torch.manual_seed(0)
    net = Net(*sizes).eval()
    return net, sc.trace(net, images(1))


NET, GRAPH = made()
SIZES = {g.name: g.size for g in GRAPH.groups}


def held(scope: str = "all", **limits: Any) -> set[str]:
    return {name for name, bound in sc.Limits(**limits).on(GRAPH, scope).items() if bound.held}


def bounds(scope: str = "all", **limits: Any) -> dict[str, tuple[int, int]]:
    return {name: (b.least, b.most) for name, b in sc.Limits(**limits).on(GRAPH, scope).items()}


def test_the_network() -> None:
    assert SIZES == {"stem.0": 12, "block.0": 20, "deep.0": 8, "deep.2": 8, "head.0": 18, "head.2": 4}


# -- what matches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exclude", "found"),
    [
        ("block.0", {"block.0"}),
        ("block.2", {"stem.0"}),  # a group has the names of all its producers
        (["block.0", "deep.*"], {"block.0", "deep.0", "deep.2"}),
        ("block", {"block.0", "stem.0"}),  # a module: all layers in it
        ("*.0", {"stem.0", "block.0", "deep.0", "head.0"}),
        ("h?ad.[02]", {"head.0", "head.2"}),
        (nn.Linear, {"head.0", "head.2", "deep.2"}),  # the last is read by one
        (nn.BatchNorm2d, {"stem.0"}),
        ((NET.block, NET.head[0]), {"block.0", "stem.0", "head.0"}),
        (lambda g: g.size == 8, {"deep.0", "deep.2"}),
        (lambda g: False, set()),
        ({"head.0"}, {"head.0"}),
        ((name for name in ("head.0", "deep.0")), {"head.0", "deep.0"}),
    ],
)
def test_exclude(exclude: Any, found: set[str]) -> None:
    assert held(exclude=exclude) == found


def test_only() -> None:
    assert held(only="block") == SIZES.keys() - {"block.0", "stem.0"}
    assert held(only=["block", nn.Linear], exclude="stem") == SIZES.keys() - {"block.0", "head.0", "head.2", "deep.2"}


def test_only_and_exclude_say_why() -> None:
    found = sc.Limits(only=["block", "deep"], exclude="deep.0").on(GRAPH)
    assert str(found["deep.0"].message) == "excluded by exclude='deep.0'"
    assert str(found["head.0"].message) == "not in only=('block', 'deep')"
    assert not {"block.0", "deep.2"} & found.keys()


def test_of_several_patterns_the_last_counts() -> None:
    assert bounds(ratios={"*": 0.5, "deep.*": 0.25, "deep.2": 0.75})["deep.0"] == (2, 2)
    assert bounds(ratios={"*": 0.5, "deep.*": 0.25, "deep.2": 0.75})["deep.2"] == (6, 6)
    assert bounds(min_channels={"*": 4, "block": 7}) == {"stem.0": (7, 12), "block.0": (7, 20), **{
        name: (4, SIZES[name]) for name in ("deep.0", "deep.2", "head.0")
    }}  # fmt: skip


def test_what_cannot_be_cut_is_not_bounded() -> None:
    assert "head.2" not in bounds(min_channels={"head": 3})  # it reaches the output
    assert bounds("internal", ratios={"block": 0.5})["block.0"] == (10, 10)


@pytest.mark.parametrize("scope", ["internal", "all"])
def test_what_a_ratio_does_not_reach_is_said(scope: Any) -> None:
    limits = sc.Limits(ratios={"*": 0.5}, exclude="deep.0")
    found = limits.on(GRAPH, scope)
    shortcut = {"stem.0"} if scope == "internal" else set()
    assert {name for name, bound in found.items() if bound.missed} == {"head.2"} | shortcut
    assert bounds(scope, ratios={"*": 0.5})["head.2"] == (1, 4)
    lines = [str(line) for line in Task(NET, GRAPH, None, scope, bounds=found).describe()]
    assert "deep.0: excluded by exclude='deep.0'" in lines
    assert "head.2: not reached by ratios={'*': 0.5}: it cannot be cut" in lines
    said = "stem.0: not reached by ratios={'*': 0.5}: it is on a shortcut, and only scope='all' cuts those"
    assert (said in lines) == (scope == "internal")


@pytest.mark.parametrize(("share", "kept"), [(0.5, 10), (0.51, 11), (0.01, 1), (3 / 20, 3), (1.0, 20), (1, 20)])
def test_a_ratio_is_rounded_up(share: float, kept: int) -> None:
    assert bounds(ratios={"block.0": share}) == {"block.0": (kept, kept)}


@pytest.mark.parametrize(("share", "least"), [(0.5, 10), (0.9, 2), (0.95, 1), (1.0, 1), (0.0, 20), (0.33, 14)])
def test_max_cut(share: float, least: int) -> None:
    assert bounds(max_cut={"block.0": share}) == {"block.0": (least, 20)}


def test_the_larger_of_two_bounds_counts() -> None:
    assert bounds(min_channels=6, max_cut=0.6)["block.0"] == (8, 20)
    assert bounds(min_channels=6, max_cut=0.8)["block.0"] == (6, 20)
    assert bounds(min_channels=100)["block.0"] == (20, 20)


# -- what is not valid ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"exclude": "blok"}, r"exclude='blok' matches no layer that makes channels. Did you mean block"),
        ({"only": ["block", "haed.*"]}, r"only='haed.\*' matches no layer .* Did you mean head"),
        (
            {"exclude": ["blok", "block"], "max_cut": {"haed": 0.5}},
            r"exclude='blok' matches no layer .* block.*\? max_cut=\{'haed': 0.5\} matches no layer .* Did you mean head",
        ),
        ({"ratios": {"blok.0": 0.5}}, r"ratios=\{'blok.0': 0.5\} matches no layer .* Did you mean block.0"),
        ({"exclude": "stem.1"}, r"exclude='stem.1' matches stem.1, which makes no channels of its own: name stem.0"),
        ({"exclude": "stem.2"}, r"matches stem.2, in which no layer makes channels"),
        ({"exclude": nn.LSTM}, r"exclude=LSTM matches no layer of the network"),
        ({"exclude": [NET.block, nn.Linear(3, 3)]}, "Linear matches no layer of the network"),
        ({"ratios": {"head.2": 0.5}}, r"has no effect: head.2 stays whole: reaches the model's output"),
        (
            {"ratios": {"deep": 0.5}, "exclude": "dee*"},
            r"ratios=\{'deep': 0.5\} has no effect: deep.0 is excluded by exclude='dee\*'",
        ),
        (
            {"ratios": {"deep.0": 0.1}, "min_channels": 4},
            r"ratios=\{'deep.0': 0.1\} keeps 1 of the 8 channels of deep.0, but it keeps at least 4 by min_channels=4",
        ),
    ],
)
def test_patterns_that_do_not_fit_the_network(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(sc.ConfigError, match=message):
        sc.Limits(**limits).on(GRAPH)


def test_a_ratio_on_a_shortcut_needs_the_scope() -> None:
    with pytest.raises(sc.ConfigError, match=r"stem.0 is on a shortcut, and only scope='all' cuts those"):
        bounds("internal", ratios={"stem": 0.5})
    assert bounds("all", ratios={"stem": 0.5}) == {"stem.0": (6, 6)}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"exclude": 3}, "exclude=3 is not valid: name layers"),
        ({"exclude": ["a", None]}, "exclude=None is not valid"),
        ({"exclude": ""}, "exclude='' is not valid"),
        ({"exclude": int}, "is not valid"),
        ({"exclude": {"fc": 0.5}}, "is not valid"),
        ({"only": []}, r"only=\(\) leaves nothing to cut"),
        (
            {"max_cut": "s.json"},
            r"max_cut='s\.json' is not valid: pass what is in the file\. Of a study, that is max_cut=sc\.Sens",
        ),
        ({"ratios": Path("s.json")}, r"ratios='s\.json' is not valid: .* ratios=sc\.Sensitivity\.load\('s\.json'\)\."),
        ({"ratios": 0.5}, r"ratios=0.5 is not valid: write \{pattern: fraction to keep\}"),
        ({"ratios": {"a": 0}}, r"ratios=\{'a': 0\} is not valid: it must be a fraction above 0, up to 1"),
        ({"ratios": {"a": 1.5}}, "must be a fraction above 0"),
        ({"ratios": {"a": True}}, "must be a fraction above 0"),
        ({"ratios": {"a": math.nan}}, "must be a fraction above 0"),
        ({"ratios": {3: 0.5}}, "ratios=3 is not valid"),
        ({"min_channels": 0}, "min_channels=0 is not valid: it must be a whole number of channels, 1 or more"),
        ({"min_channels": {"a": 2.5}}, r"min_channels=\{'a': 2.5\} is not valid"),
        ({"max_cut": 1.1}, "max_cut=1.1 is not valid: it must be a fraction from 0 to 1"),
        ({"max_cut": {"a": "x"}}, r"max_cut=\{'a': 'x'\} is not valid"),
    ],
)
def test_values_that_are_not_valid(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(sc.ConfigError, match=message):
        sc.Limits(**limits)
    with pytest.raises(sc.ConfigError, match=message):
        sc.prune(network(), images(), "l1", sc.Budget(macs=0.5), **limits)


def test_a_module_of_another_model() -> None:
    with pytest.raises(sc.ConfigError, match=r"exclude=… has a Linear that is not a module of this model"):
        sc.prune(NET, images(), "l1", sc.Budget(macs=0.5), exclude=nn.Linear(3, 3))


def test_limits_are_values() -> None:
    limits = sc.Limits(exclude=["a", nn.Linear], ratios={"b": 0.5}, min_channels=3, max_cut={"c": 1})
    assert limits == sc.Limits(**limits.options()) == copy.deepcopy(limits)
    assert bool(limits)
    assert not sc.Limits()
    assert sc.Limits().record() is None
    record = limits.record()
    assert (
        record
        == json.loads(json.dumps(record))
        == {
            "exclude": ["a", "torch.nn.modules.linear.Linear"],
            "ratios": {"b": 0.5},
            "min_channels": {"*": 3},
            "max_cut": {"c": 1.0},
        }
    )
    with pytest.raises(AttributeError):
        limits.exclude = ()  # type: ignore[misc]


# -- selections -------------------------------------------------------------------------------------------------------


def steps(low: int, high: int, size: int, align: int) -> list[int]:
    """The aligned widths from the one for `low` to the one for `high` channels."""
    up = [min(size, max(1, math.ceil(k / align)) * align) for k in (low, high)]
    return [k for k in sorted({*range(align, size, align), size}) if up[0] <= k <= up[1]]


@st.composite
def tasks(draw: Any) -> tuple[Any, Task, sc.Limits]:
    _, graph = made(draw(st.sampled_from([3, 8])), draw(st.sampled_from([4, 9])), draw(st.sampled_from([4, 6])))
    names = [g.name for g in graph.groups if g.prunable]
    some = st.lists(st.sampled_from(names), unique=True, max_size=2)
    share = st.floats(0.05, 1.0)
    limits = sc.Limits(
        exclude=draw(some),
        only=draw(st.one_of(st.none(), st.lists(st.sampled_from(names), min_size=2, unique=True))),
        ratios=draw(st.dictionaries(st.sampled_from(names), share, max_size=2)),
        min_channels=draw(
            st.one_of(st.none(), st.integers(1, 5), st.dictionaries(st.sampled_from(names), st.integers(1, 9)))
        ),
        max_cut=draw(st.one_of(st.none(), share, st.dictionaries(st.sampled_from(names), share))),
    )
    align = draw(st.sampled_from([1, 1, 2, 3]))
    budget = sc.Budget(**{draw(st.sampled_from(["macs", "params"])): draw(share)}, align=align)
    scope = draw(st.sampled_from(["internal", "all"]))
    try:
        found = limits.on(graph, scope)
    except sc.ConfigError:  # they contradict each other
        assume(False)
    return graph, Task(NET, graph, budget, scope, bounds=found), limits


def selections(task: Task, limits: sc.Limits) -> Iterator[tuple[int, ...]]:
    """All widths of all groups that the limits allow, worked out from their definition, without a budget."""
    every = []
    budget = task.budget
    assert budget is not None
    excluded = set(limits.exclude)
    for g in task.graph.groups:
        free = g.prunable and (task.scope == "all" or g.internal)
        out = g.name in excluded or (limits.only is not None and g.name not in limits.only)
        least = 1
        for pattern, n in limits.min_channels:
            if pattern in ("*", g.name):
                least = min(g.size, n)
        for pattern, x in limits.max_cut:
            if pattern in ("*", g.name):
                least = max(least, math.ceil(g.size * (1 - x) - 1e-9))
        ratio = dict(limits.ratios).get(g.name)
        kept = None if ratio is None else max(1, math.ceil(g.size * ratio - 1e-9))
        if not free or out:
            every.append([g.size])
        elif kept is not None:
            every.append(steps(kept, kept, g.size, budget.align))
        else:
            every.append(steps(least, g.size, g.size, budget.align))
    return itertools.product(*every)


@settings(max_examples=100, deadline=None)
@given(tasks(), st.randoms())
def test_every_selection_keeps_to_the_limits_and_the_budget(drawn: Any, random: Any) -> None:
    graph, task, limits = drawn
    budget, base = task.budget, graph.cost()
    allowed = {k: graph.cost(np.array(k)) for k in selections(task, limits)}
    fitting = {k for k, cost in allowed.items() if budget.allows(cost, base)}
    w = task.widths
    if not w.groups:  # nothing may be cut
        assert len(allowed) == 1
        with pytest.raises(sc.BudgetError):
            w.check()
        return
    if not fitting:
        with pytest.raises(sc.BudgetError) as caught:
            w.check()
        lowest = sc.Budget(**caught.value.lowest, align=budget.align)  # can be met, and nothing below it
        assert any(lowest.allows(cost, base) for cost in allowed.values())
        return
    w.check()
    scores = {g.name: np.array([random.random() for _ in range(g.size)]) for g in w.groups}
    found = select_within_budget(w, scores)
    kept = tuple(len(found.get(g.name, range(g.size))) for g in graph.groups)
    assert kept in fitting
    assert not [k for k in fitting if k != kept and all(a >= b for a, b in zip(k, kept, strict=True))]
    task.check_kept(graph.plan(found), "it")


def test_the_floor_gives_way_where_the_user_says_how_far() -> None:
    def least(**limits: Any) -> int:
        """Of block.0's 20 channels, at a budget that would allow the default floor, 2."""
        found = sc.Limits(**limits).on(GRAPH)
        return int(Widths(GRAPH, [GRAPH["block.0"]], sc.Budget(macs=0.9), bounds=found).least[0])

    assert least() == 2
    assert least(max_cut=1.0) == least(max_cut={"block.*": 0.95}) == 1
    assert least(max_cut=0.5) == 10
    assert least(min_channels=1) == 2  # no more than that; the floor holds
    assert least(min_channels=5) == 5
    assert least(ratios={"block.0": 0.05}) == 1


def test_an_explicit_bound_does_not_give_way_to_the_budget() -> None:
    budget = sc.Budget(GRAPH.cost({g.name: 1 for g in GRAPH.groups if g.prunable}).macs)
    low = sc.prune(NET, images(1), "l1", budget, scope="all")
    assert set(map(len, low.plan.groups.values())) == {1}
    for limits in ({"min_channels": 4}, {"max_cut": 0.5}, {"ratios": {"block.0": 0.5}}, {"exclude": "block.0"}):
        with pytest.raises(sc.BudgetError, match=rf"{next(iter(limits))}=\S+.* limits what may be cut") as caught:
            sc.prune(NET, images(1), "l1", budget, scope="all", **limits)
        lowest = sc.Budget(**caught.value.lowest)
        result = sc.prune(NET, images(1), "l1", lowest, scope="all", **limits)
        assert lowest.allows(sc.count(result.model, images(1)), GRAPH.cost())


def test_nothing_is_left_to_cut() -> None:
    with pytest.raises(sc.BudgetError, match=r"^exclude='\*' leaves no channel group to cut. See"):
        sc.prune(NET, images(), "l1", sc.Budget(macs=0.5), exclude="*")
    with pytest.raises(sc.BudgetError, match=r"only='stem' leaves no channel group to cut.* scope='all' may help"):
        sc.prune(NET, images(), "l1", sc.Budget(macs=0.5), only="stem")


def test_ratios_take_the_place_of_a_budget() -> None:
    result = sc.prune(NET, images(), "l2", ratios={"block.0": 0.5})
    assert {name: len(kept) for name, kept in result.plan.groups.items()} == {"block.0": 10}
    with pytest.raises(sc.ConfigError, match="l2 needs a budget"):
        sc.prune(NET, images(), "l2", exclude="block.0")
    with pytest.raises(sc.ConfigError, match="l2 needs a budget"):
        sc.prune(NET, images(), "l2", ratios={"block.0": 1.0})


def test_a_methods_own_setting_decides_about_the_rest() -> None:
    """Without a budget; a setting that is left at its default decides nothing."""
    net = network("residual")
    ratios = {"blocks.0": 0.5}
    for method in (sc.EPruner(beta=50.0), sc.OneStep(rate=2)):
        data = [(images(8), torch.arange(8) % 4)]
        options = {"data": data, "progress": "silent"} if isinstance(method, sc.OneStep) else {}
        free = sc.prune(net, images(), method, **options)
        left = sc.prune(net, images(), method, ratios=ratios, **options)
        assert len(left.plan.groups["blocks.0.0"]) == 8
        assert left.plan.groups.get("blocks.1.0") == free.plan.groups.get("blocks.1.0")


def test_a_method_that_ignores_them_is_refused() -> None:
    class First(sc.Method):
        def select(self, task: Task) -> Any:
            return {"block.0": [0, 1, 2]}

    for limits, message in (
        ({"exclude": "block.0"}, r"keeps 3 of the 20 channels of block.0 \(excluded by exclude='block.0'\)"),
        ({"min_channels": 4}, r"channels of block.0 \(keeps at least 4 by min_channels=4\)"),
        ({"ratios": {"block.0": 0.1}}, r"channels of block.0 \(keeps 2 by ratios=\{'block.0': 0.1\}\)"),
    ):
        with pytest.raises(sc.ConfigError, match=message):
            sc.prune(NET, images(), First(), sc.Budget(macs=0.9), **limits)


def test_a_run_resumes_with_the_same_limits_only(tmp_path: Path) -> None:
    """What they mean for the groups counts, so that another function of the same name is noticed."""

    def prune(name: str, resume: bool) -> sc.Result:
        return sc.prune(
            network(), images(), sc.OneStep(epochs=2), sc.Budget(macs=0.7), [(images(8), torch.arange(8) % 4)],
            exclude=lambda group: group.name == name, folder=tmp_path, resume=resume, progress="silent", save_steps=1,
        )  # fmt: skip

    plan = prune("stem.0", False).plan
    assert prune("stem.0", True).plan.groups == plan.groups
    with pytest.raises(sc.ConfigError, match="another run, which differs in limits"):
        prune("conv1", True)


def test_none_is_no_limit() -> None:
    assert sc.Limits(None, None, None, None, None) == sc.Limits()


def test_in_a_loop_of_ones_own() -> None:
    for method in ("npn", "aofp", "onestep", "pff"):
        net, (x, y) = network().train(), (images(8), torch.arange(8) % 4)
        pruner = sc.attach(
            net, x[:1], method, sc.Budget(macs=0.55), steps=2, epoch_steps=1, data=[(x, y)], scope="internal",
            exclude="stem", ratios={"conv1": 0.5},
        )  # fmt: skip
        for _ in range(2):
            (F.cross_entropy(net(x), y) + pruner.penalty()).backward()
            pruner.step()
        left = pruner.plan().groups
        assert "stem.0" not in left
        assert len(left["conv1"]) == 20


def test_a_budget_that_has_nothing_to_decide_is_told() -> None:
    model, x = sc.build("zoo:small_cnn").eval(), torch.zeros(1, 3, 32, 32)
    groups = [g.name for g in sc.trace(model, x).groups if g.prunable and g.internal]
    options = {"check_speed": False, "progress": "silent"}
    every, one = dict.fromkeys(groups, 0.5), {groups[0]: 0.5}
    (line,) = sc.prune(model, x, "l2", sc.Budget(macs=0.8), ratios=every, **options).warnings
    assert line.startswith("The ratios fix how much of each group is kept, so the budget had nothing to decide: ")
    assert sc.prune(model, x, "l2", sc.Budget(macs=0.6), ratios=one, **options).warnings == ()
    assert sc.prune(model, x, "l2", ratios=every, **options).warnings == ()
