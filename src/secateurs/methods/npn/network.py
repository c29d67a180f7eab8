"""The pruner network: a copy of a network whose deepest features also feed one head per channel group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from secateurs.data.structure import examples, part
from secateurs.errors import ConfigError
from secateurs.graph.copies import copied
from secateurs.graph.inputs import call, tensors, to_model_device
from secateurs.graph.modes import evaluating


class Heads(nn.Linear):
    """All heads in one layer: features (N, D) → logits (N, channels), one column for each gated channel.

    Features are scaled to a mean magnitude of 1 / D, so that the size of the network's features does not decide how fast
    the gates move. Weights start small and biases at `open`: initially all gates are nearly equal and open. Zero logits would
    halve every feature map of a trained network.
    """

    def __init__(self, features: int, open: Tensor, generator: torch.Generator) -> None:
        super().__init__(features, len(open))
        with torch.no_grad():
            self.weight.copy_(torch.randn(len(open), features, generator=generator) * 0.01)
            self.bias.copy_(open)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return super().forward((x / x.abs().sum(1, keepdim=True).clamp(min=1e-6)).to(self.weight.dtype))


@dataclass(frozen=True)
class Features:
    """Where a network's deepest features are: the input of its last layer, or its output if it has no such layer."""

    layer: str | None  # the last convolution or linear layer that runs
    size: int

    @staticmethod
    def pooled(layer: nn.Module | None, x: Tensor) -> Tensor:
        """(N, D, *) or, of a linear layer, (N, *, D) → (N, D)"""
        if x.ndim > 2:
            x = x.flatten(1, -2).mean(1) if isinstance(layer, nn.Linear) else x.flatten(2).mean(2)
        return x


class PrunerNetwork(nn.Module):
    """A copy of `base` with heads on its deepest features; returns logits (N, len(open)).

    The copy runs as it is, whatever follows the features: nothing in it is replaced. Parameters that only what follows
    uses are frozen.
    """

    def __init__(self, base: nn.Module, inputs: Any, open: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.at = deepest(base, inputs)
        self.net = copied(base)
        self._features: Tensor | None = None
        self._layer = None if self.at.layer is None else self.net.get_submodule(self.at.layer)
        if self._layer is not None:
            self._layer.register_forward_pre_hook(self._watch, with_kwargs=True)
        like = next(base.parameters())
        self.heads = Heads(self.at.size, open, generator).to(like.device, like.dtype)
        self._freeze_unused(inputs)

    def _watch(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        self._features = args[0] if args else kwargs["input"]

    def features(self, *inputs: Any, **named: Any) -> Tensor:
        """(N, D)"""
        out = self.net(*inputs, **named)
        x, self._features = self._features, None
        if x is None:
            x = tensors(out)[0]
        return Features.pooled(self._layer, x)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        logits: Tensor = self.heads(self.features(*inputs, **named))
        return logits

    def _freeze_unused(self, inputs: Any) -> None:
        params = [p for p in self.net.parameters() if p.requires_grad]
        with evaluating(self.net), torch.enable_grad():
            inputs = to_model_device(self.net, inputs)
            args, named = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
            x = self.features(*(args if isinstance(args, tuple | list) else (args,)), **named)
        grads = torch.autograd.grad(x.sum(), params, allow_unused=True) if params and x.requires_grad else ()
        for p, grad in zip(params, grads, strict=False):
            p.requires_grad_(grad is not None)


def deepest(model: nn.Module, inputs: Any) -> Features:
    """The deepest features of a model: the input of the convolution or linear layer that runs last in eval mode (auxiliary
    classifiers, which run in training only, do not count).

    Raises ConfigError for a model with neither such a layer nor an output of shape (N, D, *).
    """
    rows = {x.shape[0] for x in tensors(inputs) if x.ndim}
    found: list[Features] = []
    whole: list[Features] = []  # one row for each sample

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor) and x.ndim >= 2:
                found.append(Features(name, Features.pooled(layer, x).shape[1]))
                whole.extend(found[-1:] if x.shape[0] in rows else ())

        return hook

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd)]
    handles = [m.register_forward_pre_hook(watch(name), with_kwargs=True) for name, m in layers]
    try:
        with evaluating(model), torch.no_grad():
            out = tensors(call(model, to_model_device(model, inputs)))
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return (whole or found)[-1]
    if not out or out[0].ndim < 2 or out[0].shape[0] not in rows:
        raise ConfigError(
            "The pruner needs a network with a convolution or linear layer as a module, or with an output of shape (N, D, *)."
        )
    return Features(None, out[0].shape[1])


def some_images(args: Any, kwargs: Any, fraction: float) -> tuple[Any, Any]:
    """The arguments of a model's forward with this fraction of the batch's images, evenly spaced, but at least two."""
    given = (tuple(args), dict(kwargs))
    rows = _images(given)
    count = max(2, math.ceil(rows * fraction))
    if count >= rows:
        return args, kwargs
    some: tuple[Any, Any] = part(given, torch.arange(count) * rows // count, rows)
    return some


def _images(given: tuple[Any, Any]) -> int:
    """The number of images in a model's arguments: the first axis of the first tensor, or the length of a list of arguments, as
    detectors take them with the targets of each image. 0 if unknown: a list of tensors may hold images or batches."""
    args, kwargs = given
    listed = [x for x in (*args, *kwargs.values()) if isinstance(x, list) and x]
    if told := [x for x in listed if not isinstance(x[0], Tensor)]:
        return examples(told[-1])
    found = [x for x in tensors([x for x in (*args, *kwargs.values()) if not isinstance(x, list)]) if x.ndim]
    return len(found[0]) if found else 0
