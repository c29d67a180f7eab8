"""What layers read at sampled positions of their outputs, kept as the moments that least squares needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.devices import exact
from secateurs.graph import ChannelGroup
from secateurs.graph.channels import Slot, named_tensors
from secateurs.methods.damage.removal import System
from secateurs.recovery.reconstruct.equations import Moments
from secateurs.recovery.reconstruct.layers import Geometry
from secateurs.recovery.reconstruct.walk import Sampler
from secateurs.recovery.reconstruct.watch import Key, Layer, Watch

WIDE = 8192  # inputs from which a layer's own weights are too many to solve for
PROJECTED = 64  # outputs that those of such a layer are projected to


class Reads(Watch):
    """Collects the inputs of the layers that read the channels of groups. `slot.param in reads`: whether such a layer ran."""

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], sampler: Sampler) -> None:
        super().__init__(model, {name: name for name in named_tensors(model)})
        self.chunk = 0  # of the examples
        self._sampler = sampler
        self._slots: dict[str, list[Slot]] = {}  # by weight
        for slot in (s for g in groups for s in g.slots if s.consumes):
            self._slots.setdefault(slot.param, []).append(slot)
        # By weight; contributions are those of a slot each.
        self._inputs: dict[str, _Inputs | list[_Contributions]] = {}

    def __contains__(self, weight: str) -> bool:
        return weight in self._inputs

    def op(self, key: Key, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        layer = self.layer(func, args)
        if layer is not None and layer.name in self._slots and len(layer.x):
            size = layer.x.shape[2:] if layer.geometry.linear else out.shape[2:]
            at = self._sampler.at(layer.name, self.chunk, len(layer.x), size, layer.x.device)
            if layer.name not in self._inputs:
                self._inputs[layer.name] = self._opened(layer)
            inputs, x = self._inputs[layer.name], layer.geometry.read(layer.x, at, size)
            for each in inputs if isinstance(inputs, list) else (inputs,):
                each.add(x)
        return out

    def _opened(self, layer: Layer) -> _Inputs | list[_Contributions]:
        weight = layer.geometry.matrix(layer.weight.detach()).to(exact(layer.weight.device)).double().mT
        if weight.shape[1] <= WIDE:
            return _Inputs(weight, layer.geometry)
        return [_Contributions(weight, layer.geometry, slot) for slot in self._slots[layer.name]]

    def system(self, slot: Slot, ridge: float) -> System:
        """The layer's problem, with the channels of one of the slots to remove."""
        inputs = self._inputs[slot.param]
        if isinstance(inputs, list):
            at = next(i for i, own in enumerate(self._slots[slot.param]) if own is slot)
            return inputs[at].system(ridge)
        return inputs.system(slot, ridge)


class _Inputs:
    """The moments of a layer's inputs. weight: (G, n, O / G), float64."""

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self.weight, self.geometry = weight, geometry
        g, n, _ = weight.shape
        self.moments = Moments(g, n + 1, 0, 1, weight.device)  # the last input is the constant 1

    def add(self, x: Tensor) -> None:
        """x: (G, samples, n)"""
        x = x.to(self.weight.device)
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        self.moments.add(x, x[:, :, :0])

    def system(self, slot: Slot, ridge: float) -> System:
        xx, count = self.moments.xx, max(1, self.moments.count)
        means = xx[:, :-1, -1:] / count  # (G, n, 1)
        at = columns(slot, self.geometry, self.weight)
        return System.of(xx[:, :-1, :-1] / count - means * means.mT, self.weight, at, ridge)


class _Contributions:
    """The moments of what each channel contributes to a layer's outputs, and what all others do: as if channels could only be
    scaled. For layers with too many inputs; outputs are projected at random, which keeps their products on average."""

    def __init__(self, weight: Tensor, geometry: Geometry, slot: Slot) -> None:
        g, n, o = weight.shape
        if o > PROJECTED:
            generator = torch.Generator().manual_seed(0)
            random = torch.randn(o, PROJECTED, generator=generator, dtype=torch.float64) / PROJECTED**0.5
            weight = weight @ random.to(weight.device)
        at = columns(slot, geometry, weight)  # (G, size, b)
        self.channel = torch.full(
            (g, n), at.shape[1], device=weight.device
        )  # of each input; the last is that of no channel
        for channel in range(at.shape[1]):
            self.channel.scatter_(1, at[:, channel], channel)
        self.weight, self.size, self.count = weight, at.shape[1], 0
        self.products = weight.new_zeros(self.size + 1, self.size + 1)
        self.sums = weight.new_zeros(self.size + 1, weight.shape[0] * weight.shape[2])

    def add(self, x: Tensor) -> None:
        """x: (G, samples, n)"""
        x = x.to(self.weight.device).double()
        parts = [
            torch.stack([x[i][:, of == channel] @ self.weight[i][of == channel] for channel in range(self.size + 1)])
            for i, of in enumerate(self.channel)
        ]  # G of (size + 1, samples, outputs)
        z = torch.cat(parts, 2)
        self.products.addmm_(z.flatten(1), z.flatten(1).mT)
        self.sums += z.sum(1)
        self.count += x.shape[1]

    def system(self, ridge: float) -> System:
        count = max(1, self.count)
        covariance = self.products / count - (self.sums / count) @ (self.sums / count).mT
        ones = covariance.new_ones(1, self.size + 1, 1)
        return System.of(covariance[None], ones, torch.arange(self.size, device=ones.device)[None, :, None], ridge)


def columns(slot: Slot, geometry: Geometry, weight: Tensor) -> Tensor:
    """The inputs of each group of the layer that a channel is: (G, size, b). weight: (G, n, O / G)."""
    g, n, _ = weight.shape
    k = geometry.positions
    at = torch.from_numpy(slot.index)  # (size, m)
    if geometry.transposed:  # the slot counts all of the layer's inputs, those of the first group first
        per = n // k
        at = torch.stack([row[row // per == i] % per for i in range(g) for row in at]).view(g, len(at), -1)
    else:
        at = at.expand(g, *at.shape)
    return (at[..., None] * k + torch.arange(k)).flatten(2).to(weight.device)
