"""What a run cut, for the log and the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from secateurs.masking import mask
from secateurs.methods.method import Task
from secateurs.methods.selection import Selection
from secateurs.methods.stripes.select import Left, Stripes
from secateurs.surgery.compare import disagreement
from secateurs.surgery.verify import TOLERANCE, outputs

COLD = 0.01  # a cut that changes the output by more than this, relative to its range, is reported


@dataclass(frozen=True)
class Outcome:
    lines: list[str]  # what was cut, where that changes much
    warnings: list[str]
    record: dict[str, Any]


def report(
    task: Task,
    stripes: Stripes,
    left: Left,
    scores: np.ndarray,
    delta: float,
    threshold: float,
    alpha: float,
    fixed: bool,
) -> Outcome:
    """What was cut, and what that changes on the example inputs.

    scores: (units,) the final values. delta: the setting. threshold: below which units were cut.
    fixed: whether alpha is a setting.
    """
    selection = stripes.selection(left)
    values = scores[stripes.unit]
    gone = values[~left.alive]
    largest = float(gone.max(initial=0.0))
    base, cost = stripes.widths.base, stripes.cost(left)
    share = cost.macs / base.macs
    constants, whole = changes(task, stripes, selection)
    record = {
        "event": "stripes", "kept": int(left.alive.sum()), "of": len(left.alive), "delta": threshold, "alpha": alpha,
        "filters": len(np.unique(stripes.filter[left.alive])), "of_filters": stripes.filters,
        "channels": int(left.widths.sum()), "of_channels": int(stripes.widths.sizes.sum()),
        "below": int((values < delta).sum()), "largest": largest, "macs": round(share, 4), "change": constants,
        "cut": whole,
    }  # fmt: skip
    lines, warnings = [], []
    if not len(gone) and task.budget is None:
        warnings.append(
            f"pff removed no stripes: every value is at least delta={delta:g}. Raise alpha={alpha:g}, train longer, or set a "
            "budget."
        )
    elif fixed and task.budget is not None and largest > delta:
        warnings.append(
            f"pff: alpha={alpha:g} left {(values >= delta).mean():.1%} of the stripes at or above delta={delta:g}. The budget "
            f"was met by cutting stripes with values up to {largest:.4f}: raise alpha, train longer, or leave alpha out."
        )
    if len(gone) and whole > COLD:
        channels = record["of_channels"] - record["channels"]  # type: ignore[operator]
        lines.append(
            f"pff cut {len(gone)} of {len(values)} stripes with values up to {largest:.4f}, and {channels} channels, which "
            f"leaves {share:.1%} of the MACs. This changes the output by {whole:.1%} of its range."
        )
    if constants > TOLERANCE:
        warnings.append(
            f"pff: channels without stripes still had constant outputs; removing them changes the output by {constants:.1e} of "
            "its range."
        )
    return Outcome(lines, warnings, record)


def changes(task: Task, stripes: Stripes, selection: Selection) -> tuple[float, float]:
    """The largest change of the network's output on the example inputs, relative to the output's range: by the constants that
    removed channels still output, and by the whole cut."""
    graph, model, inputs = task.graph, task.model, task.example_inputs
    empty = [g.name for g, whole in zip(task.groups, stripes.whole, strict=True) if whole]
    plans = (
        graph.plan({}),
        graph.plan({}, stripes=selection.stripes),
        graph.plan({g: selection.channels[g] for g in empty}, stripes=selection.stripes, allow_inexact=True),
        selection.plan(graph, allow_inexact=True),
    )
    full, thinned, emptied, small = (outputs(mask(model, plan), inputs, torch.float32) for plan in plans)
    return disagreement(emptied, thinned, "pruned"), disagreement(small, full, "unpruned")
