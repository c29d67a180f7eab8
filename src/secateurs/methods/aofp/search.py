"""Binary filter search (algorithm 1): which filters of one layer to prune next, from damage samples only.

This module does not know the network: the caller draws the filters to ablate, measures the damage, and records it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from secateurs.errors import ConfigError

Array = np.ndarray


@dataclass(frozen=True)
class Move:
    """The outcome of a search step."""

    kind: Literal["pruned", "refined", "restarted"]
    picked: Array  # B: the filters of least damage, least damaging first
    damage: Array  # T̂ of each of them

    @property
    def worst(self) -> float:
        """p of algorithm 1."""
        return float(self.damage[-1])


class BinaryFilterSearch:
    """The search on one layer of `size` filters.

        search = BinaryFilterSearch(size=64, cost=8000)
        while search.live:
            ablated = search.draw(generator)
            search.record(ablated, damage_of(ablated))
            if search.full:
                move = search.finish(theta=0.01)
                if move.kind == "pruned":
                    search.prune(move.picked)

    cost: φ, batches per step of the search. samples: a step also takes so many random halves; `record` adds one, `add` one
    for each example. least: minimum number of filters to keep.
    """

    def __init__(self, size: int, cost: int, least: int = 1, samples: int = 1) -> None:
        if size < 1 or cost < 1 or least < 1:
            raise ConfigError(f"A search needs positive values: size={size}, cost={cost}, least={least}.")
        self.cost, self.least, self.samples = cost, least, samples
        self.alive = np.ones(size, dtype=bool)  # u, the base mask
        self.latest = np.full(size, np.inf)  # each filter's own damage, from its last finished step: see `_own`
        self.lost = 0.0  # the sum of the own damages of all pruned filters, as last measured
        self._start()

    def _start(self) -> None:
        self.space = np.flatnonzero(self.alive)  # A
        self._clear()

    def _clear(self) -> None:
        self.sums = np.zeros(len(self.alive))
        self.counts = np.zeros(len(self.alive))
        self.batches = self.halves = 0

    @property
    def width(self) -> int:
        return int(self.alive.sum())

    @property
    def half(self) -> int:
        """|B| = |H|: half of the search space, but always few enough to leave `least` filters."""
        return min(len(self.space) // 2, self.width - self.least)

    @property
    def live(self) -> bool:
        """Whether the search can continue. A layer that is down to its last filter is not searched."""
        return self.half > 0

    @property
    def full(self) -> bool:
        """Whether φ batches have been recorded, and enough halves."""
        return self.batches >= self.cost and self.halves >= self.samples

    def draw(self, generator: torch.Generator) -> Array:
        """H: a random half of the search space, sorted."""
        chosen = torch.randperm(len(self.space), generator=generator)[: self.half]
        return np.sort(self.space[chosen.numpy()])

    def record(self, ablated: Array, damage: float) -> None:
        """Record one batch: the damage while these filters were ablated. A damage that is not finite
        is ignored."""
        self.batches += 1
        self.halves += 1
        if np.isfinite(damage):
            self.sums[ablated] += damage
            self.counts[ablated] += 1

    def add(self, sums: Array, counts: Array, halves: int) -> None:
        """Record one batch in which several halves were ablated. sums, counts: (size,) of the samples of each filter."""
        self.batches += 1
        self.halves += halves
        self.sums += sums
        self.counts += counts

    def means(self) -> Array:
        """T̂ (eq. 10) of each filter in the search space; inf for a filter that was never ablated, so that a filter
        without a measurement is not pruned."""
        counts = self.counts[self.space]
        return np.where(counts > 0, self.sums[self.space] / np.maximum(counts, 1), np.inf)

    def finish(self, theta: float) -> Move:
        """End the step. Returns "pruned" if the less damaging half of the search space has a damage below θ: pass `prune` the
        picked filters, or fewer. "refined": the picked filters are the new search space. "restarted": it was one filter, and
        the search space is all filters again."""
        means, ablated = self.means(), self.half
        self.latest[self.space] = self._own(means)
        order = np.argsort(means, kind="stable")[:ablated]
        picked, damage = self.space[order], means[order]
        if damage[-1] < theta:
            self._start()
            return Move("pruned", picked, damage)
        if len(picked) > 1:
            self.space = np.sort(picked)
            self._clear()
            return Move("refined", picked, damage)
        self._start()
        return Move("restarted", picked, damage)

    def _own(self, means: Array) -> Array:
        """The damage of each filter of the search space on its own, from T̂, which is that of whole halves.

        If damages add up, T̂ is the filter's own damage plus that of the h - 1 others in its half, of n. What all filters
        have in common is t / h, with t the mean damage of a half, and T̂ - t = (own - t / h) · (n - h) / (n - 1)."""
        known = np.isfinite(means)
        if not known.any():
            return means
        n, h = len(means), self.half
        mean = self.sums[self.space].sum() / self.counts[self.space].sum()
        return np.where(known, np.maximum(mean / h + (means - mean) * (n - 1) / (n - h), 0.0), np.inf)

    def prune(self, filters: Array) -> None:
        """Prune these filters; the search restarts on those that are left."""
        self._prune(filters)
        self._start()

    def drop(self, filters: Array) -> None:
        """Prune these filters, which the search did not pick. It continues in what is left of its search space, with a new step
        if that or its halves are smaller: damages of halves of another size do not compare."""
        space, half = self.space, self.half
        self._prune(filters)
        self.space = space[self.alive[space]]
        if len(self.space) < len(space) or self.half < half:
            self._clear()
        if self.half < 1:
            self._start()

    def _prune(self, filters: Array) -> None:
        self.alive[filters] = False
        found = self.latest[filters]
        self.lost += float(found[np.isfinite(found)].sum())

    def toll(self, damage: Array) -> Array:
        """The damage that the layer has taken once a filter is pruned: the filter's own, that of all less damaging ones,
        which would go before it, and that of those that are gone. It grows with every filter that goes. For pruned filters it
        has no meaning. damage: (size,) of each filter on its own."""
        found = np.zeros(len(damage))
        order = np.flatnonzero(self.alive)[np.argsort(damage[self.alive], kind="stable")]
        found[order] = self.lost + np.cumsum(np.maximum(damage[order], 1e-12))
        return found

    def state(self) -> dict[str, Any]:
        """Tensors and numbers that `load` takes."""
        space = np.zeros(len(self.alive), dtype=bool)
        space[self.space] = True
        arrays = {
            "alive": self.alive,
            "latest": self.latest,
            "space": space,
            "sums": self.sums,
            "counts": self.counts,
        }
        numbers = {"batches": self.batches, "halves": self.halves, "lost": self.lost}
        return {**numbers, **{k: torch.from_numpy(v.copy()) for k, v in arrays.items()}}

    def load(self, state: dict[str, Any]) -> None:
        self.batches, self.halves, self.lost = int(state["batches"]), int(state["halves"]), float(state["lost"])
        for name in ("alive", "latest", "sums", "counts"):
            setattr(self, name, state[name].cpu().numpy().copy())
        self.space = np.flatnonzero(state["space"].cpu().numpy())
