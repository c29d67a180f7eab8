"""The paper's figures 4 and 5 from a run's history: the remaining filters of each layer over time, and the widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateurs.errors import ConfigError
from secateurs.report.curves import plot

Record = Sequence[Mapping[str, Any]]


def remaining(history: Record) -> dict[str, tuple[list[int], list[float]]]:
    """For each layer the steps at which its width changed, and the fraction of its filters left from then on;
    starts at step 0 with 1.0 and ends with the run.

    history: `Result.history` or a card's "history". Raises ConfigError if it does not contain an aofp run.
    """
    start, moves, end = _parts(history)
    found: dict[str, tuple[list[int], list[float]]] = {name: ([0], [1.0]) for name in start["groups"]}
    for entry in (*moves, end):
        for name, width, size in zip(start["groups"], entry["widths"], start["sizes"], strict=True):
            steps, shares = found[name]
            if width / size != shares[-1] or entry is end:
                steps.append(entry["step"])
                shares.append(width / size)
    return found


def widths(history: Record) -> dict[str, tuple[int, int]]:
    """Each layer's width before and after. Raises ConfigError if the history does not contain an aofp run."""
    start, _, end = _parts(history)
    return {n: (a, b) for n, a, b in zip(start["groups"], start["sizes"], end["widths"], strict=True)}


def draw(history: Record, folder: str | Path, kind: str = "png") -> tuple[Path, Path]:
    """Plot both into the folder as remaining.png and widths.png, or in another format ("svg", "pdf").

    Raises ConfigError if matplotlib is not installed, or if the history does not contain an aofp run.
    """
    shares = {n: _stairs(*curve) for n, curve in remaining(history).items()}
    both = list(widths(history).values())
    layers = list(range(1, len(both) + 1))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return (
        plot(folder / f"remaining.{kind}", shares, x="step", y="filters remaining (share)"),
        plot(
            folder / f"widths.{kind}",
            {"before": (layers, [a for a, _ in both]), "after": (layers, [b for _, b in both])},
            x="layer",
            y="filters",
        ),
    )


def _stairs(steps: list[int], shares: list[float]) -> tuple[list[int], list[float]]:
    """A width is constant until the next move."""
    at = [steps[0]] + [s for s in steps[1:] for _ in (0, 1)]
    values = [v for v in shares[:-1] for _ in (0, 1)] + [shares[-1]]
    return at, values


def _parts(history: Record) -> tuple[Mapping[str, Any], list[Mapping[str, Any]], Mapping[str, Any]]:
    """The entries of the last aofp run in the history: its start, moves and end."""
    starts = [i for i, h in enumerate(history) if h.get("event") == "search"]
    ends = [h for h in history if h.get("event") == "end"]
    if not starts or not ends:
        raise ConfigError("The history does not contain an aofp run: pass result.history, or history from card.json.")
    return history[starts[-1]], [h for h in history[starts[-1] :] if h.get("event") in ("move", "forced")], ends[-1]
