"""Recipes of recovery: fine-tuning, mimicking, distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from secateurs.errors import ConfigError, Setting
from secateurs.training.recipe import Recipe


class Recover(Recipe):
    """Recovers accuracy after a cut by fine-tuning with the task loss."""


class Mimic(Recipe):
    """Trains the cut network to reproduce the original's feature maps, at several nodes and without labels (Wang et al.,
    2019, sec. 3.3). Layers after the last node, usually the classifier, are frozen. Fine-tune afterward with `Recover`.

    The paper trains 15 epochs of Adam from 1e-3, divided by 10 every 5: `Mimic.preset("paper")`. A few hundred steps need
    a larger lr.
    """

    mode: ClassVar[str] = "mimic"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # sec. 4.1, 4.5
        "paper": {"epochs": 15, "lr": 1e-3, "schedule": "step", "milestones": (5, 10)}
    }

    lr: float = Field(default=3e-3, gt=0, description="peak learning rate")
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    weight_decay: float = Field(
        default=0.0, ge=0, description="L2 penalty; divergences are so small that Adam would follow any penalty"
    )
    function: Literal["kl", "js", "mse", "l1"] = Field(
        default="kl",
        description="the loss: a divergence of the channels' softmax at each pixel, or a distance of the values",
    )
    nodes: tuple[str, ...] | None = Field(
        default=None, description="modules whose outputs are mimicked (or MODULE:input); None: chosen automatically"
    )
    count: int = Field(default=4, ge=1, description="how many nodes to choose if none are named")

    @model_validator(mode="after")
    def _enough(self) -> Mimic:
        if self.nodes is not None and not self.nodes:
            raise ConfigError(Setting("nodes", (), Mimic), " is empty: leave it out to choose nodes automatically.")
        if self.nodes is not None and len(set(self.nodes)) != len(self.nodes):
            raise ConfigError(Setting("nodes", self.nodes, Mimic), " repeats a node.")
        if self.function in ("kl", "js") and self.nodes is not None and len(self.nodes) < 2:
            raise ConfigError(
                f"'{self.function}' needs two nodes or more: a softmax is invariant to a constant added to all channels "
                "of a pixel, so one node alone does not restore the classifier's input.",
                hint=("Name another, or use ", Setting("function", "mse", Mimic), "."),
            )
        return self

    @property
    def reads_labels(self) -> bool:
        return False


class Distil(Recipe):
    """Trains the cut network on the original's class probabilities and the labels (Hinton et al., 2015)."""

    mode: ClassVar[str] = "distil"

    temperature: float = Field(default=4.0, gt=0, description="T: temperature that logits are divided by")
    share: float = Field(
        default=0.9, ge=0, le=1, description="weight of the original's probabilities; the labels have the rest"
    )

    @property
    def reads_labels(self) -> bool:
        return self.share < 1


MODES: dict[str, type[Recipe]] = {kind.mode: kind for kind in (Recover, Mimic, Distil)}
