"""One run of `secateurs prune`: its settings, and what is done one after another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from secateurs.cli import options, stages
from secateurs.cli.options import DataOptions, ModelOptions, say
from secateurs.cli.recipes import PretrainOptions, trained, written
from secateurs.cli.runs import RunFolder
from secateurs.cli.stages import Stage
from secateurs.errors import ConfigError, SecateursError, TrainingError
from secateurs.files import shown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateurs import Budget, Data, Method
    from secateurs.training import Recipe


@dataclass(frozen=True)
class Run:
    """A network, a method, and the folder that the result goes to."""

    spec: str
    method: Method
    budget: Budget | None
    model: ModelOptions
    data: DataOptions
    recipes: Sequence[Recipe]
    scope: Literal["internal", "all"] | None
    allow_inexact: bool
    pretrain: PretrainOptions
    folder: RunFolder
    seed: int
    device: str | None
    track: Sequence[str]
    later: Sequence[Stage] = ()  # what its result is going to be pruned by
    stage: Stage | None = None  # what `--then` said of this run, if it is not the first …
    original: int | None = None  # … and the MACs of the network that the first one began with

    def next(self, folder: RunFolder) -> Run:
        """The run that prunes what this one has left, as the first of the later stages says."""
        from secateurs import artifact
        from secateurs.training.runtime import wait_for_everyone

        wait_for_everyone(options.pick(self.device))
        stage, *later = self.later
        before = self.folder.folder
        _, card = artifact.read(before)
        original = self.original or card.before.macs
        stages.check([stage], original, card.after.macs)
        # The artifact was made by this command, from a spec that the user wrote: its code is what was run already.
        trust = self.model.trust_code or self.spec.startswith("python:")
        return replace(
            self, spec=str(before), method=stage.method, budget=stage.budget(original), model=ModelOptions(trust_code=trust),
            pretrain=PretrainOptions(), folder=folder, later=later, stage=stage, original=original,
        )  # fmt: skip

    def check(self, folders: Sequence[RunFolder], *, resume: bool, force: bool) -> None:
        """Raise now for what makes no sense, and for anything that this run or those after it would destroy."""
        self.pretrain.check(self.weights)
        self.model.check(self.spec)
        for folder in folders:
            folder.spare(self.weights, "" if self.model.weights is not None else f"The artifact {self.spec}")
        for folder in folders[1:]:
            if not resume:  # their settings are not known yet
                folder.check({}, resume=False, force=force)

    def start(self, *, resume: bool, force: bool, began: float) -> None:
        """Do it, or what is left of it to do."""
        out, record = self.folder.folder, self.record()
        if self.folder.check(record, resume=resume, force=force):
            if options.first():
                self.folder.tidy()
            say(f"{shown(out)} is finished already: nothing to do.")
            return
        if self.stage is not None:
            say(f"then {self.method.name}, on {self.spec}")
        elif resume and not self.folder.resumable():
            say(f"{shown(out)} holds nothing to resume from: the run starts from the beginning.")
        try:
            self.go(record, resume=resume, began=began)
        except KeyboardInterrupt:
            if self.stage is not None or self.folder.goes_on(record):
                text = f"{shown(out)} keeps what is done so far: the same command with --resume continues from there."
                raise KeyboardInterrupt(text) from None
            raise
        except TrainingError as error:
            raise self.explained(error) from error
        except ConfigError as error:  # a node to mimic that the cut has changed, say
            if not self.folder.goes_on(record):
                raise
            raise ConfigError(
                f"{error} {out} keeps what is done so far: with --resume the same command continues from there, with other "
                "settings of recovery, too."
            ) from error

    @property
    def _prefix(self) -> str:
        return "" if self.stage is None else self.stage.prefix

    def _scope(self, method: Method) -> Literal["internal", "all"]:
        return self.scope or method.default_scope

    @property
    def weights(self) -> Path | None:
        """The file that the network's weights are in; None if it has to be trained first."""
        from secateurs.api import is_artifact
        from secateurs.artifact import MODEL, place

        own = place(self.spec, MODEL) if is_artifact(self.spec) else None
        return own if self.model.weights is None else self.model.weights

    def record(self) -> dict[str, Any]:
        """All that the result depends on. A resumed run has to agree."""
        from secateurs.artifact import digest

        weights = self.weights
        return {
            "model": self.spec,
            "weights": None if weights is None else digest(weights),
            "num_classes": self.model.num_classes,
            **self.data.settings(),
            "method": {"name": self.method.name, **self.method.model_dump(mode="json")},
            "budget": None if self.budget is None else asdict(self.budget),
            "scope": self._scope(self.method),
            "allow_inexact": self.allow_inexact,
            "recover": written(self.recipes),
            "pretrain": None if weights is not None else asdict(self.pretrain),
            "seed": self.seed,
        }

    def go(self, record: dict[str, Any], *, resume: bool, began: float) -> None:
        import secateurs as sc
        from secateurs import artifact

        where = options.pick(self.device)
        data = self.data.load(self.seed, where)
        network = self.model.build(self.spec, data, where, self.seed)
        inputs = options.example(data)
        self._preflight(network, inputs, data)
        self.folder.writable()
        if options.first():  # the others wait for it where training starts
            self.folder.begin(record, resume=resume)
        network = self._trained(network, data, where, resume)
        options.rewind(data)
        result = sc.prune(
            network,
            inputs,
            self.method,
            self.budget,
            data,
            self.recipes,
            self.scope,
            self.seed,
            allow_inexact=self.allow_inexact,
            report=say,
            folder=self.folder.folder,
            resume=resume,
            device=where,
            save_seconds=60,
            track=self.track,
        )
        card = {
            **result.card(),
            "data": self.data.record(data),
            "budget": record["budget"],
            "recover": record["recover"],
            "seed": self.seed,
            "earlier": self._earlier(),
            "seconds": round(time.perf_counter() - began, 1),
        }
        if not options.first():
            return
        artifact.save(self.folder.folder, result.model, result.plan, card, overwrite=True)
        self.folder.finish(record)
        cut, after = result.cut.top1, result.after.top1
        if self.recipes and cut is not None and after is not None and after < cut:
            knob = "--mimic-lr" if all(recipe.mode == "mimic" for recipe in self.recipes) else "--lr"
            say(
                f"recovery left top-1 at {after:.2f}%, below the {cut:.2f}% right after the cut: try a lower {knob}, or "
                "--recover none"
            )

    def _earlier(self) -> list[dict[str, Any]]:
        """The cuts that the network has been through before."""
        from secateurs import artifact
        from secateurs.api import is_artifact

        return stages.earlier(artifact.read(self.spec)[1]) if is_artifact(self.spec) else []

    def _preflight(self, network: nn.Module, inputs: torch.Tensor, data: Data) -> None:
        """Whatever would make the run fail in the end, made to fail now."""
        import secateurs as sc
        from secateurs import recovery
        from secateurs.methods import Task, TrainingMethod
        from secateurs.training.runtime import check_trackers

        check_trackers(self.track, self.folder.folder)
        recovery.check(self.recipes, network)
        graph, cost = sc.trace(network, inputs, allow_inexact=self.allow_inexact), sc.count(network, inputs)

        def feasible(method: Method, budget: Budget | None, prefix: str) -> None:
            task = Task(network, graph, budget, self._scope(method), data, self.seed, inputs)
            options.feasible(method, task, prefix)

        feasible(self.method, self.budget, self._prefix)
        original = self.original or cost.macs
        stages.check(self.later, original, cost.macs if self.budget is None else self.budget.limits(cost).macs)
        for stage in self.later:  # as far as can be told by now
            try:
                feasible(stage.method, stage.budget(original), stage.prefix)
            except SecateursError as error:
                raise type(error)(f"--then {stage.text}: {error}") from error
        first = self.weights is None and self.pretrain.recipe(data).epochs
        if first or self.recipes or isinstance(self.method, TrainingMethod):
            options.trains(network, inputs, self.spec)
        if self.budget is not None and self.budget.allows(cost, cost):
            say(
                f"the budget is met already, nothing will be cut: {self.spec} has {cost.macs:,} MACs and {cost.params:,} "
                "parameters"
            )

    def explained(self, error: TrainingError) -> SecateursError:
        """A loss that is not finite, with advice that can be followed here."""
        from secateurs.training.engine import ADVICE

        if ADVICE not in str(error):
            return error
        training, kept = self.weights is None and not self.folder.pretrained.exists(), self.folder.pretrained
        if training:
            knob = f"a --pretrain-lr below {self.pretrain.lr:g}"
        elif self.recipes and (begun := list(self.folder.folder.glob("recover*/metrics.jsonl"))):
            recipe = self.recipes[len(begun) - 1]
            knob = f"{'a --mimic-lr' if recipe.mode == 'mimic' else 'an --lr'} below {recipe.lr:g}"
        else:
            knob = (
                f"a lower --set {self._prefix}lr=…"
                if "lr" in type(self.method).model_fields
                else "other settings of the method"
            )
        anew = f"--weights {kept} and another --out" if kept.exists() and self.weights is None else "--force"
        advice = f" Look for bad values in that batch, or try {knob}, with {anew}."
        return TrainingError(str(error).replace(ADVICE, advice))

    def _trained(self, network: nn.Module, data: Data, where: torch.device, resume: bool) -> nn.Module:
        """The network itself if it came with weights; else trained, and kept as pretrained.safetensors."""
        from secateurs.report import count

        if self.weights is not None:
            return network
        recipe = self.pretrain.recipe(data)
        if not self.folder.pretrained.exists():
            if recipe.epochs:
                epochs = count(recipe.epochs, "epoch")
                say(f"no --weights: training {self.spec} on {self.data.data} first, {epochs} (--pretrain-epochs)")
            else:
                say(f"no --weights and --pretrain-epochs 0: {self.spec} is pruned untrained, with random weights")
        return trained(
            network, data, recipe, self.folder, "pretrain", self.folder.pretrained, seed=self.seed, device=where,
            resume=resume,
        )  # fmt: skip
