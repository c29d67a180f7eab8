"""How often a model of pieces is run, and the time of each of its branches."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

LEAST, MOST = 4, 32
SPAN = 0.08  # seconds


def repeated() -> Iterator[int]:
    """Numbers of runs, as many as fit into the span, within the bounds."""
    began = time.perf_counter()
    for number in range(MOST):
        if number >= LEAST and time.perf_counter() - began > SPAN:
            return
        yield number


def of_branches(nodes: Iterable[tuple[str, float]], count: int) -> list[float]:
    """Seconds of each branch: the sum over its nodes of the least time of each. nodes: (name, seconds) of every node in every
    run, where those of branch 3 are named `…b3~…`."""
    least: dict[tuple[int, str], float] = defaultdict(lambda: math.inf)
    for name, seconds in nodes:
        branch = name.partition("~")[0].rpartition("b")[2]
        if branch.isdigit():
            least[int(branch), name] = min(least[int(branch), name], seconds)
    found: dict[int, float] = defaultdict(float)
    for (branch_, _), seconds in least.items():
        found[branch_] += seconds
    return [found[at] or 1e-7 for at in range(count)]
