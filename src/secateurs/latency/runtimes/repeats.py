"""How often a model of pieces is run."""

from __future__ import annotations

import time
from collections.abc import Iterator

LEAST, MOST = 4, 32
SPAN = 0.08  # seconds


def repeated() -> Iterator[int]:
    """Numbers of runs, as many as fit into the span, within the bounds."""
    began = time.perf_counter()
    for number in range(MOST):
        if number >= LEAST and time.perf_counter() - began > SPAN:
            return
        yield number
