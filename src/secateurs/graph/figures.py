"""Figures: numbers that modules keep in addition to their tensors and that repeat a width, such as `self.channels = 64`.

Nothing states which channels such a number counts. If the forward reads it, a call that has it as a size shows them:
`x.view(n, self.channels, -1)`, `x.split((self.c, self.c), 1)`, `x[:, : self.out_chs]`. If only other code reads it (code that
fuses a block's branches, for example), it counts what has this width in the module: its inputs for `in_chs`, its outputs for
`out_chs`, the groups of its convolutions for `groups`. It is rewritten if all of these change to the same width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from secateurs.graph import attributes
from secateurs.graph.labels import LabelSpace
from secateurs.graph.packages import names_in
from secateurs.graph.reasons import Kind, Reason

Array = np.ndarray
INTO = frozenset({"in", "inp", "inplanes", "input", "cin"})
OUT = frozenset({"out", "oup", "outplanes", "output", "cout"})
GROUPS = frozenset({"group", "groups"})
_WIDTHS = frozenset({
    "c", "ch", "chan", "channel", "channels", "chans", "chs", "cin", "cout", "dim", "dims", "feat", "feats", "feature",
    "features", "filters", "hidden", "inp", "inplanes", "nc", "nf", "oup", "outplanes", "planes", "shape", "split", "splits",
    "unflattened", "width", "widths",
})  # fmt: skip
_CHANNELS = frozenset({"ch", "chan", "chans", "channel", "channels", "chs", "features", "filters", "planes"})
_OTHER = frozenset({"base", "factor", "kernel", "mult", "multiplier", "per", "ratio", "scale", "stride"})
MOST = 8  # length of a sequence of widths


def named_like_a_width(attribute: str) -> bool:
    """Whether an attribute's name says that it holds a number of channels, or of groups."""
    found = words(attribute)
    plain = attribute.isidentifier() and not attribute.startswith("__")
    return plain and bool(found & (_WIDTHS | GROUPS)) and not found & _OTHER


def certain(attribute: str) -> bool:
    """Whether the name is that of a number of channels or groups, however small: `in_channels`, but not `dim`."""
    return bool(words(attribute) & (_CHANNELS | INTO | OUT | GROUPS))


@cache
def words(attribute: str) -> frozenset[str]:
    """Return the words of an attribute's name: `in` and `chs` for `in_chs` and for `inChs1`."""
    return frozenset(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", attribute).lower()))


@dataclass(eq=False)
class Figure:
    """A number that a module keeps: an attribute, or an item of one that is a tuple or a list."""

    module: str
    attribute: str
    size: int
    item: int | None = None
    passed: list[Array] = field(default_factory=list)  # the channels that it counts where it is a size in a call
    computed: bool = False  # the forward uses it for more than sizes

    def couple(self, space: LabelSpace) -> None:
        """Couple the channels that the number counts in several places, such as the values of every head. The k-th channels of
        all are one channel, so that their numbers stay equal."""
        for other in self.passed[1:] if not self.computed else ():
            space.unify(self.passed[0], other, Reason(Kind.CODE, f"{self.attribute} counts constants, too"))


def of(modules: Mapping[str, nn.Module]) -> list[Figure]:
    """Return the figures of these modules that may be widths."""
    found = []
    for path, module in modules.items():
        if not type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.Unflatten):
            for name, value in module.__dict__.items():
                if named_like_a_width(name) and not (name in attributes.NAMES and attributes.leaves(module)):
                    found += [Figure(path, name, size, item) for item, size in _sizes(value)]
    return found


def _sizes(value: Any) -> list[tuple[int | None, int]]:
    """Return the numbers in an attribute, each with its position if the attribute is a sequence."""
    if type(value) is int:
        return [(None, value)] if value > 1 else []
    whole = type(value) in (tuple, list, torch.Size) and 0 < len(value) <= MOST and all(type(n) is int for n in value)
    return [(i, n) for i, n in enumerate(value) if n > 1] if whole else []


def set_in(values: dict[tuple[str, str], Any], figure: Figure, before: Any, size: Any) -> None:
    """Set the size of a figure in `{(module, attribute): value}`. before: the attribute's original value."""
    key = figure.module, figure.attribute
    if figure.item is None:
        values[key] = size
    else:
        sizes = values.get(key, before)
        values[key] = type(before)([*sizes[: figure.item], size, *sizes[figure.item + 1 :]])


def steps(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts that a module's forward consists of: its children, with the elements of a list or a sequence in its
    place."""
    for name, child in module._modules.items():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            yield from steps(inner, child)
        elif child is not None:
            yield inner, child


def read_elsewhere(module: nn.Module, attribute: str) -> bool:
    """Whether a method other than the constructor and the forward reads an attribute, for example one that fuses branches."""
    return attribute in _read(type(module))  # type: ignore[arg-type]


@cache
def _read(kind: type) -> frozenset[str]:
    read: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        for name, value in vars(base).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if isinstance(function, FunctionType) and name not in ("__init__", "forward", "extra_repr", "__repr__"):
                read.update(names_in(function.__code__))
    return frozenset(read)
