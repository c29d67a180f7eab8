"""As many exemplars as wanted: each layer's own β, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from secateurs.methods.epruner.affinity import Affinities

Find = Callable[[Affinities, list[float]], list[Tensor]]  # exemplars of each layer at its β

HALVINGS = 20
LARGEST = 1e6


def exemplars_of(affinities: Affinities, counts: Sequence[int], find: Find) -> list[np.ndarray]:
    """Each layer's exemplars, as many as its count: sorted indices.

    β is searched for each layer. If the number of exemplars jumps over the count, the clustering whose number is nearest is
    adjusted: the exemplar whose cluster is the least dissimilar to the others goes, or the filter comes that is the best
    exemplar for those that are represented worst.
    """
    sizes = affinities.sizes
    fewer = [torch.empty(0, dtype=torch.long) for _ in sizes]  # the largest clustering with too few exemplars
    more = [torch.arange(n) for n in sizes]  # the smallest one with enough: as β → 0, every filter is an exemplar
    low, high = [0.0] * len(sizes), [float("inf")] * len(sizes)
    for _ in range(HALVINGS):
        open_ = [i for i, k in enumerate(counts) if len(more[i]) > k and low[i] < LARGEST]
        if not open_:
            break
        betas = [_between(low[i], high[i]) for i in open_]
        for i, beta, found in zip(open_, betas, find(affinities.of(open_), betas), strict=True):
            if len(found) >= counts[i]:
                low[i], more[i] = beta, min(more[i], found, key=len)
            else:
                high[i], fewer[i] = beta, max(fewer[i], found, key=len)
    chosen = []
    for i, k in enumerate(counts):
        near_fewer = len(fewer[i]) > 0 and k - len(fewer[i]) < len(more[i]) - k
        adjusted = (
            _grown(affinities.similar(i), fewer[i], k) if near_fewer else _shrunk(affinities.similar(i), more[i], k)
        )
        chosen.append(adjusted)
    return chosen


def represented_by(similar: np.ndarray, exemplars: np.ndarray) -> list[int]:
    """The exemplar that represents each filter: the one most similar to it, and for an exemplar itself. similar: (n, n)."""
    found = exemplars[similar[:, exemplars].argmax(1)]
    found[exemplars] = exemplars
    return [int(k) for k in found]


def _between(low: float, high: float) -> float:
    return (low + high) / 2 if high < float("inf") else max(1.0, 4 * low)


def _grown(similar: np.ndarray, exemplars: Tensor, count: int) -> np.ndarray:
    """Add the filters that raise the sum of similarities to the nearest exemplar the most. similar: (n, n)."""
    kept = exemplars.tolist()
    best = similar[:, kept].max(1)
    while len(kept) < count:
        gain = np.maximum(similar - best[:, None], 0).sum(0)  # (n,) of each filter as a further exemplar
        gain[kept] = -1
        kept.append(int(gain.argmax()))
        best = np.maximum(best, similar[:, kept[-1]])
    return np.sort(kept)


def _shrunk(similar: np.ndarray, exemplars: Tensor, count: int) -> np.ndarray:
    """Drop the exemplars whose filters lose the least by going to the next best one. similar: (n, n)."""
    kept = exemplars.numpy().copy()
    while len(kept) > count:
        order = np.argpartition(similar[:, kept], -2, axis=1)[:, -2:]  # (n, 2) the second best, the best
        second, best = np.take_along_axis(similar[:, kept], order, axis=1).T
        loss = np.bincount(order[:, 1], best - second, minlength=len(kept))
        kept = np.delete(kept, loss.argmin())
    return np.sort(kept)
