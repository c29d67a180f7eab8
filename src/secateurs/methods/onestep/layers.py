"""Layers as the paper scores them, and the module where each layer's feature map can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from secateurs.errors import ConfigError, nearest
from secateurs.graph import ChannelGraph, ChannelGroup
from secateurs.recovery.features import FeatureMap, feature_maps


@dataclass(frozen=True)
class Layer:
    """The output channels of a convolution, and all other convolutions that produce the same channels: those whose
    outputs are added count once."""

    convs: tuple[str, ...]  # in the order in which they run
    groups: tuple[str, ...]  # the groups that form its channels; several on a padded shortcut, or in a concatenation
    node: str  # the module whose output is these channels' feature map, after the non-linearity if there is one
    junction: bool  # the channels are on a shortcut: the node is where it is added

    @property
    def name(self) -> str:
        return self.convs[-1]

    def score(self, beta: Mapping[str, np.ndarray]) -> float:
        """Mean |β| over its channels (eq. 4; the text says mean; a sum would favor wide layers)."""
        return float(np.concatenate([beta[g] for g in self.groups]).mean())


@dataclass(frozen=True)
class Layers:
    """All layers in execution order, the last layer, and the groups after it."""

    all: tuple[Layer, ...]
    final: Layer
    classifier: tuple[str, ...]  # groups that only layers after the last convolution produce

    def named(self, names: Sequence[str]) -> list[Layer]:
        """The layers that these convolutions belong to. Raises ConfigError for an unknown name."""
        known = {conv: layer for layer in (*self.all, self.final) for conv in layer.convs}
        for name in names:
            if name not in known:
                raise ConfigError(f"crucial: {name!r} is not a convolution that can be scored. {nearest(name, known)}")
        return list(dict.fromkeys(known[name] for name in names))

    def usual(self) -> int:
        """The default number of crucial layers: a quarter of all, but 2 to 4, and at most the junctions if these are 2 or more.
        The paper uses 3 of VGG-16's 13 layers, and ResNet-50's 4 junctions."""
        junctions = len({self.final, *(x for x in self.all if x.junction)})
        quarter = max(2, min(4, round(len(self.all) / 4)))
        return min(quarter, junctions) if junctions > 1 else quarter

    def crucial(self, beta: Mapping[str, np.ndarray], count: int | Sequence[str] | None) -> list[Layer]:
        """The layers to keep whole, most important first: the last one whatever its score (else the classifier's input
        would not be restored), then junctions before others, by score."""
        if isinstance(count, Sequence):
            chosen = self.named(count)
        else:
            chosen = [x for x in self.all if not set(x.convs) <= set(self.final.convs)]
        rest = sorted((x for x in chosen if x != self.final), key=lambda x: (not x.junction, -x.score(beta)))
        if not isinstance(count, Sequence):
            rest = rest[: (count or self.usual()) - 1]
        return [self.final, *rest]


def scored(graph: ChannelGraph) -> list[ChannelGroup]:
    """The groups that get an importance vector: all that some layer produces and another consumes, prunable or not."""
    kinds = (_ConvNd, nn.Linear)
    return [
        g
        for g in graph.groups
        if g.consumers and g.producers and all(isinstance(graph.modules.get(n), kinds) for n in g.producers)
        and (g.prunable or any(isinstance(graph.modules.get(n), _ConvNd) for n in g.producers))
    ]  # fmt: skip


def find_layers(model: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup], inputs: Any) -> Layers:
    """The layers of a network. Raises ConfigError if it has no convolution whose channels other layers consume."""
    maps = feature_maps(model, inputs)
    at = {name: i for i, m in enumerate(maps) for name in m.names}
    makes: dict[str, list[str]] = {}  # convolution → groups that it produces
    for group in groups:
        for name in group.producers:
            if name in at and isinstance(graph.modules[name], _ConvNd):
                makes.setdefault(name, []).append(group.name)
    open_groups = {g.name: g for g in groups}
    # A convolution some of whose channels have no vector (for example, they reach the output) is not a candidate.
    whole = {g.name for g in graph.groups} - open_groups.keys()
    partly = {n for g in graph.groups if g.name in whole for n in g.producers}
    runs = sorted((n for n in makes if n not in partly), key=at.__getitem__)
    stops = sorted(i for n, i in at.items() if isinstance(graph.modules.get(n), (_ConvNd, nn.Linear)))
    sets: dict[tuple[str, ...], list[str]] = {}
    for name in runs:
        sets.setdefault(tuple(sorted(makes[name])), []).append(name)
    layers = []
    for names, convs in sets.items():
        channels = maps[at[convs[-1]]].shape[1]
        window = _until_next(maps, at[convs[-1]], stops)
        most = max(maps[at[c]].area for c in convs)
        best = _best([m for m in window if m.shape[1] == channels and m.area <= most])
        layers.append(
            (Layer(tuple(convs), names, best.name, any(not open_groups[g].internal for g in names)), best.area)
        )
    broad = [layer for layer, area in layers if area > 1] or [layer for layer, _ in layers]
    if not broad:
        raise ConfigError("onestep needs convolutions: this network has none whose channels can be scored.")
    broad.sort(key=lambda layer: at[layer.name])
    final = _final(broad[-1], graph, groups, maps, at, stops, sets)
    after = [g.name for g in groups if all(at.get(n, -1) > at[final.name] for n in g.producers)]
    return Layers(tuple(broad), final, tuple(after))


def _until_next(maps: Sequence[FeatureMap], start: int, stops: Sequence[int]) -> list[FeatureMap]:
    """The feature maps from a convolution's output to the next layer's input."""
    end = next((i for i in stops if i > start), len(maps))
    return [m for m in maps[start:end] if len(m.shape) > 2] or [maps[start]]


def _best(maps: Sequence[FeatureMap]) -> FeatureMap:
    """The last map that is after the non-linearity and not yet pooled: after the addition, if there is one."""
    return max(enumerate(maps), key=lambda item: (item[1].area, item[1].activated, item[0]))[1]


def _final(
    last: Layer, graph: ChannelGraph, groups: Sequence[ChannelGroup], maps: Sequence[FeatureMap], at: Mapping[str, int],
    stops: Sequence[int], sets: Mapping[tuple[str, ...], list[str]],
) -> Layer:  # fmt: skip
    """The last layer, with everything concatenated to it: the classifier's input."""
    readers: dict[tuple[str, int], dict[str, int]] = {}  # parameter and axis → indices that it consumes, by group
    order: dict[tuple[str, int], int] = {}
    for group in groups:
        for slot in group.slots:
            if slot.consumes and slot.module in at:
                key = slot.param, slot.axis
                readers.setdefault(key, {})[group.name] = slot.index.size
                order[key] = at[slot.module]
    reading = [key for key, read in readers.items() if set(read) & set(last.groups)]
    if not reading:
        return last
    read = readers[max(reading, key=order.__getitem__)]
    together = tuple(sorted({*read, *last.groups}))
    if together == last.groups:
        return last
    window = _until_next(maps, at[last.name], stops)
    inputs = sum(read.values())
    most = max(maps[at[c]].area for c in last.convs)
    fitting = [m for m in window if inputs % m.shape[1] == 0 and m.area <= most]
    widest = max((m.shape[1] for m in fitting), default=0)
    if widest <= maps[at[last.name]].shape[1]:
        return last  # concatenated outside any module
    node = _best([m for m in fitting if m.shape[1] == widest])
    convs = [c for names, found in sets.items() if set(names) <= set(together) for c in found]
    convs = sorted({*convs, *last.convs}, key=at.__getitem__)
    return Layer(tuple(convs), together, node.name, last.junction)
