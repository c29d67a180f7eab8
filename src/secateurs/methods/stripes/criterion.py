"""One-shot stripe pruning: the stripes with the smallest norms are cut, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from secateurs.errors import ConfigError, Setting
from secateurs.graph.channels import parameter
from secateurs.methods.costs import power_of
from secateurs.methods.method import Method, Task
from secateurs.methods.registry import register
from secateurs.methods.selection import Selection
from secateurs.methods.stripes.blocks import blocks
from secateurs.methods.stripes.select import Stripes, channel_scores, check_kernels, kernels


@register("l2-stripes")
class L2Stripes(Method):
    """Euclidean norm of each stripe (stripes are those of Meng et al., NeurIPS 2020): a filter's weights at one kernel
    position, over all input channels.

    One budget covers stripes and channels: a filter that loses all of its stripes takes its channel along, and where stripes
    alone do not suffice, channels with small weights are cut as well. Cutting stripes affects no other layer, so stripes
    of convolutions on a shortcut are cut as well; `scope` applies to channels only.
    """

    cuts = "stripes"

    ranking: Literal["global", "layer"] = Field(
        default="global",
        description="global: compare stripes across layers, relative to their layer's mean norm and cost; layer: keep the same "
        "fraction of every layer",
    )
    cost: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="norms are compared between layers divided by this power of what their stripes cost; None: the power that "
        "measures best on training images, 0 without data",
    )
    floor: float = Field(default=0.02, ge=0, lt=1, description="minimum fraction of its stripes that every layer keeps")
    block: int = Field(default=1, ge=1, description="so many filters of similar shapes keep the same stripes")

    def check(self, task: Task) -> None:
        super().check(task)
        check_kernels(task, self.name)

    def unused(self, task: Task) -> Mapping[str, tuple[object, ...]]:
        same = (Setting("ranking", "layer", type(self)), " keeps the same share of every layer")
        return {"cost": same} if self.ranking == "layer" and self.cost else {}

    def feasible(self, task: Task) -> None:
        task.widths.check(self._stripes(task).lowest())

    def select(self, task: Task) -> Selection:
        return self.selector(task)(task)

    def selector(self, task: Task) -> Callable[[Task], Selection]:
        """With norms that are computed, and a power of the costs that is measured, once."""
        scores = [self._scores(task, name) for name in kernels(task)]
        power = 0.0 if self.ranking == "layer" else power_of(self.cost, task, self._ranked(task, scores))
        return lambda other: self._ranked(other, scores)(power)

    def _ranked(self, task: Task, scores: Sequence[np.ndarray]) -> Callable[[float], Selection]:
        """What these norms keep within the task's budget, by the power of the costs."""
        stripes = self._stripes(task)

        def within(cost: float) -> Selection:
            worth = stripes.worth(cost)
            each = np.concatenate([s * w for s, w in zip(scores, worth, strict=True)])
            left, _ = stripes.select_within_budget(stripes.means(each), lambda: channel_scores(task))
            return stripes.selection(left)

        return within

    def _stripes(self, task: Task) -> Stripes:
        found = kernels(task)
        return Stripes(task, found, None if self.block == 1 else blocks(task.model, found, self.block), self.floor)

    def _scores(self, task: Task, name: str) -> np.ndarray:
        """One layer's scores: (filters · positions,)."""
        weight = parameter(task.model, name).detach().float()  # (O, C, *kernel)
        norms = weight.square().sum(1).sqrt().flatten().double().cpu().numpy()
        if not np.isfinite(norms).all():
            raise ConfigError(f"{self.name}: {name} has NaN or infinite values.")
        if self.ranking == "layer":
            return (np.argsort(np.argsort(norms, kind="stable"), kind="stable") + 1) / len(norms)
        return norms / norms.mean() if norms.any() else norms
