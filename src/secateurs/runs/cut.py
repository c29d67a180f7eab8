"""One cut of a run: its checks and its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from secateurs import artifact, recovery
from secateurs.api import prune
from secateurs.artifact import Earlier
from secateurs.budget import Budget
from secateurs.cutting import check_folder
from secateurs.data import Data
from secateurs.devices import usable
from secateurs.errors import ConfigError, Message, NonFiniteLossError, SecateursError, Setting
from secateurs.files import check_writable, shown
from secateurs.methods import Method, Task, TrainingMethod
from secateurs.methods.limits import Limits
from secateurs.methods.method import Scope
from secateurs.methods.rounds import ONE_ROUND, Rounds
from secateurs.models import load
from secateurs.plans import PrunableGraph, trace
from secateurs.preflight import task_for
from secateurs.report import count
from secateurs.report.curves import can_plot
from secateurs.result import Result, described
from secateurs.runs import stages
from secateurs.runs.command import shareable
from secateurs.runs.folder import FOLDER, OVERWRITE, PICTURE, RESUME, RunFolder
from secateurs.runs.result import RunResult
from secateurs.runs.sources import Builder, DataObject, DataSpec, NetworkSpec, rewind
from secateurs.runs.stages import Stage
from secateurs.runs.training import Pretraining, trained
from secateurs.tasks.purpose import Purpose
from secateurs.training import Objective, Phase, Recipe
from secateurs.training.processes import check as check_processes
from secateurs.training.processes import first
from secateurs.training.runtime import check_trackers, wait_for_everyone, written


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else an accelerator if one can be used. ConfigError for one that cannot be used, or for more
    processes than this machine has GPUs."""
    check_processes(device)
    return usable(device)


class Ready(NamedTuple):
    """What the checks before a run have built."""

    network: nn.Module
    graph: PrunableGraph
    data: Data
    inputs: Any  # of one example
    targets: Any  # what the network is called with in training beside them
    objective: Objective
    where: torch.device


@dataclass(frozen=True)
class Cut:
    """A network, a method, and the folder that the result goes to."""

    network: NetworkSpec
    data: DataSpec | DataObject
    purpose: Purpose
    method: Method
    budget: Budget | None
    recover: Sequence[Phase]
    scope: Scope | None
    limits: Limits
    allow_inexact: bool
    calibrate: bool
    pretrain: Pretraining
    folder: RunFolder
    seed: int
    device: str | torch.device | None
    track: Sequence[Any]
    log: Callable[[str], None]
    by_command: bool  # README.md then has the command
    rounds: Rounds = ONE_ROUND
    later: Sequence[Stage] = ()  # that prune its result
    ahead: Sequence[RunFolder] = ()  # the folders of these, if none of them has begun
    stage: Stage | None = None  # None for the first cut …
    original: int | None = None  # … the MACs of the network that the first one began with …
    earlier: Sequence[Earlier] | None = None  # … and the cuts before this one

    def next(self, result: RunResult, folder: RunFolder) -> Cut:
        """The cut of this one's result, as the first of the later stages says."""
        wait_for_everyone(pick_device(self.device))  # the first process has written the artifact now
        stage, *later = self.later
        original = self.original or result.before.macs
        stages.check([stage], original, result.after.macs)
        network = NetworkSpec(str(self.folder.folder), trust_code=self._trusted, loaded=result.model)
        return replace(
            self, network=network, method=stage.method, budget=stage.budget(original), pretrain=Pretraining(),
            limits=self.limits.later(), rounds=ONE_ROUND, folder=folder, later=later, ahead=(), stage=stage, original=original,
            earlier=stages.earlier(result),
        )  # fmt: skip

    @property
    def _trusted(self) -> bool:
        """Whether the artifact's code may run: it was made by this run, from a spec that the user wrote."""
        return self.network.trust_code or self.network.name.startswith("python:")

    def record(self) -> dict[str, Any]:
        """The settings that the result depends on. A resumed run must have the same."""
        return {
            "model": self.network.name,
            "weights": self.network.digest(),
            "num_classes": self.network.num_classes,
            **self.data.settings(),
            **self.purpose.record(),
            "method": self.method.record(),
            "budget": None if self.budget is None else self.budget.record(),
            **self.rounds.record(),
            "scope": self.scope or self.method.default_scope,
            **({"limits": self.limits.record()} if self.limits else {}),
            "allow_inexact": self.allow_inexact,
            "calibrate": self.calibrate,
            "recover": recorded(self.recover),
            "pretrain": None if self.network.has_weights else self.pretrain.record(),
            "seed": self.seed,
        }

    def start(self, build: Builder, *, resume: bool, overwrite: bool, began: float) -> RunResult:
        """Run the cut, or resume it; read the result if it is finished. build: makes the network."""
        out, record = shown(self.folder.folder), self.record()
        if self.folder.check(record, resume=resume, overwrite=overwrite, log=self.log):
            if first():
                self.folder.tidy()
            self.log(f"{out} is finished already: nothing to do.")
            return self._finished()
        if self.stage is not None:
            self.log(f"then {self.method.name}, on {shown(self.network.name)}")
        elif resume and not self.folder.resumable():
            self.log(f"{out} holds nothing to resume from: the run starts from the beginning.")
        try:
            return self._run(self.prepare(build, resume=resume), record, resume=resume, began=began)
        except KeyboardInterrupt:
            if self.stage is not None or self.folder.can_resume(record):
                raise self.folder.interrupted() from None
            raise
        except NonFiniteLossError as error:
            raise error.advised(*self._advice()) from error
        except ConfigError as error:  # a node to mimic that the cut has changed, for example
            if not self.folder.can_resume(record):
                raise
            raise ConfigError(
                error, f" {out} keeps what is done so far: with ", RESUME, " the same run continues from there, with other "
                "settings of recovery, too.",
            ) from error  # fmt: skip

    def _finished(self) -> RunResult:
        """The result of a finished cut."""
        out, given = self.folder.folder, self.network.model
        model = load(out, None if isinstance(given, str) else given, trust_code=self._trusted)
        return RunResult.read(out, model, self.method)

    def prepare(self, build: Builder, *, resume: bool = False) -> Ready:
        """Check, before any work, whatever would make the run fail later. resume: with the latency model of the run that is
        resumed."""
        where = pick_device(self.device)
        data = self.data.load(self.seed, where, self.purpose.task, self.network.num_classes)
        network = build(data, where, self.seed)
        artifact.check_state(network)
        inputs = self.purpose.example(network, data)
        self.purpose.check_measured(data)
        objective = self.purpose.objective(network, inputs, measured=data.val is not None)
        check_trackers(self.track, self.folder.folder)
        recovery.check(self.recover, network, data, objective)
        targets = self.purpose.example_targets(network, data)
        traced = trace(network, inputs, allow_inexact=self.allow_inexact, example_targets=targets)
        bounds = self.limits.on(traced, self.scope or self.method.default_scope)

        def feasible(method: Method, budget: Budget | None) -> Task:
            task = task_for(
                method, network, traced, inputs, budget, self.scope, bounds, data=data, seed=self.seed, report=self.log,
                folder=self.folder.folder if resume else None,
            )  # fmt: skip
            return task.for_method(method)

        first_task = feasible(self.method, self.budget)
        graph = first_task.graph
        cost = graph.cost()
        self.rounds.check(self.method, first_task.budget)
        check_folder(self.folder.folder, self.rounds, (), resume=True)
        original = self.original or cost.macs
        stages.check(self.later, original, cost.macs if self.budget is None else self.budget.limits(cost).macs)
        for stage in self.later:  # as far as can be determined now
            try:
                feasible(stage.method, stage.budget(original))
            except SecateursError as error:
                raise error.renamed(stage.named).within(stage.setting, ": ") from error
        pretrains = not self.network.has_weights and self.pretrain.recipe(data).epochs
        if pretrains or any(isinstance(r, Recipe) for r in self.recover) or isinstance(self.method, TrainingMethod):
            self.purpose.check_trains(network, data, self.network.name)
        if pretrains:  # otherwise `prune` comes first
            recovery.check_data(self.recover, network, data, objective)
        if self.budget is not None and self.budget.allows(cost, cost):
            self.log(
                f"the budget is met already, nothing will be cut: {self.network.name} has {cost.macs:,} MACs and "
                f"{cost.params:,} parameters"
            )
        return Ready(network, graph, data, inputs, targets, objective, where)

    def _run(self, ready: Ready, record: dict[str, Any], *, resume: bool, began: float) -> RunResult:
        check_writable(self.folder.folder)
        if first():
            for folder in () if resume else self.ahead:  # before anything else, so that a killed run can be resumed
                folder.reset()
            self.folder.begin(record, resume=resume)
        wait_for_everyone(ready.where)  # an earlier run's weights, which others would load, are gone now
        given = self.network.model
        network = given if isinstance(given, nn.Module) else self._trained(ready, resume)
        rewind(ready.data)
        result = prune(
            network,
            ready.inputs,
            self.method,
            self.budget,
            ready.data,
            self.recover,
            self.scope,
            self.seed,
            **self.limits.options(),
            calibrate=self.calibrate,
            allow_inexact=self.allow_inexact,
            rounds=self.rounds.count,
            schedule=self.rounds.schedule,
            report=self.log,
            folder=self.folder.folder,
            resume=resume,
            graph=ready.graph,
            example_targets=ready.targets,
            device=ready.where,
            save_seconds=60,
            track=self.track,
            **vars(ready.objective),
        )
        earlier = self.earlier
        if earlier is None:
            earlier = stages.earlier(artifact.read(self.network.name)[1]) if self.network.is_artifact else ()
        done = RunResult(
            **{f.name: getattr(result, f.name) for f in fields(Result) if f.name != "settings"},
            earlier=earlier,
            seconds=round(time.perf_counter() - began, 1),
            settings={
                **result.settings,
                **self.purpose.card(),
                "data": self.data.record(ready.data),
                "budget": record["budget"],
                "recover": record["recover"],
                "seed": self.seed,
            },
        )
        if first():
            describe = partial(described, command=shareable(record) if self.by_command else None)
            artifact.save(self.folder.folder, done.model, done.plan, done.card(), overwrite=True, describe=describe)
            self._draw(network, done.model, ready.data)
            self.folder.finish(record)
        return done

    def _draw(self, before: nn.Module, after: nn.Module, data: Data) -> None:
        if not self.purpose.task.pictures:
            return
        if can_plot():
            with written(self.folder.folder):
                self.purpose.task.draw(self.folder.folder / PICTURE, {"before": before, "after": after}, data)
        else:
            self.log("no predictions will be drawn: that needs matplotlib, pip install 'secateurs[report]'")

    def _advice(self) -> tuple[object, ...]:
        """What to do about a loss that is not finite, in terms of the run's settings."""
        kept, pretrains = self.folder.pretrained, not self.network.has_weights
        knob: tuple[object, ...]
        if pretrains and not kept.exists():
            knob = ("a ", Setting("pretrain_lr"), f" below {self.pretrain.usual_lr:g}")
        elif begun := [r for name, r in recovery.phases(self.recover) if self.folder.began(name)]:
            recipe = begun[-1]  # only what trains has a log
            assert isinstance(recipe, Recipe)
            lr = Setting("lr", of=type(recipe))
            if recipe.lr is None:  # chosen when it began
                knob = ("a lower ", lr)
            else:
                knob = ("a " if recipe.mode == "mimic" else "an ", lr, f" below {recipe.lr:g}")
        elif "lr" in type(self.method).model_fields:
            lr = Setting("lr", of=type(self.method))
            knob = ("a lower ", lr if self.stage is None else self.stage.named(lr))
        else:
            knob = ("other settings of the method",)
        again = (
            (Setting("weights", shown(kept)), " and another ", FOLDER) if pretrains and kept.exists() else (OVERWRITE,)
        )
        return ("Check that batch for bad values, or try ", *knob, ", with ", *again, ".")

    def _trained(self, ready: Ready, resume: bool) -> nn.Module:
        """The network itself if it came with weights; else trained, and kept as pretrained.safetensors."""
        if self.network.has_weights:
            return ready.network
        name, recipe = self.network.name, self.pretrain.recipe(ready.data)
        if not self.folder.pretrained.exists():
            if recipe.epochs:
                epochs = count(recipe.epochs, "epoch")
                text = f": training {name} on {self.data.name} first, {epochs} ("
                self.log(Message("no ", Setting("weights"), text, Setting("pretrain_epochs"), ")"))
            else:
                zero, text = Setting("pretrain_epochs", 0), f": {name} is pruned untrained, with random weights"
                self.log(Message("no ", Setting("weights"), " and ", zero, text))
        return trained(
            ready.network, ready.data, recipe, self.folder, "pretrain", self.folder.pretrained, seed=self.seed,
            device=ready.where, resume=resume, objective=ready.objective,
        )  # fmt: skip


def recorded(recipes: Sequence[Phase]) -> Any:
    """Recovery recipes as they are recorded: None, one, or a list."""
    found = [recipe.record() for recipe in recipes]
    return found if len(found) > 1 else found[0] if found else None
