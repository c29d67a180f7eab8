"""Tiny segmentation data, drawn; and a network that learns it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SIZES = ((32, 32), (32, 32), (40, 28), (20, 50), (32, 32), (40, 28))


class Net(nn.Module):
    """For images of any size."""

    def __init__(self, num_classes: int = 3, inside: int = 3) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(inside, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.middle(self.down(x))).relu())


class Small(Net):
    """Its logits are smaller than the images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., ::2, ::2]


def network(num_classes: int = 3, inside: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return Net(num_classes, inside)


def folder(root: Path, sizes: tuple[tuple[int, int], ...] = SIZES, *, count: int = 12) -> Path:
    """Dark and light rectangles on a gray ground: classes 1 and 2. The first row of every mask is 255."""
    random = np.random.default_rng(0)
    for split, n in (("train", count), ("val", len(sizes))):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for i in range(n):
            height, width = sizes[i % len(sizes)]
            image = random.integers(110, 140, (height, width, 3), dtype=np.uint8)
            mask = np.zeros((height, width), np.uint8)
            for kind, value in ((1, 20), (2, 230)):
                y, x = random.integers(1, height - 8), random.integers(0, width - 8)
                image[y : y + 8, x : x + 8], mask[y : y + 8, x : x + 8] = value, kind
            mask[0] = 255
            Image.fromarray(image).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    return root
