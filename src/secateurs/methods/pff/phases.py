"""The phases of a run with a budget: search, fade, and training in the final shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from secateurs.graph import ChannelGroup
from secateurs.graph.channels import parameter
from secateurs.training import Recipe

FIXED = 1 / 3  # the minimum fraction of the training in the final shape, if the shape is chosen before that


def faded(arrive: float) -> float:
    """When the fade ends that begins at `arrive`: 60% of what remains, but at the latest after two thirds of the training,
    unless it begins about then. Both are fractions of the training."""
    return arrive + min(0.6 * (1 - arrive), max(1 - FIXED - arrive, 0.3 * (1 - arrive)))


def ceiling(first: float, arrive: float, progress: float) -> float:
    """The largest value of a unit that is to be cut, which falls from `first` to zero during the fade."""
    return first * max(0.0, 1.0 - (progress - arrive) / max(1e-9, faded(arrive) - arrive))


class Restarting(Recipe):
    """A recipe whose schedule starts again.

    restart: the fraction of the training after which it does; None for never.
    """

    restart: float | None = None

    def factor(self, done: float, position: float) -> float:
        if self.restart is None or not 0 < self.restart < 1:
            return super().factor(done, position)
        if done < self.restart:
            return super().factor(done / self.restart, position)
        return super().factor((done - self.restart) / (1 - self.restart), position)


@torch.no_grad()
def attenuate_(model: nn.Module, groups: Iterable[ChannelGroup], kept: Sequence[np.ndarray], factor: float) -> None:
    """Scale what the network reads of the channels that are not kept, in all weights that consume them. At zero, cutting them
    changes nothing, whatever constants their norms and biases still produce.

    kept: for each group (size,) bool.
    """
    for group, stays in zip(groups, kept, strict=True):
        if stays.all():
            continue
        for slot in group.slots:
            w = parameter(model, slot.param)
            if slot.consumes and isinstance(w, nn.Parameter):
                at = torch.from_numpy(slot.index[~stays].ravel()).to(w.device)
                w.index_copy_(slot.axis, at, w.index_select(slot.axis, at) * factor)
