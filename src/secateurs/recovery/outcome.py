"""What recovery made of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateurs.artifact import Figures
from secateurs.report.figures import formatted, heading
from secateurs.training.metrics import higher_is_better


def worse(after: Figures, before: Figures, metrics: Mapping[str, Any]) -> str | None:
    """A sentence if recovery made the network worse, by the first of these metrics, or top-1 if there is none; else None."""
    first = next(iter(metrics), None)
    name = next((n for n in after.metrics if n.partition(".")[0] == first), "top1")
    start, end = (f.top1 if name == "top1" else f.metrics.get(name) for f in (before, after))
    if start is None or end is None:
        return None
    if (end >= start) if first is None or higher_is_better(metrics[first]) else (end <= start):
        return None
    show, unit = formatted([start, end], name), "%" * (name == "top1")
    return (
        f"recovery left {heading(name)} at {show(end)}{unit}, worse than the {show(start)}{unit} that it began with: try a "
        "lower learning rate, more epochs, or no recovery"
    )
