"""Recovery recipes: training with the original as the teacher, and mimicking."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from secateurs.errors import ConfigError, Setting
from secateurs.training.recipe import Recipe


class Recover(Recipe):
    """Recovers accuracy after a cut by training, with the original as the teacher: the loss combines its softened class
    probabilities and the task loss (Hinton et al., 2015). `share=0` trains on the task loss alone, `share=1` without labels.

    If the network's outputs are not class logits, only the task loss is used, and a line of output says so; with `share` set,
    this is an error.
    """

    # None is replaced by `settled`, before anything trains
    lr: float | None = Field(  # type: ignore[assignment]
        default=None, gt=0, description="peak learning rate; None: chosen by the number of steps"
    )
    share: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="weight of the original's probabilities in the loss; the task loss has the rest",
    )
    temperature: float = Field(default=4.0, gt=0, description="T: temperature that logits are divided by")

    @property
    def reads_labels(self) -> bool:
        return self.share < 1

    @property
    def teaches(self) -> bool:
        """Whether the original has to teach, so that outputs that it cannot teach are an error."""
        return self.share == 1 or self.mode == "distil" or bool(self.model_fields_set & {"share", "temperature"})

    def settled(self, steps: int | None) -> Recipe:
        if self.lr is not None:
            return self
        return self.model_copy(update={"lr": peak_lr(steps) if self.optimizer == "sgd" else ADAM_LR})


ADAM_LR, MOST_LR = 1e-3, 0.1


def peak_lr(steps: int | None) -> float:
    """Return SGD's peak learning rate for this many steps of recovery (None: unknown, treated as many), with batches of 128 and
    momentum 0.9.

    It grows with the square root of the number of steps: of 0.02, 0.05 and 0.1, the best was 0.02 for 79 steps, 0.05 for 390
    and 0.1 for 940, whether half or 0.3 of the MACs remained.
    """
    return MOST_LR if steps is None else min(MOST_LR, 0.05 * math.sqrt(max(1, steps) / 400))


class Mimic(Recipe):
    """Trains the cut network to reproduce the original's feature maps, at several nodes and without labels (Wang et al.,
    2019, sec. 3.3). Layers after the last node, usually the classifier, are frozen. Fine-tune afterward with `Recover`.

    If the network's output is also mimicked, each floating-point tensor in it counts as a feature map, including all those in a
    tuple or a dict. For a network that returns different tensors in training and in evaluation, it is the logits. Maps of a
    single channel, whose softmax is constant, are compared by their values.

    The paper trains for 15 epochs with Adam at 1e-3, divided by 10 every 5: `Mimic.preset("paper")`. A few hundred steps need a
    larger lr.
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


class Distil(Recover):
    """`Recover` with the loss of Hinton et al. (2015), which weights the soft loss by T² instead of T. Requires a teacher."""

    mode: ClassVar[str] = "distil"


MODES: dict[str, type[Recipe]] = {kind.mode: kind for kind in (Recover, Mimic, Distil)}
