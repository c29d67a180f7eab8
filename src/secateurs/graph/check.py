"""Check what labels cannot determine: run a cut network and compare it with the original, site by site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateurs.graph import numbers
from secateurs.graph.grouping import Grouping
from secateurs.graph.labels import CONSUMED, KnownLabels
from secateurs.graph.reasons import Kind, Reason
from secateurs.graph.runs import Runs
from secateurs.graph.tape import Site

Array = np.ndarray
MOST = 64  # maximum number of cut networks to try


@dataclass(frozen=True)
class Fault:
    """Why a group cannot be cut, and the ambiguous sites where another interpretation might help."""

    reason: Reason
    sites: Sequence[Site] = ()


class Check:
    """Cuts groups of a network and tests the result."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.trials = 0
        self.changed: list[int] = []  # indices of the tape's numbers that the last trial found to depend on a width

    def broken(self, grouping: Grouping) -> dict[int, Fault]:
        """The groups that cannot be cut although the labels allow it.

        Code with ambiguous sites, or that computes with numbers, is tried with all groups cut that it may
        affect. Without either, nothing is tried: the labels are then sufficient.
        """
        touching: dict[int, list[Site]] = {}
        for site in grouping.tape.sites:
            for labels in site.labels:
                for g in self._groups(grouping, labels):
                    touching.setdefault(g, []).append(site)
        free = [g for g in touching if self._may_be_cut(grouping, g)]
        if grouping.tape.numbers:  # a number may be computed from any group's width
            free += [g for g in range(grouping.groups) if g not in touching and self._may_be_cut(grouping, g)]
        # A number is usually applied to the channels that it counts: one trial to find it, and another to confirm it.
        faults: dict[int, Fault] = {}
        rest = free
        while rest and not self._holds(grouping, rest):
            numbered = [n for i, n in enumerate(grouping.tape.numbers) if i in self.changed]
            counted = {g: n for n in numbered for labels in n.labels for g in self._groups(grouping, labels)}
            found = {g: Fault(Reason(Kind.CODE, numbers.REASON, n.where)) for g, n in counted.items() if g in rest}
            if not found:
                return self._failing(grouping, free, touching)
            faults |= found
            rest = [g for g in rest if g not in faults]
        return self._cleared(grouping, faults, rest)

    def _cleared(self, grouping: Grouping, faults: dict[int, Fault], rest: list[int]) -> dict[int, Fault]:
        """Remove the groups that a number was applied to but does not depend on: `weight / weight.shape[1]` has two."""
        for g in list(faults) if len(faults) > 1 else ():
            if self._holds(grouping, [*rest, g]):
                rest = [*rest, g]
                del faults[g]
        return faults

    def _groups(self, grouping: Grouping, labels: Array) -> Iterable[int]:
        found = np.unique(grouping.of_label[labels[labels > 0]])
        return found[found >= 0].tolist()

    def _may_be_cut(self, grouping: Grouping, g: int) -> bool:
        label = grouping.labels[np.argmax(grouping.group == g)]
        return grouping.sizes[g] > 1 and grouping.classes.frozen[label] < 0

    def _failing(
        self, grouping: Grouping, groups: Sequence[int], touching: Mapping[int, list[Site]]
    ) -> dict[int, Fault]:
        """One by one, as far as needed."""
        # Groups that go through the same lines of code usually pass or fail together.
        kinds: dict[frozenset[str], list[int]] = {}
        for g in groups:
            kinds.setdefault(frozenset(s.where for s in touching.get(g, ())), []).append(g)
        bad: dict[int, Fault] = {}
        for lines, alike in kinds.items():
            if lines and len(alike) > 2 and not any(self._holds(grouping, [g]) for g in (alike[0], alike[-1])):
                bad |= {g: self._fault(grouping, touching.get(g, ())) for g in alike}  # then at all its uses
            else:
                bad |= self._bisect(grouping, alike, touching)
        rest = [g for g in groups if g not in bad]
        if rest and not self._holds(grouping, rest):
            bad |= {g: self._fault(grouping, touching.get(g, ())) for g in rest}
        return bad

    def _bisect(self, grouping: Grouping, groups: list[int], touching: Mapping[int, list[Site]]) -> dict[int, Fault]:
        if not groups or self._holds(grouping, groups):
            return {}
        if len(groups) == 1:
            return {groups[0]: self._fault(grouping, touching.get(groups[0], ()))}
        half = len(groups) // 2
        return self._bisect(grouping, groups[:half], touching) | self._bisect(grouping, groups[half:], touching)

    def _fault(self, grouping: Grouping, sites: Sequence[Site]) -> Fault:
        """The reason for which the last check failed."""
        if self.changed and grouping.tape.numbers:
            at = min(self.changed[0], len(grouping.tape.numbers) - 1)
            return Fault(Reason(Kind.CODE, numbers.REASON, grouping.tape.numbers[at].where))
        if sites:
            return Fault(Reason(Kind.CODE, sites[0].reason, sites[0].where), sites)
        return Fault(
            Reason(Kind.CODE, "a network with fewer of these channels does not run or computes different outputs")
        )

    def _holds(self, grouping: Grouping, groups: list[int]) -> bool:
        """Cut these groups at random by about half, and trace the cut network with its inherited labels."""
        self.changed = []
        if self.trials >= MOST:
            return False  # too much is ambiguous: the rest stays whole
        draw = np.random.default_rng(len(groups))
        dead = np.zeros(len(grouping.classes.root), dtype=bool)
        for g in groups:
            size = int(grouping.sizes[g])
            gone = draw.permutation(size)[: max(1, min(size // 2, size - 1))]
            at = grouping.group == g
            dead[grouping.labels[at][np.isin(grouping.channel[at], gone)]] = True
        known: dict[tuple[str, int], Array] = {}
        kept: dict[str, dict[int, Array]] = {}
        for axis in grouping.tape.axes:
            alive = ~dead[axis.labels]
            known[axis.param, axis.axis] = grouping.classes.root[axis.labels[alive]]
            if not alive.all():
                kept.setdefault(axis.param, {})[axis.axis] = np.flatnonzero(alive)
        cut = {n: self._sliced(self.runs.named[n], axes) for n, axes in kept.items()}
        rewrites = grouping.owners.rewrites(lambda labels: len(labels) - int(np.count_nonzero(dead[labels])))
        self.trials += 1
        try:
            tape = self.runs.run(KnownLabels(), cut, known, rewrites)
        except Exception:  # a Mismatch, or whatever the user's code raises on shapes that it was not written for
            return False
        # The output of each ambiguous site must be its original output minus the cut channels.
        found = {site.key: site.out for site in tape.sites}
        for site in grouping.tape.sites:
            for at, before in site.out.items():
                alive = grouping.classes.root[before[~dead[before]]]
                after = found.get(site.key, {}).get(at)  # with coupled channels already unified, a split may not appear
                several = bool((alive != alive[:1]).any())  # the position of a single channel cannot be determined
                if several and after is not None and not np.array_equal(alive, after):
                    return False
        self.changed = numbers.changed(grouping.tape.numbers, tape.numbers)
        if (
            self.changed and not self.runs.meta
        ):  # a number may also be read from an activation: compare with the masked network
            whole = {(a.param, a.axis): grouping.classes.root[a.labels] for a in grouping.tape.axes}
            twin = self.runs.run(KnownLabels(), self._masked(grouping, dead), whole)
            self.changed = numbers.changed(twin.numbers, tape.numbers, tolerance=1e-4)
        return not self.changed

    def _sliced(self, x: Tensor, axes: Mapping[int, Array]) -> Tensor:
        if self.runs.meta:
            return torch.empty(
                [len(axes.get(a, range(n))) for a, n in enumerate(x.shape)], dtype=x.dtype, device="meta"
            )
        for a, index in axes.items():
            x = x.index_select(a, torch.from_numpy(index).to(x.device))
        return x

    def _masked(self, grouping: Grouping, dead: Array) -> dict[str, Tensor]:
        """The parameters that consume dead channels, with zeros there."""
        masked: dict[str, Tensor] = {}
        for axis in grouping.tape.axes:
            gone = dead[axis.labels] & (grouping.classes.flags[axis.labels] & CONSUMED > 0)
            if gone.any():
                w = masked.setdefault(axis.param, self.runs.named[axis.param].detach().clone())
                w.index_fill_(axis.axis, torch.from_numpy(np.flatnonzero(gone)).to(w.device), 0)
        return masked
