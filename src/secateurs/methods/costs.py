"""How much costs count in a ranking: measured, as no power of them suits every network."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

from secateurs.errors import DataError
from secateurs.methods.assess import Assessor
from secateurs.methods.method import Task
from secateurs.methods.selection import Selection
from secateurs.recovery.calibrate import calibrate_, missed
from secateurs.surgery import apply
from secateurs.training import processes

log = logging.getLogger("secateurs")

POWERS = (0.0, 0.125, 0.25, 0.5)
EXAMPLES = 256
# A smaller power is taken if its cut misses no more than this times the least: rounding must not decide.
AS_GOOD = 1.001


def power_of(cost: float | None, task: Task, select: Callable[[float], Selection], *, pooled: bool = False) -> float:
    """The power of a channel's or stripe's cost by which scores are divided: the setting `cost`, or if None the measured one.

    That is the one of `POWERS` whose cut network, once its batch norms are re-estimated, has the outputs nearest to the
    original's on training examples, whose labels are not read. EagleEye (Li et al., ECCV 2020) compares cuts in this way, and
    draws them at random. It is 0 without a budget that says what costs, and without data: an iterator that can be read once
    only is left to the training, and batches that the network cannot be run on are named in a warning.

    select: the selection of a power. pooled: all processes call this, with data of their own, and come to one power.
    """
    if cost is not None:
        return cost
    if task.data is None or task.budget is None or isinstance(task.data.train, Iterator):
        return 0.0
    try:
        return _measured(task, select, pooled)
    except DataError as error:
        if pooled and processes.world() > 1:  # the others measure
            raise
        log.warning("costs do not count in the ranking, since their power cannot be measured: %s", error)
        return 0.0


def _measured(task: Task, select: Callable[[float], Selection], pooled: bool) -> float:
    assessor = Assessor(task, EXAMPLES, labels=False)
    cuts = []
    for power in POWERS:
        cuts.append(apply(assessor.model, select(power).plan(task.graph, allow_inexact=True)).eval())
        calibrate_(cuts[-1], assessor.batches, assessor.objective, pooled=pooled)
    apart = missed(assessor.model, cuts, assessor.batches, assessor.objective, pooled=pooled)
    found = {power: each if math.isfinite(each) else math.inf for power, each in zip(POWERS, apart, strict=True)}
    best = next(power for power in POWERS if found[power] <= AS_GOOD * min(found.values()))
    task.note(
        event="cost", power=best, examples=assessor.examples, missed={str(p): round(m, 4) for p, m in found.items()}
    )
    return best
