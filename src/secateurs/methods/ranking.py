"""How scores of different groups are compared: the rankings of every criterion, and what a channel's cost does to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from secateurs.graph import ChannelGroup

Array = np.ndarray
Ranking = Literal["global", "layer", "isomorphic"]
Structure = frozenset[tuple[Any, int]]


def ranked(
    ranking: Ranking,
    groups: Sequence[ChannelGroup],
    scores: Sequence[Array],
    model: nn.Module,
    comparable: bool = False,
) -> list[Array]:
    """The scores of each group, (size,), on one scale for all groups. Within a group their order does not change.

    comparable: scores are on one scale already; otherwise those of a group are divided by the mean of their magnitudes.
    """
    if ranking == "layer":
        return [_ranks(s) for s in scores]
    scaled = [s if comparable else _relative(s) for s in scores]
    if ranking == "global":
        return scaled
    alike: dict[Structure, list[int]] = {}
    for i, group in enumerate(groups):
        alike.setdefault(structure(group, model), []).append(i)
    found = dict[int, Array]()
    for members in alike.values():
        ends = np.cumsum([groups[i].size for i in members])[:-1]
        found.update(zip(members, np.split(_ranks(np.concatenate([scaled[i] for i in members])), ends), strict=True))
    return [found[i] for i in range(len(groups))]


def structure(group: ChannelGroup, model: nn.Module) -> Structure:
    """The kinds of the layers that a group's channels pass through, what each does with them, and how many there are of each:
    equal for groups that are isomorphic (Fang et al., ECCV 2024). Names, widths and kernel sizes do not count.

    Depthwise convolutions, which pass every channel on by itself, are a kind of their own.
    """
    roles = {slot.module: "follows" for slot in group.slots if not (slot.produces or slot.consumes)}
    roles |= {slot.module: "reads" for slot in group.slots if slot.consumes}
    roles |= {slot.module: "makes" for slot in group.slots if slot.produces}
    direct = {slot.param for slot in group.slots}  # of a parameter that the model holds itself
    kinds = {name: model if name in direct else model.get_submodule(name) for name in roles}
    return frozenset(Counter((type(kinds[n]), _depthwise(kinds[n]), role) for n, role in roles.items()).items())


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1


def per_cost(scores: Array, price: float, exponent: float) -> Array:
    """Scores divided by a power of what a channel costs, so that of two channels with equal scores the costly one is cut first;
    negative scores are multiplied by it. price: see `Widths.prices`."""
    factor = price**exponent
    return np.where(scores < 0, scores * factor, scores / factor)


def _relative(scores: Array) -> Array:
    mean = np.abs(scores).mean()
    return scores if mean == 0 else scores / mean


def _ranks(scores: Array) -> Array:
    """1/n, 2/n … 1, the lowest score first."""
    order = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    return (order + 1) / len(scores)
