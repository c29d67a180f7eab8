"""Filters near the geometric median of their layer: the others can stand in for them."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task
from secateurs.methods.registry import register


@register("fpgm")
class FPGM(Criterion):
    """Sum of a filter's Euclidean distances to all others of its group (He et al., CVPR 2019): those near the geometric median
    are cut first, as the others can represent them.

    A channel that several layers make is one point with the filters of all of them.
    """

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: distances(g.filters(task.model, bias=False)).sum(1) for g in task.groups}


def distances(points: Tensor) -> Tensor:
    """Euclidean distances of all pairs: points (n, d) → (n, n), float64 on the CPU."""
    x = points.cpu().double()
    x = x - x.mean(0)  # smaller numbers, of which less is lost
    squares = x.square().sum(1)
    found = (squares[:, None] + squares - 2 * x @ x.mT).clamp(min=0)
    # Equal points have a distance of rounding errors only.
    rounding = x.shape[1] * torch.finfo(x.dtype).eps * torch.maximum(squares[:, None], squares)
    return found.masked_fill(found <= rounding, 0).sqrt()
