"""Whether a cut network is faster at all: a short check, for budgets that do not limit time."""

from __future__ import annotations

import statistics
from typing import Any

from torch import nn

from secateurs.deploy.clock import Program, per_run
from secateurs.deploy.runners import runner
from secateurs.deploy.target import Target
from secateurs.devices import device_of
from secateurs.latency import Measured

CHECK = 0.4  # seconds that the check of a cut network's speed may take, once both networks are warm
# Seconds of a run below which a few runs say nothing, and above which the check would take long.
SHORT, LONG = 1e-3, 0.5
ROUNDS = 3, 15
SLOWER = 1.03  # a ratio from which on a network is said to be slower, if the lower quartile is above 1, too


def slower(original: nn.Module, small: nn.Module, inputs: Any) -> str | None:
    """A sentence if a cut network is clearly not faster than the original, in PyTorch on its device; None if it is, or if a
    few runs in turn do not tell."""
    device = device_of(small)
    if device.type not in ("cpu", "cuda") or device != device_of(original):
        return None
    target = Target("torch-cuda" if device.type == "cuda" else "torch-cpu")
    with runner(original, inputs, target) as one, runner(small, inputs, target) as other:
        found = alternated(one.program, other.program)
        if found is None or not _clearly(*found):
            return None
        again = alternated(one.program, other.program)  # what a busy machine does once, it rarely does again
    if again is None or not _clearly(*again):
        return None
    measured = Measured.of(found[0] + again[0], found[1] + again[1])
    return (
        f"The cut network is not faster: {measured.before * 1000:.3g} → {measured.after * 1000:.3g} ms on {target.runtime}, "
        f"{measured.ratio:.2f} of the time. Some widths are faster than others: Budget(…, align='auto') keeps to "
        "those, and Budget(latency=…) limits the time itself."
    )


def _clearly(before: list[float], after: list[float]) -> bool:
    """Whether a network is slower by its typical runs, by three in four of them, and by its best run, which is disturbed
    least."""
    low, typical, _ = statistics.quantiles([b / a for a, b in zip(before, after, strict=True)], n=4, method="inclusive")
    return typical >= SLOWER and low > 1 and min(after) >= SLOWER * min(before)


def alternated(one: Program, other: Program) -> tuple[list[float], list[float]] | None:
    """Seconds of two programs, run in turn a few times; None for runs that are too short or too long."""
    if per_run(one) > 4 * LONG:  # even when it is cold
        return None
    per_run(other)
    once = per_run(one), per_run(other)
    if not SHORT <= once[0] <= LONG:
        return None
    rounds = min(ROUNDS[1], max(ROUNDS[0], int(CHECK / sum(once))))
    before: list[float] = []
    after: list[float] = []
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            (before, after)[which].append(per_run((one, other)[which]))
    return before, after
