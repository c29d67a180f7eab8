"""The phases of a run with a budget: search, fade, and training in the final shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.graph import ChannelGroup
from secateurs.graph.channels import parameter
from secateurs.training import Recipe


def faded(arrive: float, fixed: float) -> float:
    """When the fade ends that begins at `arrive`: so that the fraction `fixed` of the training is left for the final shape, or
    half of what remains if it begins later than that. All are fractions of the training."""
    return 1 - fixed if arrive < 1 - fixed else (1 + arrive) / 2


def ceiling(first: float, arrive: float, end: float, progress: float) -> float:
    """The largest value of a unit that is to be cut, which falls from `first` to zero during the fade."""
    return first * min(1.0, max(0.0, (end - progress) / max(1e-9, end - arrive)))


class Held(Recipe):
    """A recipe that holds its learning rate before its schedule begins.

    hold: the fraction of the training before that.
    """

    hold: float = 0.0

    def factor(self, done: float, position: float) -> float:
        if done < self.hold:
            return 1.0
        return super().factor((done - self.hold) / max(1e-9, 1 - self.hold), position)


Readers = list[tuple[str, int, Tensor]]  # a weight, an axis, and indices on it


def readers(model: nn.Module, groups: Iterable[ChannelGroup], kept: Sequence[np.ndarray]) -> Readers:
    """What reads the channels that are not kept. kept: for each group (size,) bool."""
    found: Readers = []
    for group, stays in zip(groups, kept, strict=True):
        for slot in () if stays.all() else group.slots:
            w = parameter(model, slot.param)
            if slot.consumes and isinstance(w, nn.Parameter):
                found.append((slot.param, slot.axis, torch.from_numpy(slot.index[~stays].ravel()).to(w.device)))
    return found


@torch.no_grad()
def attenuate_(model: nn.Module, found: Readers, factor: float) -> None:
    """Scale what the network reads of channels. At zero, cutting them changes nothing, whatever constants their norms and
    biases still produce."""
    for name, axis, at in found:
        w = parameter(model, name)
        w.index_copy_(axis, at, w.index_select(axis, at) * factor)
