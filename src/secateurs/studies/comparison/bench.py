"""Where cells are measured: one network and one data set on one device."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from secateurs.api import prune
from secateurs.artifact import Figures
from secateurs.cutting import figures as measured
from secateurs.data import Data
from secateurs.data.bundle import fresh_pass
from secateurs.data.loader import Loader
from secateurs.data.structure import examples, leaves
from secateurs.devices import device_name, device_of, usable
from secateurs.errors import ConfigError, SecateursError
from secateurs.graph import Cost, count
from secateurs.graph.copies import copied
from secateurs.graph.counter import MacCounter
from secateurs.graph.inputs import call, to_model_device
from secateurs.methods import Method, Task
from secateurs.methods.limits import Limits
from secateurs.plans import trace
from secateurs.preflight import task_for
from secateurs.recovery import Recover, recover
from secateurs.recovery.trial import taught
from secateurs.studies.comparison.compute import (
    Division,
    SearchCost,
    divided,
    search_cost,
    search_share,
    searched,
    width_of,
)
from secateurs.studies.comparison.contestants import Cell
from secateurs.studies.comparison.peers import TorchPruning
from secateurs.studies.comparison.work import Work
from secateurs.studies.fingerprint import known_examples
from secateurs.training import CrossEntropy, Objective, Phase
from secateurs.training import batches as B

Record = dict[str, Any]
Costly = TypeVar("Costly", Cost, Figures)
TIMED = 3  # training steps, after one that is not timed


@dataclass(frozen=True)
class Probe:
    """What is known before the first cell: the original's figures, and how long a training step and an evaluation take."""

    original: Figures
    step: float  # seconds, of one batch
    evaluation: float  # seconds, of all validation data
    steps: int  # per epoch
    images: int
    validation: int | None = None  # images to validate on, where that is known

    def seconds(self, foreseen: Foreseen) -> float:
        """Return how long a cell takes."""
        training = foreseen.passes - foreseen.cost.once / self.images
        return foreseen.cost.seconds + training * self.steps * self.step + foreseen.evaluations * self.evaluation


@dataclass(frozen=True)
class Foreseen:
    """What is known about a cell before it is measured, for any seed. A process can send it back.

    passes, evaluations: how many it takes. warnings: what there is too little compute for.
    """

    cost: SearchCost
    passes: float
    evaluations: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A cell to measure, or only to foresee. known: the cost of its method's search. folder: for checkpoints."""

    cell: Cell
    known: SearchCost | None = None
    folder: Path | None = None
    foresee: bool = False


class Bench:
    """A network, its data and what is measured on them."""

    def __init__(self, work: Work, device: str | torch.device | None = None) -> None:
        self.work, self.where = work, usable(device)
        self.data = work.load(self.where)
        self.model = work.network.build(self.data, self.where)
        given = work.inputs
        self.inputs = (
            work.purpose.example(self.model, self.data) if given is None else to_model_device(self.model, given)
        )
        self.objective = work.purpose.objective(self.model, self.inputs)
        self.targets: Any = None
        if work.targets is not None:
            self.targets = to_model_device(self.model, work.targets)
        elif given is None:
            self.targets = work.purpose.example_targets(self.model, self.data)

    @cached_property
    def images(self) -> int:
        """Training images in an epoch."""
        train = self.data.train
        if (known := known_examples(train)) is not None:
            return known
        return sum(examples(batch) for batch in B.bounded(train, "train", B.COUNT_SECONDS, B.COUNTING))

    @cached_property
    def steps(self) -> int:
        """Batches in an epoch."""
        return B.length(self.data.train) or B.count(self.data.train)

    @cached_property
    def cost(self) -> Cost:
        """The cost of one image in the uncut network."""
        return self.each(self.whole)

    @cached_property
    def whole(self) -> Cost:
        """The cost of all example inputs in the uncut network, which absolute budgets limit."""
        return count(self.model, self.inputs)

    def each(self, cost: Costly) -> Costly:
        """Convert a cost of all example inputs to that of one image."""
        return replace(cost, macs=cost.macs // examples(self.inputs))

    def at(self, seed: int) -> Data:
        """Return the data from the first epoch on, in the order of a seed."""
        train = self.data.train
        if isinstance(train, Loader):
            return replace(self.data, train=train.reseeded(seed))
        if hasattr(train, "set_epoch"):
            train.set_epoch(0)
        B.seed_generators(train, seed, "data")
        return self.data

    @cached_property
    def recovery(self) -> list[Phase]:
        """The phases of recovery. If the original cannot teach, they have no share for it, which would cost compute."""
        found = list(self.work.recover)
        for i, phase in enumerate(found):
            if isinstance(phase, Recover) and not taught(phase, self.model, self.data, self.objective):
                found[i] = phase.model_copy(update={"share": 0.0})
        return found

    @property
    def options(self) -> dict[str, Any]:
        return {"device": self.where, "example_targets": self.targets, **self.work.options, **vars(self.objective)}

    # -- before the first cell -----------------------------------------------------------------------------------------

    def check(self, cells: Sequence[Cell]) -> None:
        """Raise what a method or a budget would raise before any work: BudgetError for a budget that cannot be met."""
        graph = trace(
            self.model, self.inputs, allow_inexact=bool(self.work.options.get("allow_inexact")),
            example_targets=self.targets,
        )  # fmt: skip
        tried = set()
        for cell in cells:
            method, scope = cell.contestant.method, self.work.options.get("scope")
            if cell.kind in tried:
                continue
            tried.add(cell.kind)
            try:
                self._task(method, cell, graph, scope)
            except SecateursError as error:
                raise error.within(f"{cell.kind}: ") from error

    def _task(self, method: Method, cell: Cell, graph: Any, scope: Any) -> Task:
        limits = Limits(**{name: self.work.options[name] for name in LIMITS if name in self.work.options})
        bounds = limits.named(self.model).on(graph, scope or method.default_scope)
        task = task_for(
            method, self.model, graph, self.inputs, cell.budget, scope, bounds, data=self.at(cell.seed), seed=cell.seed,
            engine_options={"device": self.where, "objective": self.objective},
        )  # fmt: skip
        return task.for_method(method)

    def probe(self) -> Probe:
        """Measure the original, and a few training steps of a copy of it."""
        # What is imported and allocated for the first batch would count for every evaluation.
        measured(self.cost, self.model, replace(self.data, val=[B.first(self.data.val, "val")]), self.objective)
        began = time.perf_counter()
        original = measured(self.cost, self.model, self.data, self.objective)
        evaluation = time.perf_counter() - began
        model, whole = copied(self.model).train(), self.objective.whole
        steps: list[float] = []
        for i, raw in enumerate(fresh_pass(self.at(0).train)):
            if i > TIMED:
                break
            batch = B.as_batch(raw, i, "train", labels=False, whole=whole)
            began = time.perf_counter()
            _step(model, B.to_device(batch, device_of(model)), self.objective)
            steps.append(time.perf_counter() - began)
        step, validation = statistics.median(steps[1:] or steps), known_examples(self.data.val)
        return Probe(original, step, evaluation, self.steps, self.images, validation)

    # -- a cell --------------------------------------------------------------------------------------------------------

    def foresee(self, cell: Cell) -> Foreseen:
        cost = self._cut(cell)[1] if cell.contestant.own else self.search_cost(cell)
        division = self.division(cell, cost)
        epochs = [division.epochs, *(getattr(phase, "epochs", 0.0) for phase in division.recovery)]
        stages = 4  # the original, the cut, the calibrated and the recovered network
        return Foreseen(cost, division.passes, stages + sum(map(math.ceil, epochs)), division.warnings)

    def search_cost(self, cell: Cell) -> SearchCost:
        """Return the cost of a method's own training, and of what it does once; it does not depend on the seed."""
        options = {name: value for name, value in self.options.items() if name != "metrics"}
        return search_cost(
            self.model, self.inputs, cell.contestant.method, cell.budget, self.at(0).train, 0, **options
        )  # fmt: skip

    def division(self, cell: Cell, cost: SearchCost) -> Division:
        """Return how the compute of a cell is divided. A peer's own cut is fine-tuned on the labels with all the remaining
        compute."""
        contestant, work = cell.contestant, self.work
        share = search_share(contestant.method, work.search if contestant.search is None else contestant.search)
        width = width_of(cell.budget, self.whole, work.unit)
        recovery = self.recovery if not contestant.own else [Recover(share=0)] * bool(work.recover)
        return divided(contestant.method, share, work.epochs, cost, self.images, self.steps, width, recovery)

    def measure(self, cell: Cell, known: SearchCost | None = None, folder: Path | None = None) -> Record:
        """Return everything that is known about a cell, as JSON. known: the cost of its method's search. folder: for
        checkpoints, from which it continues."""
        torch.manual_seed(cell.seed)
        if cell.contestant.own:
            return self._own(cell)
        work, cost = self.work, known or self.search_cost(cell)
        division = self.division(cell, cost)
        clocks = time.perf_counter(), time.process_time()
        checkpoints: Record = {} if folder is None else {"folder": folder, "resume": True, "save_seconds": 60}
        result = prune(
            self.model, self.inputs, division.method, cell.budget, self.at(cell.seed), division.recovery or None,
            seed=cell.seed, progress="lines" if work.progress else "silent", check_speed=False, **self.options, **checkpoints,
        )  # fmt: skip
        groups = {g.name: g.size for g in trace(self.model, self.inputs, example_targets=self.targets).groups}
        narrowest = min((len(kept) / groups[name] for name, kept in result.plan.groups.items()), default=1.0)
        steps = searched(result.history, division.method) if division.epochs else 0
        unused = division.epochs - steps / self.steps  # epochs of a search that ended early
        stages = {
            "original": result.before, "cut": result.cut, "calibrated": result.calibrated, "recovered": result.after
        }  # fmt: skip
        timed = {} if result.latency is None else {"latency": asdict(result.latency)}
        return {
            **{stage: asdict(self.each(figures)) for stage, figures in stages.items()},
            "error": None if math.isnan(result.error) else result.error, "narrowest": narrowest,
            "passes": division.passes - (unused * cost.epoch if unused * self.steps > 1 else 0.0),
            "search": {"epoch": cost.epoch, "once": cost.once, "epochs": division.epochs, "steps": steps},
            "recovery": _recorded(division.recovery), **timed,
            "warnings": [*division.warnings, *result.warnings], **_took(*clocks), "machine": device_name(self.where),
        }  # fmt: skip

    def _own(self, cell: Cell) -> Record:
        """A peer's own cut, fine-tuned on the labels with all of the compute."""
        clocks = time.perf_counter(), time.process_time()
        data = self.at(cell.seed)
        original = measured(self.cost, self.model, data, self.objective)
        small, once = self._cut(cell)
        cost = self.each(count(small, self.inputs))
        cut = measured(cost, small, data, self.objective)
        division = self.division(cell, once)
        for recipe in division.recovery:
            recover(
                small, data, recipe, seed=cell.seed, device=self.where, objective=self.objective,
                progress="lines" if self.work.progress else "silent",
            )  # fmt: skip
        after = measured(cost, small, data, self.objective)
        return {
            "original": asdict(original), "cut": asdict(cut), "calibrated": None, "recovered": asdict(after), "error": None,
            "narrowest": None,
            "passes": division.passes, "search": {"epoch": 0.0, "once": once.once, "epochs": 0.0, "steps": 0},
            "recovery": _recorded(division.recovery), "warnings": list(division.warnings), **_took(*clocks),
            "machine": device_name(self.where),
        }  # fmt: skip

    def _cut(self, cell: Cell) -> tuple[nn.Module, SearchCost]:
        """A peer's own cut, and what it costs."""
        began, method = time.perf_counter(), cell.contestant.method
        if not isinstance(method, TorchPruning):
            raise ConfigError(f"{method.name} has no cut of its own.")
        graph = trace(self.model, self.inputs, example_targets=self.targets)
        with MacCounter() as counter:
            small = method.cut(self._task(method, cell, graph, "all"))
        return small, SearchCost(0.0, counter.macs / (3 * self.cost.macs), time.perf_counter() - began)


def outcome(bench: Callable[[], Bench], job: Job) -> Record:
    """Return what is foreseen for a cell, its figures, or its error: if it raises, the other cells are still measured."""
    began = time.perf_counter()
    try:
        if job.foresee:
            return {"foreseen": bench().foresee(job.cell)}
        return {"figures": bench().measure(job.cell, job.known, job.folder)}
    except Exception as error:
        name = "" if isinstance(error, SecateursError) else f"{type(error).__name__}: "
        return {"failed": f"{name}{error}", "seconds": time.perf_counter() - began}


LIMITS = tuple(f.name for f in fields(Limits))


def _step(model: nn.Module, batch: B.Batch, objective: Objective) -> None:
    """One training step's forward and backward."""
    if batch.labeled:
        loss = objective.train(model, batch, CrossEntropy())[2]
    else:
        loss = torch.stack([x.float().mean() for x in leaves(call(model, batch.inputs)) if x.is_floating_point()]).sum()
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    loss.item()  # waits for the device


def _recorded(phases: Sequence[Phase]) -> list[Record]:
    return [{"mode": phase.mode, **phase.model_dump(mode="json", exclude_unset=True)} for phase in phases]


def _took(wall: float, cpu: float) -> Record:
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
