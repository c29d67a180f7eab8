"""Labels: one integer for each index of each parameter axis; labels that the computation combines are unified.

Label 0 means "no channel": a constant, padding, the model's input. Labels combined with it are frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateurs.graph.reasons import Reason

Array = np.ndarray

LABEL = np.int32  # half the memory of the default, and no network has two billion channels

PRODUCED, CONSUMED, SHORTCUT = 1, 2, 4


class Mismatch(Exception):
    """Two different channels were combined while a cut network was checked."""

    def __init__(self, message: str, labels: Array) -> None:
        super().__init__(message)
        self.labels = labels


@dataclass
class Classes:
    """The solved label space; every array has one entry per label."""

    root: Array  # the smallest label of its class
    flags: Array  # PRODUCED | CONSUMED of the label itself; SHORTCUT of its class
    frozen: Array  # index into `reasons`, or -1; one value per class
    inexact: Array  # likewise
    reasons: list[Reason]


class LabelSpace:
    """Records during a trace which labels are unified, which are frozen and why; `solve` then finds the classes."""

    def __init__(self) -> None:
        self.size = 1  # label 0 is "no channel"
        self._edges: list[tuple[Array, Array]] = []
        self._frozen: list[tuple[Array, int]] = []
        self._inexact: list[tuple[Array, int]] = []
        self._marks: list[tuple[Array, int]] = []
        self._kin: list[tuple[Array, Array]] = []
        self._reasons: dict[Reason, int] = {}

    def fresh(self, n: int) -> Array:
        self.size += n
        return np.arange(self.size - n, self.size, dtype=LABEL)

    def unify(self, a: Array, b: Array, reason: Reason) -> None:
        """Make a[i] and b[i] one channel. If one of the two is not a channel, freeze the other for `reason`."""
        if a is b:
            return
        if not (a.all() and b.all()):
            self.freeze(a[b == 0], reason)
            self.freeze(b[a == 0], reason)
            both = (a != 0) & (b != 0)
            a, b = a[both], b[both]
        self._edges.append((a, b))

    def freeze(self, labels: Array, reason: Reason) -> None:
        if labels.size:
            self._frozen.append((labels, self._reason(reason)))

    def inexact(self, labels: Array, reason: Reason) -> None:
        self._inexact.append((labels, self._reason(reason)))

    def mark(self, labels: Array, flag: int) -> None:
        self._marks.append((labels, flag))

    def produced(self, labels: Array) -> bool:
        """Whether a layer has produced these channels, so far in the trace."""
        return any(flag == PRODUCED and bool(np.isin(labels, own).any()) for own, flag in self._marks)

    def share_marks(self, a: Array, b: Array) -> None:
        """Apply the marks of a[i] to b[i] and those of b[i] to a[i], since the weight is their sum."""
        self._kin.append((a, b))

    def _reason(self, reason: Reason) -> int:
        return self._reasons.setdefault(reason, len(self._reasons))

    @staticmethod
    def last(labels: Array) -> bool:
        """Whether a single label is all that a cut left of an axis of channels."""
        return False

    def solve(self) -> Classes:
        root = components(self.size, self._edges)
        own = np.zeros(self.size, dtype=np.uint8)
        shared = np.zeros(self.size, dtype=np.uint8)
        for labels, flag in self._marks:
            if flag == SHORTCUT:
                shared[root[labels]] = SHORTCUT
            else:
                own[labels] |= flag
        if self._kin:
            family = components(self.size, self._kin)
            np.bitwise_or.at(own, family, own.copy())
            own = own[family]
        return Classes(
            root=root,
            flags=own | shared[root],
            frozen=self._first_reason(root, self._frozen),
            inexact=self._first_reason(root, self._inexact),
            reasons=list(self._reasons),
        )

    def _first_reason(self, root: Array, events: list[tuple[Array, int]]) -> Array:
        first = np.full(self.size, -1, dtype=np.int16)
        for labels, reason in reversed(events):
            first[root[labels]] = reason
        first[0] = -1
        return first[root] if events else first


class KnownLabels:
    """The interface of `LabelSpace` for a network whose channels are already known: `unify` only checks.

    Tracing a cut network with the labels of the original network verifies that it computes the same
    function minus the channels cut: every sum adds equal channels, every weight reads the channel it was trained on.
    """

    def __init__(self, alone: Array | None = None) -> None:
        self._alone = alone  # by label: whether it is all that is left of its group

    def last(self, labels: Array) -> bool:
        return self._alone is not None and bool(self._alone[labels[0]])

    def unify(self, a: Array, b: Array, reason: Reason) -> None:
        if a is not b and not np.array_equal(a, b):
            differ = (a != b) & (a != 0) & (b != 0)
            if differ.any():
                raise Mismatch(str(reason), np.concatenate([np.broadcast_to(x, differ.shape)[differ] for x in (a, b)]))

    def freeze(self, labels: Array, reason: Reason) -> None: ...

    def inexact(self, labels: Array, reason: Reason) -> None: ...

    def mark(self, labels: Array, flag: int) -> None: ...

    def produced(self, labels: Array) -> bool:
        return bool(labels.any())  # what no layer produces has no labels here

    def share_marks(self, a: Array, b: Array) -> None: ...


def components(n: int, edges: list[tuple[Array, Array]]) -> Array:
    """Return the connected components of n nodes, as the smallest node of each, (n,). The method is min-label hooking and
    pointer jumping, vectorized over all edges, in O(log n) rounds."""
    parent = np.arange(n, dtype=LABEL)
    if not edges:
        return parent
    a = np.concatenate([e[0] for e in edges])
    b = np.concatenate([e[1] for e in edges])
    while True:
        a, b = parent[a], parent[b]
        apart = a != b
        if not apart.any():
            return parent
        a, b = a[apart], b[apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while True:
            up = parent[parent]
            if np.array_equal(up, parent):
                break
            parent = up
