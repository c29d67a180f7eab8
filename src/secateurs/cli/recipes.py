"""How the command line trains: before the cut where there are no weights, and after it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from secateurs.errors import ConfigError

if TYPE_CHECKING:
    from secateurs import Data, Recover
    from secateurs.training import Recipe


@Parameter(name="*")
@dataclass(frozen=True)
class RecoverOptions:
    recover: str | None = None
    """finetune:EPOCHS, or none"""
    recover_epochs: float | None = None
    """the same in short; 3 by default, 0 for none"""
    lr: float = 0.02
    """peak learning rate of recovery"""
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    """how the learning rate goes from step to step"""
    weight_decay: float = 5e-4
    """of weights; norms and biases have none"""
    label_smoothing: float = 0.0
    """share of each label that is spread over all classes"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto is bf16 where the hardware is fast at it"""

    def recipe(self) -> Recover | None:
        from secateurs import Recover

        epochs = self._epochs()
        if epochs == 0:
            return None
        names = ("lr", "schedule", "weight_decay", "label_smoothing", "precision")
        return Recover(epochs=epochs, **{name: getattr(self, name) for name in names})

    def _epochs(self) -> float:
        if self.recover is None:
            return 3 if self.recover_epochs is None else sound(self.recover_epochs, "--recover-epochs")
        kind, _, epochs = self.recover.partition(":")
        if self.recover_epochs is not None:
            raise ConfigError("--recover and --recover-epochs say the same thing: give one of them.")
        if kind == "none" and not epochs:
            return 0
        try:
            if kind == "finetune":
                return sound(float(epochs or 3), f"--recover {kind}:")
        except ValueError:
            pass
        raise ConfigError(f"--recover {self.recover}: write finetune:EPOCHS, finetune:3 say, or none.")


@Parameter(name="*")
@dataclass(frozen=True)
class PretrainOptions:
    pretrain_epochs: float | None = None
    """how long to train where there are no --weights; by default 10 to 30, fewer the more data there is"""
    pretrain_lr: float | None = None
    """peak learning rate of that training, 0.05 by default"""

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

        lr = 0.05 if self.pretrain_lr is None else self.pretrain_lr
        try:
            return Recipe(epochs=epochs, lr=lr)
        except ConfigError as error:
            raise ConfigError(str(error).replace("Recipe: lr=", "--pretrain-lr ")) from None


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
