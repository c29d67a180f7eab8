"""Magnitudes of whole groups: what a channel's removal takes along in every layer, producers, norms and consumers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateurs.graph import ChannelGroup
from secateurs.graph.channels import Slot, parameter
from secateurs.methods.criteria import powers
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task
from secateurs.methods.registry import register


@register("group-l1")
class GroupL1(Criterion):
    """Sum of absolute weights over all layers of a group (DepGraph, Fang et al., CVPR 2023): those that make the channels,
    those that read them, and norms. Biases do not count."""

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: magnitudes(g, task.model, 1) for g in task.groups}


@register("group-l2")
class GroupL2(Criterion):
    """Sum of squared weights over all layers of a group (DepGraph, Fang et al., CVPR 2023): those that make the channels,
    those that read them, and norms. Biases do not count."""

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: magnitudes(g, task.model, 2) for g in task.groups}


@register("lamp")
class LAMP(Criterion):
    """Squared weights of a channel as a share of those of all channels of its group that are no smaller (Lee et al., ICLR
    2021): the distortion of the layer if the smaller ones are gone already. Weights are counted as `group-l2` counts them.

    The paper scores single weights. Scores are comparable between groups: the largest channel of each has score 1.
    """

    comparable: ClassVar[bool] = True

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: relative_to_larger(magnitudes(g, task.model, 2)) for g in task.groups}


def magnitudes(group: ChannelGroup, model: nn.Module, p: int) -> Tensor:
    """Σ |w|^p (p is 1 or 2) over all weights that go with each channel: (size,)."""
    return torch.stack([powers(slot.rows(model).float(), p) for slot in weights(group, model)]).sum(0)


def weights(group: ChannelGroup, model: nn.Module) -> Iterator[Slot]:
    """The slots of a group's weights: all of its parameters but biases, each once per axis."""
    for slot in group.slots:
        leaf = slot.param.rpartition(".")[2]
        if isinstance(parameter(model, slot.param), nn.Parameter) and not leaf.startswith("bias"):
            yield slot


def relative_to_larger(squares: Tensor) -> Tensor:
    """Each value as a share of the sum of all that are no smaller: (size,), at most 1. Equal values are taken in order."""
    values, order = squares.cpu().double().sort(stable=True)
    larger = values.flip(0).cumsum(0).flip(0)
    return torch.zeros_like(values).scatter(0, order, values / larger.clamp(min=torch.finfo(values.dtype).tiny))
