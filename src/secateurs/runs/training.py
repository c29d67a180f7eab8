"""Training before the cut: networks without weights are trained first."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import nn

from secateurs.data import Data
from secateurs.errors import ArtifactError, ConfigError, Setting, as_setting
from secateurs.files import read_tensors, shown
from secateurs.recovery import Recover
from secateurs.runs.folder import RunFolder, write
from secateurs.training import CheckpointStore, Engine, Objective, Recipe
from secateurs.training.processes import first
from secateurs.training.state import misfit


@dataclass(frozen=True)
class Pretraining:
    """How a network without weights is trained. None is the default."""

    epochs: float | None = None
    lr: float | None = None

    @property
    def usual_lr(self) -> float:
        return 0.05 if self.lr is None else self.lr

    def record(self) -> dict[str, float | None]:
        return {"pretrain_epochs": self.epochs, "pretrain_lr": self.lr}

    def check(self, has_weights: bool) -> None:
        """Raise ConfigError for values that are invalid, or would be ignored."""
        given = [name for name, value in self.record().items() if value is not None]
        if given and has_weights:
            raise ConfigError(
                Setting(given[0]),
                " applies to training a network that has no ",
                Setting("weights"),
                ": give one of the two.",
            )
        if self.epochs is not None:
            check_epochs(self.epochs, Setting("pretrain_epochs", self.epochs))
        self._recipe(1)

    def recipe(self, data: Data) -> Recipe:
        return self._recipe(usual_epochs(data) if self.epochs is None else self.epochs)

    def _recipe(self, epochs: float) -> Recipe:
        try:
            return Recipe(epochs=epochs, lr=self.usual_lr)
        except ConfigError as error:
            raise error.renamed(as_setting("pretrain_lr")) from None


@dataclass(frozen=True)
class RedesignTraining:
    """How the networks of a re-design are trained.

    epochs: of the base and the scaled network, each; by default 10 to 30, fewer the more data there is. lr: peak learning
        rate of the networks trained from scratch.
    recover_epochs, recover_lr: of the pruned network, after the cut; see `Recover`.
    scratch_epochs: of the widths found, trained from scratch; by default as many as `epochs`.
    """

    epochs: float | None = None
    lr: float = 0.05
    recover_epochs: float = 3
    recover_lr: float | None = None
    scratch_epochs: float | None = None
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"

    def check(self) -> None:
        """Raise ConfigError for invalid values."""
        for name in ("epochs", "recover_epochs", "scratch_epochs"):
            if (value := getattr(self, name)) is not None:
                check_epochs(value, Setting(name, value))
        self._recipe(1)
        self.recovery()

    def recipe(self, data: Data) -> Recipe:
        return self._recipe(usual_epochs(data) if self.epochs is None else self.epochs)

    def scratch(self, data: Data) -> Recipe:
        return self.recipe(data) if self.scratch_epochs is None else self._recipe(self.scratch_epochs)

    def recovery(self) -> Recover | None:
        if not self.recover_epochs:
            return None
        try:
            return Recover(epochs=self.recover_epochs, lr=self.recover_lr, **self._rest())
        except ConfigError as error:
            raise error.renamed(lambda s: as_setting("recover_lr")(s) if s.name == "lr" else s) from None

    def _recipe(self, epochs: float) -> Recipe:
        return Recipe(epochs=epochs, lr=self.lr, **self._rest())

    def _rest(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("schedule", "weight_decay", "label_smoothing", "precision")}


def trained(
    network: nn.Module, data: Data, recipe: Recipe, folder: RunFolder, phase: str, file: Path, *, seed: int,
    device: torch.device, resume: bool, track: Sequence[str] = (), objective: Objective | None = None,
) -> nn.Module:  # fmt: skip
    """The network with the weights in `file` if that is there; else trained, and its weights kept there."""
    if os.path.lexists(file):
        advice = "Remove it, and the run trains that network again."
        weights = read_tensors(file, advice)
        if fault := misfit(weights, dict(network.state_dict()), ""):
            raise ArtifactError(f"{shown(file)} does not fit the network: {fault}.", hint=advice)
        network.load_state_dict(weights)
        return network
    if recipe.epochs:
        own = folder.folder / phase
        Engine(
            network,
            data,
            recipe,
            seed=seed,
            device=device,
            folder=own,
            checkpoints=CheckpointStore(own / "checkpoints"),
            save_seconds=60,
            title=phase,
            track=track,
            objective=objective,
        ).fit(resume=resume)
    if first():
        write(file, save({k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}))
    return network


def check_epochs(epochs: float, setting: Setting | None = None) -> float:
    """The number of epochs, if it is valid; else ConfigError. setting: where it was given."""
    if not (math.isfinite(epochs) and epochs >= 0):
        raise ConfigError(setting or Setting("epochs", epochs), ": the number of epochs must be 0 or more.")
    return epochs


def usual_epochs(data: Data) -> int:
    """The epochs for about 1.5 million images, in 10…30: 30 for CIFAR, 10 for ImageNet."""
    images = getattr(data.train, "samples", 50_000)
    return max(10, min(30, round(1_500_000 / images)))
