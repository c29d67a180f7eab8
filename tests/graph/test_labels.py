"""Labels: connected components against the plain algorithm, freezing, and going back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.graph.labels import CONSUMED, PRODUCED, SHORTCUT, KnownLabels, LabelSpace, Mismatch, components


def by_hand(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Union-find as in the textbook; every node ends at the smallest of its class."""
    parent = list(range(n))

    def find(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in pairs:
        a, b = find(a), find(b)
        parent[max(a, b)] = min(a, b)
    return [find(i) for i in range(n)]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[list[tuple[int, int]]]]:
    n = draw(st.integers(1, 40))
    node = st.integers(0, n - 1)
    return n, draw(st.lists(st.lists(st.tuples(node, node), min_size=1, max_size=8), max_size=12))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(graphs())
def test_components(graph: tuple[int, list[list[tuple[int, int]]]]) -> None:
    n, runs = graph
    edges = [(np.array([a for a, _ in run]), np.array([b for _, b in run])) for run in runs]
    assert components(n, edges).tolist() == by_hand(n, [pair for run in runs for pair in run])


@pytest.mark.parametrize("order", ["rising", "falling", "random", "star"])
def test_components_of_a_long_chain(order: str) -> None:
    """The worst case for pointer jumping: one class, as deep as there are nodes."""
    n = 2000
    at = np.random.default_rng(0).permutation(n) if order == "random" else np.arange(n)
    if order == "falling":
        at = at[::-1]
    a, b = (at[:-1], at[1:]) if order != "star" else (np.full(n - 1, n - 1), np.arange(n - 1))
    assert (components(n, [(a, b)]) == 0).all()


def test_labels_are_fresh() -> None:
    space = LabelSpace()
    a, b = space.fresh(3), space.fresh(2)
    assert a.tolist() == [1, 2, 3]
    assert b.tolist() == [4, 5]
    assert space.solve().root.tolist() == [0, 1, 2, 3, 4, 5]


def test_what_meets_no_channel_is_frozen() -> None:
    space = LabelSpace()
    a, b, c = space.fresh(3), space.fresh(3), space.fresh(3)
    padded = np.array([0, a[1], a[2]])
    space.unify(padded, b, "meets padding")
    space.unify(b, c, "meets b")
    solved = space.solve()
    assert (solved.root[b] == solved.root[c]).all()
    assert solved.root[a[1:]].tolist() == solved.root[b[1:]].tolist()
    assert solved.root[a[0]] != solved.root[b[0]]  # label 0 joins nobody
    assert [solved.reasons[i] if i >= 0 else None for i in solved.frozen[c]] == ["meets padding", None, None]
    assert (solved.frozen[a] == -1).all()
    assert solved.frozen[0] == -1


def test_both_sides_of_nothing() -> None:
    space = LabelSpace()
    a, b = space.fresh(2), space.fresh(2)
    space.unify(np.array([0, a[1]]), np.array([b[0], 0]), "hole")
    solved = space.solve()
    assert (solved.frozen[[b[0], a[1]]] >= 0).all()
    assert (solved.frozen[[b[1], a[0]]] == -1).all()
    assert solved.root.tolist() == list(range(5))


def test_the_first_reason_is_the_one_on_record() -> None:
    space = LabelSpace()
    a = space.fresh(2)
    space.freeze(a[:1], "first")
    space.freeze(a, "second")
    solved = space.solve()
    assert [solved.reasons[i] for i in solved.frozen[a]] == ["first", "second"]


def test_reasons_and_shortcuts_hold_for_the_class_roles_for_the_label() -> None:
    space = LabelSpace()
    a, b, c = space.fresh(2), space.fresh(2), space.fresh(2)
    space.unify(a, b, "")
    space.mark(a, PRODUCED)
    space.mark(b, CONSUMED)
    space.mark(b, SHORTCUT)
    space.inexact(b[:1], "norm")
    solved = space.solve()
    assert (solved.flags[a] == PRODUCED | SHORTCUT).all()
    assert (solved.flags[b] == CONSUMED | SHORTCUT).all()
    assert (solved.flags[c] == 0).all()
    assert solved.inexact[a].tolist() == [0, -1]


def test_known_labels_are_compared() -> None:
    known = KnownLabels()
    known.unify(np.array([3, 4]), np.array([3, 4]), "")
    known.unify(np.array([3, 0]), np.array([3, 4]), "no channel meets any")
    with pytest.raises(Mismatch, match="a sum"):
        known.unify(np.array([3, 5]), np.array([3, 4]), "a sum")
