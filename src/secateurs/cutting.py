"""The work of `prune`: select, cut, verify, calibrate and recover, in one round or in several."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from secateurs import artifact, recovery, training
from secateurs.artifact import Signature
from secateurs.artifact.history import is_warning, records
from secateurs.changes import differences
from secateurs.data import Data
from secateurs.data.loader import Loader
from secateurs.errors import BudgetError, ConfigError, SecateursError, Setting, VerificationError
from secateurs.files import shown
from secateurs.graph import Cost
from secateurs.graph.channels import named_tensors
from secateurs.latency import LatencyModel
from secateurs.methods.method import Method, Task
from secateurs.methods.pruner import TrainingMethod
from secateurs.methods.rounds import Rounds, carried, folder_of
from secateurs.methods.selection import Selection
from secateurs.plans import Plan, PrunableGraph, trace
from secateurs.recovery.calibrate import Calibration
from secateurs.recovery.outcome import worse
from secateurs.result import Figures, Result
from secateurs.seeds import mix
from secateurs.surgery import apply
from secateurs.surgery.verify import verified
from secateurs.timing import Kept, Timing
from secateurs.training import CheckpointStore, Objective, Phase
from secateurs.training.processes import first
from secateurs.training.resume import refuse_foreign_log
from secateurs.training.runtime import wait_for_everyone

ON_CARD = ("task", "budget", "scope", "recover", "calibrate", "seed", "schedule")  # of the settings


@dataclass
class Pruned:
    """What the rounds so far have made of the original: the figures and the history are those of the whole.

    kept: what was measured of its time, where the budget limits it.
    """

    model: nn.Module
    plan: Plan
    cut: Figures
    calibrated: Figures
    after: Figures
    error: float
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: Kept | None = None


@dataclass(frozen=True)
class Pruning:
    """One call of `prune`: what all of its rounds have in common.

    original: the network as it was given, on the device of the work, which teaches and stays as it is. task: the whole, with a
    network that the method may train. recover: the phases of recovery, each with the name of its folder. options: of the
    engine. images: to calibrate on. source: how to build the original. limits: as the card has them. settings: the others,
    which a resumed call must have, too. signature: how the network is called. timing: what holds the cut to a latency budget.
    """

    original: nn.Module
    task: Task
    method: Method
    rounds: Rounds
    recover: Sequence[tuple[str, Phase]]
    options: Mapping[str, Any]
    before: Figures
    calibrate: bool = True
    images: Any = None
    allow_inexact: bool = False
    example_targets: Any = None
    folder: Path | None = None
    report: Callable[[str], None] = lambda line: None
    source: dict[str, Any] | None = None
    limits: dict[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    signature: Signature | None = None
    timing: Timing | None = None

    def run(self) -> Pruned:
        """All rounds, those left out that a resumed call finds finished."""
        done, found = self._resumed() if self.task.resume else (0, None)
        if found is not None:
            self.report(f"{done} of {self.rounds.count} rounds are done already")
        for number in self.rounds:
            if number > done:
                found = self._round(number, found)
                self._save(number, found)
        assert found is not None
        return found

    def _round(self, number: int, last: Pruned | None) -> Pruned:
        """Cut what the last round left, and recover it."""
        history: list[dict[str, Any]] = []
        task, several = replace(self._task(number, last), log=history.append), self.rounds.count > 1
        limits = () if task.budget is None else task.budget.limited
        if several:
            most = " and ".join(_most(task, name) for name in limits)
            self.report(f"round {number} of {self.rounds.count}: at most {most}")
        selection, step, cost, kept = self._selected(task, last, number == self.rounds.count)
        small, plan, error = self._sliced(task, step, last)
        self.method.initialize(task, selection, small)
        self.report(
            f"cut and verified: masked and sliced differ by {error:.1e}"
            if plan.exact
            else "cut (inexact: not verified)"
        )
        cut = calibrated = figures(cost, small, task.data, task.objective)
        # A task without a budget gets one that its ratios meet.
        if (
            number == self.rounds.count
            and task.fixed
            and self.settings.get("budget")
            and self.method.cuts == "channels"
        ):
            task.warn(
                "The ratios fix how much of each group is kept, so the budget had nothing to decide: "
                f"{cut.macs / self.before.macs:.1%} of the MACs are left. Limits (max_cut, min_channels) leave it room."
            )
        if self.calibrate and (step.groups or step.stripes) and (done := self._calibrated(task, step, small)):
            history.append(done.record())
            self.report(str(done))
            calibrated = figures(cost, small, task.data, task.objective)
        for name, recipe in self.recover:
            history += recovery.recover(
                small, task.data, recipe, plan=plan, teacher=self.original, example_inputs=task.example_inputs,
                nodes=selection.nodes, seed=task.seed, resume=task.resume,
                **phase(self._folder(number), name, self.options),
            )  # fmt: skip
        after = figures(cost, small, task.data, task.objective) if self.recover else calibrated
        if self.recover and (harmed := worse(after, calibrated, task.objective.metrics)):
            task.warn(harmed)
            self.report(harmed)
        if several:
            end = {
                "event": "round", "rounds": self.rounds.count, "budget": {n: _limit(task, n) for n in limits},
                "cut": asdict(cut), "calibrated": asdict(calibrated), "after": asdict(after), "error": error,
            }  # fmt: skip
            history = [{**entry, "round": number} for entry in [*history, end]]
        return Pruned(small, plan, cut, calibrated, after, error, [*(last.history if last else ()), *history], kept)

    def _selected(self, task: Task, last: Pruned | None, final: bool) -> tuple[Selection, Plan, Cost, Kept | None]:
        """What the method keeps of the task's network, what that costs, and what was measured of its time in the last round."""
        name, graph, base = self.method.name, task.graph, self.task.graph.cost()
        kept: Kept | None = None
        if self.timing is not None and final:
            selection, kept = self.timing.select(task, self.method, last.plan.then if last else lambda plan: plan)
        else:
            selection = Selection.of(self.method.select(task), f"{name}.select")
        step = selection.plan(graph, allow_inexact=self.allow_inexact)
        cost = graph.cost_of(step)
        if kept is None and task.budget is not None and not task.budget.allows(cost, graph.cost()):
            raise BudgetError(
                f"{name} keeps {cost.macs:,} MACs and {cost.params:,} parameters, over its {task.budget}: a method has to meet "
                "the budget of its task."
            )
        task.check_kept(step, name)
        self.report(
            f"{name} keeps {cost.macs / base.macs:.1%} of the MACs and {cost.params / base.params:.1%} of the parameters"
        )
        return selection, step, cost, kept

    def _sliced(self, task: Task, step: Plan, last: Pruned | None) -> tuple[nn.Module, Plan, float]:
        """The network after this cut, the plan of all cuts so far, and the largest error of any of them."""
        small, error = self._verified(task.model, step, task.graph)
        if last is None:
            return small, step, error
        plan = last.plan.then(step)
        once, whole = self._verified(self.original, plan, self.task.graph)
        one, other = ({name: tuple(x.shape) for name, x in named_tensors(net).items()} for net in (once, small))
        if wrong := [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]:
            raise VerificationError(
                f"The cuts of the rounds do not add up to one cut of the original: {wrong[0]} has shape {other.get(wrong[0])}, "
                f"and {one.get(wrong[0])} after one cut. Please prune this network in one round, and report it."
            )
        return small, plan, max(error, last.error, whole) if plan.exact else float("nan")

    def _verified(self, model: nn.Module, plan: Plan, graph: PrunableGraph) -> tuple[nn.Module, float]:
        """The sliced network and its error; nan for a plan that is inexact, and not verified."""
        if not plan.exact:
            return apply(model, plan), float("nan")
        return verified(model, plan, self.task.example_inputs, graph=graph)

    def _calibrated(self, task: Task, step: Plan, small: nn.Module) -> Calibration:
        """Calibrate the network that a cut left, in place."""
        images, objective = self.images, task.objective
        # Processes pool what they find where all of them are known to be here: they train together.
        trains = bool(self.recover) or isinstance(self.method, TrainingMethod)
        if pooled := images is not None and trains:
            wait_for_everyone(self.options["device"])
        batches = None if images is None else partial(
            training.without_labels, images, recovery.IMAGES, seed=task.seed, whole=objective.whole
        )  # fmt: skip
        return recovery.after_cut_(
            task.model, small, step, task.example_inputs, batches,
            initialized=type(self.method).initialize is not Method.initialize, pooled=pooled, objective=objective,
        )  # fmt: skip

    def _task(self, number: int, last: Pruned | None) -> Task:
        """What the method is given in a round."""
        whole, rounds = self.task, self.rounds
        if rounds.count == 1:
            return whole
        model, graph = whole.model, whole.graph
        if last is not None:
            model = last.model
            graph = trace(
                model, whole.example_inputs, allow_inexact=self.allow_inexact, example_targets=self.example_targets
            )
            if isinstance(clock := whole.graph.clock, LatencyModel):
                graph = graph.timed(clock.of(graph, whole.example_inputs))
        seed = rounds.seed(number, whole.seed)
        task = replace(
            whole, model=model, graph=graph, seed=seed, data=_at_start(whole.data, seed if number > 1 else None),
            budget=rounds.budget(number, whole.budget, whole.graph.cost()),
            bounds=carried(whole.bounds, whole.graph, graph, whole.scope, rounds.progress(number)),
            engine_options=phase(self._folder(number), "prune", self.options), teacher=self.original,
        )  # fmt: skip
        try:
            return task.for_method(self.method)
        except SecateursError as error:
            raise error.within(f"Round {number} of {rounds.count}: ") from error

    def _folder(self, number: int) -> Path | None:
        return None if self.folder is None else self.folder / folder_of(number, self.rounds.count)

    # -- finished rounds, as artifacts ---------------------------------------------------------------------------------

    def _save(self, number: int, found: Pruned) -> None:
        """Keep what a round left, so that it need not be repeated: but for the last one, which is the caller's to save."""
        folder = self._folder(number)
        if folder is None or number == self.rounds.count:
            return
        if first():
            card = {**self.result(found).card(), "rounds": dict(self.settings)}
            artifact.save(folder, found.model, found.plan, card, overwrite=True)
        wait_for_everyone(self.options["device"])

    def _resumed(self) -> tuple[int, Pruned | None]:
        """The number of rounds that are finished, and what the last of them left."""
        done = 0
        while done + 1 < self.rounds.count and self.folder and artifact.is_round(self.folder / folder_of(done + 1, 0)):
            done += 1
        folder = self._folder(done)
        if not done or folder is None:
            return 0, None
        plan, card = artifact.read(folder)
        then, now = dict(card.rounds or {}), json.loads(json.dumps(self.settings))
        if then.pop("weights", None) != now.pop("weights", None):
            raise ConfigError(
                f"{shown(folder)} is a round of another network: its weights were others when the run began. Pass the network "
                "that the run began with, or choose another folder."
            )
        if changed := list(differences(then, now)):
            raise ConfigError(
                f"{shown(folder)} is a round of another run, which differs in {', '.join(changed)}. To resume it, use the "
                "same settings as before. Otherwise, choose another folder."
            )
        model = artifact.restored(folder, plan, card, self.original)
        error = float("nan") if card.error is None else card.error
        return done, Pruned(model, plan, card.cut, card.calibrated, card.after, error, records(card.history))

    def _told(self, found: Pruned) -> tuple[str, ...]:
        """What the method and the clock say of it."""
        warned = [entry for entry in found.history if is_warning(entry)]
        told = tuple(f"round {e['round']}: {e['text']}" if "round" in e else str(e["text"]) for e in warned)
        return told if self.timing is None or found.kept is None else told + self.timing.told(found.kept)

    def result(self, found: Pruned, warnings: tuple[str, ...] = ()) -> Result:
        """What `prune` returns of the rounds so far."""
        return Result(
            found.model, found.plan, self.before, found.cut, found.calibrated, found.after, found.error, self.method,
            found.history, self.source, self.limits, (*warnings, *self._told(found)), self.signature,
            {name: self.settings[name] for name in ON_CARD if name in self.settings},
            None if self.timing is None or found.kept is None else self.timing.record(found.kept),
        )  # fmt: skip


def check_folder(folder: Path, rounds: Rounds, phases: Sequence[str], resume: bool) -> None:
    """Raise, before any work, for files that the rounds would overwrite and that are not ours, and for finished rounds of an
    earlier run that is not resumed."""
    for number in rounds:
        own = folder / folder_of(number, rounds.count)
        for name in phases:
            refuse_foreign_log(own / name)
        if number == rounds.count:
            continue
        if os.path.lexists(own) and not own.is_dir():
            raise ConfigError(f"{shown(own)} is not a folder: move it, or choose another folder.")
        if names := artifact.foreign(own):
            raise ConfigError(f"{shown(own)} holds {names[0]}, which is not ours: move it, or choose another folder.")
        if artifact.exists(own) and not artifact.is_round(own):
            raise ConfigError(
                f"{shown(own)} holds an artifact that is not a round's: move it, or choose another folder."
            )
        if not resume and artifact.exists(own):
            raise ConfigError(
                f"{shown(own)} holds a round of an earlier run. Resume it (", Setting("resume", True), "), or choose "
                "another folder.",
            )  # fmt: skip


def phase(folder: Path | None, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's options for one phase of a run."""
    given = {k: v for k, v in options.items() if name != "prune" or k != "hooks"}
    if folder is None:
        return given
    own = folder / name
    return {**given, "folder": own, "checkpoints": CheckpointStore(own / "checkpoints")}


def figures(cost: Cost, model: nn.Module, data: Data | None, objective: Objective) -> Figures:
    """The cost of a network and, with validation data, what is measured on it."""
    if data is None or data.val is None:
        return Figures(cost.macs, cost.params)
    found = measured(model, data, objective)
    return Figures(cost.macs, cost.params, found.top1, found.top5, found.loss, found.metrics)


def measured(model: nn.Module, data: Data, objective: Objective) -> training.Metrics:
    """What is measured of a network on all validation images. If the data is split by process, each process still evaluates all
    of it, so all have the same metrics."""
    images = data.val.whole() if hasattr(data.val, "whole") else data.val
    return training.evaluate(model, images, objective=objective)


def _at_start(data: Data | None, seed: int | None) -> Data | None:
    """The data at its first epoch, with an order and augmentation of its own where there is a seed for them."""
    if data is None:
        return None
    if isinstance(data.train, Loader):
        return replace(data, train=data.train.reseeded(data.train.seed if seed is None else mix(data.train.seed, seed)))
    if hasattr(data.train, "set_epoch"):
        data.train.set_epoch(0)
    return data


def _limit(task: Task, name: str) -> float:
    """What may stay in a round."""
    assert task.budget is not None
    found = getattr(task.budget.limits(task.graph.cost()), name)
    return float(found) if name == "latency" else int(found)


def _most(task: Task, name: str) -> str:
    if name == "latency":
        return f"{_limit(task, name) * 1000:.3g} ms"
    return f"{_limit(task, name):,} {'MACs' if name == 'macs' else 'parameters'}"
