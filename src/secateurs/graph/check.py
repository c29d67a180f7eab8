"""Check what labels cannot determine: evaluate what the code says about sizes, then cut what is in doubt, and run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from secateurs.graph.claims import Claims, Widths
from secateurs.graph.grouping import Grouping
from secateurs.graph.reasons import Kind, Reason
from secateurs.graph.runs import Runs
from secateurs.graph.trials import FEW, Failure, Trial

MOST = 64  # maximum number of cut networks to try
_ALIKE = 3  # failures at one line of code, after which it is not tried again with other groups
_FLIPS = 16  # maximum number of trials for conditions on widths
NOT_TRIED = "not tried: too much of the code depends on the number of channels"


@dataclass(frozen=True)
class Broken:
    """The groups that cannot be cut, because of what the code says or because a trial of a cut network failed; the groups that
    need two channels; and why."""

    said: dict[int, Reason]
    tried: dict[int, Reason]
    pairs: dict[int, Reason]


class Check:
    """Finds the groups of a network that cannot be cut, although the labels allow it."""

    def __init__(self, runs: Runs, allow_inexact: bool = False) -> None:
        self.runs, self.allow_inexact = runs, allow_inexact
        self.trials = 0

    def broken(self, grouping: Grouping) -> Broken:
        """Find the groups that cannot be cut, and why.

        If the code reads no widths and no values, nothing is tried: the labels are then sufficient.
        """
        claims = Claims(grouping, [g for g in range(grouping.groups) if self._may_be_cut(grouping, g)])
        claims.settle()
        tape = grouping.tape
        seen = [*tape.reads, *tape.hidden, *tape.escapes, *tape.uses, *tape.conditions]
        doubtful = claims.doubted.union(*(grouping.groups_of(s.expression) for s in seen)) & claims.free
        if tape.looked and not self.runs.meta:  # a number may be computed from any activation
            doubtful = claims.free
        if not self.allow_inexact:  # these are kept whole, whatever a trial says
            doubtful = {g for g in doubtful if grouping.classes.inexact[self._label(grouping, g)] < 0}
        tried = Trials(self, grouping, claims, doubtful).failed if doubtful else {}
        pairs = {g: why for g, why in claims.pairs.items() if g not in claims.refuted and g not in tried}
        return Broken(claims.refuted, tried, pairs)

    def _may_be_cut(self, grouping: Grouping, g: int) -> bool:
        return bool(grouping.sizes[g] > 1 and grouping.classes.frozen[self._label(grouping, g)] < 0)

    @staticmethod
    def _label(grouping: Grouping, g: int) -> int:
        return int(grouping.labels[np.argmax(grouping.group == g)])


class Trials:
    """Trials of cut networks, each without the groups that an earlier trial failed for. If a group fails with a single channel,
    two channels are tried next."""

    def __init__(self, check: Check, grouping: Grouping, claims: Claims, groups: Iterable[int]) -> None:
        self.check, self.grouping, self.claims = check, grouping, claims
        self.failed: dict[int, Reason] = {}
        self._rest = set(groups)
        self._together: list[frozenset[int]] = []  # groups that were blamed for one failure
        self._lines: dict[tuple[str, bool], int] = {}  # failures by line, and whether single channels failed
        self._hold(lambda g, draw: draw.uniform(0.3, 0.95) * grouping.sizes[g])
        for alone in _halves(self._rest):  # each group has a single channel once, while others have several
            self._hold(partial(_alone, alone, grouping.sizes))
        self._flip()
        for n in (2, 3, int(grouping.sizes.max())) if self._pairs() else ():  # do these pass with more channels?
            self._hold(partial(_constant, n), self._pairs)
        self._clear()

    def _pairs(self) -> set[int]:
        return self._rest & self.claims.pairs.keys()

    def _hold(
        self, width: Callable[[int, np.random.Generator], float], which: Callable[[], set[int]] | None = None
    ) -> None:
        """Cut these groups, or all, to the widths that `width` returns, until a network passes."""
        draw = np.random.default_rng(len(self._rest))
        while groups := sorted(self._rest if which is None else which()):
            widths = {g: int(width(g, draw)) for g in groups}
            failure = self._try(widths)
            if failure is None:
                return
            self._blame(failure, widths)

    def _flip(self) -> None:
        """Take the other path of each condition on widths."""
        left = [widths for _, widths in self.claims.flips()]
        for _ in range(_FLIPS):
            left = [w for w in left if w.keys() <= self._rest]
            apart: list[Widths] = []  # flips that have no group in common
            for widths in [*left]:
                if not any(widths.keys() & other.keys() for other in apart):
                    apart.append(widths)
                    left.remove(widths)
            if not apart:
                return
            self._flipped(apart)
        for g in {g for widths in left for g in widths}:
            self._fail({g}, Reason(Kind.CODE, NOT_TRIED))

    def _flipped(self, flips: list[Widths]) -> bool:
        """Try these flips together and, if that fails, half of them at a time: a failure does not show which of several flipped
        conditions is to blame. Returns whether it failed."""
        flips = [w for w in flips if w.keys() <= self._rest]
        cut = {g: n for widths in flips for g, n in widths.items()}
        failure = self._try(cut) if cut else None
        if failure is None:
            return False
        half = len(flips) // 2
        failed = [self._flipped(part) for part in (flips[:half], flips[half:])] if half else []
        if any(failed):
            return True
        while failure is not None:  # a single one, or only all of them together
            self._blame(failure, cut)
            cut = {g: n for g, n in cut.items() if g in self._rest}
            failure = self._try(cut) if cut else None
        return True

    def _try(self, widths: Widths) -> Failure | None:
        """Run a network that is cut to these widths. Returns what is wrong with it, if anything."""
        if self.check.trials >= MOST:
            return Failure(frozenset(self._rest), Reason(Kind.CODE, NOT_TRIED))
        self.check.trials += 1
        sizes = self.grouping.sizes
        cut = {g: max(self.claims.least(g), min(int(sizes[g]) - 1, n)) for g, n in widths.items()}
        draw = np.random.default_rng(len(widths))
        failure = Trial(self.check.runs, self.grouping, cut, draw).failure()
        if failure is None or failure.groups:
            return failure
        return self._searched(widths, failure)

    def _searched(self, widths: Widths, failure: Failure) -> Failure:
        """Find the groups that cause a failure, by bisection."""
        half = len(widths) // 2
        names = list(widths)
        for part in (names[:half], names[half:]) if half else ():
            found = self._try({g: widths[g] for g in part})
            if found is not None:
                return found
        return Failure(frozenset(names), failure.reason)

    def _blame(self, failure: Failure, widths: Widths) -> None:
        groups, line = set(failure.groups), failure.reason.place
        single = {g for g in groups if widths.get(g, 2) < 2} if self.check.trials < MOST else set()
        single -= self.claims.pairs.keys()
        if line:
            key = line, bool(single)
            self._lines[key] = self._lines.get(key, 0) + 1
            if self._lines[key] == _ALIKE:  # the line is likely to fail wherever it runs
                (single if single else groups).update(self._at(line))
        if self.claims.pair(single, line):
            return
        self._together.append(frozenset(groups & self._rest))
        self._fail(groups, failure.reason)

    def _fail(self, groups: Iterable[int], reason: Reason) -> None:
        for g in set(groups) & self._rest:
            self.failed[g] = reason
            self._rest.discard(g)

    def _at(self, line: str) -> set[int]:
        """Return the groups whose widths a line of code handles."""
        tape, found = self.grouping.tape, set[int]()
        for seen in (*tape.reads, *tape.hidden, *tape.escapes, *tape.conditions):
            if seen.where == line:
                found |= self.grouping.groups_of(seen.expression)
        for claim in tape.claims:
            if claim.where == line and not isinstance(claim.counts, int):
                found |= self.grouping.groups_at(claim.counts)
        return found & self._rest

    def _clear(self) -> None:
        """Clear groups that were blamed for one failure together with others, but do not cause it."""
        several = [groups for groups in self._together if 1 < len(groups) <= FEW + 1]
        if not several or len(self._together) > _FLIPS:
            return
        flips = [widths for _, widths in self.claims.flips()]
        for g in (g for groups in several for g in sorted(groups)):
            half = {r: int(self.grouping.sizes[r]) // 2 for r in (*self._rest, g)}
            its = [w for w in flips if g in w and w.keys() <= half.keys()]
            if all(self._try(widths) is None for widths in (half, dict.fromkeys(half, 1), *its)):
                del self.failed[g]
                self._rest.add(g)


def _halves(groups: Iterable[int]) -> list[frozenset[int]]:
    """Split the groups into two random parts; one part if there is one group."""
    drawn = np.random.default_rng(0).permutation(sorted(groups)).tolist()
    return [half for half in (frozenset(drawn[::2]), frozenset(drawn[1::2])) if half]


def _alone(alone: frozenset[int], sizes: np.ndarray, group: int, draw: np.random.Generator) -> float:
    return 1.0 if group in alone else float(draw.choice([0.5, 0.8]) * sizes[group])


def _constant(n: int, group: int, draw: np.random.Generator) -> int:
    return n
