"""The positions of a convolution's stripes: a stripe is a filter's weights at one position of the kernel, over all channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Size = tuple[int, ...]  # of a kernel's axes


@dataclass(frozen=True)
class Layout:
    """What a kernel needs to know about a stripe convolution in addition to its weights."""

    kept: Tensor  # (O, *kernel) bool; the kernel has one to three axes
    stride: Size
    padding: Size  # before and after, for each axis in turn: top, bottom, left, right
    dilation: Size

    def like(self, other: Layout) -> bool:
        """Whether strides, padding and dilation are the same."""
        return (self.stride, self.padding, self.dilation) == (other.stride, other.padding, other.dilation)

    @property
    def kernel_size(self) -> Size:
        return tuple(self.kept.shape[1:])

    @property
    def positions(self) -> list[tuple[int, Tensor, Tensor]]:
        """For each position of the kernel that any filter keeps: (position, rows of the weight, their filters).

        Weights are (S, C), in the order of `kept.nonzero()`.
        """
        filters, position = self.kept.flatten(1).cpu().nonzero(as_tuple=True)
        found = []
        for p in position.unique().tolist():
            rows = (position == p).nonzero()[:, 0]
            found.append((p, rows, filters[rows]))
        return found

    def offset(self, position: int) -> Size:
        """Return the offset of a position on each axis (to the bottom and right), in pixels of the padded input."""
        found = []
        for size, dilation in zip(self.kernel_size[::-1], self.dilation[::-1], strict=True):
            position, at = divmod(position, size)
            found.append(at * dilation)
        return tuple(found[::-1])

    def out_size(self, *size: int) -> Size:
        """Return the output size for an input of this size, for example (height, width)."""
        axes = zip(size, pairs(self.padding), self.kernel_size, self.stride, self.dilation, strict=True)
        return tuple((n + sum(sides) - d * (k - 1) - 1) // s + 1 for n, sides, k, s, d in axes)


def dense(kept: Tensor, weight: Tensor) -> Tensor:
    """Return the weight of the equivalent dense convolution: (S, C) → (O, C, *kernel), differentiable.

    No shape in it depends on values, in the forward or the backward pass. So it does not synchronize with a GPU, and a training
    step can be captured.
    """
    row = (kept.flatten().cumsum(0) - 1).clamp_min(0)  # (O · positions,): where a stripe is missing, any row
    rows = torch.cat([weight, weight.new_zeros(1, weight.shape[1])])  # so that there is at least one row
    full = rows.index_select(0, row).view(*kept.shape, -1)  # (O, *kernel, C)
    full = full.masked_fill(~kept[..., None], 0).movedim(-1, 1)
    # Not contiguous(): with one channel it would keep the strides, for which PyTorch's convolution returns wrong results
    # (2.13, stride (1, 2)).
    return full.clone(memory_format=torch.contiguous_format)


def shrunk(kept: Tensor, padding: Size, dilation: Size) -> tuple[Tensor, Size]:
    """Remove the outer rows and columns of the kernel that no filter uses. Returns the kept stripes and the padding."""
    box = used(kept)
    sides: list[int] = []
    for at, size, (before, after), d in zip(box, kept.shape[1:], pairs(padding), dilation, strict=True):
        sides += before - at.start * d, after - (size - at.stop) * d
    return kept[(slice(None), *box)], tuple(sides)


def used(kept: Tensor) -> tuple[slice, ...]:
    """Return the smallest box of the kernel, a slice for each axis, that has all positions that any filter keeps. If no
    position is kept, the box is the first position. kept: (O, *kernel)."""
    at = kept.any(0).nonzero()  # (positions, axes)
    if not len(at):
        return tuple(slice(0, 1) for _ in kept.shape[1:])
    return tuple(slice(low, high + 1) for low, high in zip(at.amin(0).tolist(), at.amax(0).tolist(), strict=True))


def pairs(padding: Sequence[int]) -> list[tuple[int, int]]:
    """Return the padding of each axis, (before, after)."""
    return list(zip(padding[::2], padding[1::2], strict=True))
