"""The record of a trace, in addition to the label space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateurs.graph.figures import Figure
from secateurs.graph.recorder import Recorder
from secateurs.graph.widths import Expression

Array = np.ndarray
Labels = dict[int, Array]  # axis → one label per index; axes of size 1 and axes without channels are left out


@dataclass
class Axis:
    """One axis of a parameter or buffer, and its labels."""

    param: str
    axis: int
    labels: Array


@dataclass(frozen=True, eq=False)
class Claim:
    """A size in the user's code must equal the number of these labels, at any widths. If the size is None, its origin is not
    known, and only a trial can show whether it does."""

    size: Expression | int | None
    counts: Array | int  # labels; or a number that no cut changes
    reason: str
    where: str
    least: bool = False  # the size may also be greater: the end of a slice


@dataclass(frozen=True, eq=False)
class Place:
    """A call that can be interpreted in several ways.

    key: op, path of the module that makes the call, and how often this module made it before.
    """

    key: tuple[str, str, int]
    labels: Array
    options: int


@dataclass(frozen=True, eq=False)
class Seen:
    """Something that the code did with the width of channels, and where."""

    expression: Expression
    where: str
    outcome: bool | None = None  # of a condition


@dataclass(frozen=True, eq=False)
class Called:
    """A call in the user's code: its plain numbers and strings, the parameters and buffers that it is given, and the shapes and
    labels of the tensors that it returned."""

    name: str
    constants: tuple[Any, ...]
    given: tuple[str, ...]
    outputs: tuple[tuple[tuple[int, ...], Labels], ...]


@dataclass
class Tape:
    """The record of a trace, in addition to the label space."""

    axes: list[Axis] = field(default_factory=list)
    costs: list[tuple[int, tuple[Array, ...]]] = field(default_factory=list)  # coefficient, labeled factors
    kernels: dict[int, str] = field(default_factory=dict)  # index of a convolution's cost → its weight
    vanishing: dict[int, Array] = field(default_factory=dict)  # index of a cost → the factor that makes it 0 if it is 1
    # module → tensor → its axes, as the module computed with it: lengths, or labels
    weights: dict[str, dict[str, tuple[int | Array, ...]]] = field(default_factory=dict)
    # module → the labels of its inputs and of its outputs
    through: dict[str, tuple[list[Array], list[Array]]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)  # numbers that modules keep
    couplings: list[tuple[Array, str]] = field(default_factory=list)  # coupled labels, and the op that coupled them
    claims: list[Claim] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    reads: list[Seen] = field(default_factory=list)  # the code asked for a width
    escapes: list[Seen] = field(default_factory=list)  # … and uses it as a plain number
    uses: list[Seen] = field(default_factory=list)  # … and computes with it
    conditions: list[Seen] = field(default_factory=list)  # … and asks for a condition on it
    hidden: list[Seen] = field(default_factory=list)  # the code read an attribute that holds a width
    calls: list[Called] = field(default_factory=list)
    looked: bool = False  # the code read a value of a tensor
    dynamic: bool = False  # the shape of a tensor depends on values
    failed: tuple[list[Array], str] | None = None  # the call that raised last: the labels it works on, and its line
    random: list[str] = field(default_factory=list)  # lines that draw random numbers
    recorder: Recorder | None = None  # of the flow of the run in eval mode

    def savepoint(self) -> tuple[Any, ...]:
        """Return a savepoint for `rollback`, in case what follows turns out to be unusable."""
        return tuple(len(events) for events in self._events())

    def rollback(self, point: tuple[Any, ...]) -> None:
        for events, length in zip(self._events(), point, strict=True):
            del events[length:]

    def _events(self) -> tuple[list[Any], ...]:
        return (self.axes, self.couplings, self.claims, self.places, self.reads, self.escapes, self.uses,
                self.conditions, self.hidden)  # fmt: skip
