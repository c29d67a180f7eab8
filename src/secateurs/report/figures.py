"""Numbers formatted with few significant digits."""

from __future__ import annotations

import math


def short(n: float) -> str:
    """125485706 → '125.5M'; numbers below a thousand unchanged."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= factor * 0.99995:  # a value that would round to 1000.0 of the next smaller unit
            return f"{n / factor:.2f}{unit}" if n < factor * 9.995 else f"{n / factor:.1f}{unit}"
    return f"{n:g}"


def share(part: float, whole: float) -> str:
    """A fraction in percent with one decimal: '40.0%'."""
    return f"{part / whole:.1%}" if whole else "-"


def percent(value: float | None) -> str:
    """An accuracy that is already in percent."""
    return "-" if value is None else f"{value:.2f}"


def number(value: float | None) -> str:
    """A metric of the user's own, with four significant digits."""
    return "-" if value is None else f"{value:.4g}"


def error(value: float | None) -> str:
    """The verified error; an inexact cut has none."""
    return "not verified" if value is None or math.isnan(value) else f"{value:.1e}"


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3:05', '1:02:45'."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def count(n: float, one: str) -> str:
    """'1 epoch', '3 epochs', '0.5 epochs', '1,203 images'."""
    return f"{n:,} {one}{'' if n == 1 else 's'}" if isinstance(n, int) else f"{n:g} {one}{'' if n == 1 else 's'}"
