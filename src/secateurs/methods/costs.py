"""How much costs count in a ranking: measured, as no power of them suits every network."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

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


def power_of(cost: float | None, task: Task, select: Callable[[float], Selection], *, pooled: bool = False) -> float:
    """The power of a channel's or stripe's cost by which scores are divided: the setting `cost`, or if None the measured one.

    Each of `POWERS` is tried: the network is cut, its batch norms are re-estimated, and its outputs are compared with the
    original's on training examples, whose labels are not read. EagleEye (Li et al., ECCV 2020) compares cuts in this way, and
    draws them at random. Of the powers that are as good as the best one, which `chosen` defines, the largest is used.

    It is 0 without a budget, or with one that the whole network meets, and without data: an iterator that can be read once
    only is left to the training, and batches that the network cannot be run on are named in a warning.

    select: the selection of a power. pooled: all processes call this, with data of their own, and come to one power.
    """
    if cost is not None:
        return cost
    if task.data is None or task.budget is None or isinstance(task.data.train, Iterator):
        return 0.0
    if task.budget.allows(base := task.graph.cost(), base):  # what is cut, layer by layer, the user's limits say
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
    apart = missed(assessor.model, cuts, assessor.batches, assessor.objective, pooled=pooled)  # (powers, N)
    power = chosen(apart)
    found = {str(p): round(float(m), 4) for p, m in zip(POWERS, _totals(apart), strict=True)}
    task.note(event="cost", power=power, examples=assessor.examples, missed=found)
    return power


def chosen(apart: Tensor) -> float:
    """The largest of `POWERS` whose outputs are, on average, within one standard error of the nearest ones.

    So few examples often cannot tell powers apart. With a larger one, more of what is cut is costly, so the same budget keeps
    more weights, and recovery makes more of them. The standard error is that of the difference, which is much smaller than
    that of the distances, since all cuts see the same examples (the one-standard-error rule of Breiman et al., 1984).

    apart: (powers, N), the distance of each cut's outputs from the original's for each example.
    """
    total = _totals(apart)
    if not total.isfinite().any():
        return POWERS[0]
    more = apart - apart[total.argmin()]  # (powers, N)
    error = more.std(1) / math.sqrt(more.shape[1]) if more.shape[1] > 1 else torch.zeros(len(POWERS))
    return max(power for power, m, e in zip(POWERS, more.mean(1), error, strict=True) if m <= e)


def _totals(apart: Tensor) -> Tensor:
    """The distances summed over the examples, (powers,), infinite for a cut whose outputs are not finite."""
    return apart.sum(1).nan_to_num(nan=math.inf, posinf=math.inf)
