"""The picture of a comparison: what is left of the accuracy over what is left of the cost."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from secateurs.errors import ConfigError
from secateurs.files import write_whole
from secateurs.report.curves import COLORS, can_plot

SHOWN = COLORS[1:7]  # without black, and yellow, which a thin line does not show
Point = tuple[float, float, float]  # x, y, standard deviation of y


def frontier(path: Path, lines: Mapping[str, Sequence[Point]], original: float | None, *, x: str, y: str) -> Path:
    """Plot each line's points with their standard deviations, and the original as a level, to a file whose suffix sets the
    format.

    Raises ConfigError if matplotlib is not installed, OSError if the file cannot be written.
    """
    if not can_plot():
        raise ConfigError("Plots need matplotlib: pip install 'secateurs[report]'.")
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
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:] or "png", dpi=110)
    write_whole(path, image.getvalue())
    return path
