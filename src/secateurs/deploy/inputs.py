"""Example inputs of another batch size, or of other values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.errors import ConfigError, Setting
from secateurs.graph.inputs import map_tensors, tensors


def batch_of(inputs: Any) -> int | None:
    """The number of examples in example inputs: the first axis, if all tensors agree on it; None if they don't, or for a list
    of images (C, H, W), as detectors take."""
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    arguments = values if isinstance(inputs, Mapping | list | tuple) else []
    if any(isinstance(x, list | tuple) and all(isinstance(y, Tensor) and y.ndim == 3 for y in x) for x in arguments):
        return None
    sizes = {x.shape[0] if x.ndim else None for x in tensors(inputs)}
    return sizes.pop() if len(sizes) == 1 else None


def batched(inputs: Any, batch: int | None) -> Any:
    """The same inputs with this many examples: the given ones, repeated or cut off. None leaves them as they are.

    Raises ConfigError for inputs that have no common first axis, for example a list of images of several sizes.
    """
    size = batch_of(inputs)
    if batch is None or batch == size:
        return inputs
    if not size:
        raise ConfigError(
            Setting("batch", batch), " needs inputs whose first axis is the batch: these have tensors of ",
            " and ".join("×".join(map(str, x.shape)) or "no axis" for x in tensors(inputs)), ".",
        )  # fmt: skip

    def resized(x: Tensor) -> Tensor:
        return torch.cat([x] * -(-batch // size))[:batch] if batch > size else x[:batch]

    return map_tensors(resized, inputs)


def noise(inputs: Any) -> Any:
    """The same structure with normal noise for floating-point tensors; the others as they are."""
    return map_tensors(lambda x: torch.randn_like(x) if x.is_floating_point() else x, inputs)
