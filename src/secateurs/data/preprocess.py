"""How an image becomes an input of a network, as data and as a function."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from secateurs.data.images import decode
from secateurs.data.unreadable import Unreadable
from secateurs.errors import DataError

Side = Annotated[int, Field(ge=1, lt=2**31)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Std = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocess(BaseModel):
    """How images become inputs: decoded to `channels`, brought to `size`, scaled to [0, 1], normalized to `(x - mean) / std`,
    channels first.

    channels: "RGB", or "L" for grayscale. size: (height, width) in pixels. resize: "shorter-side" resizes the shorter side
    (bilinear) and crops the center; None takes images of this size only. mean, std: per color, of values in [0, 1].

    >>> preprocess = sc.card("runs/r56").signature.preprocess
    >>> logits = model(preprocess("cat.jpg"))
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    channels: Literal["RGB", "L"] = "RGB"
    size: tuple[Side, Side]
    resize: Literal["shorter-side"] | None = "shorter-side"
    mean: tuple[Mean, Mean, Mean] = (0.0, 0.0, 0.0)
    std: tuple[Std, Std, Std] = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _affordable(self) -> Preprocess:
        if self.size[0] * self.size[1] > 2**28:
            raise ValueError("more pixels than any image has")
        return self

    def __call__(self, image: str | os.PathLike[str] | bytes) -> Tensor:
        """An image file, or its bytes, as a batch of one: (1, 3, H, W) float32, or (1, 1, H, W). Raises DataError if it cannot
        be read, or has another size and `resize` is None."""
        file = image if isinstance(image, bytes) else Path(image)
        found = decode(file, self.size, self.resize is not None)
        if isinstance(found, Unreadable):
            raise DataError(f"{found.path} cannot be read: {found.why}.")
        x = normalized(torch.from_numpy(found.copy())[None].permute(0, 3, 1, 2), *affine(self.mean, self.std))
        return x if self.channels == "RGB" else luminance(x)


def affine(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as one multiplication and one addition per pixel: scale and shift, each (C, 1, 1)."""
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    shift = -torch.tensor(mean, dtype=torch.float64) * 255 * scale
    return scale.float().view(-1, 1, 1), shift.float().view(-1, 1, 1)


def normalized(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """uint8 images (…, C, H, W) as float32; scale and shift as `affine` gives them."""
    x = images.to(torch.float32, memory_format=torch.contiguous_format)
    return x.mul_(scale).add_(shift)


def luminance(images: Tensor) -> Tensor:
    """RGB images (…, 3, H, W) in grayscale, (…, 1, H, W), with the weights of ITU-R BT.601, as Pillow has them."""
    weights = torch.tensor((0.299, 0.587, 0.114), device=images.device).view(3, 1, 1)
    return (images * weights).sum(-3, keepdim=True)
