"""Choose widths on the edges of the staircase: keep the most worth within limits, over all groups jointly, as a knapsack.

Costs are products of two widths and tables over two widths. Around given widths, they are expanded into the change that each
group makes alone and the change that two groups in the same layer make together. This is exact if no product has more than two
widths that vary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

Array = np.ndarray
GAP = 1e-4  # relative gap between the worth that is kept and the best possible
NODES = 20_000  # limit of the search, so that it ends after the same work on every machine


def best(
    candidates: Sequence[Array],
    worth: Sequence[Array],
    cost: Callable[[Array], Array],
    limits: Array,
    start: Array,
    pairs: Iterable[tuple[int, int]] = (),
) -> Array | None:
    """Return the widths with the most worth within the limits: (groups,). None if there are none, or if the search does not
    finish.

    candidates: for each group, the widths that it may have. worth: the worth of each of them. cost: returns the costs of
    widths, (limits,). start: widths around which costs are expanded. pairs: groups that change costs together.
    """
    import scipy.sparse as sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    whole = cost(start)
    scale = np.maximum(np.abs(limits), 1e-30)
    alone = [np.array([cost(replaced(start, (g, w))) - whole for w in own]) for g, own in enumerate(candidates)]
    first = np.cumsum([0, *map(len, candidates)])
    gains = np.concatenate([np.asarray(w, dtype=np.float64) for w in worth])
    prices = [np.concatenate(alone)]  # (choices, limits)
    chosen = int(first[-1])  # binary variables of groups; those of pairs follow
    # Each group has exactly one width.
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    rules = 0
    for g in range(len(candidates)):
        own = list(range(first[g], first[g + 1]))
        rows += [rules] * len(own)
        columns += own
        values += [1.0] * len(own)
        rules += 1
    ones = rules
    total = chosen
    for g, h in pairs:
        a, b = candidates[g], candidates[h]
        both = np.array([[cost(replaced(start, (g, i), (h, j))) for j in b] for i in a]) - whole
        together = both - alone[g][:, None] - alone[h][None]
        if (np.abs(together) <= 1e-9 * scale).all():
            continue
        prices.append(together.reshape(len(a) * len(b), -1))
        at = total + np.arange(len(a) * len(b)).reshape(len(a), len(b))
        total += at.size
        for start_of, lines in ((first[g], at), (first[h], at.T)):  # a pair agrees with each group's choice
            for k, line in enumerate(lines):
                rows += [rules] * (len(line) + 1)
                columns += [*line.tolist(), int(start_of) + k]
                values += [1.0] * len(line) + [-1.0]
                rules += 1
    matrix = sparse.csr_matrix((values, (rows, columns)), shape=(rules, total))
    equal = np.concatenate([np.ones(ones), np.zeros(rules - ones)])
    price = np.concatenate(prices) / scale
    found = milp(
        c=-np.concatenate([gains / max(1e-30, np.abs(gains).max()), np.zeros(total - chosen)]),
        constraints=[
            LinearConstraint(matrix, equal, equal),
            LinearConstraint(price.T, -np.inf, (limits - whole) / scale),
        ],
        integrality=np.concatenate([np.ones(chosen), np.zeros(total - chosen)]),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "node_limit": NODES},
    )
    if found.x is None:
        return None
    picked = [np.argmax(found.x[first[g] : first[g + 1]]) for g in range(len(candidates))]
    return np.array([own[k] for own, k in zip(candidates, picked, strict=True)], dtype=np.int64)


def replaced(widths: Array, *changes: tuple[int, int]) -> Array:
    """Return a copy of the widths in which some groups have other widths."""
    changed = widths.copy()
    for g, width in changes:
        changed[g] = width
    return changed
