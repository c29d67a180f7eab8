"""Plot curves, if matplotlib is installed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from secateurs.errors import ConfigError
from secateurs.files import shown, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A colorblind-safe palette (Okabe and Ito).
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def check_picture(path: Path) -> None:
    """Raise ConfigError if matplotlib is not installed or does not support this suffix."""
    if not can_plot():
        raise ConfigError("Plots need matplotlib: pip install 'secateurs[report]'.")
    from matplotlib.backend_bases import FigureCanvasBase

    if _format(path) not in FigureCanvasBase.get_supported_filetypes():
        raise ConfigError(f"{shown(path)}: a picture cannot be saved as {path.suffix}. Use .png, .svg or .pdf.")


def write_picture(path: Path, figure: Figure) -> Path:
    """Write a figure atomically to a file whose suffix sets the format. Its folder is made if needed. Raises OSError if it
    cannot be written."""
    image = io.BytesIO()
    figure.savefig(image, format=_format(path), dpi=110)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, image.getvalue())
    return path


def _format(path: Path) -> str:
    return path.suffix[1:].lower() or "png"


def plot(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str = "",
    x: str = "",
    y: str = "",
    marked: bool = False,
) -> Path:
    """Plot curves by name, each (xs, ys), to a file whose suffix sets the format (.png, .svg, .pdf). marked: also show
    the points.

    Raises ConfigError if matplotlib is not installed or does not support the suffix, and OSError if the file cannot be
    written.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        style = ("-", "--", ":")[i // len(COLORS) % 3]
        axes.plot(xs, ys, style, marker="o" if marked else "", color=COLORS[i % len(COLORS)], linewidth=1.5, label=name)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.margins(x=0.01)
    axes.legend(fontsize="small", ncols=2)
    return write_picture(path, figure)
