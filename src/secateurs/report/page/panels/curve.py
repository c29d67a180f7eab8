"""The training: accuracy and loss, epoch by epoch, while the network was pruned and recovered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from secateurs.report.figures import duration, number, percent
from secateurs.report.page.main import Measure, main_measure
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run
from secateurs.report.page.svg import Axis, Curve, chart, legend

NAMES = {"finetune": "fine-tuning", "mimic": "mimicking", "distil": "distillation", "scratch": "from scratch"}
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Phase:
    """Epochs that follow each other. start: the epochs before it."""

    name: str
    start: float
    epochs: list[Entry]

    def points(self, key: str) -> list[tuple[float, float]]:
        found = ((self.start + i + 1, _value(epoch.get(key))) for i, epoch in enumerate(self.epochs))
        return [(x, y) for x, y in found if y is not None]


def phases(history: Sequence[Entry], method: str) -> list[Phase]:
    """The phases of training in a history. Epochs without the name of one are the method's own notes."""
    found: list[Phase] = []
    done = 0
    last: tuple[Any, int] = (None, 0)
    for entry in history:
        epoch = entry.get("epoch")
        if not isinstance(epoch, int) or "event" in entry:
            continue
        name = str(entry.get("phase") or method)
        name = NAMES.get(name, name)
        if not found or last[0] != name or epoch <= last[1]:
            found.append(Phase(name, done, []))
        found[-1].epochs.append(entry)
        last, done = (name, epoch), done + 1
    return found


def panel(run: Run) -> Panel | None:
    parts = phases(run.entries, run.card.method.name)
    if not parts:
        return None
    figures = [f for _, f in run.networks]
    measure = main_measure(figures)
    charts = [c for c in (_measured(run, parts, measure), _losses(parts)) if c is not None]
    keys = [k for k in _keys(parts) if k not in ("epoch", "step")]
    rows = [
        [phase.name, f"{entry.get('epoch')}", *(_shown(key, entry.get(key)) for key in keys)]
        for phase in parts
        for entry in phase.epochs
    ]
    return Panel("curve", "Training", {"charts": charts, "heads": ["phase", "epoch", *map(_head, keys)], "rows": rows})


def _measured(run: Run, parts: Sequence[Phase], measure: Measure | None) -> dict[str, Any] | None:
    """The main measure on validation data, and in training where that is known; with the original's as a level."""
    if measure is None or measure.name == "Loss":
        return None
    key = "top1" if measure.unit == "%" else measure.name
    curves = [
        *_joined(parts, f"val_{key}", "validation", 0),
        *(_joined(parts, "train_top1", "training", 6, dashed=True) if key == "top1" else []),
    ]
    if not curves or not curves[0].points:
        return None
    original = measure.of(run.card.before)
    levels = [] if original is None else [(original, "original")]
    return {
        "drawn": chart(
            Axis("epoch", whole=True), Axis(measure.label), curves, levels=levels, rules=_rules(parts),
            title=f"{measure.name} after each epoch",
        ),
        "legend": legend(curves, levels),
    }  # fmt: skip


def _losses(parts: Sequence[Phase]) -> dict[str, Any] | None:
    curves = _joined(parts, "val_loss", "validation loss", 1)
    if not curves or not curves[0].points:
        return None
    drawn = chart(
        Axis("epoch", whole=True), Axis("loss"), curves, rules=_rules(parts), title="The loss after each epoch"
    )
    return {"drawn": drawn, "legend": legend(curves)}


def _joined(parts: Sequence[Phase], key: str, name: str, color: int, dashed: bool = False) -> list[Curve]:
    """One curve through all phases."""
    points = [point for part in parts for point in part.points(key)]
    return [Curve(name, points, color, dashed, dots=not dashed)] if points else []


def _rules(parts: Sequence[Phase]) -> list[tuple[float, str]]:
    """Where each phase begins: between its first epoch and the last one before."""
    starts = [parts[0].start + 0.5, *(b.start + 0.5 for _, b in pairwise(parts))]
    return [(start, part.name) for start, part in zip(starts, parts, strict=True)]


def _value(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fits else None


def _keys(parts: Sequence[Phase]) -> list[str]:
    """What was measured in any epoch: numbers only."""
    every = [entry for part in parts for entry in part.epochs]
    keys = dict.fromkeys(key for entry in every for key in entry if key != "round")
    return [key for key in keys if any(_value(entry.get(key)) is not None for entry in every)]


def _head(key: str) -> str:
    return (
        key.replace("_", " ").replace("top1", "top-1").replace("top5", "top-5").replace("images per second", "images/s")
    )


def _shown(key: str, value: Any) -> str:
    found = _value(value)
    if found is None:
        return "-"
    if key == "seconds":
        return duration(found)
    if key.endswith(("top1", "top5")):
        return percent(found)
    return f"{found:,.0f}" if key in ("images_per_second", "skipped", "val_skipped") else number(found)
