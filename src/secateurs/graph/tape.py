"""What a trace leaves behind, beside the label space."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from secateurs.graph import numbers

Array = np.ndarray
Labels = dict[int, Array]  # axis → one label per index; axes of size 1 and axes without channels are left out


@dataclass
class Axis:
    """One axis of a parameter or buffer, and the labels it was given."""

    param: str
    axis: int
    labels: Array


@dataclass
class Site:
    """A place where the code may hold a constant that only fits the uncut network."""

    where: str
    key: tuple[str, str, int]  # code line, reason, and how often the two had come together before
    labels: list[Array]
    reason: str
    options: int = 0  # how many readings there are
    out: dict[tuple[int, int], Array] = field(default_factory=dict)  # (output, axis) → the labels that left it


@dataclass
class Tape:
    """What a trace leaves behind, beside the label space."""

    axes: list[Axis] = field(default_factory=list)
    costs: list[tuple[int, tuple[Array, ...]]] = field(default_factory=list)  # coefficient, labeled factors
    kernels: dict[int, str] = field(default_factory=dict)  # which of the costs are a convolution's, and its weight
    sites: list[Site] = field(default_factory=list)
    couplings: list[tuple[Array, str]] = field(default_factory=list)  # labels that were coupled, and what did it
    numbers: list[numbers.Number] = field(default_factory=list)
    random: list[str] = field(default_factory=list)  # lines that draw random numbers
