"""Binary filter search against algorithm 1, written down line by line, and its corners by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

import secateurs as sc
from secateurs.methods.aofp import BinaryFilterSearch, Move

Damage = Callable[[np.ndarray], float]


def run(search: BinaryFilterSearch, damage: Damage, theta: float, seed: int = 0) -> Move:
    """One step of the search."""
    generator = torch.Generator().manual_seed(seed)
    while not search.full:
        ablated = search.draw(generator)
        assert len(ablated) == len(set(ablated)) == search.half
        assert set(ablated) <= set(search.space)
        search.record(ablated, damage(ablated))
    move = search.finish(theta)
    if move.kind == "pruned":
        search.prune(move.picked)
    return move


def additive(costs: list[float]) -> Damage:
    """Each filter does its own damage, whatever else is ablated."""
    return lambda ablated: float(np.array(costs)[ablated].sum())


def algorithm_1(size: int, phi: int, theta: float, damage: Damage, seeds: list[int]) -> list[tuple[str, list[int]]]:
    """The paper's listing, in its own words; a seed for each step. Restarts where the listing stops (section 4.2)."""
    u = dict.fromkeys(range(size), 1)
    log: list[tuple[str, list[int]]] = []
    at = iter(seeds)
    while True:
        a = [j for j in u if u[j] == 1]
        if len(a) < 2:
            return log
        while True:
            records: dict[int, list[float]] = {j: [] for j in a}
            seed = next(at, None)
            if seed is None:
                return log
            generator = torch.Generator().manual_seed(seed)
            for _ in range(phi):
                h = [a[i] for i in torch.randperm(len(a), generator=generator)[: len(a) // 2].tolist()]
                for j in h:
                    records[j].append(damage(np.array(sorted(h))))
            t_hat = {j: sum(r) / len(r) if r else float("inf") for j, r in records.items()}
            b = sorted(a, key=lambda j: (t_hat[j], j))[: len(a) // 2]
            p = max(t_hat[j] for j in b)
            a = sorted(b)
            if p < theta or len(b) == 1:
                break
            log.append(("refined", sorted(b)))
        if p < theta:
            for j in b:
                u[j] = 0
        log.append(("pruned" if p < theta else "restarted", sorted(b)))


@pytest.mark.parametrize("size", [2, 3, 7, 16, 25])
@pytest.mark.parametrize("theta", [0.05, 0.3, 1.0])
def test_search_is_algorithm_1(size: int, theta: float) -> None:
    draw = np.random.default_rng(size)
    costs = draw.uniform(0, 0.4, size)
    damage: Damage = lambda h: float(costs[h].sum() + 0.1 * costs[h].max() * len(h) ** 0.5)  # noqa: E731
    want = algorithm_1(size, 6, theta, damage, list(range(40)))
    search = BinaryFilterSearch(size, cost=6)
    found = []
    for seed in range(len(want)):
        move = run(search, damage, theta, seed)
        found.append((move.kind, sorted(move.picked.tolist())))
    assert found == want
    kinds = {kind for kind, _ in found}
    assert kinds >= ({"pruned"} if size < 4 and theta == 1.0 else {"refined"} if size > 4 and theta < 1 else set())
    gone = {j for kind, picked in found if kind == "pruned" for j in picked}
    assert set(np.flatnonzero(~search.alive)) == gone


def test_the_least_damaging_filters_are_found_and_pruned() -> None:
    """Two filters of eight do next to nothing. Halves of four do damage whatever they are; of two, these don't."""
    damage = additive([1.0, 0.9, 0.001, 0.8, 0.7, 0.002, 1.1, 0.6])
    search = BinaryFilterSearch(8, cost=60)
    first = run(search, damage, theta=0.3)
    assert first.kind == "refined"
    assert {2, 5} < set(first.picked)
    assert search.space.tolist() == sorted(first.picked)
    assert first.worst == max(first.damage) == first.damage[-1]
    assert search.sums.sum() == search.batches == 0  # records of the coarse step are not kept
    second = run(search, damage, theta=0.3)
    assert second.kind == "refined"
    assert set(second.picked) == {2, 5}
    third = run(search, damage, theta=0.3)
    assert third.kind == "pruned"
    assert third.picked.tolist() == [2]
    assert search.width == 7
    assert search.space.tolist() == [0, 1, 3, 4, 5, 6, 7]  # and a new move begins with all that is left


def test_a_good_half_goes_at_once() -> None:
    search = BinaryFilterSearch(6, cost=40)
    move = run(search, additive([0.5, 0.0, 0.5, 0.0, 0.0, 0.5]), theta=1.2)
    assert move.kind == "pruned"
    assert sorted(move.picked) == [1, 3, 4]


def test_restart_when_the_single_least_important_filter_is_too_important() -> None:
    search = BinaryFilterSearch(4, cost=30)
    kinds = [run(search, additive([1.0, 2.0, 3.0, 4.0]), theta=0.5, seed=i).kind for i in range(4)]
    assert kinds == ["refined", "restarted", "refined", "restarted"]
    assert search.alive.all()
    assert search.space.tolist() == [0, 1, 2, 3]


def test_damage_has_to_be_below_theta() -> None:
    search = BinaryFilterSearch(2, cost=4)
    assert run(search, lambda h: 0.25, theta=0.25).kind == "restarted"
    assert run(search, lambda h: 0.25, theta=0.2501).kind == "pruned"


def test_means_by_hand() -> None:
    search = BinaryFilterSearch(4, cost=3)
    for ablated, t in (([0, 1], 0.4), ([1, 3], 0.2), ([0, 1], 0.6)):
        search.record(np.array(ablated), t)
    assert search.means() == pytest.approx([0.5, 0.4, np.inf, 0.2])
    move = search.finish(0.45)  # what was never ablated is not known to be unimportant
    assert move.kind == "pruned"
    assert move.picked.tolist() == [3, 1]
    assert move.damage == pytest.approx([0.2, 0.4])


def test_a_filters_own_damage_is_found_from_that_of_the_halves() -> None:
    """Exactly, if damages add up and all halves have been seen; at any level of the search, by eq. 10 for any background."""
    costs = [0.3, 0.1, 0.5, 0.2, 0.4, 0.7]
    for space, half in (([0, 1, 2, 3, 4, 5], 3), ([1, 2, 4, 5], 2), ([2, 5], 1)):
        search = BinaryFilterSearch(6, cost=1)
        search.space = np.array(space)
        for chosen in itertools.combinations(space, half):
            search.record(np.array(chosen), additive(costs)(np.array(chosen)))
        search.finish(theta=-np.inf)
        assert search.latest[space] == pytest.approx(np.array(costs)[space])
        assert np.isinf(np.delete(search.latest, space)).all()


def test_many_halves_of_one_batch() -> None:
    """One sample for each example: they count like those of as many batches, but for the search cost."""
    one, many = BinaryFilterSearch(8, cost=12), BinaryFilterSearch(8, cost=2, samples=12)
    generator, costs = torch.Generator().manual_seed(0), [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6]
    for _ in range(3):
        assert not many.full
        sums, counts = np.zeros(8), np.zeros(8)
        for _ in range(4):
            half = one.draw(generator)
            one.record(half, additive(costs)(half))
            sums[half] += additive(costs)(half)
            counts[half] += 1
        many.add(sums, counts, 4)
    assert one.full
    assert many.full
    assert many.means() == pytest.approx(one.means())
    a, b = one.finish(0.1), many.finish(0.1)
    assert a.picked.tolist() == b.picked.tolist()
    assert many.halves == many.batches == 0


def test_filters_that_the_search_has_not_picked_are_dropped_from_it() -> None:
    search = BinaryFilterSearch(8, cost=10)
    search.space = np.array([1, 3, 4, 6])
    search.record(np.array([1, 3]), 0.2)
    search.drop(np.array([0, 2]))
    assert search.width == 6
    assert search.space.tolist() == [1, 3, 4, 6]
    assert search.sums.tolist() == [0, 0.2, 0, 0.2, 0, 0, 0, 0]  # none of the search space has gone
    search.drop(np.array([3]))
    assert search.space.tolist() == [1, 4, 6]
    assert search.batches == search.halves == search.sums.sum() == 0
    search.drop(np.array([1, 4]))
    assert search.space.tolist() == [5, 6, 7]  # one alone is no search space: a new search


def test_a_step_has_halves_of_one_size() -> None:
    """A filter that is cut in the middle of a step changes |A| / 2: the own damages are those of the halves after it."""
    costs = [0.3, 0.1, 0.5, 0.2, 0.4, 0.7]
    search = BinaryFilterSearch(6, cost=1)
    for chosen in itertools.combinations(range(6), 3):
        search.record(np.array(chosen), additive(costs)(np.array(chosen)))
    search.drop(np.array([4, 5]))
    for chosen in itertools.combinations(range(4), 2):
        search.record(np.array(chosen), additive(costs)(np.array(chosen)))
    search.finish(theta=-np.inf)
    assert search.latest[:4] == pytest.approx(costs[:4])
    narrow = BinaryFilterSearch(6, cost=9, least=3)
    narrow.space = np.arange(4)
    narrow.record(np.array([0, 1]), 0.4)
    narrow.drop(np.array([4, 5]))  # outside of the search space, but one filter at most may go now
    assert (narrow.half, narrow.batches) == (1, 0)


def test_nothing_is_pruned_on_samples_that_say_nothing() -> None:
    search = BinaryFilterSearch(4, cost=5)
    for t in (np.nan, np.inf):
        move = run(search, lambda h, t=t: t, theta=10)
        assert move.kind == "refined"
        assert move.worst == np.inf
        assert run(search, lambda h, t=t: t, theta=10).kind == "restarted"
    assert search.alive.all()


def test_a_layer_keeps_its_last_filters() -> None:
    search = BinaryFilterSearch(5, cost=2)
    while search.live:
        run(search, lambda h: 0.0, theta=1)
    assert search.width == 1
    assert search.half == 0
    search = BinaryFilterSearch(9, cost=2, least=4)
    widths = []
    while search.live:
        run(search, lambda h: 0.0, theta=1)
        widths.append(search.width)
    assert widths == [5, 4]
    assert not BinaryFilterSearch(1, cost=2).live
    assert not BinaryFilterSearch(3, cost=2, least=3).live
    with pytest.raises(sc.ConfigError, match="cost=0"):
        BinaryFilterSearch(4, cost=0)


def test_taken_up_again_in_the_middle_of_a_step() -> None:
    costs = list(np.random.default_rng(0).uniform(0, 1, 20))

    def steps(search: BinaryFilterSearch, first: int, last: int, switch: int | None) -> list[str]:
        kinds = []
        for i in range(first, last):
            if i == switch:
                fresh = BinaryFilterSearch(20, cost=3)
                fresh.load({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in search.state().items()})
                search = fresh
            ablated = search.draw(torch.Generator().manual_seed(i))
            search.record(ablated, additive(costs)(ablated))
            if search.full:
                move = search.finish(0.8)
                kinds.append(f"{move.kind} {move.picked.tolist()} {move.damage.tolist()}")
                if move.kind == "pruned":
                    search.prune(move.picked)
        return kinds

    whole = steps(BinaryFilterSearch(20, cost=3), 0, 60, None)
    assert any(k.startswith("pruned") for k in whole)
    for switch in (1, 7, 31):
        assert steps(BinaryFilterSearch(20, cost=3), 0, 60, switch) == whole
