"""Time programs in turn, so that other load on the machine affects all of them."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from secateurs.errors import ConfigError, Setting

BLOCK = 0.01  # seconds of repeated runs between two readings of the clock
WARM = 5  # warm-up runs of a short program, which show how long one takes
LEAST = 7  # rounds, however slow the programs are


@dataclass(frozen=True)
class Program:
    """A network that is ready to run. run: starts one run. wait: returns when all runs are done."""

    run: Callable[[], object]
    wait: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def check_seconds(seconds: Any) -> None:
    """Raise ConfigError unless this is a positive number of seconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 0 < float(seconds) < math.inf:
        raise ConfigError(Setting("seconds", seconds), " must be positive: a number of seconds.")


def in_turn(programs: Mapping[str, Program], seconds: float = 2.0, least: int = LEAST) -> dict[str, list[float]]:
    """Return the seconds per run of each program, by round: at least `least` rounds, and as many as fit into `seconds`.

    All programs run in every round, in alternating order, so the ratio of two programs' times within a round is fair.
    """
    repeats = {}
    for name, program in programs.items():
        per_run(program)  # compiles and allocates what it needs
        # The fastest run sets the number of repeats: a run that was delayed would make it too small.
        warm = [per_run(program)]
        while len(warm) < WARM and sum(warm) < 10 * BLOCK:
            warm.append(per_run(program))
        repeats[name] = max(1, round(BLOCK / min(warm)))
        per_run(program, repeats[name])
    found: dict[str, list[float]] = {name: [] for name in programs}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        names, end, turn = list(programs), time.perf_counter() + seconds, 0
        while turn < least or time.perf_counter() < end:
            for name in names if turn % 2 else names[::-1]:
                found[name].append(per_run(programs[name], repeats[name]))
            turn += 1
    finally:
        if enabled:
            gc.enable()
    return found


def ratios(found: Mapping[str, Sequence[float]], over: str, under: str) -> Spread:
    """Return the ratio of two programs' times, taken within each round."""
    return Spread.of([a / b for a, b in zip(found[over], found[under], strict=True)])


def per_run(program: Program, repeats: int = 1) -> float:
    """Return the seconds of one run, as the mean of `repeats` runs in a row."""
    program.wait()
    began = time.perf_counter()
    for _ in range(repeats):
        program.run()
    program.wait()
    return (time.perf_counter() - began) / repeats
