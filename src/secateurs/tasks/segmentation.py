"""Segmentation: one class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from secateurs.data import Data
from secateurs.tasks.task import Reading, VisionTask
from secateurs.training import Objective


class Segmentation(VisionTask):
    """One class for each pixel: cross-entropy, mIoU and the share of pixels that are right."""

    name: ClassVar[str] = "segmentation"
    primary: ClassVar[str] = "mIoU"

    dice: float = Field(default=0.0, ge=0, description="weight of the Dice loss, which is added to cross-entropy")
    scale: float = Field(default=0.25, gt=0, le=1, description="the least share of an image that a training crop shows")
    flip: bool = Field(default=True, description="flip training images horizontally with probability ½")

    def load(self, spec: str, reading: Reading) -> Data:
        raise NotImplementedError

    def objective(self, network: nn.Module, data: Data) -> Objective:
        raise NotImplementedError
