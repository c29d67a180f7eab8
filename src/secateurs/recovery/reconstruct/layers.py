"""A layer as a linear map at sampled positions of its output: which inputs it reads there, and its weight as a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """y[o, q] = Σ w[o, c, k] · x[c, read(q, k)] within each group of channels.

    The tuples have one entry per spatial axis.
    """

    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]  # before the first position
    dilation: tuple[int, ...]
    transposed: bool = False

    linear: bool = False  # a matrix product: x is (N, C, rows of each image)

    @property
    def positions(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel)

    def read(self, x: Tensor, at: Tensor, size: Sequence[int]) -> Tensor:
        """The inputs that the outputs at these positions depend on, zero where they are padding.

        x: (N, C, *in). at: (N, P), positions in the flattened `size`, the spatial size of the output.
        Returns (groups, N · P, C / groups · positions).
        """
        n, c = x.shape[:2]
        flat = torch.zeros((*at.shape, self.positions), dtype=torch.long, device=x.device)
        inside = torch.ones_like(flat, dtype=torch.bool)
        kernel = torch.arange(self.positions, device=x.device)
        strides = [math.prod(size[a + 1 :]) for a in range(len(size))]
        spans = [math.prod(self.kernel[a + 1 :]) for a in range(len(size))]
        for a, length in enumerate(x.shape[2:]):
            q = (at // strides[a] % size[a])[..., None]  # (N, P, 1)
            k = kernel // spans[a] % self.kernel[a] * self.dilation[a]  # (positions,)
            if self.transposed:
                source = q + self.padding[a] - k
                inside &= source % self.stride[a] == 0
                source = source.div(self.stride[a], rounding_mode="floor")
            else:
                source = q * self.stride[a] - self.padding[a] + k
            inside &= (source >= 0) & (source < length)
            flat = flat * length + source.clamp(0, length - 1)
        index = flat.flatten(1)[:, None].expand(n, c, -1)  # (N, C, P · positions)
        taken = x.flatten(2).gather(2, index).mul_(inside.flatten(1)[:, None])
        taken = taken.view(n, self.groups, c // self.groups, at.shape[1], self.positions)
        return taken.permute(1, 0, 3, 2, 4).reshape(self.groups, n * at.shape[1], -1)

    def matrix(self, weight: Tensor) -> Tensor:
        """(groups, O / groups, inputs): the weight, in the order of `read`."""
        if self.transposed:  # (C, O / groups, *kernel)
            w = weight.view(self.groups, weight.shape[0] // self.groups, weight.shape[1], self.positions)
            return w.transpose(1, 2).flatten(2)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`: a weight of the shape of `like`."""
        if self.transposed:
            g, o, _ = matrix.shape
            return matrix.view(g, o, -1, self.positions).transpose(1, 2).reshape(like.shape)
        return matrix.reshape(like.shape)


LINEAR = Geometry(1, (1,), (1,), (0,), (1,), linear=True)


def sampled(y: Tensor, at: Tensor) -> Tensor:
    """The channels at these positions: y (N, O, *out), at (N, P) → (N · P, O)."""
    index = at[:, None].expand(-1, y.shape[1], -1)
    return y.flatten(2).gather(2, index).transpose(1, 2).reshape(-1, y.shape[1])
