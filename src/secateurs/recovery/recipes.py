"""Recipes of recovery: fine-tuning, mimicking, distillation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from secateurs.training.recipe import Recipe


class Recover(Recipe):
    """Getting the accuracy back after a cut: fine-tuning with the loss the network was trained with."""


class Mimic(Recipe):
    """The cut network learns to give the original's feature maps, at several nodes at once and without labels (Wang et al.,
    2019, sec. 3.3). Layers behind the last node, the classifier mostly, are frozen. Fine-tune afterwards: `Recover`.

    The paper trains 15 epochs of Adam from 1e-3 down, dividing by 10 every 5: `Mimic.paper()`. A few hundred steps want more.
    """

    mode: ClassVar[str] = "mimic"

    lr: float = Field(default=3e-3, gt=0, description="peak learning rate")
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    weight_decay: float = Field(
        default=0.0, ge=0, description="L2 penalty; divergences are so small that Adam would follow any"
    )
    function: Literal["kl", "js", "mse", "l1"] = Field(
        default="kl",
        description="what is minimized: divergences of the channels' softmax at each pixel, or of the values",
    )
    nodes: tuple[str, ...] | None = Field(
        default=None, description="modules whose outputs are mimicked (or MODULE:input); found by themselves if None"
    )
    count: int = Field(default=4, ge=1, description="how many nodes are looked for where none are named")

    @model_validator(mode="after")
    def _enough(self) -> Mimic:
        if self.nodes is not None and not self.nodes:
            raise ValueError("nodes=() names none: leave it out to have them found")
        if self.nodes is not None and len(set(self.nodes)) != len(self.nodes):
            raise ValueError(f"nodes={self.nodes} names one of them twice")
        if self.function in ("kl", "js") and self.nodes is not None and len(self.nodes) < 2:
            raise ValueError(
                f"'{self.function}' needs two nodes or more: a softmax does not see what is added to all channels of a pixel, "
                "so one node alone does not rebuild what the classifier reads. Name another, or function='mse'"
            )
        return self

    @classmethod
    def paper(cls, **settings: Any) -> Mimic:
        """15 epochs of Adam, from 1e-3 down by 10 every 5 (sec. 4.1, 4.5)."""
        return cls(**{"epochs": 15, "lr": 1e-3, "schedule": "step", "milestones": (5, 10), **settings})


class Distil(Recipe):
    """The cut network learns the original's class probabilities beside the labels (Hinton et al., 2015)."""

    mode: ClassVar[str] = "distil"

    temperature: float = Field(
        default=4.0, gt=0, description="T: logits are divided by it, which brings out the small ones"
    )
    share: float = Field(
        default=0.9, ge=0, le=1, description="weight of the original's probabilities; the labels have the rest"
    )


MODES: dict[str, type[Recipe]] = {kind.mode: kind for kind in (Recover, Mimic, Distil)}
