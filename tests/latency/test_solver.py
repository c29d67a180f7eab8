"""The knapsack over tables, beside trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from secateurs.latency.solver import best


@pytest.mark.parametrize("seed", range(8))
def test_the_solver_finds_what_trying_everything_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    candidates = [np.array([4, 8, 12, 16])[: generator.integers(2, 5)] for _ in range(4)]
    worth = [np.sort(generator.random(len(own))) for own in candidates]
    tables = [generator.random((17, 17)).cumsum(0).cumsum(1) for _ in range(3)]

    def cost(w: np.ndarray) -> np.ndarray:  # a latency by tables over both widths of a layer, and MACs
        pairs = list(itertools.pairwise(w))
        return np.array([sum(t[p] for t, p in zip(tables, pairs, strict=True)), float(sum(a * b for a, b in pairs))])

    def value(w: tuple[int, ...]) -> float:
        return float(sum(v[list(own).index(n)] for v, own, n in zip(worth, candidates, w, strict=True)))

    whole = np.array([own[-1] for own in candidates])
    limits = cost(whole) * np.array([0.5, 0.6])
    start = np.array([own[0] for own in candidates])
    found = best(candidates, worth, cost, limits, start, [(0, 1), (1, 2), (2, 3)])
    possible = [w for w in itertools.product(*candidates) if (cost(np.array(w)) <= limits).all()]
    if not possible:
        assert found is None
        return
    assert found is not None
    assert (cost(found) <= limits * (1 + 1e-9)).all()
    assert value(tuple(found)) == pytest.approx(max(map(value, possible)), abs=1e-3)


def test_no_widths_within_the_limits() -> None:
    found = best([np.array([4, 8])], [np.array([1.0, 2.0])], lambda w: w.astype(float), np.array([3.0]), np.array([4]))
    assert found is None
