"""What the benchmarks share: kinds of work, timed in turn in one process."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping

from secateurs.caching import cache_folder


def in_turn(
    kinds: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each kind, turn by turn; the first turn warms up. What else the machine does falls on all of them."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    gc.collect()
    gc.disable()
    for turn in range(-1, turns):
        for kind in list(kinds) if turn % 2 else list(reversed(kinds)):  # none is always first
            began = clock()
            kinds[kind]()
            if turn >= 0:
                seconds[kind].append(clock() - began)
    gc.enable()
    return seconds


def on_processor_time() -> None:
    """From here on, seconds are those of this process on the processor, for one thread on a machine that others use. What was
    measured is kept apart from what is measured on the wall."""
    time.perf_counter = time.process_time
    os.environ["XDG_CACHE_HOME"] = str(cache_folder() / "cpu-time")
