"""How the command line trains: before the cut where there are no weights, and after it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from secateurs.cli import options
from secateurs.cli.runs import RunFolder, write
from secateurs.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateurs import Data, Recover
    from secateurs.training import Recipe


@Parameter(name="*")
@dataclass(frozen=True)
class RecoverOptions:
    recover: str | None = None
    """none, or what to do one after another: finetune:EPOCHS, mimic:EPOCHS (the original's feature maps, without
    labels), distil:EPOCHS (its class probabilities); mimic:5,finetune:10 say; 3 epochs where no number is given"""
    recover_epochs: float | None = None
    """finetune:EPOCHS in short; 3 by default, 0 for none"""
    lr: float = 0.02
    """peak learning rate of recovery, but for mimicking"""
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    """how the learning rate goes from step to step"""
    weight_decay: float = 5e-4
    """of weights; norms and biases have none; none while mimicking"""
    label_smoothing: float = 0.0
    """share of each label that is spread over all classes"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto is bf16 where the hardware is fast at it"""
    mimic_lr: float | None = None
    """peak learning rate of mimicking (Adam), 0.003 by default"""
    mimic_function: Literal["kl", "js", "mse", "l1"] | None = None
    """how far feature maps are apart, kl by default"""
    nodes: str | None = None
    """modules whose outputs are mimicked: layer1,layer2,layer3; found by themselves if not given"""
    temperature: float | None = None
    """of distillation, 4 by default"""

    def recipes(self) -> list[Recipe]:
        """What to do after the cut, in order; ConfigError for what makes no sense, or nothing would use."""
        phases = self._phases()
        kinds = {kind for kind, _ in phases}
        for option, kind in (
            ("mimic_lr", "mimic"),
            ("mimic_function", "mimic"),
            ("nodes", "mimic"),
            ("temperature", "distil"),
        ):
            if getattr(self, option) is not None and kind not in kinds:
                raise ConfigError(f"--{option.replace('_', '-')} is of {kind}: it needs --recover {kind}:EPOCHS.")
        return [self._recipe(kind, epochs) for kind, epochs in phases if epochs]

    def _recipe(self, kind: str, epochs: float) -> Recipe:
        from secateurs.recovery import MODES

        if kind != "mimic":
            names = ("lr", "schedule", "weight_decay", "label_smoothing", "precision")
            own = {"temperature": self.temperature} if kind == "distil" and self.temperature is not None else {}
            return MODES[kind](epochs=epochs, **{name: getattr(self, name) for name in names}, **own)
        nodes = None if self.nodes is None else tuple(name.strip() for name in self.nodes.split(",") if name.strip())
        given = {"lr": self.mimic_lr, "function": self.mimic_function, "nodes": nodes}
        given = {name: value for name, value in given.items() if value is not None}
        try:
            return MODES[kind](epochs=epochs, schedule=self.schedule, precision=self.precision, **given)
        except ConfigError as error:
            words = (
                str(error)
                .removeprefix("Mimic: ")
                .replace("function=", "--mimic-function ")
                .replace("nodes=", "--nodes ")
            )
            raise ConfigError(re.sub(r"\blr=", "--mimic-lr ", words)) from None

    def _phases(self) -> list[tuple[str, float]]:
        """(kind, epochs) of each."""
        if self.recover is None:
            return [("finetune", 3 if self.recover_epochs is None else sound(self.recover_epochs, "--recover-epochs"))]
        if self.recover_epochs is not None:
            raise ConfigError("--recover and --recover-epochs say the same thing: give one of them.")
        if self.recover == "none":
            return []
        from secateurs.recovery import MODES

        phases = []
        for part in self.recover.split(","):
            kind, _, epochs = part.strip().partition(":")
            try:
                if kind in MODES:
                    phases.append((kind, sound(float(epochs or 3), f"--recover {kind}:")))
                    continue
            except ValueError:
                pass
            raise ConfigError(
                f"--recover {self.recover}: write finetune:EPOCHS, mimic:EPOCHS or distil:EPOCHS, several with commas "
                "(mimic:5,finetune:10), or none."
            )
        return phases


def written(recipes: Sequence[Recipe]) -> Any:
    """Recipes of recovery as they go on record: nothing, one, or a list of them."""
    found = [{"mode": recipe.mode, **recipe.model_dump(mode="json")} for recipe in recipes]
    return found if len(found) > 1 else found[0] if found else None


@Parameter(name="*")
@dataclass(frozen=True)
class PretrainOptions:
    pretrain_epochs: float | None = None
    """how long to train where there are no --weights; by default 10 to 30, fewer the more data there is"""
    pretrain_lr: float | None = None
    """peak learning rate of that training, 0.05 by default"""

    @property
    def lr(self) -> float:
        return 0.05 if self.pretrain_lr is None else self.pretrain_lr

    def check(self, weights: object) -> None:
        """Raise ConfigError for figures that make no sense, or that nothing would use."""
        given = [name for name in ("pretrain_epochs", "pretrain_lr") if getattr(self, name) is not None]
        if given and weights is not None:
            option = given[0].replace("_", "-")
            raise ConfigError(f"--{option} is of training a network that has no --weights: give one of the two.")
        if self.pretrain_epochs is not None:
            sound(self.pretrain_epochs, "--pretrain-epochs")
        self._recipe(1)

    def recipe(self, data: Data) -> Recipe:
        return self._recipe(usual_epochs(data) if self.pretrain_epochs is None else self.pretrain_epochs)

    def _recipe(self, epochs: float) -> Recipe:
        from secateurs.training import Recipe

        try:
            return Recipe(epochs=epochs, lr=self.lr)
        except ConfigError as error:
            raise ConfigError(str(error).replace("Recipe: lr=", "--pretrain-lr ")) from None


@Parameter(name="*")
@dataclass(frozen=True)
class RedesignOptions:
    epochs: float | None = None
    """of the base and the scaled network, each; by default 10 to 30, fewer the more data there is"""
    lr: float = 0.05
    """peak learning rate of the networks trained from scratch"""
    recover_epochs: float = 3
    """of the pruned network, after the cut; 0 for none"""
    recover_lr: float = 0.02
    """peak learning rate of recovery"""
    scratch_epochs: float | None = None
    """of the widths found, trained from scratch; by default as many as --epochs"""
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    """how the learning rate goes from step to step"""
    weight_decay: float = 5e-4
    """of weights; norms and biases have none"""
    label_smoothing: float = 0.0
    """share of each label that is spread over all classes"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto is bf16 where the hardware is fast at it"""

    def check(self) -> None:
        """Raise ConfigError for figures that make no sense."""
        for name in ("epochs", "recover_epochs", "scratch_epochs"):
            if (value := getattr(self, name)) is not None:
                sound(value, f"--{name.replace('_', '-')}")
        self._recipe(1)
        self.recovery()

    def recipe(self, data: Data) -> Recipe:
        return self._recipe(usual_epochs(data) if self.epochs is None else self.epochs)

    def scratch(self, data: Data) -> Recipe:
        return self.recipe(data) if self.scratch_epochs is None else self._recipe(self.scratch_epochs)

    def recovery(self) -> Recover | None:
        from secateurs import Recover

        try:
            return (
                Recover(epochs=self.recover_epochs, lr=self.recover_lr, **self._rest()) if self.recover_epochs else None
            )
        except ConfigError as error:
            raise ConfigError(re.sub(r"^Recover: lr=", "--recover-lr ", str(error))) from None

    def _recipe(self, epochs: float) -> Recipe:
        from secateurs.training import Recipe

        return Recipe(epochs=epochs, lr=self.lr, **self._rest())

    def _rest(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("schedule", "weight_decay", "label_smoothing", "precision")}


def trained(
    network: nn.Module, data: Data, recipe: Recipe, folder: RunFolder, phase: str, file: Path, *, seed: int,
    device: torch.device, resume: bool, track: Sequence[str] = (),
) -> nn.Module:  # fmt: skip
    """The network with the weights in `file` if that is there; else trained, and its weights kept there."""
    from safetensors.torch import save

    from secateurs.files import read_tensors
    from secateurs.training import CheckpointStore, Engine
    from secateurs.training.state import misfit

    if os.path.lexists(file):
        advice = "Remove it, and the run trains that network again."
        weights = read_tensors(file, advice)
        if fault := misfit(weights, dict(network.state_dict()), ""):
            raise ArtifactError(f"{file} does not fit the network: {fault}. {advice}")
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
        ).fit(resume=resume)
    if not options.first():
        return network
    write(file, save({k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}))
    return network


def sound(epochs: float, option: str) -> float:
    """A number of epochs as it is; ConfigError if it is none."""
    if not (math.isfinite(epochs) and epochs >= 0):
        shown = f"{option}{epochs:g}" if option.endswith(":") else f"{option} {epochs:g}"
        raise ConfigError(f"{shown}: the number of epochs must be 0 or more.")
    return epochs


def usual_epochs(data: Data) -> int:
    """Some 1.5 million images, but 10 to 30 passes: 30 over CIFAR, 10 over ImageNet."""
    images = getattr(data.train, "samples", 50_000)
    return max(10, min(30, round(1_500_000 / images)))
