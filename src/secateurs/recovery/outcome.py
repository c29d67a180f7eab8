"""What recovery made of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from secateurs.artifact import Figures
from secateurs.report.figures import formatted, heading
from secateurs.training.metrics import higher_is_better


def worse(after: Figures, before: Figures, metrics: Mapping[str, Any]) -> str | None:
    """A sentence if recovery made the network worse, by the first of these metrics, or top-1 if there is none; else None."""
    first = next(iter(metrics), None)
    name = (
        "top1" if first is None else next((n for n in after.metrics if n == first or n.startswith(f"{first}.")), None)
    )
    if name is None:
        return None
    start, end = (f.top1 if name == "top1" else f.metrics.get(name) for f in (before, after))
    if start is None or end is None or not math.isfinite(start) or not math.isfinite(end):
        return None
    show, unit = formatted([start, end], name), "%" * (name == "top1")
    better = first is None or higher_is_better(metrics[first])
    known = first is None or getattr(metrics[first], "higher_is_better", None) is not None
    if show(end) == show(start) or (end > start) == better or not (known or _lost(before, after)):
        return None
    return (
        f"Recovery ended at {show(end)}{unit} {heading(name)}, {'below' if better else 'above'} the {show(start)}{unit} it "
        "started from: try a lower learning rate, more epochs, or no recovery"
    )


def _lost(before: Figures, after: Figures) -> bool:
    """Whether the loss rose: which direction is better is not known of every function."""
    return before.loss is not None and after.loss is not None and after.loss > before.loss
