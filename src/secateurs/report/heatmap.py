"""Draw tables of numbers as heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from secateurs.report.curves import check_picture, write_picture

TEXT_ROWS = 60  # with more rows, numbers are too small to read
BAD = "#d9d9d9"


def heatmap(
    path: Path,
    panels: Mapping[str, Sequence[Sequence[float]]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    x: str = "",
    scale: str = "",
    most: float | None = None,
) -> Path:
    """Draw tables of numbers side by side to a file whose suffix sets the format (.png, .svg, .pdf).

    All tables share one color scale, from 0 (light) to `most` (dark). Each number is written in its cell. Numbers that are not
    finite are gray.

    panels: for each title, the numbers of each row. scale: the label of the color scale.

    Raises ConfigError if matplotlib is not installed or does not support the suffix, and OSError if the file cannot be
    written.
    """
    check_picture(path)
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    tables = {name: np.asarray(values, dtype=float).reshape(len(rows), len(columns)) for name, values in panels.items()}
    finite = [v for table in tables.values() for v in table.ravel() if math.isfinite(v)]
    top = max(most if most is not None else max(finite, default=1.0), 1e-9)
    colors = colormaps["viridis_r"].with_extremes(bad=BAD)
    names = 0.085 * max((len(name) for name in rows), default=1)  # inches
    size = (names + 1.2 + len(tables) * (0.5 + 0.62 * len(columns)), 1.3 + 0.24 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    places = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for place, (name, table) in zip(places, tables.items(), strict=True):
        shown = np.ma.masked_invalid(table)
        image = place.imshow(shown, cmap=colors, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
        place.set(xlabel=x, title=name)
        place.set_xticks(range(len(columns)), columns)
        place.set_yticks(range(len(rows)), rows, fontsize=8)
        place.tick_params(length=0)
        if len(rows) <= TEXT_ROWS:
            for (i, j), value in np.ndenumerate(table):
                dark = math.isfinite(value) and value > top / 2
                place.text(
                    j, i, f"{value:.1f}" if math.isfinite(value) else "-",
                    ha="center", va="center", fontsize=7, color="white" if dark else "black",
                )  # fmt: skip
    figure.colorbar(image, ax=list(places), label=scale, extend="both" if min(finite, default=0) < 0 else "max")
    figure.suptitle(title, fontsize=11)
    return write_picture(path, figure)
