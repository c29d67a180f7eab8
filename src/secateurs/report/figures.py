"""Numbers formatted with few significant digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def short(n: float) -> str:
    """Abbreviate a number: 125485706 → '125.5M'. Numbers below a thousand stay as they are."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= factor * 0.99995:  # a value that would round to 1000.0 of the next smaller unit
            return f"{n / factor:.2f}{unit}" if n < factor * 9.995 else f"{n / factor:.1f}{unit}"
    return f"{n:g}"


def share(part: float, whole: float) -> str:
    """Format a fraction in percent with one decimal: '40.0%'."""
    return f"{part / whole:.1%}" if whole else "-"


def percent(value: float | None) -> str:
    """Format an accuracy that is already in percent."""
    return "-" if value is None else f"{value:.2f}"


def number(value: float | None) -> str:
    """Format a single value of a custom metric."""
    return formatted([value])(value)


def formatted(values: Sequence[float | None], figure: str = "") -> Callable[[float | None], str]:
    """Return the formatter of a column of these values. All have the same number of decimals, so that the largest has four
    significant digits. Top-1 and top-5 are percentages with two decimals."""
    if figure in ("top1", "top5"):
        return percent
    if figure == "loss":
        return lambda value: "-" if value is None else f"{value:.3f}"
    largest = max((abs(x) for x in values if x is not None and math.isfinite(x)), default=0.0)
    if largest and not 1e-3 <= largest < 1e6:
        return lambda value: "-" if value is None else f"{value:.3e}"
    decimals = 4 if largest <= 1 else max(0, 3 - math.floor(math.log10(largest)))
    return lambda value: "-" if value is None else f"{value:.{decimals}f}"


def heading(figure: str) -> str:
    """Return the name of a figure in tables: 'top-1' for top1, and 'mAP50' for mAP.map_50."""
    if figure in ("top1", "top5"):
        return f"top-{figure[3:]}"
    name, _, part = figure.partition(".")
    if part and part.lower().startswith(name.lower()):
        return name + part[len(name) :].replace("_", "")
    return figure


def error(value: float | None) -> str:
    """Format the verified error. An inexact cut has none."""
    return "not verified" if value is None or math.isnan(value) else f"{value:.1e}"


def duration(seconds: float) -> str:
    """Format a duration: '0.31 ms', '42 ms', '1.4 s', '12 s', '3:05', '1:02:45'."""
    if seconds < 0.9995:
        ms = 1000 * seconds
        return f"{round(ms, 2):.2g} ms" if ms < 9.95 else f"{ms:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def count(n: float, one: str) -> str:
    """Format a number of things: '1 epoch', '3 epochs', '0.5 epochs', '1,203 images', '2 passes'."""
    several = "es" if one.endswith("s") else "s"
    return f"{n:{',' if isinstance(n, int) else 'g'}} {one}{'' if n == 1 else several}"
