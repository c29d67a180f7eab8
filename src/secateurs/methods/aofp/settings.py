"""AOFP's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from secateurs.errors import ConfigError, Setting
from secateurs.methods.method import Task
from secateurs.methods.pruner import Taught
from secateurs.methods.select import Widths
from secateurs.training import Recipe
from secateurs.training.recipe import PRECISION

# Sec. 4.2: VGG-16 on CIFAR-10, and AlexNet and ResNets on ImageNet. The paper does not say how long a search may take at most;
# the released code, 600 epochs.
PAPER: Mapping[str, Any] = {
    "search_cost": 20_000, "theta": 0.01, "theta_growth": 1, "halves": "batch", "lr": 1e-3, "epochs": 600
}  # fmt: skip


class Settings(Taught):
    """The settings, with the paper's symbols, and the recipe that follows from them."""

    knob = "theta"
    most = 4
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": PAPER,
        "vgg16": PAPER,
        "alexnet": {**PAPER, "search_cost": 4000, "theta": 0.02},
        "resnet": {**PAPER, "search_cost": 8000, "theta": 0.02},
    }

    search_cost: int | None = Field(
        default=None,
        ge=1,
        description="φ: batches per search step; default: a hundredth of the training, but enough for 128 random halves: "
        "128 batches at least if each has one half",
    )
    halves: Literal["example", "batch"] = Field(
        default="example", description="what a random half is drawn for: each example, or each batch"
    )
    theta: float = Field(
        default=0.01, ge=0, le=10, description="θ: damage below which filters are pruned; not 0 with a budget"
    )
    theta_growth: float = Field(
        2.0,
        ge=1,
        le=100,
        description="with a budget: the largest factor by which θ may grow in a full search; 1: θ is constant",
    )
    lr: float = Field(default=0.01, gt=0, le=10, description="learning rate during the search, constant")
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="weight decay during the search")
    ratio: Literal["example", "batch"] = Field(
        default="example", description="t of eq. 7: mean of the examples' ratios (eq. 6), or ratio of the batch's sums"
    )
    warmup: int = Field(default=0, ge=0, description="batches before the search starts")
    stagger: bool = Field(
        default=False, description="start the layers' searches one after another, spread over φ batches"
    )
    min_filters: int = Field(default=1, ge=1, description="minimum number of filters that every layer keeps")
    patience: int = Field(
        default=1, ge=1, description="stop after this many sweeps of restarts in which no layer can be pruned"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(default="auto", description=PRECISION)

    def check(self, task: Task) -> None:
        super().check(task)
        if self.theta == 0 and task.budget is not None:
            raise ConfigError(
                Setting("theta", self.theta, type(self)),
                " never prunes, and grows by no factor: all that the budget requires would be cut at the end.",
                hint=("Set a small one, such as ", Setting("theta", 1e-4, type(self)), "."),
            )

    def unused(self, task: Task) -> Mapping[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        if self.compile is True and self.halves == "batch":
            found["compile"] = (
                "the work of a step changes with its halves, unless ",
                Setting("halves", "example", type(self)),
            )
        if self.theta_growth == 1:
            return found
        if task.budget is None:
            return {**found, "theta_growth": ("without a budget, θ is constant",)}
        one = Setting("theta_growth", 1, type(self))
        return {**found, "patience": ("with a budget, θ grows until layers can be pruned again, unless ", one)}

    def recipe(self, task: Task) -> Recipe:
        return Recipe(
            epochs=self.length, lr=self.lr, schedule="constant", weight_decay=self.weight_decay, precision=self.precision
        )  # fmt: skip


def limits(task: Task, least: int) -> Widths:
    """The task's widths, with at least so many filters in each group, but no more than the user has set."""
    widths = task.widths
    filters = widths.rounded(np.full_like(widths.sizes, least))
    widths.lowest = np.minimum(np.maximum(widths.lowest, filters), widths.most)
    return widths
