"""What every pruning method must do, as checks that take a method's name. `test_conformance.py` runs all on all.

A method that registers is picked up by itself. To check one of your own: `for check in CHECKS.values(): check("mine")`.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.channels.inputs import call, tensors
from secateurs.methods.method import Criterion, Method, Task, resolve
from tests.networks import randomise

# Settings that make a method quick on tiny data; those that a method does not have are left out.
QUICK: dict[str, Any] = {"epochs": 1, "steps": 4}
QUICK_OF: dict[str, dict[str, Any]] = {}  # by method, where that is not enough

Check = Callable[[str], None]
CHECKS: dict[str, Check] = {}


def check(f: Check) -> Check:
    CHECKS[f.__name__.removeprefix("check_")] = f
    return f


# -- tiny networks and data --------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A stem and two residual blocks."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width + 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(width + 4),
                nn.ReLU(),
                nn.Conv2d(width + 4, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for block in self.blocks:
            x = F.relu(block(x) + x)
        return self.fc(x.mean((2, 3)))


def depthwise() -> nn.Module:
    """Two separable convolutions: a depthwise one goes along with the pointwise one before it."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 20, 1, bias=False), nn.BatchNorm2d(20), nn.ReLU()),
        *(nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False), nn.BatchNorm2d(20), nn.ReLU()),
        *(nn.Conv2d(20, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "small_cnn": lambda: sc.build("zoo:small_cnn", num_classes=4),
    "residual": Residual,
    "depthwise": depthwise,
}


def network(name: str = "small_cnn", seed: int = 0) -> nn.Module:
    """As if trained: no weight and no statistic is at its initial value."""
    torch.manual_seed(seed)
    return randomise(NETWORKS[name](), seed).eval()


def images(n: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def data(batches: int = 2, rows: int = 8) -> sc.Data:
    def made(seed: int) -> tuple[Tensor, Tensor]:
        return images(rows, seed), torch.randint(0, 4, (rows,), generator=torch.Generator().manual_seed(seed))

    return sc.Data(train=[made(i) for i in range(batches)], val=[made(100)])


def configured(name: str, **settings: Any) -> Method:
    """A method by its name, quick."""
    wanted = {**QUICK, **QUICK_OF.get(name, {})}
    known = type(resolve(name)).model_fields
    return resolve(name, **{k: v for k, v in wanted.items() if k in known}, **settings)


def needs_data(name: str) -> bool:
    model = network()
    try:
        resolve(name).check(Task(model, sc.trace(model, images(1)), sc.Budget(macs=0.5)))
    except sc.ConfigError:
        return True
    return False


def prune(name: str, model: nn.Module, budget: sc.Budget, **options: Any) -> sc.Result:
    options = {"data": data() if _needs_data(name) else None, "scope": "internal", **options}
    if options["data"] is not None:
        options.setdefault("progress", "silent")
    return sc.prune(model, images(), configured(name), budget, **options)


_needs_data = functools.lru_cache(maxsize=None)(needs_data)


# -- what is checked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """Everything of a model that pruning must leave alone."""

    tensors: dict[str, Tensor]
    rest: list[Any]

    @classmethod
    def of(cls, model: nn.Module) -> State:
        kept = {k: v.detach().clone() for k, v in [*model.named_parameters(), *model.named_buffers()]}
        hooks = [len(v) for m in model.modules() for k, v in vars(m).items() if k.endswith("_hooks")]
        rest = [
            [(n, type(m), m.training) for n, m in model.named_modules()],
            [(n, id(p), p.requires_grad, p.grad is None) for n, p in model.named_parameters()],
            hooks,
        ]
        return cls(kept, rest)

    def assert_same(self, model: nn.Module) -> None:
        now = State.of(model)
        assert now.rest == self.rest
        assert now.tensors.keys() == self.tensors.keys()
        for name, old in self.tensors.items():
            assert torch.equal(now.tensors[name], old), name


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return tensors(call(model, x))[0]


def widths(plan: sc.Plan) -> dict[str, int]:
    return {name: len(kept) for name, kept in plan.groups.items()}


def steps_that_fit(graph: Any, plan: sc.Plan, budget: sc.Budget, scope: str) -> Iterator[tuple[str, float]]:
    """Each group that could have kept one more step of channels within the budget."""
    base, now, stripes = graph.cost(), widths(plan), {w: len(kept) for w, kept in plan.stripes.items()}
    for g in graph.groups:
        if g.prunable and (scope == "all" or g.internal) and g.name in now:
            more = {**now, g.name: min(now[g.name] + budget.align, g.size)}
            cost = graph.cost(more, stripes)
            if budget.allows(cost, base):
                yield g.name, (cost.macs - graph.cost(now, stripes).macs) / base.macs


def assert_meets(name: str, model: nn.Module, result: sc.Result, budget: sc.Budget, scope: str = "internal") -> None:
    graph = sc.trace(model, images())
    counted, base = sc.count(result.model, images()), sc.count(model, images())
    assert (result.after.macs, result.after.params) == (counted.macs, counted.params)
    assert (result.before.macs, result.before.params) == (base.macs, base.params)
    limits = []
    for what in ("macs", "params"):
        allowed, full, now = getattr(budget, what), getattr(base, what), getattr(counted, what)
        if allowed is not None:
            limit = allowed * full if allowed <= 1 else allowed
            assert now <= limit, f"{now} {what} are over {limit}"
            limits.append((limit - now) / full)
    for group in graph.groups:
        width = widths(result.plan).get(group.name, group.size)
        assert width > 0
        assert width == group.size or width % budget.align == 0, f"{group.name} keeps {width}"
    if isinstance(resolve(name), Criterion) or min(limits) > 0.01:
        assert not list(steps_that_fit(graph, result.plan, budget, scope))


# -- the checks --------------------------------------------------------------------------------------------------------


@check
def check_masked_is_sliced(name: str) -> None:
    """On inputs that the method has never seen."""
    for kind in NETWORKS:
        model = network(kind)
        result = prune(name, model, sc.Budget(macs=0.5), scope="all")
        assert result.error <= 1e-5
        for seed in (11, 12):
            x = images(3, seed)
            masked, sliced = outputs(sc.mask(model, result.plan), x), outputs(sc.apply(model, result.plan), x)
            assert (masked - sliced).abs().max() <= 1e-5 * masked.abs().max()
            assert outputs(result.model, x).shape == masked.shape
        cut = {k: v.shape for k, v in sc.apply(model, result.plan).state_dict().items()}
        assert {k: v.shape for k, v in result.model.state_dict().items()} == cut


BUDGETS = [
    sc.Budget(macs=0.5),
    sc.Budget(params=0.6),
    sc.Budget(macs=0.7, params=0.5),
    sc.Budget(macs=400_000),
    sc.Budget(macs=0.55, align=8),
]


@check
def check_budget_is_met_and_used_up(name: str) -> None:
    for budget in BUDGETS:
        model = network()
        assert_meets(name, model, prune(name, model, budget), budget)


@check
def check_budget_is_met_on_every_network(name: str) -> None:
    budget = sc.Budget(macs=0.45)
    for kind in ("residual", "depthwise"):
        model = network(kind)
        assert_meets(name, model, prune(name, model, budget, scope="all"), budget, "all")


@check
def check_whole_network_fits(name: str) -> None:
    """Where everything may stay, everything does (but what a method that only has its λ closed by itself)."""
    model = network()
    result = prune(name, model, sc.Budget(macs=1.0))
    assert_meets(name, model, result, sc.Budget(macs=1.0))


@check
def check_no_layer_is_emptied(name: str) -> None:
    """At the lowest budget that channels can meet, every group keeps one; where stripes are cut, every layer has some."""
    model = network("residual")
    graph = sc.trace(model, images())
    lowest = graph.cost({g.name: 1 for g in graph.groups if g.prunable})
    result = prune(name, model, sc.Budget(macs=lowest.macs), scope="all")
    if result.plan.stripes:
        assert 0.95 * lowest.macs <= result.after.macs <= lowest.macs
        assert all(len(kept) >= 1 for kept in (*result.plan.groups.values(), *result.plan.stripes.values()))
    else:
        assert result.after.macs == lowest.macs
        assert all(len(kept) == 1 for kept in result.plan.groups.values())
    assert outputs(result.model, images()).isfinite().all()


@check
def check_unreachable_budget_is_refused_before_any_work(name: str) -> None:
    model = network("residual")
    before = State.of(model)

    def touched() -> Any:
        raise AssertionError("the data was looked at")

    refused = 0
    for budget in (sc.Budget(macs=0.001), sc.Budget(params=0.001), sc.Budget(macs=12), sc.Budget(macs=0.05, align=8)):
        try:
            configured(name).feasible(Task(model, sc.trace(model, images()), budget))
            continue  # a method that cuts more than channels may reach it
        except sc.BudgetError:
            refused += 1
        what = "macs" if budget.macs else "params"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(resolve(name)), "select", lambda *_: pytest.fail("the method was set to work"))
            with pytest.raises(sc.BudgetError) as caught:
                prune(name, model, budget, data=sc.Data(train=touched, val=touched))
        before.assert_same(model)
        named = re.search(rf"lowest budget that can be met is {what}=([\d.]+)", str(caught.value))
        assert named, str(caught.value)
        reachable = sc.Budget(**{what: float(named[1])}, align=budget.align)
        assert_meets(name, model, prune(name, model, reachable), reachable)
    assert refused >= 2


@check
def check_same_seed_same_plan(name: str) -> None:
    """Whatever ran before, and whatever the global generators are at."""
    budget = sc.Budget(macs=0.5)
    first = prune(name, network(), budget, seed=3)
    torch.manual_seed(99)
    np.random.seed(99)
    prune(name, network("residual"), budget, seed=4)
    second = prune(name, network(), budget, seed=3)
    assert first.plan.to_json() == second.plan.to_json()
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key


@check
def check_given_model_is_untouched(name: str) -> None:
    model = network()
    model.fc.weight.requires_grad_(False)
    before = State.of(model)
    result = prune(name, model, sc.Budget(macs=0.5), data=data(), progress="silent", recover=_recipe())
    before.assert_same(model)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in result.model.parameters()}
    assert not shared


@check
def check_mode_is_kept(name: str) -> None:
    """A model in train mode, one norm of it in eval mode: so is the result; and the statistics have not moved."""
    model = network().train()
    model.bn1.eval()
    before = State.of(model)
    result = prune(name, model, sc.Budget(macs=0.5))
    before.assert_same(model)
    modes = {n: m.training for n, m in result.model.named_modules()}
    assert modes == {n: m.training for n, m in model.named_modules()}


@check
def check_saved_is_loaded(name: str) -> None:
    """Bit-equal, from the source that is on the card, and into a model of one's own."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("small_cnn", "depthwise"):
            model = network(kind)
            result = prune(name, model, sc.Budget(macs=0.5))
            path = result.save(Path(folder) / kind)
            if kind == "depthwise":
                with pytest.raises(sc.ArtifactError, match="model="):
                    sc.load(path)
            loaded = [sc.load(path, model=network(kind, seed=1))] + ([sc.load(path)] if kind == "small_cnn" else [])
            for other in loaded:
                assert not other.training
                assert other.state_dict().keys() == result.model.state_dict().keys()
                for key, value in result.model.state_dict().items():
                    assert torch.equal(other.state_dict()[key], value), key
                assert torch.equal(outputs(other, images(3, 7)), outputs(result.model, images(3, 7)))


@check
def check_scope(name: str) -> None:
    """`internal` cuts nothing that lies on a shortcut; `all` may, and has to where there are no stripes to cut."""
    model = network("residual")
    graph = sc.trace(model, images())
    internal = {g.name for g in graph.groups if g.prunable and g.internal}
    inner = prune(name, model, sc.Budget(macs=0.6), scope="internal")
    assert set(inner.plan.groups) <= internal
    low = graph.cost(dict.fromkeys(internal, 1)).macs - 1  # what cannot be had without the shortcut
    every = prune(name, model, sc.Budget(macs=low), scope="all")
    assert set(every.plan.groups) - internal or every.plan.stripes


@check
def check_history_is_json(name: str) -> None:
    result = prune(name, network(), sc.Budget(macs=0.5), data=data(), progress="silent", recover=_recipe())
    assert json.loads(json.dumps(result.history, allow_nan=False)) == result.history
    assert any("loss" in json.dumps(entry) for entry in result.history)
    json.dumps(result.card(), allow_nan=False)
    for figures in (result.before, result.cut, result.after):
        assert 0 <= figures.top1 <= 100


@check
def check_half_precision(name: str) -> None:
    if _needs_data(name):
        return  # whether a network can be trained in half precision is not the method's affair
    for dtype in (torch.bfloat16, torch.float16):
        model, budget = network("residual").to(dtype), sc.Budget(macs=0.5)
        x = images().to(dtype)
        result = sc.prune(model, x, configured(name), budget, scope="all")
        assert {p.dtype for p in result.model.parameters()} == {dtype}
        assert result.after.macs <= 0.5 * result.before.macs
        assert outputs(result.model, x).isfinite().all()


def _recipe() -> sc.Recover:
    return sc.Recover(epochs=1, lr=0.01)
