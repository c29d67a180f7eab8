"""Images and masks: random crops and flips in training, whole images in evaluation, batches."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.data.masks import IGNORED
from secateurs.data.samples import Sample
from secateurs.zoo.vision import torchvision

MULTIPLE = 32  # of the sides of every batch: what networks that halve their input five times need


def up(side: int) -> int:
    """The next multiple."""
    return -(-side // MULTIPLE) * MULTIPLE


def crop_of(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size of training crops for images of these sizes: the median, up to the next multiple."""
    heights, widths = zip(*sizes, strict=True)
    return up(int(statistics.median(heights))), up(int(statistics.median(widths)))


class Masked:
    """Transforms of an image (3, H, W) uint8 with its mask (H, W) int64.

    crop: height and width of training crops. side: of the shorter side of whole images, which are not resized if None. scale:
    the least share of the image that a crop shows. flip: flip horizontally with probability ½.

    Whole images are padded at the right and the bottom, with the mean color and IGNORED.
    """

    def __init__(self, crop: tuple[int, int], side: int | None, scale: float, flip: bool) -> None:
        self.crop, self.side, self.scale, self.flip = crop, side, scale, flip

    @cached_property
    def _augment(self) -> Any:
        torchvision()
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(self.crop, scale=(self.scale, 1.0), antialias=True)
        return v2.Compose([crop, *([v2.RandomHorizontalFlip()] if self.flip else [])])

    def train(self, image: Tensor, target: Tensor) -> Sample:
        return self._together(self._augment, image, target)

    def whole(self, image: Tensor, target: Tensor) -> Sample:
        if self.side is None:
            return image, target
        torchvision()
        from torchvision.transforms import v2

        return self._together(v2.Resize(self._resized(*image.shape[-2:]), antialias=True), image, target)

    def alike(self, height: int, width: int) -> tuple[int, int]:
        height, width = self._resized(height, width)
        return up(height), up(width)

    def collate(self, images: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) and (N, H, W), on the images' device."""
        height, width = (up(max(x.shape[axis] for x in images)) for axis in (-2, -1))

        def padded(x: Tensor, value: float) -> Tensor:
            return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), value=value)

        masks = torch.stack([padded(y, IGNORED) for y in targets])
        return torch.stack([padded(x, 0) for x in images]), masks.to(images[0].device)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.side is None:
            return height, width
        factor = self.side / min(height, width) if min(height, width) else 1
        return max(1, round(height * factor)), max(1, round(width * factor))

    @staticmethod
    def _together(transform: Any, image: Tensor, target: Tensor) -> Sample:
        from torchvision import tv_tensors

        image, target = transform(tv_tensors.Image(image), tv_tensors.Mask(target))
        return image.as_subclass(Tensor), target.as_subclass(Tensor)
