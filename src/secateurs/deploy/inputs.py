"""Change the batch size or the values of example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.errors import ConfigError, Setting
from secateurs.graph.inputs import map_tensors, tensors


def images_of(inputs: Any) -> list[Any] | None:
    """Return the list of images (C, H, W) among example inputs, as detectors take it; None if there is none."""
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    for x in values if isinstance(inputs, Mapping | list | tuple) else []:
        if isinstance(x, list | tuple) and x and all(isinstance(y, Tensor) and y.ndim == 3 for y in x):
            return list(x)
    return None


def batch_of(inputs: Any) -> int | None:
    """Return the number of examples in example inputs: the length of a list of images, or the first axis that all tensors
    share. None if they have no common first axis."""
    if (images := images_of(inputs)) is not None:
        return len(images)
    sizes = {x.shape[0] if x.ndim else None for x in tensors(inputs)}
    return sizes.pop() if len(sizes) == 1 else None


def shapes_of_one(inputs: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of one example's tensors: of images in a list, each different shape once; without the first axis, if
    that is the batch."""
    if (images := images_of(inputs)) is not None:
        return tuple(dict.fromkeys(tuple(x.shape) for x in images))
    skipped = 0 if batch_of(inputs) is None else 1
    return tuple(tuple(x.shape[skipped:]) for x in tensors(inputs))


def batched(inputs: Any, batch: int | None) -> Any:
    """Return the inputs with this many examples, repeated or truncated. None leaves them as they are.

    Raises ConfigError for inputs that have no common first axis and are not a list of images.
    """
    size = batch_of(inputs)
    if batch is None or batch == size:
        return inputs
    if not size:
        raise ConfigError(
            Setting("batch", batch), " needs inputs whose first axis is the batch: these have tensors of ",
            " and ".join("×".join(map(str, x.shape)) or "no axis" for x in tensors(inputs)), ".",
        )  # fmt: skip

    if images_of(inputs) is not None:
        return _each_list(inputs, lambda items: type(items)((items * -(-batch // size))[:batch]))

    def resized(x: Tensor) -> Tensor:
        return torch.cat([x] * -(-batch // size))[:batch] if batch > size else x[:batch]

    return map_tensors(resized, inputs)


def _each_list(inputs: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to the arguments that are lists: those of images and of their targets."""

    def of(value: Any) -> Any:
        return function(value) if isinstance(value, list | tuple) else value

    if isinstance(inputs, Mapping):
        return {name: of(value) for name, value in inputs.items()}
    return type(inputs)(of(value) for value in inputs)


def noise(inputs: Any) -> Any:
    """Replace floating-point tensors by normal noise. Other tensors stay as they are."""
    return map_tensors(lambda x: torch.randn_like(x) if x.is_floating_point() else x, inputs)
