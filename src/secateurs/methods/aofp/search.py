"""Binary filter search (algorithm 1): which filters of one layer go next, from damage samples alone.

There is no network here: whoever has one draws the filters to ablate, measures the damage, and records it.
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
    """How a search step ended."""

    kind: Literal["pruned", "refined", "restarted"]
    picked: Array  # B: the filters of least damage, the least damaging first
    damage: Array  # T̂ of each of them
    ablated: int  # how many filters were ablated at a time while these figures were collected

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

    cost: φ, samples to each step of the search. least: filters that stay in any case.
    """

    def __init__(self, size: int, cost: int, least: int = 1) -> None:
        if size < 1 or cost < 1 or least < 1:
            raise ConfigError(f"A search needs positive figures: size={size}, cost={cost}, least={least}.")
        self.cost, self.least = cost, least
        self.alive = np.ones(size, dtype=bool)  # u, the base mask
        self.latest = np.full(size, np.inf)  # T̂ by each filter's last finished step, divided by the filters ablated
        self._start()

    def _start(self) -> None:
        self.space = np.flatnonzero(self.alive)  # A
        self._clear()

    def _clear(self) -> None:
        self.sums = np.zeros(len(self.alive))
        self.counts = np.zeros(len(self.alive), dtype=np.int64)
        self.batches = 0

    @property
    def width(self) -> int:
        return int(self.alive.sum())

    @property
    def half(self) -> int:
        """|B| = |H|: half of the search space, but never so many that fewer than `least` would stay."""
        return min(len(self.space) // 2, self.width - self.least)

    @property
    def live(self) -> bool:
        """There is something to look for. A layer down to its last filter is left alone."""
        return self.half > 0

    @property
    def full(self) -> bool:
        """φ batches have been seen."""
        return self.batches >= self.cost

    def draw(self, generator: torch.Generator) -> Array:
        """H: a random half of the search space, sorted."""
        chosen = torch.randperm(len(self.space), generator=generator)[: self.half]
        return np.sort(self.space[chosen.numpy()])

    def record(self, ablated: Array, damage: float) -> None:
        """A batch has been seen, with this damage while these filters were ablated. A damage that is not finite says
        nothing of them."""
        self.batches += 1
        if np.isfinite(damage):
            self.sums[ablated] += damage
            self.counts[ablated] += 1

    def means(self) -> Array:
        """T̂ (eq. 10) of each filter in the search space. One that was never ablated is as bad as can be: of what is
        not known to be unimportant nothing is pruned."""
        counts = self.counts[self.space]
        return np.where(counts > 0, self.sums[self.space] / np.maximum(counts, 1), np.inf)

    def finish(self, theta: float) -> Move:
        """End the step. "pruned" if the better half of the search space has a damage below θ: give `prune` the filters
        picked, or fewer of them. "refined": they are the search space now. "restarted": it was a single one, and the
        search has all filters before it again."""
        means, ablated = self.means(), self.half
        self.latest[self.space] = means / max(1, ablated)
        order = np.argsort(means, kind="stable")[:ablated]
        picked, damage = self.space[order], means[order]
        if damage[-1] < theta:
            self._start()
            return Move("pruned", picked, damage, ablated)
        if len(picked) > 1:
            self.space = np.sort(picked)
            self._clear()
            return Move("refined", picked, damage, ablated)
        self._start()
        return Move("restarted", picked, damage, ablated)

    def prune(self, filters: Array) -> None:
        """Mask these out for good; the search begins anew on what is left."""
        self.alive[filters] = False
        self._start()

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
        return {"batches": self.batches, **{k: torch.from_numpy(v.copy()) for k, v in arrays.items()}}

    def load(self, state: dict[str, Any]) -> None:
        self.batches = int(state["batches"])
        for name in ("alive", "latest", "sums", "counts"):
            setattr(self, name, state[name].cpu().numpy().copy())
        self.space = np.flatnonzero(state["space"].cpu().numpy())
