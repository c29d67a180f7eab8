"""Run a cut network against the record of the original. It must do what the original did, minus the channels that were cut."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.graph.claims import DEPENDS, NUMBER, RUNS
from secateurs.graph.frames import caller
from secateurs.graph.grouping import Grouping
from secateurs.graph.labels import CONSUMED, KnownLabels, Mismatch
from secateurs.graph.reasons import Kind, Reason
from secateurs.graph.runs import Runs
from secateurs.graph.tape import Array, Called, Labels, Seen, Tape
from secateurs.graph.widths import Traced, plain

FEW = 8  # groups to blame together


@dataclass(frozen=True)
class Failure:
    """Why a cut network is wrong, and the groups that are to blame; empty if they are not known."""

    groups: frozenset[int]
    reason: Reason


class Divergence(Exception):
    """The cut network does something different from the original."""

    def __init__(self, reason: str, where: str, labels: list[Array]) -> None:
        super().__init__(reason)
        self.reason, self.where, self.labels = reason, where, labels


class Trial:
    """One cut of a network, with these widths by group. The channels that stay are drawn at random."""

    def __init__(self, runs: Runs, grouping: Grouping, widths: Mapping[int, int], draw: np.random.Generator) -> None:
        self.runs, self.grouping, self.cut = runs, grouping, frozenset(widths)
        root = grouping.classes.root
        self.dead = np.zeros(len(root), dtype=bool)  # by label
        self._alone = np.zeros_like(self.dead)
        # The channel of each label. What no layer produces (positions, heads of a table) is not a channel: which of its axes a
        # view keeps apart depends on how it is coupled, and so may differ between two runs.
        self._channels = np.where(grouping.of_label >= 0, root, 0)
        for g, width in widths.items():
            gone = draw.permutation(int(grouping.sizes[g]))[width:]
            at = grouping.group == g
            self.dead[root[grouping.labels[at][np.isin(grouping.channel[at], gone)]]] = True
            self._alone[root[grouping.labels[at]]] = width == 1
        self.dead, self._alone = self.dead[root], self._alone[root]
        self._known: dict[int, Array] = {}
        self._tape = Tape()
        self._expected: list[Called] = []
        self._at = 0

    def failure(self) -> Failure | None:
        """Run the cut network, and return what is wrong with it, if anything."""
        failure = self._run(self.grouping.tape.calls)
        if failure is None or self.runs.meta:
            return failure
        # What depends on values is compared with the masked network, whose values are the same.
        whole = {(a.param, a.axis): self._channels[a.labels] for a in self.grouping.tape.axes}
        twin = Tape()
        self.runs.run(KnownLabels(), self._masked(), {a: own for a, own in whole.items() if own.any()}, tape=twin)
        return self._run(twin.calls)

    def _run(self, expected: list[Called]) -> Failure | None:
        grouping, tape = self.grouping, self.grouping.tape
        self._tape, self._expected, self._at = Tape(), expected, 0
        known: dict[tuple[str, int], Array] = {}
        kept: dict[str, dict[int, Array]] = {}
        for axis in tape.axes:
            alive = ~self.dead[axis.labels]
            left = self._channels[axis.labels[alive]]
            if left.any():
                known[axis.param, axis.axis] = left
            if not alive.all():
                kept.setdefault(axis.param, {})[axis.axis] = np.flatnonzero(alive)
        cut = {n: self._sliced(self.runs.named[n], axes) for n, axes in kept.items()}
        rewrites = grouping.owners.rewrites(lambda labels: len(labels) - int(np.count_nonzero(self.dead[labels])))
        try:
            self.runs.run(KnownLabels(self._alone), cut, known, rewrites, tape=self._tape, follow=self._follow)
            if self._at < len(self._expected) and not self._tape.dynamic:
                raise Divergence(DEPENDS, "", [])
        # A Divergence, a Mismatch, or whatever the user's code raises on shapes that it was not written for.
        except Exception as error:
            return self._blamed(error)
        return None

    # -- the run against the record ------------------------------------------------------------------------------------

    def _follow(self, called: Called, operands: list[Array]) -> None:
        if self._tape.dynamic:  # sizes depend on values, and these on the rounding
            return
        expected = self._expected[self._at] if self._at < len(self._expected) else None
        self._at += 1
        if expected is None or expected.name != called.name or len(expected.outputs) != len(called.outputs):
            raise Divergence(DEPENDS, caller(), operands)
        if expected.given != called.given:
            raise Divergence(DEPENDS, caller(), operands)
        if not same(expected.constants, called.constants, 0.0 if self.runs.meta else 1e-4):
            raise Divergence(NUMBER, caller(), operands)
        for (shape, labels), (found, own) in zip(expected.outputs, called.outputs, strict=True):
            wrong = self._wrong(shape, labels, found, own)
            if wrong is not None:
                raise Divergence(RUNS, caller(), [*wrong, *([] if wrong else operands)])

    def _wrong(self, shape: tuple[int, ...], labels: Labels, found: tuple[int, ...], own: Labels) -> list[Array] | None:
        """Return the labels of what is not as expected; None if all is."""
        if len(shape) != len(found):
            return []
        for axis, (n, m) in enumerate(zip(shape, found, strict=True)):
            if axis not in labels:
                if n != m:
                    return []
                continue
            due = self._left(labels[axis])
            if len(due) != m:
                return [labels[axis]]
            channels = own.get(axis)  # None if the op could not follow a single channel; 0: the same
            if channels is not None and ((channels != due) & (channels != 0) & (due != 0)).any():
                return [labels[axis]]
        return None

    def _left(self, labels: Array) -> Array:
        """Return the channels that are left of an axis."""
        found = self._known.get(id(labels))
        if found is None:
            found = self._known[id(labels)] = self._channels[labels[~self.dead[labels]]]
        return found

    # -- whom to blame -------------------------------------------------------------------------------------------------

    def _blamed(self, error: Exception) -> Failure:
        """Blame the conditions with another outcome; else what the call that failed works on; else the width that was read
        last."""
        tape, before = self._tape, self.grouping.tape
        asked = [old for old, new in _matched(before.conditions, tape.conditions) if old.outcome != new.outcome]
        told = [(self.grouping.groups_of(old.expression) & self.cut, old.where) for old in asked]
        if told and told[0][0]:  # `Check` acquits those that are innocent
            return Failure(frozenset().union(*(groups for groups, _ in told)), Reason(Kind.CODE, DEPENDS, told[0][1]))
        labels, where, reason = [], "", RUNS
        if isinstance(error, Divergence):
            labels, where, reason = error.labels, error.where, error.reason
        elif tape.failed is not None:
            labels, where = tape.failed
            if isinstance(error, Mismatch):
                labels = [error.labels]
        groups = self._groups(labels)
        if not groups and where and self._at < len(self._expected):  # what this call returned before
            groups = self._groups([own for _, outputs in self._expected[self._at].outputs for own in outputs.values()])
        if reason == DEPENDS and len(read := self._read()) <= FEW:  # `Check` acquits those that are innocent
            groups |= read
        if groups:
            if reason == NUMBER:  # applied to these channels, and made from those whose width became a plain number
                made = {g for seen in tape.escapes for g in self._counted(seen.expression)} & self.cut | self._read()
                groups = frozenset((groups & made) or made or groups)
            return Failure(frozenset(groups), Reason(Kind.CODE, reason, where))
        for seen in (
            reversed([*tape.hidden, *tape.reads, *tape.escapes]) if not where else ()
        ):  # the user's code raised it
            if groups := self._counted(seen.expression) & self.cut:
                return Failure(groups, Reason(Kind.CODE, DEPENDS, seen.where))
        return Failure(frozenset(), Reason(Kind.CODE, reason, where))

    def _read(self) -> frozenset[int]:
        """Return the groups whose width is held by the attribute that was read last. If modules keep the width themselves, it
        is a plain number now, and it may be any of those that the original read."""
        seen = self._tape.hidden[-1:] or self.grouping.tape.hidden
        return frozenset().union(*(self._counted(s.expression) for s in seen)) & self.cut

    def _counted(self, expression: Any) -> frozenset[int]:
        """Return the groups whose widths an expression of this run is made from. Its labels are those of the original."""
        return self.grouping.groups_of(expression)

    def _groups(self, labels: Iterable[Array]) -> frozenset[int]:
        return frozenset().union(*(self.grouping.groups_at(own) for own in labels)) & self.cut

    # -- the tensors ---------------------------------------------------------------------------------------------------

    def _sliced(self, x: Tensor, axes: Mapping[int, Array]) -> Tensor:
        if self.runs.meta:
            return torch.empty(
                [len(axes.get(a, range(n))) for a, n in enumerate(x.shape)], dtype=x.dtype, device="meta"
            )
        for a, index in axes.items():
            x = x.index_select(a, torch.from_numpy(index).to(x.device))
        return x

    def _masked(self) -> dict[str, Tensor]:
        """Return the parameters that consume dead channels, with zeros there."""
        masked: dict[str, Tensor] = {}
        flags = self.grouping.classes.flags
        for axis in self.grouping.tape.axes:
            gone = self.dead[axis.labels] & (flags[axis.labels] & CONSUMED > 0)
            if gone.any():
                w = masked.setdefault(axis.param, self.runs.named[axis.param].detach().clone())
                w.index_fill_(axis.axis, torch.from_numpy(np.flatnonzero(gone)).to(w.device), 0)
        return masked


def _matched(before: Iterable[Seen], after: Iterable[Seen]) -> Iterator[tuple[Seen, Seen]]:
    """Match the conditions of a cut run with those of the original: the first, second … of a line of code. Some may be missing,
    because the size that they depend on is known now."""
    lines: dict[str, deque[Seen]] = {}
    for old in before:
        lines.setdefault(old.where, deque()).append(old)
    for new in after:
        if olds := lines.get(new.where):
            yield olds.popleft(), new


def same(before: tuple[Any, ...], after: tuple[Any, ...], tolerance: float) -> bool:
    """Whether two calls were made with the same numbers and strings. Numbers that are computed from widths in both are judged
    without a run."""
    return len(before) == len(after) and all(
        (isinstance(a, Traced) and isinstance(b, Traced)) or _alike(plain(a), plain(b), tolerance)
        for a, b in zip(before, after, strict=True)
    )


def _alike(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    return math.isclose(a, b, rel_tol=tolerance) or (a != a and b != b)
