"""Latency budgets: the latency model that a method works with, and the measurements that hold its cut to the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from secateurs.artifact.fields import Latency
from secateurs.budget import Budget
from secateurs.devices import device_of
from secateurs.errors import BudgetError, ConfigError, Setting
from secateurs.latency import LatencyModel, Measured, Stopwatch, modelled, stopwatch, tabulated
from secateurs.methods.criteria import norms
from secateurs.methods.limits import Bounds, free
from secateurs.methods.method import Method, Scope, Task
from secateurs.methods.registry import resolve
from secateurs.methods.select import Widths, select_within_budget
from secateurs.methods.selection import Selection
from secateurs.plans import Plan, PrunableGraph
from secateurs.surgery import apply
from secateurs.training import processes

BAND = 0.03  # the measured time is within so much below the budget …
AIM = 0.985  # … in whose middle the next try aims
NOISE = 0.01  # the standard error that measurements should have
TRIES = 9

Report = Callable[[str], None]
Found = tuple[Selection, Plan]


def clocked(
    model: nn.Module,
    graph: PrunableGraph,
    inputs: Any,
    budget: Budget | None,
    scope: Scope,
    bounds: Bounds,
    *,
    report: Report = lambda line: None,
    seed: int = 0,
) -> PrunableGraph:
    """The graph with the latency model that a budget needs, as measured on this machine; the graph itself if it needs none.

    Raises ConfigError for a target that this machine cannot run, and ExportError for a network that cannot be exported to it.
    """
    if budget is None or not budget.needs_target:
        return graph
    target = budget.on(device_of(model).type)
    target.check()
    if (
        isinstance(graph.clock, LatencyModel)
        and graph.clock.target == target
        and (graph.clock.fit.errors or not budget.is_timed)
    ):
        return graph
    if processes.world() > 1:
        raise ConfigError(
            "Time is measured by one process, and this is one of several: limit ",
            Setting("macs"),
            " or ",
            Setting("params"),
            ".",
        )
    plain = graph.timed(None)
    if not budget.is_timed:
        return plain.timed(tabulated(plain, inputs, target, report))
    groups = [
        g for g in graph.groups
        if g.prunable and (scope == "all" or g.internal) and (bounds.get(g.name) or free(g)).least < g.size
    ]  # fmt: skip
    if not groups:
        return plain.timed(tabulated(plain, inputs, target, report))
    return plain.timed(modelled(model, plain, inputs, target, groups=groups, report=report, seed=seed))


@dataclass
class Kept:
    """A selection whose cut was measured."""

    selection: Selection
    plan: Plan
    share: float  # of the time of the network that was cut, as the model expects it
    seconds: float  # as the model expects it
    measured: Measured


class Timing:
    """Holds the cuts of a network to its latency budget.

    model: what predicts. watch: what measures, beside the original. goal: the fraction of the original's time that may stay.
    """

    def __init__(
        self, model: LatencyModel, watch: Stopwatch, budget: Budget, report: Report = lambda line: None
    ) -> None:
        self.model, self.watch, self.budget, self.report = model, watch, budget, report
        self.goal = budget.goal(model.fit.seconds)
        self.tries = 0

    def select(self, task: Task, method: Method, whole: Callable[[Plan], Plan]) -> tuple[Selection, Kept]:
        """What the method keeps of the task's network, such that the measured time is within the budget.

        A method that trains runs once: what the budget means is found before with a criterion, and if the measured time is over
        it in the end, the weakest channels that the method has kept go. whole: a plan of the task's network as one of the
        original.
        """
        if method.quick:
            kept = self._search(task, lambda t: Selection.of(method.select(t)), whole)
            return kept.selection, kept
        proxy = resolve("l2-stripes" if method.cuts == "stripes" else "l2")
        known = self._search(task, lambda t: Selection.of(proxy.select(t)), whole)
        assert task.budget is not None
        tight = replace(task, budget=task.budget.tightened(self._share(task, known.plan)))
        selection = Selection.of(method.select(tight))
        first = self._measured(tight, selection, whole)
        if first.measured.ratio <= self.goal:
            return selection, first
        self.report(f"{method.name} leaves {first.measured.ratio:.1%} of the time: its weakest channels go, too")
        kept = self._search(tight, lambda t: trimmed(t, selection, proxy), whole, start=first)
        return kept.selection, kept

    def _search(
        self, task: Task, select: Callable[[Task], Selection], whole: Callable[[Plan], Plan], start: Kept | None = None
    ) -> Kept:
        """The cut whose measured time is within the budget, and as little below it as may be."""
        assert task.budget is not None
        goal, low = self.goal, self._lowest(task)
        share = start.share * goal * AIM / start.measured.ratio if start else self._of(task, goal * AIM)
        holds: tuple[float, Kept] | None = None  # the largest share of the prediction that holds …
        fails = 1.0 + 1e-9 if start is None else start.share  # … and the smallest one that does not
        last: Kept | None = None
        for _ in range(TRIES):
            share = min(1.0, max(share, low))
            budget = task.budget.tightened(share * (1 + 1e-9))
            kept = self._measured(replace(task, budget=budget), select(replace(task, budget=budget)), whole)
            same = last is not None and last.plan == kept.plan
            last = kept
            ratio = kept.measured.ratio
            if ratio <= goal:
                if holds is None or ratio > holds[1].measured.ratio:
                    holds = share, kept
                if ratio >= goal * (1 - BAND) or share >= 1.0 or same:
                    break
            else:
                fails = min(fails, share)
                if share <= low * (1 + 1e-6) or same:
                    break
            aimed = share * goal * AIM / ratio
            least = holds[0] if holds else low
            share = aimed if least < aimed < fails else (least + fails) / 2
        if holds is None:
            assert last is not None
            raise self._unmet(last)
        return holds[1]

    def _of(self, task: Task, share: float) -> float:
        """A fraction of the original's time, as one of that of the task's network."""
        return share * self.model.fit.seconds / float(task.graph.cost().latency or 1.0)

    def _share(self, task: Task, plan: Plan) -> float:
        cost, base = task.graph.cost_of(plan), task.graph.cost()
        assert cost.latency is not None
        assert base.latency is not None
        return cost.latency / base.latency * (1 + 1e-9)

    def _lowest(self, task: Task) -> float:
        widths = task.widths
        lowest, base = widths.cost(widths.lowest), widths.base
        assert lowest.latency is not None
        assert base.latency is not None
        return lowest.latency / base.latency * (1 + 1e-9)

    def _measured(self, task: Task, selection: Selection, whole: Callable[[Plan], Plan]) -> Kept:
        plan = selection.plan(task.graph, allow_inexact=True)
        entire = whole(plan)
        measured = self.watch.measure(entire, margin=NOISE)
        if self.goal * (1 - BAND) <= measured.ratio <= self.goal and not self.watch.exact(entire):
            measured = self.watch.confirm(apply(self.watch.model, entire), margin=NOISE)  # in a file of its own
        self.tries += 1
        self.report(
            f"measured {measured.ratio:.1%} of the original's time ({measured.after * 1000:.3g} of "
            f"{measured.before * 1000:.3g} ms, budget {self.goal:.1%})"
        )
        return Kept(selection, plan, self._share(task, plan), float(task.graph.cost_of(plan).latency or 0.0), measured)

    def _unmet(self, kept: Kept) -> BudgetError:
        """The error for a cut that is over the budget although nothing is left to cut."""
        m, fit = kept.measured, self.model.fit
        asked = (
            Setting("latency", self.budget.latency)
            if self.budget.latency is not None
            else Setting("ms", self.budget.ms)
        )
        return BudgetError(
            "The budget ", asked, f" cannot be met on {self.model.target}: the smallest cut network that was found takes "
            f"{m.after * 1000:.3g} ms of {m.before * 1000:.3g} ms, {m.ratio:.1%}, measured in turn. {fit.overhead:.0%} of the "
            "original's time does not depend on widths.",
            hint=("A larger batch, ", Setting("scope", "all"), " or a runtime with less overhead may allow less."),
            lowest={"latency": math.ceil(m.ratio * 1e4) / 1e4},
        )  # fmt: skip

    def record(self, kept: Kept) -> Latency:
        """For the card."""
        m, fit = kept.measured, self.model.fit
        return Latency(
            self.model.target.record(), round(self.goal, 6), round(m.ratio, 6), round(m.noise, 6), m.before, m.after,
            round(kept.seconds / fit.seconds, 6), fit.error, len(fit.errors), self.tries,
        )  # fmt: skip

    def told(self, kept: Kept) -> tuple[str, ...]:
        """What the user must know of a measurement."""
        m = kept.measured
        if m.noise <= BAND / 2:
            return ()
        return (
            f"The machine is busy: the measured time, {m.ratio:.1%} of the original's, is only known to ±{m.noise:.1%}, and "
            f"the margin is {BAND:.0%}. Measure again with `secateurs bench` when nothing else runs.",
        )


def trimmed(task: Task, selection: Selection, proxy: Method) -> Selection:
    """A part of a selection that is within a tighter budget: its weakest channels go, and of stripes the weakest ones."""
    if selection.stripes:
        more = Selection.of(proxy.select(task))
        channels = {
            name: np.intersect1d(np.array(list(kept)), np.array(list(selection.channels.get(name, kept))))
            for name, kept in more.channels.items()
        }
        stripes = {name: more.stripes.get(name, True) & kept for name, kept in selection.stripes.items()}
        return Selection(channels, stripes, selection.nodes)
    kept = {name: np.array(sorted(own), dtype=np.int64) for name, own in selection.channels.items()}
    groups = [g for g in task.groups if g.name in kept]
    bounds = dict(task.bounds)
    scores = {}
    for group in groups:
        bound = task.bound(group)
        most = min(bound.most, len(kept[group.name]))
        bounds[group.name] = replace(bound, most=most, least=min(bound.least, most))
        size = norms(group, task.model, 2).detach().double().cpu().numpy()
        scores[group.name] = np.full(group.size, -1.0)
        scores[group.name][kept[group.name]] = (size / max(size.mean(), 1e-12))[kept[group.name]]
    found = select_within_budget(Widths(task.graph, groups, task.budget, bounds=bounds), scores)
    return Selection({**selection.channels, **found}, selection.stripes, selection.nodes)


@contextmanager
def timing(task: Task, budget: Budget | None, original: nn.Module, report: Report) -> Iterator[Timing | None]:
    """Context with what holds cuts of the original to a budget; None for a budget that does not limit time."""
    clock = task.graph.clock
    if budget is None or not budget.is_timed or not isinstance(clock, LatencyModel):
        yield None
        return
    with stopwatch(original, task.example_inputs, clock.target) as watch:
        yield Timing(clock, watch, budget, report)
