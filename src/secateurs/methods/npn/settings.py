"""NPN's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from secateurs import zoo
from secateurs.budget import Budget
from secateurs.devices import device_of
from secateurs.errors import ConfigError, SecateursError, Setting
from secateurs.methods.method import Scope, Task
from secateurs.methods.npn.network import deepest
from secateurs.methods.pruner import Taught, taught
from secateurs.seeds import preserve_rng_state, seed_all
from secateurs.training import Recipe
from secateurs.training.recipe import PRECISION


class Settings(Taught):
    """The settings, and what the method needs before it starts."""

    knob = "lam"
    most = 6  # N of algorithm 1
    default_scope: ClassVar[Scope] = "all"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"penalty": "count", "pruner_images": 1.0, "prior": 0.0, "hold": False, "distil": 0.0, "lr": 0.01}
    }

    distil: float = taught(0.9)
    lam: float | None = Field(default=None, gt=0, le=10, description="λ of eq. 3; with a budget, its initial value")
    lr: float = Field(default=0.03, gt=0, le=10, description="β of eq. 5: learning rate of the main network")
    pruner_lr: float = Field(
        default=1e-3, gt=0, le=10, description="α of eq. 4: learning rate of the pruner network (Adam), constant"
    )
    head_lr: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="learning-rate factor of the new heads; default: gates can close within a fraction of the search",
    )
    gates: Literal["batch", "sample"] = Field(
        default="batch", description="one gate vector for each batch, or for each image"
    )
    penalty: Literal["cost", "count"] = Field(
        default="cost", description="weight of a gate in the penalty: what its channel costs under the budget, or 1"
    )
    pruner_images: float = Field(
        default=0.25, gt=0, le=1, description="fraction of a batch's images that the pruner sees, with gates='batch'"
    )
    prior: float = Field(
        default=1.0, ge=0, le=10, description="how far the norms of the channels' weights move the initial logits apart"
    )
    scale: float = Field(
        30.0, ge=1, le=1000, description="final scale of the sigmoid (30; 50 for ResNet-50 in the paper)"
    )
    sharpen: float = Field(
        default=0.5, gt=0, lt=1, description="fraction of training after which the scale is raised from 1"
    )
    schedule: Literal["step", "ramp"] = Field(
        "step", description="raise it at once, or geometrically from there to the end"
    )
    hold: bool = Field(
        default=True,
        description="from then on fix the open channels and train the network alone; False: keep training both",
    )
    threshold: float = Field(default=0.5, gt=0, lt=1, description="a channel is cut if its mean gate is below")
    open: float = Field(
        default=2.5, ge=-10, le=10, description="initial bias of the heads: all gates start at sigmoid(open)"
    )
    pruner: str | None = Field(
        default=None, description="spec of another network to use as the pruner, for example zoo:resnet20"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description=PRECISION)
    calibration: int = Field(
        default=2048, ge=1, description="with hold=False, images over which the final gates are averaged"
    )

    def check(self, task: Task) -> None:
        super().check(task)
        if self.lam is None and task.budget is None:
            raise ConfigError(
                "npn needs a budget, for example ", Setting("macs", 0.5, Budget), ", or ", Setting("lam", of=type(self)),
                " (how much to prune).",
            )  # fmt: skip
        if self.pruner is not None:
            self.base(task)

    def unused(self, task: Task) -> Mapping[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        if self.gates == "sample":
            found["pruner_images"] = ("every image has gates of its own",)
        if self.hold:
            fixed = (
                "the channels are fixed when the scale is raised; ",
                Setting("hold", False, type(self)),
                " trains gates on",
            )
            found |= {"schedule": fixed, "calibration": fixed}
            if task.budget is not None:
                found["threshold"] = ("the budget decides how many channels stay, and the order of the gates which",)
            if task.budget is not None or self.threshold == 0.5:
                found["scale"] = fixed
        return found

    @property
    def measures(self) -> bool:
        return not self.hold

    def base(self, task: Task) -> nn.Module:
        """The base network of the pruner: the main network, of which it is a copy, or the one from `pruner`."""
        if self.pruner is None:
            return task.model
        try:
            with preserve_rng_state():  # its initial weights are random
                seed_all(task.seed, "pruner")
                model = zoo.build(self.pruner)
            model.to(device_of(task.model))
            deepest(model, task.example_inputs)
        except SecateursError as error:
            raise ConfigError(Setting("pruner", self.pruner, type(self)), " cannot be used here: ", error) from error
        return model

    def recipe(self, task: Task) -> Recipe:
        return Recipe(epochs=self.length, lr=self.lr, schedule="cosine", weight_decay=5e-4, precision=self.precision)
