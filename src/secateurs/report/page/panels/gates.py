"""Histograms of gates over time, and of each group at the end, for a method that learns gates, such as NPN.

Its history has events `open` (step, `macs` or `params`: {open, decided, target}, and `histogram`: the number of gates in each
of several equal bins between 0 and 1). At the end it has an event `gates` (`histograms`: a histogram per group; closed, of,
undecided, disagree).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from secateurs.artifact.fields import Count, Line, Number, Open
from secateurs.report.figures import count, short
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run
from secateurs.report.page.svg import Axis, Curve, chart, legend

Histogram = Annotated[list[Count], Field(min_length=2, max_length=200)]
COSTS = (("macs", "MACs"), ("params", "parameters"))


class Share(Open):
    open: Number | None = None
    decided: Number | None = None
    target: Number | None = None


class OpenGates(Open):
    step: Count
    macs: Share | None = None
    params: Share | None = None
    histogram: Histogram | None = None


class Gates(Open):
    closed: Count | None = None
    of: Count | None = None
    undecided: Number | None = None
    disagree: Number | None = None
    histograms: dict[Line, Histogram] = {}


def panel(run: Run) -> Panel | None:
    lines, ends = run.events("open", OpenGates), run.events("gates", Gates)
    timed = [line for line in lines if line.histogram is not None]
    if not lines and not any(end.histograms for end in ends):
        return None
    data: dict[str, Any] = {"chart": None, "times": None, "rows": []}
    curves = _curves(lines)
    if curves:
        data["chart"] = chart(
            Axis("step", short), Axis("share of the cost", lambda v: f"{v:.0%}", (1.0,), True), curves,
            title="The share of the cost that the open gates have, and its target",
        )  # fmt: skip
        data["legend"] = legend(curves)
    bins = {len(line.histogram or ()) for line in timed}
    if len(bins) == 1:
        data["times"] = _times(timed)
    end = ends[-1] if ends else Gates()
    data["rows"] = [{"name": name, "bins": _strip(bins), "of": sum(bins)} for name, bins in end.histograms.items()]
    return Panel("gates", "Gates", data, _lead(end))


def _lead(end: Gates) -> str:
    told = []
    if end.closed is not None and end.of is not None:
        told.append(f"{end.closed:,} of {count(end.of, 'gate')} closed when the channels were fixed")
    if end.undecided is not None:
        told.append(f"{end.undecided:.1%} were undecided, between 0.1 and 0.9")
    return "; ".join(told) + "." if told else ""


def _curves(lines: list[OpenGates]) -> list[Curve]:
    found = []
    for key, name in COSTS:
        for kind, dashed in (("open", False), ("target", True)):
            points = [
                (float(line.step), value)
                for line in lines
                if (share := getattr(line, key)) is not None and (value := getattr(share, kind)) is not None
            ]
            if points:
                color = 0 if key == "macs" else 1
                found.append(Curve(f"{name}, {kind}", points, 6 if dashed else color, dashed))
    return found


def _times(lines: list[OpenGates]) -> dict[str, Any]:
    """Return the histogram of all gates at each recorded step. The last one is drawn; the page's script draws the others."""
    every = [line.histogram or [] for line in lines]
    most = max(max(bins) for bins in every) or 1
    return {
        "bars": [100 * n / most for n in every[-1]],
        "last": len(every) - 1,
        "step": lines[-1].step,
        "script": {"bins": every, "most": most, "steps": [line.step for line in lines]},
    }


def _strip(bins: list[int]) -> list[dict[str, Any]]:
    """Return a group's histogram as cells. Shades follow the square root of the counts, so that a few gates are visible."""
    most = max(bins) or 1
    edges = [f"{i / len(bins):.2f} to {(i + 1) / len(bins):.2f}" for i in range(len(bins))]
    return [
        {"alpha": round((n / most) ** 0.5, 2), "title": f"{n} gates from {edge}"}
        for n, edge in zip(bins, edges, strict=True)
    ]
