"""The conformance suite of pruning methods."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

import secateurs as sc
from secateurs.graph.attributes import disagreements
from secateurs.methods import Criterion, Method, Task, resolve
from secateurs.testing.networks import NETWORKS, data, images, network
from secateurs.testing.state import State, assert_equal_states, expect, outputs, refused

# Settings that make a method fast on tiny data; those that a method does not have are skipped.
QUICK: dict[str, Any] = {"epochs": 1, "steps": 4, "examples": 8}

Check = Callable[[Method], None]
CHECKS: dict[str, Check] = {}


def check_method(method: str | Method, *, skip: tuple[str, ...] = ()) -> None:
    """Run every check of `CHECKS` on a method: a name, `python:package.module:Class`, or a configured object.

    A method passed by name runs with few epochs. skip: names of checks to skip. Takes a few seconds; methods
    that train take longer. `CHECKS[name](method)` runs a single one, for a parametrized test.

    Raises AssertionError with the name of the check and what failed, and ConfigError for a method that does not exist.
    """
    chosen = quick(method)
    for name, check in CHECKS.items():
        if name in skip:
            continue
        try:
            check(chosen)
        except Exception as error:
            said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{chosen.name or type(chosen).__name__} fails the check {name!r}: {said}") from error


def quick(method: str | Method) -> Method:
    """A method by name, with settings for tiny data; a configured method is returned as is."""
    if isinstance(method, Method):
        return method
    known = type(resolve(method)).model_fields
    return resolve(method, **{k: v for k, v in QUICK.items() if k in known})


def _check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


@functools.cache
def needs_data(method: type[Method]) -> bool:
    """Whether a method uses data."""
    model = network()
    try:
        method().check(Task(model, sc.trace(model, images(1)), sc.Budget(macs=0.5)))
    except sc.ConfigError:
        return True
    return False


def prune(method: Method, model: nn.Module, budget: sc.Budget | None, **options: Any) -> sc.Result:
    options = {"data": data() if needs_data(type(method)) else None, "scope": "internal", **options}
    if options["data"] is not None:
        options.setdefault("progress", "silent")
    return sc.prune(model, images(), method, budget, **options)


def widths(plan: sc.Plan) -> dict[str, int]:
    return {name: len(kept) for name, kept in plan.groups.items()}


def steps_that_fit(graph: Any, plan: sc.Plan, budget: sc.Budget, scope: str) -> Iterator[tuple[str, float]]:
    """The groups that could keep one more step of channels within the budget, and that step's fraction of the MACs."""
    base, now, stripes = graph.cost(), widths(plan), {w: len(kept) for w, kept in plan.stripes.items()}
    for g in graph.groups:
        if g.prunable and (scope == "all" or g.internal) and g.name in now:
            more = {**now, g.name: min(now[g.name] + _step(budget), g.size)}
            cost = graph.cost(more, stripes)
            if budget.allows(cost, base):
                yield g.name, (cost.macs - graph.cost(now, stripes).macs) / base.macs


def _step(budget: sc.Budget) -> int:
    assert isinstance(budget.align, int)
    return budget.align


def assert_meets(
    method: Method,
    model: nn.Module,
    result: sc.Result,
    budget: sc.Budget,
    scope: str = "internal",
    fixed: Collection[str] = (),
) -> None:
    """The budget is met to within a step of a group and never exceeded; the reported costs are those of the built network.

    fixed: groups whose widths do not follow from the budget.
    """
    graph = sc.trace(model, images())
    counted, base = sc.count(result.model, images()), sc.count(model, images())
    expect(
        (result.after.macs, result.after.params) == (counted.macs, counted.params),
        "the result's reported cost is wrong",
    )
    expect(
        (result.before.macs, result.before.params) == (base.macs, base.params), "the original's reported cost is wrong"
    )
    limits = []
    for what in ("macs", "params"):
        allowed, full, now = getattr(budget, what), getattr(base, what), getattr(counted, what)
        if allowed is not None:
            limit = allowed * full if allowed <= 1 else allowed
            expect(now <= limit, f"{now:,} {what} are left, but {budget} allows {limit:,.0f}")
            limits.append((limit - now) / full)
    for group in graph.groups:
        width = widths(result.plan).get(group.name, group.size)
        expect(width > 0, f"nothing is left of {group.name}")
        expect(
            width == group.size or width % _step(budget) == 0,
            f"{group.name} keeps {width} channels, not a multiple of align={budget.align}",
        )
    if isinstance(method, Criterion) or min(limits) > 0.01:
        more = [name for name, _ in steps_that_fit(graph, result.plan, budget, scope) if name not in fixed]
        expect(not more, f"{budget} is not used up: {', '.join(more)} could keep more channels")


BUDGETS = [
    sc.Budget(macs=0.5),
    sc.Budget(params=0.6),
    sc.Budget(macs=0.7, params=0.5),
    sc.Budget(macs=400_000),
    sc.Budget(macs=0.55, align=8),
]


@_check
def masked_is_sliced(method: Method) -> None:
    """On inputs that the method has never seen."""
    for kind in NETWORKS:
        model = network(kind)
        result = prune(method, model, sc.Budget(macs=0.5), scope="all")
        expect(result.error <= 1e-5, f"on {kind}, masked and sliced differ by {result.error:.1e}")
        stale = disagreements(result.model)
        expect(not stale, f"on {kind}, attributes disagree with tensors: {'; '.join(stale)}")
        for seed in (11, 12):
            x = images(3, seed)
            masked, sliced = outputs(sc.mask(model, result.plan), x), outputs(sc.apply(model, result.plan), x)
            error = float((masked - sliced).abs().max() / masked.abs().max())
            expect(error <= 1e-5, f"on {kind} and other inputs, masked and sliced differ by {error:.1e}")
            expect(
                outputs(result.model, x).shape == masked.shape, f"the result's output on {kind} has a different shape"
            )
        cut = {k: v.shape for k, v in sc.apply(model, result.plan).state_dict().items()}
        found = {k: v.shape for k, v in result.model.state_dict().items()}
        expect(found == cut, f"on {kind}, the result differs from its plan applied to the model")


@_check
def budget_is_met_and_used_up(method: Method) -> None:
    for budget in BUDGETS:
        model = network()
        assert_meets(method, model, prune(method, model, budget), budget)


@_check
def budget_is_met_on_every_network(method: Method) -> None:
    budget = sc.Budget(macs=0.45)
    for kind in ("residual", "depthwise"):
        model = network(kind)
        assert_meets(method, model, prune(method, model, budget, scope="all"), budget, "all")


@_check
def whole_network_fits(method: Method) -> None:
    """If the budget allows the whole network, all of it is kept (except what a method cuts by a setting of its own)."""
    model = network()
    assert_meets(method, model, prune(method, model, sc.Budget(macs=1.0)), sc.Budget(macs=1.0))


@_check
def no_layer_is_emptied(method: Method) -> None:
    """At the lowest feasible budget every group keeps one channel; if stripes are cut, every layer keeps some."""
    model = network("residual")
    graph = sc.trace(model, images())
    lowest = graph.cost({g.name: 1 for g in graph.groups if g.prunable})
    result = prune(method, model, sc.Budget(macs=lowest.macs), scope="all")
    left = result.after.macs
    if result.plan.stripes:
        expect(0.95 * lowest.macs <= left <= lowest.macs, f"{left:,} MACs are left of at most {lowest.macs:,}")
        sizes = [len(kept) for kept in (*result.plan.groups.values(), *result.plan.stripes.values())]
        expect(min(sizes) >= 1, "a layer has no stripe left")
    else:
        expect(left == lowest.macs, f"{left:,} MACs are left, not {lowest.macs:,}")
        expect(set(widths(result.plan).values()) == {1}, "the lowest budget leaves one channel in each group")
    expect(bool(outputs(result.model, images()).isfinite().all()), "the result's outputs are not finite")


@_check
def unreachable_budget_is_refused_before_any_work(method: Method) -> None:
    model = network("residual")
    before = State.of(model)

    def touched(*_: Any) -> Any:
        raise AssertionError("data was read, or the method ran, before an infeasible budget was rejected")

    count = 0
    for budget in (sc.Budget(macs=0.001), sc.Budget(params=0.001), sc.Budget(macs=12), sc.Budget(macs=0.05, align=8)):
        try:
            method.feasible(Task(model, sc.trace(model, images()), budget))
            continue  # a method that cuts more than channels may meet it
        except sc.BudgetError:
            count += 1
        what = "macs" if budget.macs else "params"
        with mock.patch.object(type(method), "select", touched), refused(sc.BudgetError, f"{budget}") as errors:
            prune(method, model, budget, data=sc.Data(train=touched, val=touched))
        before.assert_same(model)
        lowest = errors[0].lowest
        expect(what in lowest, f"the error does not say what the lowest budget is that can be met: {errors[0]}")
        reachable = sc.Budget(macs=lowest.get("macs"), params=lowest.get("params"), align=budget.align)
        assert_meets(method, model, prune(method, model, reachable), reachable)
    expect(count >= 2, "budgets that cannot be met are not rejected")


@_check
def limits_are_kept(method: Method) -> None:
    """What is excluded stays whole, stripes included; a ratio is met exactly; the others meet the budget."""
    model = network()
    budget = sc.Budget(macs=0.5, align=2)
    result = prune(method, model, budget, exclude=["stem", "conv2"], ratios={"conv1": 0.3}, min_channels={"plain.*": 5})
    assert_meets(method, model, result, budget, fixed={"conv1"})
    left = widths(result.plan)
    expect("stem.0" not in left, f"exclude='stem' is ignored: {left.get('stem.0')} of its 16 channels are left")
    cut = {
        "stem.0.weight",
        "conv2.weight",
        "plain.3.weight",
    } & result.plan.stripes.keys()  # plain.3 is coupled to conv2
    expect(not cut, f"stripes of {', '.join(cut)} are cut, which exclude= keeps whole")
    expect(left.get("conv1") == 12, f"ratios={{'conv1': 0.3}} leaves {left.get('conv1')} of 40 channels, not 12")
    expect(left.get("plain.0", 32) >= 6, f"min_channels=5 and align=2 leave {left.get('plain.0')} channels")
    left = widths(prune(method, model, sc.Budget(macs=1.0), ratios={"conv1": 0.5}).plan)
    expect(left.get("conv1") == 20, "a ratio is not met where the budget is met without it")


@_check
def ratios_without_a_budget(method: Method) -> None:
    """Only groups with a ratio are cut, and to that width."""
    result = prune(method, network("residual"), None, ratios={"blocks.*": 0.5, "blocks.1": 0.3}, scope="internal")
    left = widths(result.plan)
    expect(left == {"blocks.0.0": 8, "blocks.1.0": 5}, f"ratios of 0.5 and 0.3 of 16 channels leave {left}")
    expect(not result.plan.stripes, "stripes are cut without a budget")


@_check
def same_seed_same_plan(method: Method) -> None:
    """Independent of earlier runs and of the state of the global generators."""
    budget = sc.Budget(macs=0.5)
    models = [network(), network("residual"), network()]
    torch.manual_seed(98)
    first = prune(method, models[0], budget, seed=3)
    torch.manual_seed(99)
    np.random.seed(99)
    prune(method, models[1], budget, seed=4)
    second = prune(method, models[2], budget, seed=3)
    expect(first.plan.to_json() == second.plan.to_json(), "two runs with the same seed have different plans")
    assert_equal_states(first.model, second.model, "two runs with the same seed")


@_check
def model_is_untouched(method: Method) -> None:
    model = network()
    model.fc.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = State.of(model)
    result = prune(method, model, sc.Budget(macs=0.5), data=data(), progress="silent", recover=_recipe())
    before.assert_same(model)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in result.model.parameters()}
    expect(not shared, "the result shares memory with the given model")


@_check
def mode_is_kept(method: Method) -> None:
    """For a model in train mode with one norm in eval mode, the result has the same modes, and statistics are unchanged."""
    model = network().train()
    model.bn1.eval()  # type: ignore[union-attr]
    before = State.of(model)
    result = prune(method, model, sc.Budget(macs=0.5))
    before.assert_same(model)
    modes = {n: m.training for n, m in result.model.named_modules()}
    expect(modes == {n: m.training for n, m in model.named_modules()}, "modules of the result are in different modes")


@_check
def saved_is_loaded(method: Method) -> None:
    """Bit-equal, from the source on the card, and into a passed model."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("small_cnn", "depthwise"):
            model = network(kind)
            result = prune(method, model, sc.Budget(macs=0.5))
            path = result.save(Path(folder) / kind)
            if kind == "depthwise":
                with refused(sc.ArtifactError, "loading a network of unknown source") as errors:
                    sc.load(path)
                expect("model=" in str(errors[0]), f"the error does not say to pass the model: {errors[0]}")
            loaded = [sc.load(path, model=network(kind, seed=1))] + ([sc.load(path)] if kind == "small_cnn" else [])
            for other in loaded:
                expect(not other.training, "a loaded network is in train mode")
                assert_equal_states(other, result.model, "saved and loaded")
                x = images(3, 7)
                expect(
                    torch.equal(outputs(other, x), outputs(result.model, x)), "a loaded network has different outputs"
                )


@_check
def scope(method: Method) -> None:
    """`internal` cuts nothing on a shortcut; `all` may, and must if there are no stripes to cut."""
    model = network("residual")
    graph = sc.trace(model, images())
    internal = {g.name for g in graph.groups if g.prunable and g.internal}
    inner = prune(method, model, sc.Budget(macs=0.6), scope="internal")
    outside = set(inner.plan.groups) - internal
    expect(not outside, f"scope='internal' cuts {', '.join(sorted(outside))}, which are on a shortcut")
    low = graph.cost(dict.fromkeys(internal, 1)).macs - 1  # not reachable without cutting the shortcut
    every = prune(method, model, sc.Budget(macs=low), scope="all")
    expect(bool(set(every.plan.groups) - internal or every.plan.stripes), "scope='all' cuts no shortcut")


@_check
def history_is_json(method: Method) -> None:
    result = prune(method, network(), sc.Budget(macs=0.5), data=data(), progress="silent", recover=_recipe())
    expect(
        json.loads(json.dumps(result.history, allow_nan=False)) == result.history,
        "the history is not JSON-serializable",
    )
    expect(any("loss" in json.dumps(entry) for entry in result.history), "the history has no recovery losses")
    json.dumps(result.card(), allow_nan=False)
    for figures in (result.before, result.cut, result.calibrated, result.after):
        expect(figures.top1 is not None and 0 <= figures.top1 <= 100, f"top-1 is {figures.top1}")


@_check
def half_precision(method: Method) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model, budget = network("residual").to(dtype), sc.Budget(macs=0.5)
        x = images().to(dtype)
        result = prune(method, model, budget, scope="all")
        expect(
            {p.dtype for p in result.model.parameters()} == {dtype}, f"a {dtype} model was returned in another dtype"
        )
        expect(result.after.macs <= 0.5 * result.before.macs, f"a {dtype} model is over budget")
        expect(bool(outputs(result.model, x).isfinite().all()), f"a {dtype} model's outputs are not finite")


def _recipe() -> sc.Recover:
    return sc.Recover(epochs=1, lr=0.01)
