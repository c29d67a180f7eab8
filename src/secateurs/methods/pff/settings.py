"""PFF's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from secateurs.errors import ConfigError, Setting
from secateurs.methods.method import Task
from secateurs.methods.pff.phases import Held, faded
from secateurs.methods.pruner import Taught, taught
from secateurs.methods.stripes.blocks import blocks
from secateurs.methods.stripes.select import Stripes, check_kernels, kernels
from secateurs.training.recipe import PRECISION


class Settings(Taught):
    """The settings, and what follows from them alone."""

    cuts = "stripes"
    knob = "alpha"
    share = 0.1
    most = 6
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {  # sec. 4.1: from scratch, in batches of 64
            "alpha": 1e-5, "delta": 0.05, "epochs": 160, "lr": 0.1, "schedule": "step", "milestones": (80.0, 120.0),
            "skeleton_lr": 0.1, "prior": "none", "floor": 0.0, "distil": 0.0,
        },
        "released": {  # the released code
            "alpha": 1e-5, "delta": 0.01, "epochs": 160, "lr": 0.1, "schedule": "step", "milestones": (80.0, 120.0),
            "skeleton_lr": 0.1, "prior": "none", "floor": 0.0, "live": True, "skeleton_decay": 1e-4,
            "distil": 0.0,
        },
        # For long runs: values start at one, α is as strong as the budget needs, and more of the training is for the search.
        "long": {"prior": "none", "cost": 0.0, "limit": None, "hold": False, "arrive": 0.3, "fixed": 0.28, "distil": 0.0},
        "group-lasso": {"penalty": "group-lasso"},
    }  # fmt: skip

    distil: float = taught(0.9)
    alpha: float | None = Field(
        default=None, ge=0, le=10, description="α of eq. 1; None: 1e-5, or controlled if there is a budget"
    )
    delta: float = Field(default=0.05, gt=0, lt=1, description="δ: stripes with a smaller value are cut")
    lr: float = Field(default=0.05, gt=0, le=10, description="learning rate of the network")
    schedule: Literal["onecycle", "cosine", "step", "constant"] = Field(
        "cosine", description="of both learning rates: onecycle, cosine, constant, or step, with milestones and gamma"
    )
    milestones: tuple[float, ...] = Field(
        (), description="when 'step' multiplies both learning rates by gamma, in epochs"
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="the factor of 'step'")
    hold: bool = Field(
        default=True,
        description="under control, hold both learning rates until the network has its final shape; the schedule begins then",
    )
    weight_decay: float = Field(default=1e-4, ge=0, description="of the network's weights")
    skeleton_lr: float = Field(
        default=0.1, gt=0, le=10, description="learning rate of the skeleton (SGD, momentum 0.9)"
    )
    skeleton_decay: float = Field(
        default=0.0, ge=0, description="weight decay of the skeleton; 1e-4 in the released code"
    )
    prior: Literal["norm", "none"] | None = Field(
        None,
        description="what values are multiplied by for comparison: their stripes' initial norms over the layer's mean, or 1; "
        "None: norm if α is controlled",
    )
    cost: float | None = Field(
        None,
        ge=0,
        le=2,
        description="under control, values are compared divided by this power of what their stripes cost; None: the power that "
        "measures best for a cut by norms",
    )
    limit: float | None = Field(
        4.0,
        gt=0,
        description="under control, how many times as fast as the loss alone α may move values; None for no limit",
    )
    live: bool = Field(
        default=False,
        description="apply the threshold after each step, as in the released code, not only after training",
    )
    arrive: float = Field(
        default=0.1, gt=0, le=1, description="fraction of the training after which the set of units to cut is fixed"
    )
    fixed: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="fraction of the training in the final shape, after units to cut have been faded out",
    )
    floor: float = Field(
        default=0.02, ge=0, lt=1, description="minimum fraction of its stripes that every layer keeps, one at least"
    )
    skeleton: Literal["stripe", "position"] = Field(
        default="stripe",
        description="one value per filter and position, or (shape-wise) per position of a layer",
    )
    block: int = Field(
        default=1,
        ge=1,
        description="so many filters, of similar shapes at the start, keep the same stripes and share a value",
    )
    penalty: Literal["skeleton", "group-lasso"] = Field(
        default="skeleton", description="penalize a skeleton, or, without one, the norms of the stripes' weights"
    )
    train: Literal["both", "skeleton"] = Field(
        default="both", description="train both, or only the skeleton with the convolutions' weights frozen (fig. 4)"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description=PRECISION)

    @property
    def measures(self) -> bool:
        return self.cost is None

    def check(self, task: Task) -> None:
        super().check(task)
        check_kernels(task, self.name)
        if self.block > 1 and self.skeleton == "position":
            raise ConfigError(
                Setting("block", self.block, type(self)), " requires ", Setting("skeleton", "stripe", type(self)),
                ": by position, all filters of a layer are one block.",
            )  # fmt: skip
        if self.penalty == "group-lasso" and self.train == "skeleton":
            raise ConfigError(
                Setting("train", "skeleton", type(self)), " requires ", Setting("penalty", "skeleton", type(self)), "."
            )

    def unused(self, task: Task) -> Mapping[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        if not self.controlled(task):
            alpha = (
                ("there is no budget",)
                if self.alpha is None
                else (Setting("alpha", self.alpha, type(self)), " is constant")
            )
            own = {
                "cost": bool(self.cost),
                "limit": self.limit is not None,
                "arrive": True,
                "fixed": True,
                "hold": True,
            }
            found |= {name: alpha for name, sets in own.items() if sets}
        elif not self.weighs(task) and self.cost:
            found["cost"] = (Setting("prior", "none", type(self)), " compares values as they are")
        if self.penalty == "group-lasso":
            none: tuple[object, ...] = (Setting("penalty", "group-lasso", type(self)), " has no skeleton")
            found |= dict.fromkeys(("skeleton_lr", "skeleton_decay", "prior"), none)
        if self.schedule != "step":
            found["gamma"] = ("it is the factor of ", Setting("schedule", "step", type(self)))
        return found

    def feasible(self, task: Task) -> None:
        task.widths.check(self.stripes(task).lowest())

    def recipe(self, task: Task) -> Held:
        return Held(
            epochs=self.length, lr=self.lr, schedule=self.schedule, milestones=self.milestones, gamma=self.gamma,
            weight_decay=self.weight_decay, precision=self.precision,
            hold=faded(self.arrive, self.fixed) if self.hold and self.controlled(task) else 0.0,
        )  # fmt: skip

    def controlled(self, task: Task) -> bool:
        """Whether α is controlled."""
        return self.alpha is None and task.budget is not None

    def by_norms(self, task: Task) -> bool:
        """Whether stripes are compared by their norms."""
        if self.penalty == "group-lasso":
            return True
        return self.controlled(task) if self.prior is None else self.prior == "norm"

    def weighs(self, task: Task) -> bool:
        """Whether they are compared by what they cost as well."""
        return self.controlled(task) and self.by_norms(task)

    def stripes(self, task: Task) -> Stripes:
        found, grouped = kernels(task), None
        if self.skeleton == "position":
            grouped = {name: np.zeros(o, dtype=np.int64) for name, (o, *_) in found.items()}
        elif self.block > 1:
            grouped = blocks(task.model, found, self.block)
        return Stripes(task, found, grouped, self.floor)
