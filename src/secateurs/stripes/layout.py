"""The positions of a convolution's stripes: a stripe is a filter's weights at one position of the kernel, over all channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """What a kernel needs to know about a stripe convolution in addition to its weights."""

    kept: Tensor  # (O, KH, KW) bool
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: tuple[int, int]

    def like(self, other: Layout) -> bool:
        """Whether strides, padding and dilation are the same."""
        return (self.stride, self.padding, self.dilation) == (other.stride, other.padding, other.dilation)

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.kept.shape[1], self.kept.shape[2]

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

    def offset(self, position: int) -> tuple[int, int]:
        """The offset of a position to the bottom and right, in pixels of the padded input."""
        row, column = divmod(position, self.kernel_size[1])
        return row * self.dilation[0], column * self.dilation[1]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """The output size for an input of this size."""
        top, bottom, left, right = self.padding
        (sh, sw), (dh, dw), (kh, kw) = self.stride, self.dilation, self.kernel_size
        return (height + top + bottom - dh * (kh - 1) - 1) // sh + 1, (
            width + left + right - dw * (kw - 1) - 1
        ) // sw + 1


def dense(kept: Tensor, weight: Tensor) -> Tensor:
    """The weight of the dense convolution that computes the same: (S, C) → (O, C, KH, KW), differentiable.

    By ops whose shapes do not depend on values, in both directions: a GPU is not waited for, and the step can be captured.
    """
    row = (kept.flatten().cumsum(0) - 1).clamp_min(0)  # (O · KH · KW,): where a stripe is missing, any row
    rows = torch.cat([weight, weight.new_zeros(1, weight.shape[1])])  # never none at all
    full = rows.index_select(0, row).view(*kept.shape, -1)  # (O, KH, KW, C)
    full = full.masked_fill(~kept[..., None], 0).permute(0, 3, 1, 2)
    # Not contiguous(): with one channel it would keep the strides, for which PyTorch's convolution returns wrong results
    # (2.13, stride (1, 2)).
    return full.clone(memory_format=torch.contiguous_format)


def shrunk(
    kept: Tensor, padding: tuple[int, int, int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Kept stripes and padding without the outer rows and columns of the kernel that no filter uses."""
    used = kept.any(0)
    if not used.any():
        return kept[:, :1, :1], (padding[0], _rest(padding[1], kept.shape[1], dilation[0]), padding[2],
                                 _rest(padding[3], kept.shape[2], dilation[1]))  # fmt: skip
    rows, columns = used.any(1).nonzero()[:, 0].tolist(), used.any(0).nonzero()[:, 0].tolist()
    (r0, r1), (c0, c1) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
    top, bottom, left, right = padding
    (kh, kw), (dh, dw) = kept.shape[1:], dilation
    fitted = (top - r0 * dh, bottom - (kh - r1) * dh, left - c0 * dw, right - (kw - c1) * dw)
    return kept[:, r0:r1, c0:c1], fitted


def _rest(padding: int, size: int, dilation: int) -> int:
    return padding - (size - 1) * dilation
