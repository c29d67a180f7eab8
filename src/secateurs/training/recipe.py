"""How to train: a frozen, validated object, for recovery and for methods that prune during training."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from secateurs.presets import Auto, Presets, Settings

PRECISION = "of training: fp32, bf16, fp16, or auto, bf16 where the hardware multiplies it natively and otherwise fp32"


class Phase(Settings, Presets):
    """The settings of one phase of recovery. Raises ConfigError for invalid values."""

    mode: ClassVar[str]  # the name of this kind of recovery

    def record(self) -> dict[str, Any]:
        """Its kind and all settings: JSON-serializable."""
        return {"mode": self.mode, **self.model_dump(mode="json")}

    @property
    def reads_labels(self) -> bool:
        """Whether training batches must be pairs (inputs, targets). Without labels, hooks provide the loss."""
        return True


class Recipe(Phase):
    """How to train: optimizer, schedule, regularization and precision. Raises ConfigError for invalid values."""

    mode: ClassVar[str] = "finetune"

    epochs: float | None = Field(
        default=None, ge=0, description="passes over the training data, may be a fraction (default 3)"
    )
    steps: int | None = Field(default=None, ge=0, description="optimizer steps, instead of epochs")
    steps_per_epoch: int | None = Field(
        default=None, ge=1, description="batches per epoch, for data without an end or to shorten an epoch"
    )
    lr: float = Field(default=0.02, gt=0, description="peak learning rate")
    schedule: Literal["onecycle", "cosine", "step", "constant"] = "onecycle"
    milestones: tuple[float, ...] = Field(
        default=(), description="when 'step' multiplies lr by gamma, in epochs (or steps)"
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="the factor of 'step'")
    warmup: float | None = Field(
        default=None, ge=0, lt=1, description="fraction of training for the warmup to lr (onecycle 0.3)"
    )
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's momentum, Adam's beta1")
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0, description="L2 penalty (decoupled for adamw)")
    decay_norm: bool = Field(default=False, description="apply weight decay to norm parameters and biases, too")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup's Beta(alpha, alpha), 0 for none")
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which is evaluated and returned; 0: none",
    )
    clip_norm: float | None = Field(default=None, gt=0, description="maximum norm of the gradient")
    accumulate: int = Field(default=1, ge=1, description="batches to accumulate gradients over per step")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(default="auto", description=PRECISION)
    channels_last: Auto = Field(
        default="auto",
        description="the memory format of images and kernels; auto: where convolutions are faster with it",
    )
    sync_norm: bool = Field(
        default=True, description="on several processes, batch norm over the whole batch, not over each process's part"
    )
    compile: Auto = Field(
        default="auto",
        description="torch.compile the network, on a GPU with CUDA graphs; auto: on a GPU, in one process, for long training",
    )

    def __init__(self, **values: Any) -> None:  # type checkers would derive one from the fields
        super().__init__(**values)

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("epochs") is None and values.get("steps") is None:
            return {**values, "epochs": 3}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are mutually exclusive")
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule='step' needs milestones=(...), the epochs at which lr is multiplied by gamma")
        if self.milestones and self.schedule != "step":
            raise ValueError(f"milestones are only valid with schedule='step', not '{self.schedule}'")
        if list(self.milestones) != sorted(self.milestones) or any(m < 0 for m in self.milestones):
            raise ValueError(f"milestones must be positive and ascending, got {self.milestones}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer='sgd' and a momentum above 0")
        return self

    def settled(self, steps: int | None) -> Recipe:
        """Return the recipe for a run of this many steps (None: unknown), with all open settings resolved."""
        return self

    def factor(self, done: float, position: float) -> float:
        """Return the learning rate as a multiple of `lr`.

        A pure function, so a resumed run needs no schedule state. `done`: fraction of training done, in [0, 1];
        `position`: the same in epochs (in steps if the recipe counts steps), the unit of milestones.
        """
        if self.schedule == "onecycle":  # from lr/25 up to lr, then down to lr/10000, both along a cosine
            rise = 0.3 if self.warmup is None else self.warmup
            if done < rise:
                return _cosine(1 / 25, 1.0, done / rise)
            return _cosine(1.0, 1e-4, (done - rise) / (1 - rise))
        rise = self.warmup or 0.0
        if done < rise:
            return max(done / rise, 1e-3)
        if self.schedule == "cosine":
            return _cosine(1.0, 0.0, (done - rise) / (1 - rise))
        return self.gamma ** sum(position >= m for m in self.milestones)  # 'constant' has no milestones


def _cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, t)))
