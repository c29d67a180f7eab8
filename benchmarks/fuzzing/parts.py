"""What blocks are made of. A reproducer prints those that its blocks use."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Reads (N, C, *space) and returns (N, out, *space). The rest says which channels must stay prunable around and in it.

    reads: those that it reads. passes: its outputs are its inputs' channels, or both stand side by side.
    gives: layers that make its outputs, and whose channels can be cut as far as this block is concerned.
    inside: layers whose channels nothing outside of the block reads, and which can be cut.
    """

    reads = True
    passes = False
    gives: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    random = False  # in eval mode the outputs depend on random numbers, of which there is one for each channel

    def __init__(self, out: int) -> None:
        super().__init__()
        self.out = out

    def watched(self) -> list[tuple[str, int, str, int]]:
        """For parameters that no layer of PyTorch's reads with: (parameter, its axis, the module that passes on what is read,
        the axis of that)."""
        return []

    def figures(self) -> list[tuple[str, int, int]]:
        """Figures that the block keeps of its own: (attribute, value, what its tensors say)."""
        return []


def conv(dim: int, i: int, o: int, k: int = 3, **options: Any) -> nn.Module:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1](i, o, k, padding=k // 2, **options)


def up(dim: int, i: int, o: int, **options: Any) -> nn.Module:
    return (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dim - 1](i, o, 2, stride=2, **options)


def norm(dim: int, c: int, **options: Any) -> nn.Module:
    return (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dim - 1](c, **options)


def pool(x: Tensor) -> Tensor:
    """Space halved."""
    return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3](x, 2)


def mean(x: Tensor) -> Tensor:
    """(N, C, *space) → (N, C)"""
    return x.flatten(2).mean(2)


def spread(v: Tensor, x: Tensor) -> Tensor:
    """(…, C) → (…, C, 1, …), to be broadcast over x's space."""
    return v[(..., *[None] * (x.ndim - 2))]
