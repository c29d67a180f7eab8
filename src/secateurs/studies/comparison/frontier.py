"""The plot of a comparison: the remaining accuracy over the remaining cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from secateurs.report.curves import COLORS, check_picture, write_picture

SHOWN = COLORS[1:7]  # without black, and yellow, which a thin line does not show
Point = tuple[float, float, float]  # x, y, standard deviation of y


def frontier(path: Path, lines: Mapping[str, Sequence[Point]], original: float | None, *, x: str, y: str) -> Path:
    """Plot each line's points with their standard deviations, and the original as a horizontal line, to a file whose suffix
    sets the format.

    Raises ConfigError if matplotlib is not installed or for a suffix that is no format, OSError if the file cannot be written.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if original is not None:
        axes.axhline(original, color="gray", linewidth=1, linestyle=":", label="original")
    for i, (name, points) in enumerate(lines.items()):
        xs, ys, deviations = zip(*sorted(points), strict=True)
        style = ("-", "--", "-.")[i // len(SHOWN) % 3]
        axes.errorbar(
            xs, ys, yerr=deviations, linestyle=style, marker="o", markersize=4, capsize=3, linewidth=1.5,
            color=SHOWN[i % len(SHOWN)], label=name,
        )  # fmt: skip
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=1 + len(lines) // 8)
    return write_picture(path, figure)
