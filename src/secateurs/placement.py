"""The device, dtypes and memory format of a network, so that networks derived from it can be returned likewise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateurs.devices import channels_last_, check_one_device, device_of, moved
from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.graph.inputs import map_tensors

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Placement:
    """A network's device, the dtypes of its half-precision tensors, and its memory format.

    Computation is in float32: scores, statistics and weight updates need more precision than half precision has. Half
    precision converts to float32 exactly, so tensors that are not trained are returned bit for bit.
    """

    device: torch.device
    dtype: torch.dtype | None  # of all floating-point parameters, if it is one
    halves: Mapping[str, torch.dtype]  # parameter or buffer → its dtype
    names: frozenset[str]  # of all parameters and buffers
    channels_last: bool

    @classmethod
    def of(cls, model: nn.Module) -> Placement:
        """Raises ConfigError for a model on several devices, or on the meta device."""
        check_one_device(model)
        tensors = named_tensors(model)
        last = any(
            t.ndim == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)
            for t in tensors.values()
        )
        floating = {p.dtype for p in model.parameters() if p.is_floating_point()}
        dtype = floating.pop() if len(floating) == 1 else None
        halves = {n: t.dtype for n, t in tensors.items() if t.dtype in HALF}
        return cls(device_of(model), dtype, halves, frozenset(tensors), last)

    def working_copy(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The network on this device and in float32: itself if that is already the case, else a copy."""
        if device == self.device and not self.halves:
            return model
        return _float32(copied(model)).to(device)

    def working_inputs(self, example_inputs: Any, device: torch.device) -> Any:
        """Example inputs for the working copy, floating-point ones in its format."""
        return _converted(example_inputs, device, torch.float32 if self.halves else self.dtype)

    def restored_inputs(self, example_inputs: Any) -> Any:
        """Example inputs for the restored network, on its device."""
        return _converted(example_inputs, self.device, next(iter(self.halves.values()), self.dtype))

    def restore(self, small: nn.Module) -> nn.Module:
        """Move a derived network to the original's device, dtypes and memory format, in place."""
        small.to(self.device)
        for name, tensor in named_tensors(small).items():
            dtype = self.halves.get(self._original(name))
            if dtype is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
        if self.channels_last:
            channels_last_(small)
        return small

    def _original(self, name: str) -> str:
        """The tensor that this one was cut from: `conv.1.weight` is from `conv.weight` where a convolution was replaced by a
        padding and a convolution."""
        *path, leaf = name.split(".")
        while path and ".".join([*path, leaf]) not in self.names:
            path.pop()
        return ".".join([*path, leaf])


def _float32(model: nn.Module) -> nn.Module:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in HALF:
            tensor.data = tensor.data.float()
    return model


def _converted(inputs: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    return map_tensors(
        lambda x: moved(x, device, dtype if dtype is not None and x.is_floating_point() else x.dtype), inputs
    )
