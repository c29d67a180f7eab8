"""Filters as tensors: those whose subspaces many others of their layer share can be spared."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from secateurs.graph import ChannelGroup
from secateurs.graph.channels import Slot, parameter
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task
from secateurs.methods.registry import register


@register("coring")
class CORING(Criterion):
    """How unlike the other filters of its group a filter is, as their higher-order singular value decompositions (HOSVD) tell
    (CORING, Pham et al., Neural Networks 2024): a filter that is like many others is cut first.

    A filter (C, *kernel) is a tensor, not a vector: the decomposition has a basis for each of its axes, of which the first
    `rank` vectors are compared. The similarity of two filters is the overlap of their subspaces, Σ cos² / rank, averaged over
    axes and over the layers that make the channel. Neither the sign of singular vectors, which is arbitrary, nor the norm of
    a filter matters; a filter of zeros is like all others.
    """

    rank: int = Field(1, ge=1, description="singular vectors of each axis of a filter that are compared")

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: 1 - self._shared(g, task.model) for g in task.groups}

    def _shared(self, group: ChannelGroup, model: nn.Module) -> Tensor:
        """The mean similarity of each filter with the others: (size,), float64."""
        layers = [similarities(filters(slot, model), self.rank) for slot in group.slots if slot.produces]
        found = torch.stack(layers).mean(0)
        return (found.sum(1) - found.diagonal()) / max(1, group.size - 1)


def filters(slot: Slot, model: nn.Module) -> Tensor:
    """The filters of a layer as tensors, without axes of length 1: (size, …), float64 on the CPU."""
    shape = list(parameter(model, slot.param).shape)
    shape[slot.axis] = slot.index.shape[1]  # several filters for a channel, of a grouped convolution, are an axis, too
    axes = [shape.pop(slot.axis), *shape]
    return slot.rows(model).cpu().double().reshape(len(slot.index), *(n for n in axes if n > 1))


def similarities(found: Tensor, rank: int) -> Tensor:
    """Of all pairs of filters: (n, …) → (n, n), 0 for subspaces at right angles on every axis, 1 for the same ones."""
    n = len(found)
    alike = [
        _overlaps(bases(found.movedim(axis, 1).reshape(n, found.shape[axis], -1), rank))
        for axis in range(1, found.ndim)
    ]
    total = torch.stack(alike).mean(0) if alike else torch.ones(n, n, dtype=found.dtype)
    dead = found.reshape(n, -1).square().sum(1) == 0
    return total.masked_fill(dead[:, None] | dead, 1.0)


def bases(unfolded: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of each matrix: (n, a, b) → (n, a, r), with r at most `rank`, a and b."""
    if unfolded.shape[2] == 1:
        return torch.nn.functional.normalize(unfolded, dim=1)
    return torch.linalg.svd(unfolded, full_matrices=False)[0][:, :, :rank]


def _overlaps(vectors: Tensor) -> Tensor:
    """Σ cos² / r between the subspaces: (n, a, r) → (n, n)."""
    n, a, r = vectors.shape
    flat = vectors.transpose(1, 2).reshape(n * r, a)
    return (flat @ flat.mT).square().reshape(n, r, n, r).sum((1, 3)) / r
