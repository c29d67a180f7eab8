"""Re-design: a base, a scaled, a pruned and a retrained network, in stages that can be resumed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from secateurs import artifact
from secateurs.api import prune
from secateurs.artifact import Figures
from secateurs.artifact.provenance import remember_widened
from secateurs.budget import Budget, exact, fraction
from secateurs.cutting import figures
from secateurs.data import Data
from secateurs.errors import BudgetError, ConfigError, Message, Setting
from secateurs.files import check_writable, dump_json, read_json, shown
from secateurs.graph import Cost
from secateurs.graph import count as counted
from secateurs.keywords import explained
from secateurs.methods import Method, resolve
from secateurs.methods.limits import Counts, Cuts, Limits, Ratios
from secateurs.methods.matching import Layers
from secateurs.methods.method import Scope, check_scope
from secateurs.plans import PrunableGraph, trace
from secateurs.preflight import task_for
from secateurs.report import count
from secateurs.result import Result, described
from secateurs.runs.cut import pick_device
from secateurs.runs.folder import OVERWRITE, RunFolder, write
from secateurs.runs.prune import silent
from secateurs.runs.result import ROWS, Redesign
from secateurs.runs.sources import Builder, DataObject, DataSpec, NetworkSpec, as_source, rewind
from secateurs.runs.training import RedesignTraining, trained
from secateurs.seeds import checked as checked_seed
from secateurs.surgery import reinitialize
from secateurs.tasks import VisionTask
from secateurs.tasks.purpose import Purpose
from secateurs.training import CheckpointStore, Engine, Objective, Recipe
from secateurs.training.losses import Loss
from secateurs.training.objective import Forward, Step
from secateurs.training.processes import first
from secateurs.training.runtime import check_trackers, wait_for_everyone
from secateurs.widening import widened, wider

PHASES = ("base", "scaled", "prune", "recover", "scratch")
BASE, SCALED, TABLE = "base.safetensors", "scaled.safetensors", "redesign.json"
PRUNED, SCRATCH = "pruned", "from-scratch"  # the artifacts
# For users who mean a multiple of the base's MACs.
MEANING = ("(", Setting("macs"), " is a fraction of the base's MACs up to 1, and an absolute number above.)")


class Ready(NamedTuple):
    """What the checks before a run have built."""

    base: nn.Module
    wide: nn.Module  # as its training starts
    widths: Mapping[str, int]  # of the groups that are wider in it
    graph: PrunableGraph  # of the wide network
    budget: Budget
    data: Data
    inputs: Any  # of one example
    targets: Any  # what the network is called with in training beside them
    objective: Objective
    where: torch.device


@explained(ConfigError)
@dataclass(frozen=True)
class RedesignRun:
    """Better widths at the same cost, found by pruning a wider network (AOFP, Table 4): what `secateurs redesign`
    does. Resumable, with a folder of its own.

    >>> run = sc.RedesignRun("zoo:resnet56", "folder:data/cifar10", "runs/r56", widen=1.5, log=print)
    >>> found = run.start()

    The folder then holds two artifacts: `pruned`, and `from-scratch`, a network of the widths found.

    model: a spec (see `build`), or the folder of an artifact. data, folder, method, scope, weights, num_classes, trust_code,
        task, loss, step, forward, metrics, seed, device, track, log: as for `PruneRun`. A network with weights, an artifact's
        included, is the trained base: it is not trained again.
    widen: the factor by which every layer in scope grows.
    exclude, only: as for `prune`; what is excluded is not widened either. ratios, min_channels, max_cut: of the widened
        network.
    macs: those to prune back to: a fraction of the base's up to 1, or a figure. align: kept widths are multiples of this.
    from_base: the scaled network starts as a copy of the trained base that computes the same, not from scratch.
    train: how the networks are trained.
    """

    model: str
    data: str | DataSpec | Data
    folder: str | Path
    _: KW_ONLY
    widen: float = 1.5
    macs: float = 1.0
    align: int = 1
    method: str | Method = "aofp"
    scope: Scope | None = None
    exclude: Layers = ()
    only: Layers | None = None
    ratios: Ratios | None = None
    min_channels: int | Counts | None = None
    max_cut: Cuts | None = None
    from_base: bool = False
    task: str | VisionTask | None = None
    loss: Loss | None = None
    step: Step | None = None
    forward: Forward | None = None
    metrics: Mapping[str, Any] | None = None
    train: RedesignTraining = field(default_factory=RedesignTraining)
    weights: str | Path | None = None
    num_classes: int | None = None
    trust_code: bool = False
    seed: int = 0
    device: str | torch.device | None = None
    track: Sequence[Any] = ()
    log: Callable[[str], None] = silent

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Raise whatever `start` would raise before its first step. Nothing is written."""
        run = self._stages()
        build = run.network.open(run.purpose)
        if not run.opened(resume=resume, overwrite=overwrite):
            run.prepare(build)

    def start(self, *, resume: bool = False, overwrite: bool = False, began: float | None = None) -> Redesign:
        """Run, or resume. The arguments are those of `PruneRun.start`."""
        began = time.perf_counter() if began is None else began
        run = self._stages()
        build, out = run.network.open(run.purpose), shown(run.folder.folder)
        if run.opened(resume=resume, overwrite=overwrite):
            if first():
                run.folder.tidy()
            run.log(f"{out} is finished already: nothing to do.")
            return run.finished()
        if resume and not run.folder.resumable():
            run.log(f"{out} holds nothing to resume from: the run starts from the beginning.")
        try:
            return run.go(build, resume=resume, began=began)
        except KeyboardInterrupt:
            if run.folder.can_resume(run.record()):
                raise run.folder.interrupted() from None
            raise

    def _stages(self) -> _Stages:
        check_scope(self.scope)
        if not self.widen > 1:
            raise ConfigError(Setting("widen", self.widen), " is not valid: a network is widened by a factor above 1.")
        self.train.check()
        method, purpose = resolve(self.method), Purpose.of(self.task, self.loss, self.step, self.forward, self.metrics)
        weights = None if self.weights is None else Path(self.weights)
        return _Stages(
            network=(network := NetworkSpec(self.model, weights, self.num_classes, self.trust_code)),
            data=as_source(self.data, purpose.task, network),
            purpose=purpose,
            widen=self.widen,
            macs=self.macs,
            align=self.align,
            method=method,
            scope=self.scope or method.default_scope,
            limits=Limits(self.exclude, self.only, self.ratios, self.min_channels, self.max_cut),
            from_base=self.from_base,
            train=self.train,
            folder=RunFolder(Path(self.folder), PHASES, (BASE, SCALED, TABLE), (PRUNED, SCRATCH)),
            seed=checked_seed(self.seed),
            device=self.device,
            track=self.track,
            log=self.log if first() else silent,
        )


@dataclass(frozen=True)
class _Stages:
    """One run: its settings and its stages."""

    network: NetworkSpec
    data: DataSpec | DataObject
    purpose: Purpose
    widen: float
    macs: float
    align: int
    method: Method
    scope: Scope
    limits: Limits
    from_base: bool
    train: RedesignTraining
    folder: RunFolder
    seed: int
    device: str | torch.device | None
    track: Sequence[Any]
    log: Callable[[str], None]

    def record(self) -> dict[str, Any]:
        """The settings that the result depends on. A resumed run must have the same."""
        return {
            "command": "redesign",
            "model": self.network.name,
            "weights": None if self.network.weights is None else artifact.digest(self.network.weights),
            "artifact": self.network.digest() if self.network.is_artifact else None,
            "num_classes": self.network.num_classes,
            **self.data.settings(),
            **self.purpose.record(),
            "method": self.method.record(),
            "widen": self.widen,
            "macs": self.macs,
            "align": self.align,
            "scope": self.scope,
            **({"limits": self.limits.record()} if self.limits else {}),
            "from_base": self.from_base,
            "train": asdict(self.train),
            "seed": self.seed,
        }

    def opened(self, *, resume: bool, overwrite: bool) -> bool:
        """Whether it is finished already. Raises for anything that the run would destroy."""
        self.folder.spare(self.network.file, self.network.file_of)
        return self.folder.check(self.record(), resume=resume, overwrite=overwrite, log=self.log)

    def finished(self) -> Redesign:
        return read_json(self.folder.folder / TABLE, Redesign, advice=Message(OVERWRITE, " starts over."))

    def go(self, build: Builder, *, resume: bool, began: float) -> Redesign:
        ready, record = self.prepare(build), self.record()
        data, where = ready.data, ready.where
        check_writable(self.folder.folder)
        if first():
            self.folder.begin(record, resume=resume)
        wait_for_everyone(where)  # an earlier run's weights, which others would load, are gone now

        base = self._base(ready, resume)
        wide = self._scaled(base, ready, resume)
        rewind(data)
        result = self._pruned(wide, ready, resume)
        rows = [_figures(base, ready), result.before, result.after]
        card = {**result.card(), **self.purpose.card(), "data": self.data.record(data), "redesign": record}
        card["seed"] = self.seed
        self._save(PRUNED, result.model, result, card, began)

        small, history = self._scratch(result.model, ready, resume)
        rows.append(_figures(small, ready))
        nothing = {**asdict(rows[-1]), "top1": None, "top5": None, "loss": None, "metrics": {}}
        card |= {"cut": nothing, "calibrated": nothing, "after": asdict(rows[-1]), "error": None, "history": history}
        self._save(SCRATCH, small, result, card, began)
        found = Redesign(
            rows=dict(zip(ROWS, rows, strict=True)), widths=self._found(ready.graph, result),
            error=result.error if result.plan.exact else None, seconds=round(time.perf_counter() - began, 1),
        )  # fmt: skip
        if first():
            write(self.folder.folder / TABLE, dump_json(found.model_dump(mode="json"), indent=2))
            self.folder.finish(record)
        return found

    # -- before any work --------------------------------------------------------------------------------------------

    def prepare(self, build: Builder) -> Ready:
        """Check, before any work, whatever would make the run fail later."""
        where, purpose = pick_device(self.device), self.purpose
        data = self.data.load(self.seed, where, purpose.task, self.network.num_classes)
        check_trackers(self.track, self.folder.folder)
        purpose.check_measured(data)
        base = build(data, where, self.seed)
        artifact.check_state(base)
        inputs, name = purpose.example(base, data), self.network.name
        targets = purpose.example_targets(base, data)
        purpose.check_trains(base, data, name)
        copies = self.from_base and self.network.has_weights
        start = base
        if self.network.weights is not None and not copies:  # parameters that nothing resets start as they were made
            start = replace(self.network, weights=None).open(purpose)(data, where, self.seed)
        options: dict[str, Any] = {"seed": self.seed, "example_targets": targets}
        wide, how, graph = widened(start, inputs, self._widths(start, inputs, targets), scope=self.scope, **options)
        remember_widened(wide, start, how.record())
        if not copies:
            wide = reinitialize(wide, self.seed, keep_raw=True)
        if not self.network.has_weights:
            base = reinitialize(base, self.seed, keep_raw=True)
        purpose.check_trains(wide, data, f"{name}, widened,")

        cost, scaled = counted(base, inputs), graph.cost()
        budget = self._budget(cost, scaled)
        bounds = self.limits.on(graph, self.scope)
        task = task_for(self.method, wide, graph, inputs, budget, self.scope, bounds, data=data, seed=self.seed)
        widths = task.widths
        least = widths.cost(widths.lowest).macs if widths.groups else 0
        if least > budget.limits(scaled).macs:
            lowest = fraction(least, cost.macs) if least <= cost.macs else least
            raise BudgetError(
                Setting("macs", self.macs), f" ({budget.limits(scaled).macs:,} of the base's {cost.macs:,}) cannot be met: "
                f"with every channel cut that may be cut, the widened network has {least:,} left. The lowest figure that "
                "can be met is ", Setting("macs", lowest), "; ", Setting("scope", "all"), " may allow less.",
                hint=MEANING if max(self.macs, lowest) > 1 else (),
            )  # fmt: skip
        task.for_method(self.method)
        self.log(
            f"{name} has {cost.macs:,} MACs, {scaled.macs:,} when widened by {self.widen:g}, to be pruned to "
            f"{budget.limits(scaled).macs:,}"
        )
        objective = purpose.objective(base, inputs, measured=data.val is not None)
        return Ready(base, wide, how.widths, graph, budget, data, inputs, targets, objective, where)

    def _widths(self, model: nn.Module, inputs: Any, targets: Any) -> float | dict[str, int]:
        """How much wider the groups become: by the factor, but for those that the user has excluded."""
        if not (self.limits.exclude or self.limits.only):
            return self.widen
        graph = trace(model, inputs, example_targets=targets)
        bounds = Limits(self.limits.exclude, self.limits.only).on(graph, self.scope)
        return {name: w for name, w in wider(graph, self.widen, scope=self.scope).items() if name not in bounds}

    def _budget(self, base: Cost, scaled: Cost) -> Budget:
        """The base's MACs, or that part of them, as a figure."""
        asked = Budget(exact(self.macs), align=self.align)  # refuses what is not valid
        budget = Budget(asked.limits(base).macs, align=self.align)
        if asked.limits(base).macs >= scaled.macs:
            raise BudgetError(
                Setting("macs", self.macs),
                f": the widened network has {scaled.macs:,} MACs, and {asked.limits(base).macs:,} may stay: there is "
                "nothing to prune.",
                hint=("Widen it more, or give a lower ", Setting("macs"), "."),
            )
        return budget

    # -- the stages -------------------------------------------------------------------------------------------------

    def _base(self, ready: Ready, resume: bool) -> nn.Module:
        if self.network.has_weights:
            return ready.base
        return self._trained(ready.base, "base", BASE, ready, resume)

    def _scaled(self, base: nn.Module, ready: Ready, resume: bool) -> nn.Module:
        wide = ready.wide
        given = self.network.has_weights or os.path.lexists(self.folder.folder / SCALED)
        if self.from_base and not given:  # the base has been trained only now
            wide, how, _ = widened(base, ready.inputs, ready.widths, seed=self.seed, example_targets=ready.targets)
            remember_widened(wide, base, how.record())
        return self._trained(wide, "scaled", SCALED, ready, resume)

    def _pruned(self, wide: nn.Module, ready: Ready, resume: bool) -> Result:
        return prune(
            wide, ready.inputs, self.method, ready.budget, ready.data, self.train.recovery(), self.scope, self.seed,
            **self.limits.options(),
            report=self.log, folder=self.folder.folder, resume=resume, graph=ready.graph,
            example_targets=ready.targets, device=ready.where, save_seconds=60, track=self.track, **vars(ready.objective),
        )  # fmt: skip

    def _scratch(self, small: nn.Module, ready: Ready, resume: bool) -> tuple[nn.Module, list[dict[str, Any]]]:
        fresh = reinitialize(small, self.seed, keep_raw=True)
        recipe, own = self.train.scratch(ready.data), self.folder.folder / "scratch"
        if not recipe.epochs:
            return fresh, []
        self._announce("the widths found, from scratch", recipe)
        rewind(ready.data)
        history = Engine(
            fresh, ready.data, recipe, seed=self.seed, device=ready.where, folder=own, save_seconds=60, title="scratch",
            checkpoints=CheckpointStore(own / "checkpoints"), track=self.track, objective=ready.objective,
        ).fit(resume=resume)  # fmt: skip
        return fresh, [{**line, "phase": "scratch"} for line in history]

    def _trained(self, network: nn.Module, phase: str, name: str, ready: Ready, resume: bool) -> nn.Module:
        file, recipe = self.folder.folder / name, self.train.recipe(ready.data)
        if not os.path.lexists(file):
            self._announce("the base" if phase == "base" else "the widened network", recipe)
        rewind(ready.data)
        return trained(
            network, ready.data, recipe, self.folder, phase, file, seed=self.seed, device=ready.where, resume=resume,
            track=self.track, objective=ready.objective,
        )  # fmt: skip

    def _announce(self, what: str, recipe: Recipe) -> None:
        self.log(f"training {what}, {count(recipe.epochs or 0, 'epoch')}")

    # -- what is left -----------------------------------------------------------------------------------------------

    def _save(self, name: str, network: nn.Module, result: Result, card: dict[str, Any], began: float) -> None:
        if first():
            place, card = self.folder.folder / name, {**card, "seconds": round(time.perf_counter() - began, 1)}
            artifact.save(place, network, result.plan, card, overwrite=True, describe=described)

    def _found(self, graph: PrunableGraph, result: Result) -> dict[str, tuple[int, int, int]]:
        """Layer → channels of the base, of the scaled network, of the one found."""
        grown = (result.source or {}).get("widen", [{}])[-1].get("before", {})
        found = {}
        for group in graph.groups:
            kept = result.plan.groups.get(group.name)
            if group.name in grown or kept is not None:
                left = group.size if kept is None else len(kept)
                found[group.name] = (grown.get(group.name, group.size), group.size, left)
        return found


def _figures(network: nn.Module, ready: Ready) -> Figures:
    cost = counted(network, ready.inputs)
    return figures(cost, network.to(ready.where), ready.data, ready.objective)
