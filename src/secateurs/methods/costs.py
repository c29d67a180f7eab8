"""How much costs count in a ranking: measured, as no power of them suits every network."""

from __future__ import annotations

from collections.abc import Callable

from secateurs.methods.assess import Assessor
from secateurs.methods.method import Task
from secateurs.methods.selection import Selection
from secateurs.recovery.calibrate import calibrate_, missed
from secateurs.surgery import apply

POWERS = (0.0, 0.125, 0.25, 0.5)
EXAMPLES = 256


def measured(task: Task, select: Callable[[float], Selection]) -> float:
    """The power of a channel's or stripe's cost by which scores are divided: the one of `POWERS` whose cut network, once its
    batch norms are re-estimated, has the outputs nearest to the original's on training examples, whose labels are not read.
    EagleEye (Li et al., ECCV 2020) compares cuts in this way, and draws them at random.

    select: the selection of a power. Without data, or a budget that says what costs, it is 0.
    """
    if task.data is None or task.budget is None:
        return 0.0
    assessor = Assessor(task, EXAMPLES, labels=False)
    found: dict[float, float] = {}
    for power in POWERS:
        small = apply(assessor.model, select(power).plan(task.graph, allow_inexact=True)).eval()
        calibrate_(small, assessor.batches, assessor.objective)
        found[power] = missed(assessor.model, small, assessor.batches, assessor.objective)
    best = min(found, key=lambda power: found[power])
    task.note(
        event="cost", power=best, examples=assessor.examples, missed={str(p): round(m, 4) for p, m in found.items()}
    )
    return best
