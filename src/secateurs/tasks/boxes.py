"""Images and boxes: random flips, colors and scales in training, whole images in evaluation, batches."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from secateurs.data.samples import Sample
from secateurs.zoo.vision import torchvision

Target = dict[str, Tensor]
_LEFT = 0.25  # the share of a box that a crop has to leave, or the box is gone


class Boxed:
    """Transforms of an image (3, H, W) uint8 with its boxes (B, 4), as x1, y1, x2, y2 in pixels, their labels and so on.

    side: of the shorter side of images, which are not resized if None. flip: flip horizontally with probability ½. photometric:
    change brightness, contrast, saturation and hue. jitter: enlarge or shrink by up to this factor, and crop or pad to the size
    before.
    """

    def __init__(self, side: int | None, flip: bool, photometric: bool, jitter: float) -> None:
        self.side, self.flip, self.photometric, self.jitter = side, flip, photometric, jitter

    @cached_property
    def _augment(self) -> Any:
        torchvision()
        from torchvision.transforms import v2

        return v2.Compose(
            [v2.Identity(), *([v2.RandomPhotometricDistort()] if self.photometric else []),
             *([v2.RandomHorizontalFlip()] if self.flip else [])]
        )  # fmt: skip

    def train(self, image: Tensor, target: Target) -> Sample:
        image, target = self.whole(image, {name: target[name] for name in ("boxes", "labels")})
        image, boxes = self._augment(*self._wrapped(image, target["boxes"]))
        if self.jitter > 1:
            image, boxes, kept = self._jittered(image, boxes)
            return image.as_subclass(Tensor), {"boxes": boxes, "labels": target["labels"][kept]}
        return image.as_subclass(Tensor), {**target, "boxes": boxes.as_subclass(Tensor)}

    def whole(self, image: Tensor, target: Target) -> Sample:
        height, width = image.shape[-2:]
        if self.side is None or min(height, width) == self.side:
            return image, target
        factor = self.side / min(height, width)
        image, boxes = self._resized(*self._wrapped(image, target["boxes"]), factor)
        found = {**target, "boxes": boxes.as_subclass(Tensor)}
        if "area" in target:
            found["area"] = target["area"] * factor**2
        return image.as_subclass(Tensor), found

    def alike(self, height: int, width: int) -> None:
        """Images of any sizes go together."""

    def collate(self, images: list[Tensor], targets: list[Target]) -> tuple[list[Tensor], list[Target]]:
        """Lists of images (C, H, W) and of their targets, on the images' device."""
        return images, [{name: x.to(images[0].device) for name, x in target.items()} for target in targets]

    def _jittered(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The image of the same size, with everything on it larger or smaller; the boxes that are left, and which."""
        from torchvision.transforms import v2

        height, width = image.shape[-2:]
        share = 2 * torch.rand(()).item() - 1
        image, boxes = self._resized(image, boxes, math.exp(share * math.log(self.jitter)))
        before = _areas(boxes)
        fill = image.as_subclass(Tensor).float().mean((1, 2)).tolist()
        image, boxes = v2.RandomCrop((height, width), pad_if_needed=True, fill=fill)(image, boxes)
        kept = (_areas(boxes) >= _LEFT * before) & (_areas(boxes) > 0)
        return image, boxes.as_subclass(Tensor)[kept], kept

    @staticmethod
    def _resized(image: Tensor, boxes: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        from torchvision.transforms import v2

        height, width = (max(1, round(side * factor)) for side in image.shape[-2:])
        found: tuple[Tensor, Tensor] = v2.Resize((height, width), antialias=True)(image, boxes)
        return found

    @staticmethod
    def _wrapped(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        torchvision()
        from torchvision import tv_tensors

        size = (image.shape[-2], image.shape[-1])
        return tv_tensors.Image(image), tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)


def _areas(boxes: Tensor) -> Tensor:
    corners = boxes.as_subclass(Tensor)
    return (corners[:, 2:] - corners[:, :2]).prod(1)
