"""The record of a trace, in addition to the label space."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from secateurs.graph import numbers
from secateurs.graph.figures import Figure
from secateurs.graph.recorder import Recorder

Array = np.ndarray
Labels = dict[int, Array]  # axis → one label per index; axes of size 1 and axes without channels are left out


@dataclass
class Axis:
    """One axis of a parameter or buffer, and its labels."""

    param: str
    axis: int
    labels: Array


@dataclass
class Site:
    """A site where the code may have a constant that only fits the uncut network."""

    where: str
    key: tuple[str, str, int]  # code line, reason, and how often the two occurred before
    labels: list[Array]
    reason: str
    options: int = 0  # number of interpretations
    out: dict[tuple[int, int], Array] = field(default_factory=dict)  # (output, axis) → the labels of its output


@dataclass
class Tape:
    """The record of a trace, in addition to the label space."""

    axes: list[Axis] = field(default_factory=list)
    costs: list[tuple[int, tuple[Array, ...]]] = field(default_factory=list)  # coefficient, labeled factors
    kernels: dict[int, str] = field(default_factory=dict)  # the costs that are a convolution's, with its weight
    # module → tensor → its axes, as the module computed with it: lengths, or labels
    weights: dict[str, dict[str, tuple[int | Array, ...]]] = field(default_factory=dict)
    # module → the labels of what goes in and of what comes out
    through: dict[str, tuple[list[Array], list[Array]]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)  # numbers that modules keep of their own
    sites: list[Site] = field(default_factory=list)
    couplings: list[tuple[Array, str]] = field(default_factory=list)  # coupled labels, and the op that coupled them
    numbers: list[numbers.Number] = field(default_factory=list)
    random: list[str] = field(default_factory=list)  # lines that draw random numbers
    recorder: Recorder | None = None  # of the run in eval mode: what follows what
