"""Export detectors: networks that take a list of images and find any number of boxes on each."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.errors import ConfigError
from secateurs.graph.inputs import map_tensors
from secateurs.zoo.vision import operators


def check_exportable(network: nn.Module, suffix: str) -> None:
    """Raise ConfigError if a detector cannot be exported. The message says what can be."""
    name, part = type(network).__name__, "the part of it that takes a tensor of images"
    if hasattr(network, "backbone"):
        part = "its backbone, for example with sc.export(model.backbone, …, images)"
    if suffix != ".onnx":
        raise ConfigError(
            f"{name} takes a list of images and finds any number of boxes, which torch.export cannot follow: {suffix} files "
            f"cannot hold it. Export it to .onnx, or {part}."
        )
    if not operators():
        raise ConfigError(
            f"{name} cannot be exported here: the C++ operators of this torchvision do not load with torch "
            f"{torch.__version__}. Install the torchvision that matches, or export {part}."
        )


def resized(inputs: Any) -> Any:
    """Return the inputs with their images resized."""

    def larger(x: Tensor) -> Tensor:
        return F.interpolate(x[None], scale_factor=1.25, mode="nearest")[0] if x.ndim == 3 else x

    return map_tensors(larger, inputs)


def matched(found: list[Tensor], due: list[Tensor], images: int) -> list[Tensor]:
    """Reorder the file's boxes to match the expected ones: boxes with almost the same score may come in another order. Each
    image has the same number of outputs, each with one row per box: (K, *)."""
    if [x.shape for x in found] != [x.shape for x in due] or len(due) % images:
        return found
    fields, ordered = len(due) // images, list[Tensor]()
    for first in range(0, len(due), fields):
        part = slice(first, first + fields)
        rows, wanted = (
            torch.cat([x.reshape(len(x), math.prod(x.shape[1:])).double() for x in boxes], 1)
            for boxes in (found[part], due[part])
        )
        order = torch.cdist(wanted, rows).argmin(1) if len(rows) else torch.arange(0)
        ordered += [x[order] for x in found[part]] if len(order.unique()) == len(order) else found[part]
    return ordered
