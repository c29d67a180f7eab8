"""Evaluate what the sizes in the user's code say about cuts: claims are checked at other widths, without a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from secateurs.graph.figures import Figure
from secateurs.graph.grouping import Grouping
from secateurs.graph.reasons import Kind, Reason
from secateurs.graph.tape import Claim, Seen
from secateurs.graph.widths import Expression, Leaf

COMPUTED = "a size is computed from the number of other channels"
NUMBER = "the code computes with the number of channels"
DEPENDS = "the code depends on the number of channels"
RUNS = "a network with fewer of these channels does not run or computes different outputs"
ALONE = "the code does not work with a single channel"

Array = np.ndarray
Widths = Mapping[int, int]  # by group; those left out are whole
_ROWS = 12  # random widths to evaluate claims at


def tied(grouping: Grouping) -> Iterator[tuple[Array, Array, Reason]]:
    """Yield pairs of channels that only a size in the code ties together: `z.view(n, y.shape[1], h, w)` gives z as many
    channels as y. If the k-th channels of both are one channel, the sizes stay equal at any widths."""
    escaped = frozenset().union(*(grouping.groups_of(seen.expression) for seen in grouping.tape.escapes))
    for claim in grouping.tape.claims:
        leaf = claim.size.leaf if isinstance(claim.size, Expression) else None
        if leaf is None or isinstance(leaf, Figure) or isinstance(claim.counts, int):
            continue
        labels = grouping.leaf(leaf)
        if isinstance(labels, int) or len(labels) != len(claim.counts):
            continue
        if any((grouping.classes.frozen[each] >= 0).any() for each in (labels, claim.counts)):
            continue
        one, other = grouping.groups_at(labels), grouping.groups_at(claim.counts)
        if one and other and not one & other and not one | other <= escaped:  # a cache may have returned another size
            yield labels, claim.counts, Reason(Kind.CODE, COMPUTED, claim.where)


class Claims:
    """The claims of a trace, and the groups that they leave free to be cut."""

    def __init__(self, grouping: Grouping, free: Iterable[int]) -> None:
        self.grouping = grouping
        self.free = set(free)  # groups that nothing keeps whole so far
        self.refuted: dict[int, Reason] = {}
        self.pairs: dict[int, Reason] = {}  # groups that need two channels, and why
        self.doubted: set[int] = set()  # groups whose sizes may or may not be constants
        self._rows: list[dict[int, int]] = []

    def settle(self) -> None:
        """Refute the groups that a claim keeps whole."""
        tape, groups_of = self.grouping.tape, self.grouping.groups_of
        escaped = frozenset().union(*(groups_of(seen.expression) for seen in tape.escapes))
        hidden = frozenset().union(*(groups_of(seen.expression) for seen in tape.hidden))
        for claim in tape.claims:
            if isinstance(claim.size, Expression) or isinstance(claim.counts, int):
                continue
            groups = self.grouping.groups_at(claim.counts) & self.free
            if claim.size is None or groups & (escaped | hidden):  # it may have been computed from them unseen
                self.doubted |= groups
            else:
                self._refute(groups, claim.reason, claim.where)
        changed = True
        while changed:
            before = len(self.refuted) + len(self.pairs)
            self._draw()
            for use in tape.uses:
                if moving := self._moving(use.expression):
                    self._settle(moving, NUMBER, use.where, partial(self._still, use.expression))
            for claim in tape.claims:
                if isinstance(claim.size, Expression):
                    counted = frozenset() if isinstance(claim.counts, int) else self.grouping.groups_at(claim.counts)
                    groups = (groups_of(claim.size) | counted) & self.free
                    if groups and not self._holds(claim):
                        made = groups_of(claim.size)
                        if made and groups <= escaped:  # a cache may have returned the size of others
                            self.doubted |= groups
                        else:
                            reason = COMPUTED if made else claim.reason
                            self._settle(groups, reason, claim.where, partial(self._holds, claim))
            changed = len(self.refuted) + len(self.pairs) > before

    def flips(self) -> Iterator[tuple[Seen, Widths]]:
        """Yield the conditions that have another outcome at some width, with the first and the last such widths."""
        known: set[object] = set()
        for seen in self.grouping.tape.conditions:
            groups = sorted(self.grouping.groups_of(seen.expression) & self.free)
            key = (self._spelled(seen.expression), seen.outcome)
            if not groups or key in known:
                continue
            known.add(key)
            found = [w for w in self._sweep(groups) if self._value(seen.expression, w) != seen.outcome]
            for widths in found[:1] + found[1:][-1:]:
                yield seen, {g: widths[g] for g in groups if g in widths}

    def least(self, g: int) -> int:
        """Return the number of channels of a group that must stay."""
        return 2 if g in self.pairs else 1

    def pair(self, groups: Iterable[int], where: str) -> set[int]:
        """Require two channels of these groups, because of this line of code. Returns the groups for which this may help."""
        found = {g for g in groups if g not in self.pairs and self.grouping.sizes[g] > 2}
        self.pairs |= dict.fromkeys(found, Reason(Kind.CODE, ALONE, where))
        return found

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def _settle(self, groups: Iterable[int], reason: str, where: str, holds: Callable[[], bool]) -> None:
        """Refute groups, or only single channels of them if what the code says holds for two or more."""
        paired = self.pair(groups, where)
        if paired:
            self._draw()
            if holds():
                return
            for g in paired:
                del self.pairs[g]
            self._draw()
        self._refute(groups, reason, where)

    def _refute(self, groups: Iterable[int], reason: str, where: str) -> None:
        for g in groups:
            if g in self.free:
                self.refuted[g] = Reason(Kind.CODE, reason, where)
                self.free.discard(g)

    def _draw(self) -> None:
        """Draw the widths to evaluate at: random ones, one channel less, and the fewest channels."""
        sizes, draw = self.grouping.sizes, np.random.default_rng(0)
        free = sorted(self.free)
        least = np.array([self.least(g) for g in free], dtype=np.int64)
        rows = [draw.integers(1, sizes[free] + 1) for _ in range(_ROWS)]
        rows += [sizes[free] - 1, least]
        self._rows = [dict(zip(free, np.maximum(row, least).tolist(), strict=True)) for row in rows]

    def _holds(self, claim: Claim) -> bool:
        """Whether a size that is computed from widths equals what it counts, at all widths that were drawn."""
        counts = claim.counts
        for widths in self._rows:
            n = self._value(claim.size, widths)
            m = counts if isinstance(counts, int) else self._count(counts, widths)
            if not isinstance(n, int) or not (n >= m if claim.least else n == m):
                return False
        return True

    def _still(self, expression: Expression) -> bool:
        return not self._moving(expression)

    def _moving(self, expression: Expression) -> frozenset[int]:
        """Return the free groups whose width changes a number."""
        groups = self.grouping.groups_of(expression) & self.free
        if len({repr(self._value(expression, widths)) for widths in self._rows}) <= 1:
            return frozenset()
        alone = {g for g in groups if len({repr(self._value(expression, w)) for w in self._sweep([g])}) > 1}
        return frozenset(alone) or groups

    def _value(self, expression: Any, widths: Widths) -> object:
        """Evaluate an expression at these widths by group, with the other groups whole."""
        try:
            return expression.value(lambda leaf: self._count(leaf, widths))
        except (ArithmeticError, ValueError) as error:
            return repr(error)

    def _count(self, leaf: Leaf, widths: Widths) -> int:
        labels = self.grouping.leaf(leaf)
        if isinstance(labels, int):
            return labels
        constant, multiples = self.grouping.affine(labels)
        return constant + round(sum(m * widths.get(g, int(self.grouping.sizes[g])) for g, m in multiples.items()))

    def _sweep(self, groups: Sequence[int]) -> Iterator[Widths]:
        """Yield every width of each group alone and, if there are several groups, random widths of all together."""
        for g in groups:
            yield from ({g: n} for n in range(int(self.grouping.sizes[g]) - 1, self.least(g) - 1, -1))
        if len(groups) > 1:
            yield from self._rows

    def _spelled(self, expression: Expression) -> object:
        """Return a key that equal expressions of the same widths share."""
        if expression.leaf is not None:
            labels = self.grouping.leaf(expression.leaf)
            if isinstance(labels, int):
                return labels
            constant, multiples = self.grouping.affine(labels)
            return constant, tuple(sorted(multiples.items()))
        return expression.op, tuple(self._spelled(a) if isinstance(a, Expression) else a for a in expression.args)
