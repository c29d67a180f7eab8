"""The pruner network: a network whose classifier is replaced by one head per channel group of the main network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.errors import ConfigError
from secateurs.graph import ChannelGraph
from secateurs.graph.inputs import call, to_model_device
from secateurs.graph.modes import evaluating
from secateurs.graph.reasons import OUTPUT


class Heads(nn.Linear):
    """All heads in one layer: features (N, D, *) → logits (N, channels), one column for each gated channel.

    Weights start small and biases at `open`, so that initially all gates are nearly equal and open: zero logits
    would halve every feature map of a trained network.
    """

    def __init__(self, features: int, channels: int, open: float, generator: torch.Generator) -> None:
        super().__init__(features, channels)
        with torch.no_grad():
            self.weight.copy_(torch.randn(channels, features, generator=generator) * 0.01)
            self.bias.fill_(open)
        self.logits: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.flatten(2).mean(2) if x.ndim > 2 else x
        self.logits = super().forward(pooled)
        # The layers after a convolutional classifier need feature maps as input.
        return self.logits if x.ndim == 2 else self.logits.view(*self.logits.shape, *[1] * (x.ndim - 2))


class PrunerNetwork(nn.Module):
    """`base` with its classifier replaced by heads for this many channels; returns logits (N, channels)."""

    def __init__(
        self, base: nn.Module, graph: ChannelGraph, inputs: Any, channels: int, open: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        name, features = classifier(base, graph, inputs)
        self.net = copy.deepcopy(base)
        self.heads = [Heads(features, channels, open, generator)]  # in a list: registered once, within the network
        parent, _, leaf = name.rpartition(".")
        like = next(base.parameters())
        setattr(self.net.get_submodule(parent), leaf, self.heads[0].to(like.device, like.dtype))

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        self.net(*inputs, **named)
        logits = self.heads[0].logits
        assert logits is not None
        self.heads[0].logits = None
        return logits


def classifier(model: nn.Module, graph: ChannelGraph, inputs: Any) -> tuple[str, int]:
    """Name and input features of the layer that produces the network's output; the last one if there are several
    (auxiliary classifiers, which run in training only, come earlier).

    Raises ConfigError if that is not a linear or convolutional layer.
    """
    names = {name for g in graph.groups if g.reason == OUTPUT for name in g.producers}
    found: list[tuple[str, int]] = []

    def watch(name: str, features: int) -> Any:
        return lambda *_: found.append((name, features))

    handles = []
    for name, module in model.named_modules():
        if name in names and isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            features = module.in_features if isinstance(module, nn.Linear) else module.in_channels
            handles.append(module.register_forward_hook(watch(name, features)))
    try:
        with evaluating(model), torch.no_grad():
            call(model, to_model_device(model, inputs))
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ConfigError(
            "The pruner needs a network that ends in a linear or convolutional classifier, which its heads replace."
        )
    return found[-1]
