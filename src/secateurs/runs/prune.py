"""A resumable run: train a network if needed, prune it, recover and save it, possibly in several stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.artifact.provenance import spec_of
from secateurs.budget import Budget
from secateurs.data import Data
from secateurs.errors import ConfigError, Setting
from secateurs.files import shown
from secateurs.keywords import explained
from secateurs.methods import Method, resolve
from secateurs.methods.limits import Counts, Cuts, Limits, Ratios
from secateurs.methods.matching import Layers
from secateurs.methods.method import Scope, check_budget, check_scope
from secateurs.methods.rounds import Rounds, Schedule
from secateurs.recovery import phases
from secateurs.runs import stages
from secateurs.runs.cut import Cut
from secateurs.runs.folder import FOLDER, RunFolder
from secateurs.runs.result import RunResult
from secateurs.runs.sources import Builder, DataSpec, NetworkSpec, as_source
from secateurs.runs.stages import Stage
from secateurs.runs.training import Pretraining
from secateurs.seeds import checked as checked_seed
from secateurs.tasks import VisionTask
from secateurs.tasks.purpose import Purpose
from secateurs.training import Phase
from secateurs.training.losses import Loss
from secateurs.training.objective import Forward, Step
from secateurs.training.processes import first


def silent(line: str) -> None:
    """Discard the line."""


@explained(ConfigError)
@dataclass(frozen=True)
class PruneRun:
    """A resumable pruning run with a folder of its own: what `secateurs prune` does.

    >>> run = sc.PruneRun("zoo:resnet56", "folder:data/cifar10", "runs/r56", method="aofp", budget=sc.Budget(macs=0.4),
    ...                   recover=sc.Recover(epochs=10), log=print)
    >>> result = run.start()             # run.start(resume=True) after it was interrupted

    model: a spec (see `build`), the folder of an artifact, or a module, which is left untouched.
    data: a data spec, a `DataSpec` with more settings, or a `Data` with batches of your own. Images are read as the card of an
        artifact says, unless the spec says otherwise.
    folder: for the artifact, the checkpoints and the logs. Only files that a run wrote are ever replaced.
    method, budget, scope, allow_inexact, seed: as for `prune`.
    exclude, only, ratios, min_channels, max_cut: as for `prune`, for each cut; ratios are those of the first cut, and
        groups that have one keep their channels afterwards.
    calibrate: as for `prune`, on the run's own data, after each cut.
    recover: recipes of recovery, after each cut.
    rounds, schedule: as for `prune`, of the first cut. The networks of all rounds but the last are artifacts in `round-1` and
        so on, within the folder of the cut; a resumed run continues from the last of them.
    then: further cuts, in order; each is followed by the same recovery. All but the last have an artifact in a folder of
        their own within `folder`.
    weights: a file of weights for the spec. Without weights the network is trained first, on the same data:
        pretrain_epochs (10 to 30 by default, fewer the more data there is) at a peak learning rate of pretrain_lr (0.05).
    num_classes: outputs of the network, by default as many as the data has classes.
    trust_code: import and run the code that an artifact's card names.
    task: "classification" (the default), "segmentation" or "detection", or a `VisionTask` with other settings: how a data spec
        is read, the network built, trained and measured.
    loss, step, forward, metrics: as for `prune`, in place of the task's. They should be functions of a module: a resumed run
        checks that they have the same names.
    device: where to train; an accelerator by default, if one can be used. track: trackers that accelerate knows.
    log: called with one line about each stage.
    by_command: README.md shows the command that makes the run, not the call in Python.
    """

    model: str | nn.Module
    data: str | DataSpec | Data
    folder: str | Path
    _: KW_ONLY
    method: str | Method = "epruner"
    budget: Budget | None = None
    recover: Phase | Sequence[Phase] | None = None
    rounds: int = 1
    schedule: Schedule = "linear"
    then: Sequence[Stage] = ()
    weights: str | Path | None = None
    num_classes: int | None = None
    trust_code: bool = False
    pretrain_epochs: float | None = None
    pretrain_lr: float | None = None
    scope: Scope | None = None
    exclude: Layers = ()
    only: Layers | None = None
    ratios: Ratios | None = None
    min_channels: int | Counts | None = None
    max_cut: Cuts | None = None
    allow_inexact: bool = False
    calibrate: bool = True
    task: str | VisionTask | None = None
    loss: Loss | None = None
    step: Step | None = None
    forward: Forward | None = None
    metrics: Mapping[str, Any] | None = None
    seed: int = 0
    device: str | torch.device | None = None
    track: Sequence[Any] = ()
    log: Callable[[str], None] = silent
    by_command: bool = False

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Raise whatever `start` would raise before its first step: for a model, weights or data that cannot be used, for
        a budget that cannot be met, and for anything in the folder that the run would destroy. Nothing is written."""
        cut = self._cut()
        build = self._open(cut, resume, overwrite)
        if not cut.folder.check(cut.record(), resume=resume, overwrite=overwrite, log=self.log):
            cut.prepare(build, resume=resume)

    def start(self, *, resume: bool = False, overwrite: bool = False, began: float | None = None) -> RunResult:
        """Run, or resume, and save the result as an artifact.

        resume: continue an unfinished run in the folder, whose settings have to be these. overwrite: replace what an
        earlier run left there. began: `time.perf_counter()` when the clock of the run started, by default now.

        Raises before any work what `check` does. After an interrupt or an error it can be resumed.
        """
        began = time.perf_counter() if began is None else began
        cut = self._cut()
        result = cut.start(self._open(cut, resume, overwrite), resume=resume, overwrite=overwrite, began=began)
        for folder in self._folders()[1:]:
            cut = cut.next(result, folder)
            result = cut.start(cut.network.open(cut.purpose), resume=resume, overwrite=overwrite, began=began)
        return result

    def _cut(self) -> Cut:
        """The first cut."""
        check_budget(self.budget)
        check_scope(self.scope)
        method = resolve(self.method)
        stages.check_order(method, stages.checked(self.then))
        pretrain = Pretraining(self.pretrain_epochs, self.pretrain_lr)
        network = NetworkSpec(
            self.model, None if self.weights is None else Path(self.weights), self.num_classes, self.trust_code
        )
        pretrain.check(network.has_weights)
        purpose = Purpose.of(self.task, self.loss, self.step, self.forward, self.metrics)
        if self.then and isinstance(self.model, nn.Module) and spec_of(self.model) is None:
            raise ConfigError(
                Setting("then"), " needs a network that a resumed run can build, and this model was not made by sc.build: "
                "prune it with one run for each stage, the next one from the model of the last result.",
            )  # fmt: skip
        return Cut(
            network=network,
            data=as_source(self.data, purpose.task, network),
            purpose=purpose,
            method=method,
            budget=self.budget,
            recover=[recipe for _, recipe in phases(self.recover)],
            scope=self.scope,
            limits=self._limits(),
            allow_inexact=self.allow_inexact,
            calibrate=self.calibrate,
            pretrain=pretrain,
            folder=self._folders()[0],
            seed=checked_seed(self.seed),
            device=self.device,
            track=self.track,
            log=self.log if first() else silent,
            by_command=self.by_command,
            rounds=Rounds(self.rounds, self.schedule),
            later=list(self.then),
            ahead=self._folders()[1:],
        )

    def _limits(self) -> Limits:
        limits = Limits(self.exclude, self.only, self.ratios, self.min_channels, self.max_cut)
        return limits.named(self.model) if isinstance(self.model, nn.Module) else limits

    def _folders(self) -> list[RunFolder]:
        methods = [resolve(self.method), *(stage.method for stage in self.then)]
        return [RunFolder(folder) for folder in stages.folders(Path(self.folder), methods)]

    def _open(self, cut: Cut, resume: bool, overwrite: bool) -> Builder:
        """What builds the network. Raises for any file that this cut or a later one would overwrite."""
        network, folders = cut.network, self._folders()
        build = network.open(cut.purpose)
        for folder in folders:
            folder.spare(network.file, network.file_of)
        for before, folder in pairwise(folders):
            if not resume:  # their settings are not known yet
                folder.check({}, resume=False, overwrite=overwrite)
            elif folder.begun and not before.finished:
                raise ConfigError(
                    f"{shown(folder.folder)} holds another run: the cut before it would be in {shown(before.folder)}, and is "
                    "not finished. To cut its result further, give it as the model of a run in another ", FOLDER, ".",
                )  # fmt: skip
        return build
