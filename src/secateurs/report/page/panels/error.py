"""The verified error and what it means."""

from __future__ import annotations

import math

from secateurs.markup import Markup, tag
from secateurs.report.figures import error
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run

TOLERANCE = 1e-5  # the default of `secateurs.verify`
LOW, HIGH = -10.0, -2.0  # powers of ten


def panel(run: Run) -> Panel:
    value = run.card.error
    data = {
        "value": None if value is None else short(value),
        "equal": value == 0,
        "picture": None if value is None else _picture(value),
        "above": value is not None and value > TOLERANCE,
        "tolerance": f"{TOLERANCE:.0e}",
    }
    return Panel("error", "Verification", data)


def short(value: float | None) -> str:
    """Format the error: '1.3e-07', or '0' if the outputs are bitwise equal."""
    return "0" if value == 0 else error(value)


def _picture(value: float) -> Markup:
    """Draw the error on a logarithmic line, with the tolerance."""

    def at(number: float) -> float:
        power = min(HIGH, max(LOW, math.log10(number) if number > 0 else LOW))
        return 16 + (power - LOW) / (HIGH - LOW) * 328

    middle = 26
    parts = [
        tag("line", x1=16, x2=344, y1=middle, y2=middle, class_="axis"),
        tag("line", x1=16, x2=at(TOLERANCE), y1=middle, y2=middle, class_="allowed"),
        *(
            tag("line", x1=at(10.0**p), x2=at(10.0**p), y1=middle - 3, y2=middle + 3, class_="axis")
            for p in range(-10, -1)
        ),
        *(tag("text", f"1e{p}", x=at(10.0**p), y=middle + 15, class_="tick middle") for p in range(-10, -1, 2)),
        tag("line", x1=at(TOLERANCE), x2=at(TOLERANCE), y1=middle - 9, y2=middle + 9, class_="limit"),
        tag("text", "tolerance", x=at(TOLERANCE) + 4, y=middle - 8, class_="note"),
        tag("circle", tag("title", f"{value:.2e}"), cx=at(value), cy=middle, r=4.5, class_="dot c0"),
        tag("text", short(value), x=at(value), y=middle - 10, class_="label middle"),
    ]
    name = f"The error, {short(value)}, on a logarithmic scale; the tolerance is {TOLERANCE:.0e}"
    return tag("svg", *parts, viewBox="0 0 360 46", role="img", aria_label=name, class_="chart")
