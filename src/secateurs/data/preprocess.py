"""How an image becomes an input of a network, as data and as a function."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from secateurs.data.images import decode, pixels
from secateurs.data.unreadable import Unreadable
from secateurs.errors import DataError

Side = Annotated[int, Field(ge=1, lt=2**31)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Std = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocess(BaseModel):
    """How images become inputs: decoded to `channels`, brought to `size`, scaled to [0, 1], normalized to `(x - mean) / std`,
    channels first.

    channels: "RGB", or "L" for grayscale. size: (height, width) in pixels; None for images of any size, which stay as they are.
    resize: "shorter-side" resizes the shorter side (bilinear) and crops the center. "whole" resizes the shorter side to the
    smaller of height and width, and crops nothing. None accepts only images of this size. mean, std: per color, of values in
    [0, 1].

    >>> preprocess = sc.card("runs/r56").signature.preprocess
    >>> logits = model(preprocess("cat.jpg"))
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    channels: Literal["RGB", "L"] = "RGB"
    size: tuple[Side, Side] | None = None
    resize: Literal["shorter-side", "whole"] | None = "shorter-side"
    mean: tuple[Mean, Mean, Mean] = (0.0, 0.0, 0.0)
    std: tuple[Std, Std, Std] = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _affordable(self) -> Preprocess:
        if self.size is not None and self.size[0] * self.size[1] > 2**28:
            raise ValueError("more pixels than any image has")
        return self

    def __call__(self, image: str | os.PathLike[str] | bytes) -> Tensor:
        """Convert an image file, or its bytes, to a batch of one: (1, 3, H, W) float32, or (1, 1, H, W). Raises DataError if it
        cannot be read, or if it has another size and `resize` is None."""
        file = image if isinstance(image, bytes) else Path(image)
        whole = self.size is None or self.resize == "whole"
        found = pixels(file) if self.size is None or whole else decode(file, self.size, self.resize is not None)
        if isinstance(found, Unreadable):
            raise DataError(f"{found.path} cannot be read: {found.why}.")
        raw = torch.from_numpy(found.copy())[None].permute(0, 3, 1, 2)  # (1, 3, H, W)
        if self.size is not None and whole:
            raw = _resized(raw, min(self.size))
        x = normalized(raw, *affine(self.mean, self.std))
        return x if self.channels == "RGB" else luminance(x)

    @classmethod
    def of_whole(
        cls, mean: tuple[float, float, float], std: tuple[float, float, float], channels: int, side: int | None
    ) -> Preprocess:
        """Preprocess whole images. channels: 1 or 3. side: the length to resize the shorter side to; None keeps the size."""
        size = None if side is None else (side, side)
        return cls(channels="RGB" if channels == 3 else "L", size=size, resize="whole", mean=mean, std=std)


def _resized(images: Tensor, side: int) -> Tensor:
    """Resize uint8 images (N, C, H, W) to this shorter side."""
    height, width = images.shape[-2:]
    size = [max(side, round(x * side / min(height, width))) for x in (height, width)]
    x = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8)


def affine(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Express (x / 255 - mean) / std as one multiplication and one addition: return scale and shift, each (C, 1, 1)."""
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    shift = -torch.tensor(mean, dtype=torch.float64) * 255 * scale
    return scale.float().view(-1, 1, 1), shift.float().view(-1, 1, 1)


def normalized(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalize uint8 images (…, C, H, W) to float32, with scale and shift from `affine`."""
    x = images.to(torch.float32, memory_format=torch.contiguous_format)
    return x.mul_(scale).add_(shift)


def luminance(images: Tensor) -> Tensor:
    """Convert RGB images (…, 3, H, W) to grayscale, (…, 1, H, W), with the weights of ITU-R BT.601, as Pillow does."""
    weights = torch.tensor((0.299, 0.587, 0.114), device=images.device).view(3, 1, 1)
    return (images * weights).sum(-3, keepdim=True)
