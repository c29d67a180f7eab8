"""Random crops and flips of a whole batch at once, on the images' device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def generator(*key: int) -> torch.Generator:
    """Return a CPU generator seeded by integers, such as (seed, epoch, batch). Similar tuples give unrelated numbers."""
    state = np.random.SeedSequence([k & 0xFFFFFFFF for k in key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


@dataclass(frozen=True)
class Augment:
    """A random crop after `pad` pixels of reflected padding, and a horizontal flip with probability ½."""

    pad: int = 4
    flip: bool = True

    def draw(self, count: int, source: torch.Generator) -> Draws:
        """Draw the random numbers for `count` images. The CPU draws them, so that they are the same on every device."""
        offsets = torch.randint(-self.pad, self.pad + 1, (count, 2), generator=source)
        flips = torch.randint(0, 2, (count,), generator=source).bool() & self.flip
        return Draws(offsets, flips)


@dataclass(frozen=True)
class Draws:
    """The random numbers for each image of a batch."""

    offsets: Tensor  # (N, 2) rows and columns by which the window is shifted
    flips: Tensor  # (N,) bool

    def __getitem__(self, rows: slice | Tensor) -> Draws:
        return Draws(self.offsets[rows], self.flips[rows])

    def to(self, device: torch.device) -> Draws:
        """Move the numbers to this device without waiting for it."""
        return Draws(*(x.to(device, non_blocking=True) for x in (self.offsets, self.flips)))

    def pixels(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the source row and column of each pixel: (N, H, 1) and (N, 1, W)."""
        device = self.flips.device
        rows = _reflect(torch.arange(height, device=device) + self.offsets[:, :1], height)  # (N, H)
        columns = torch.arange(width, device=device).expand(len(self.flips), width)
        columns = torch.where(self.flips[:, None], columns.flip(1), columns)
        columns = _reflect(columns + self.offsets[:, 1:], width)  # (N, W)
        return rows[:, :, None], columns[:, None, :]


def _reflect(index: Tensor, size: int) -> Tensor:
    """Reflect indices past either end about the edge pixel."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def gather(images: Tensor, which: Tensor, draws: Draws | None) -> Tensor:
    """Select the images `which` (N,) of (count, H, W, C), and crop and flip each as drawn. Returns (N, H, W, C)."""
    if draws is None:
        return images[which]
    rows, columns = draws.to(images.device).pixels(images.shape[1], images.shape[2])
    return images[which[:, None, None], rows, columns]  # selection, crop and flip in one indexing operation
