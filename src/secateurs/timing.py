"""Latency budgets: the latency model that a method works with, and the measurements that hold its cut to the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.artifact.fields import Latency
from secateurs.budget import Budget
from secateurs.devices import device_of
from secateurs.errors import BudgetError, ConfigError, Setting
from secateurs.latency import FitRecord, LatencyModel, Measured, Stopwatch, curve, modeled, notes, stopwatch, tabulated
from secateurs.methods.limits import Bounds, free
from secateurs.methods.method import Method, Scope, Task
from secateurs.methods.registry import resolve
from secateurs.methods.selection import Selection
from secateurs.methods.trimming import silent, trimming
from secateurs.plans import Plan, PrunableGraph
from secateurs.surgery import apply
from secateurs.training import processes

BAND = 0.03  # the measured time is within so much below the budget …
AIM = 0.985  # … in whose middle the next try aims
NOISE = 0.01  # the standard error that measurements should have
TRIES = 9  # measured cuts
MORE = 4  # after them, if only the smallest one holds
FINEST = 2e-3  # between fractions of the predicted time, the search ends

Report = Callable[[str], None]
Whole = Callable[[Plan], Plan]  # a plan of the task's network as one of the original


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
    device: torch.device | None = None,
    stripes: bool = False,
    folder: Path | None = None,
) -> PrunableGraph:
    """The graph with the latency model that a budget needs, as measured on this machine; the graph itself if it needs none.

    device: where the network runs in the end, if it is not where it is now. stripes: whether stripes are cut. folder: of a run
        that is resumed, whose model is used.

    Raises ConfigError for a target that this machine cannot run, and ExportError for a network that cannot be exported to it.
    """
    if budget is None or not budget.needs_target:
        return graph
    target = budget.on((device or device_of(model)).type).suited(model)
    target.check()
    fit = notes.fit_in(None if folder is None else folder / notes.FILE, budget.record())
    if (
        isinstance(graph.clock, LatencyModel)
        and graph.clock.target == target
        and (graph.clock.fit.errors or not budget.is_timed)
    ):
        made = graph if fit is None else graph.timed(graph.clock.with_fit(fit))
        return _striped(made, model, inputs) if stripes and budget.is_timed else made
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
        made = plain.timed(tabulated(plain, inputs, target, report))
    else:
        made = plain.timed(modeled(model, plain, inputs, target, groups=groups, report=report, seed=seed, fit=fit))
    return _striped(made, model, inputs) if stripes else made


def _striped(graph: PrunableGraph, model: nn.Module, inputs: Any) -> PrunableGraph:
    """The same, with what is gained from stripes in the latency model."""
    clock = graph.clock
    if not isinstance(clock, LatencyModel) or clock.curve is not None:
        return graph
    # Measured once for a network: a resumed run needs the same costs.
    return graph.timed(clock.with_curve(curve(clock, graph, lambda: stopwatch(model, inputs, clock.target))))


@dataclass
class Kept:
    """A selection whose cut was measured. limit: the fraction of the predicted time that it was selected with; None for the
    selection of a method that trains. entries: what the method has recorded of it, for the history."""

    selection: Selection
    plan: Plan
    share: float  # of the time of the network that was cut, as the model expects it
    seconds: float  # as the model expects it
    measured: Measured
    limit: float | None = None
    entries: tuple[dict[str, Any], ...] = ()


class Timing:
    """Holds the cuts of a network to its latency budget.

    model: what predicts. watch: what measures, beside the original. goal: the fraction of the original's time that may stay.
    file: where what was measured is kept, so that a resumed run makes the same cut.
    """

    def __init__(
        self,
        model: LatencyModel,
        watch: Stopwatch,
        budget: Budget,
        report: Report = lambda line: None,
        file: Path | None = None,
    ) -> None:
        self.model, self.watch, self.budget, self.report, self.file = model, watch, budget, report, file
        self.goal = budget.goal(model.fit.seconds)
        self.tries = 0

    def select(self, task: Task, method: Method, whole: Whole) -> tuple[Selection, Kept]:
        """What the method keeps of the task's network, such that the measured time is within the budget.

        A method that trains runs once: what the budget means is found before with a criterion, and if the measured time is over
        it in the end, the weakest channels that the method has kept go. A resumed run selects with the limits that were found
        before. whole: a plan of the task's network as one of the original.
        """
        note = self._noted(task, method)
        if method.quick:
            select = method.selector(task)
            kept = self._held(task, lambda t: Selection.of(select(t), f"{method.name}.select"), whole, note)
            for entry in kept.entries:
                task.log(entry)
            self._note(task, method, None, kept)
            return kept.selection, kept
        proxy = resolve("l2-stripes" if method.cuts == "stripes" else "l2")
        if note is not None and note.share is not None:
            share = note.share
        else:
            select = proxy.selector(silent(task))
            share = self._allowed(self._search(task, lambda t: Selection.of(select(t)), whole))
            self._note(task, method, share)
        assert task.budget is not None
        tight = replace(task, budget=task.budget.tightened(share))
        selection = Selection.of(method.select(tight), f"{method.name}.select")
        if note is not None and note.found is not None and note.limit is None:
            kept = self._kept(tight, selection, note.found)
        elif note is not None and note.found is not None:
            kept = self._held(tight, trimming(tight, selection, proxy), whole, note)
        else:
            kept = self._measured(tight, selection, selection.plan(task.graph, allow_inexact=True), whole)
            if kept.measured.ratio > self.goal and not self._free:
                self.report(
                    f"{method.name} leaves {kept.measured.ratio:.1%} of the time: cutting its weakest channels as well"
                )
                kept = self._search(tight, trimming(tight, selection, proxy), whole, start=kept)
        if kept.limit is not None:
            task.note(event="trimmed", limit=kept.limit, kept=_size(kept.selection), of=_size(selection))
        self._note(task, method, share, kept)
        return kept.selection, kept

    def _held(self, task: Task, select: Callable[[Task], Selection], whole: Whole, note: notes.Note | None) -> Kept:
        """The cut within the budget: that of the note, if it has one."""
        if note is None or note.found is None or note.limit is None:
            return self._search(task, select, whole)
        assert task.budget is not None
        selection = select(replace(task, budget=task.budget.tightened(note.limit)))
        return replace(self._kept(task, selection, note.found), limit=note.limit)

    def _noted(self, task: Task, method: Method) -> notes.Note | None:
        """What the run that is resumed has measured."""
        if self.file is None or not task.resume:
            return None
        found = notes.read(self.file, self._settings(task, method))
        if found is not None:
            self.goal, self.tries = found.goal, found.tries
        return found

    def _note(self, task: Task, method: Method, share: float | None, kept: Kept | None = None) -> None:
        if self.file is None:
            return
        note = notes.Note(
            settings=self._settings(task, method), share=share, limit=None if kept is None else kept.limit,
            measured=None if kept is None else astuple(kept.measured), goal=self.goal, tries=self.tries,
            fit=FitRecord.of(self.model.fit),
        )  # fmt: skip
        notes.write(self.file, note)

    def _settings(self, task: Task, method: Method) -> dict[str, Any]:
        """What a note is of."""
        own = {"name": method.name, **method.model_dump(mode="json")}
        return {"budget": self.budget.record(), "method": own, "scope": task.scope, "seed": task.seed}

    def _search(self, task: Task, select: Callable[[Task], Selection], whole: Whole, start: Kept | None = None) -> Kept:
        """The cut whose measured time is within the budget, and as little below it as may be. start: one that is over it."""
        assert task.budget is not None
        low = self._lowest(task)
        holds, fails = (
            low,
            1.0 + 1e-6,
        )  # the largest fraction of the predicted time that holds, the smallest that doesn't
        share = 1.0 if self.goal >= 1 else self._of(task, self.goal * AIM)
        if start is not None:
            fails, share = start.share, start.share * self.goal * AIM / start.measured.ratio
        seen: list[Kept] = []
        over, steps = start is not None, int(start is not None)  # the side of the budget, and the steps on it in a row
        tries = TRIES
        while len(seen) < tries:
            last = len(seen) == TRIES - 1 and not any(k.measured.ratio <= self.goal for k in seen)
            share = low if last else min(1.0, max(share, low))
            limit = share * (1 + 1e-9)
            entries = list[dict[str, Any]]()
            selection = select(replace(task, budget=task.budget.tightened(limit), log=entries.append))
            plan = selection.plan(task.graph, allow_inexact=True)
            if (kept := next((k for k in seen if k.plan == plan), None)) is None:
                kept = replace(self._measured(task, selection, plan, whole), limit=limit, entries=tuple(entries))
                seen.append(kept)
            ratio, goal = kept.measured.ratio, self.goal
            if self._free:
                if share >= 1:
                    return kept
                share = 1.0
                continue
            if ratio > goal:
                fails = min(fails, share)
            else:
                holds = max(holds, share)
            within = goal * (1 - BAND) <= ratio <= goal
            if within or (share >= 1.0 and ratio <= goal) or fails - holds < FINEST * fails:
                break
            steps = steps + 1 if over == (ratio > goal) else 1
            over = ratio > goal
            aimed = share * (goal * AIM / ratio) ** min(steps, 3)  # steps that are too short get longer
            share = aimed if holds < aimed < fails else (holds + fails) / 2
            if last:  # it holds, and may be far below the budget
                tries += MORE
        return self._confirmed(seen, whole)

    def _confirmed(self, seen: Sequence[Kept], whole: Whole) -> Kept:
        """The slowest of these cuts that is within the budget. Where measurements are noisy, one of several is within it by
        luck: it must be so in a second one, too. If none is, the fastest as measured again."""
        within = sorted((k for k in seen if k.measured.ratio <= self.goal), key=lambda k: -k.measured.ratio)
        if not within:
            raise self._unmet(min(seen, key=lambda k: k.measured.ratio))
        again: list[Kept] = []
        for kept in within:
            if kept.measured.noise <= BAND / 2:
                return kept
            second = self.watch.confirm(apply(self.watch.model, whole(kept.plan)), margin=NOISE)
            self.report(f"measured again, a cut of {kept.measured.ratio:.1%}: {second.ratio:.1%}")
            again.append(replace(kept, measured=second))
            if second.ratio <= self.goal:
                break
        return min(again, key=lambda k: k.measured.ratio)

    def _of(self, task: Task, share: float) -> float:
        """A fraction of the original's time, as one of that of the task's network."""
        return share * self.model.fit.seconds / float(task.graph.cost().latency or 1.0)

    def _share(self, task: Task, plan: Plan) -> float:
        cost, base = task.graph.cost_of(plan), task.graph.cost()
        assert cost.latency is not None
        assert base.latency is not None
        return cost.latency / base.latency * (1 + 1e-9)

    @property
    def _free(self) -> bool:
        """Whether the original itself takes no more milliseconds than the budget allows: then nothing has to go."""
        return self.goal >= 1 and self.budget.latency is None

    def _allowed(self, kept: Kept) -> float:
        """The fraction of the predicted time that the budget allows, by a cut that holds it: more than the cut has, if another
        limit or wide steps have left it far below."""
        return max(kept.share, min(1.0, kept.share * self.goal * AIM / kept.measured.ratio))

    def _lowest(self, task: Task) -> float:
        widths = task.widths
        lowest, base = widths.cost(widths.lowest), widths.base
        assert lowest.latency is not None
        assert base.latency is not None
        return lowest.latency / base.latency * (1 + 1e-9)

    def _measured(self, task: Task, selection: Selection, plan: Plan, whole: Whole) -> Kept:
        entire = whole(plan)
        if not entire.kept and not entire.stripes:  # the original
            measured = self.watch.measure(entire)
            measured = replace(measured, ratio=1.0, noise=0.0, after=measured.before)
        else:
            measured = self.watch.measure(entire, margin=NOISE)
            if self.goal * (1 - BAND) <= measured.ratio <= self.goal and not self.watch.exact:
                measured = self.watch.confirm(apply(self.watch.model, entire), margin=NOISE)  # in a file of its own
        if not self.tries:
            self.goal = self.budget.goal(measured.before)  # milliseconds are those of today
        self.tries += 1
        self.report(
            f"measured {measured.ratio:.1%} of the original's time ({measured.after * 1000:.3g} of "
            f"{measured.before * 1000:.3g} ms, budget {self.goal:.1%})"
        )
        return self._kept(task, selection, measured)

    def _kept(self, task: Task, selection: Selection, measured: Measured) -> Kept:
        plan = selection.plan(task.graph, allow_inexact=True)
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
            "The budget ", asked, f" cannot be met on {self.model.target}: the fastest cut network that was found takes "
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
        if self._free and m.ratio > 1 + BAND:
            return (
                f"The cut network is not faster: {m.before * 1000:.3g} → {m.after * 1000:.3g} ms on {self.model.target}, "
                f"{m.ratio:.2f} of the time. Budget(…, latency=1.0) allows no network that is slower than the original.",
            )
        if m.ratio > self.goal and not self._free:
            return (
                f"The machine is too busy to hold the budget: the cut network took less than {self.goal:.1%} of the original's "
                f"time, and measured again {m.ratio:.1%} (±{m.noise:.1%}). Prune again when nothing else runs.",
            )
        if m.noise <= BAND / 2:
            return ()
        return (
            f"The machine is busy: the measured time, {m.ratio:.1%} of the original's, is only known to ±{m.noise:.1%}, and "
            f"the margin is {BAND:.0%}. Measure again with `secateurs bench` when nothing else runs.",
        )


def _size(selection: Selection) -> int:
    """The number of channels and stripes."""
    return sum(len(list(k)) for k in selection.channels.values()) + sum(
        int(k.sum()) for k in selection.stripes.values()
    )


@contextmanager
def timing(
    task: Task, budget: Budget | None, original: nn.Module, report: Report, folder: Path | None = None
) -> Iterator[Timing | None]:
    """Context with what holds cuts of the original to a budget; None for a budget that does not limit time. folder: of the
    run."""
    clock = task.graph.clock
    if budget is None or not budget.is_timed or not isinstance(clock, LatencyModel):
        yield None
        return
    with stopwatch(original, task.example_inputs, clock.target) as watch:
        yield Timing(clock, watch, budget, report, None if folder is None else folder / notes.FILE)
