"""The cost and measurements of each network, from the original to the pruned one, and the cards at the top of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from secateurs.artifact import Figures
from secateurs.report.figures import share, short
from secateurs.report.page.main import Measure, main_measure
from secateurs.report.page.panel import Panel
from secateurs.report.page.panels.error import short as short_error
from secateurs.report.page.panels.speed import runtime
from secateurs.report.page.run import Run
from secateurs.report.tables import columns


@dataclass(frozen=True)
class Card:
    """A figure at the top of a page. share: from 0 to 1, drawn as a bar. tone: "good", "bad" or ""."""

    label: str
    value: str
    detail: str = ""
    share: float | None = None
    tone: str = ""


def cards(run: Run) -> list[Card]:
    """Return cards for MACs, parameters, the main measure, the speed and the verified error."""
    networks = run.networks
    first, last = networks[0][1], networks[-1][1]
    found = [
        Card(name, share(b, a), f"{short(a)} → {short(b)}", b / a if a else None)
        for name, a, b in (("MACs", first.macs, last.macs), ("Parameters", first.params, last.params))
    ]
    if (measure := main_measure([f for _, f in networks])) is not None:
        found.append(_measured(measure, first, last))
    if run.timings is not None and run.timings.rows:
        row = run.timings.rows[0]
        times = " → ".join(f"{1000 * t.median:.3g}" for t in (row.original, row.pruned))
        size = "" if row.batch is None else f", batch {row.batch:,}"
        found.append(Card("Speed-up", f"{row.ratio.median:.2f}×", f"{times} ms on {row.target}{size}"))
    elif (limit := run.card.latency) is not None:
        times = f"{1000 * limit.before:.3g} → {1000 * limit.after:.3g} ms on {runtime(limit)}"
        found.append(Card("Time", f"{limit.ratio:.1%}", times, limit.ratio))
    verified = run.card.error is not None
    found.append(
        Card(
            "Verified error", short_error(run.card.error),
            "masked ≡ sliced" if verified else "the cut is inexact", tone="good" if verified else "bad",
        )
    )  # fmt: skip
    return found


def _measured(measure: Measure, first: Figures, last: Figures) -> Card:
    before, after = measure.of(first), measure.of(last)
    shown = f"{measure.text(before)} → {measure.text(after)}"
    if before is None or after is None:
        return Card(measure.name, measure.whole(after), shown)
    return Card(measure.name, measure.whole(after), f"{shown} ({measure.change(before, after)})")


def panel(run: Run) -> Panel:
    networks = run.networks
    figures = [f for _, f in networks]
    first = figures[0]
    main = main_measure(figures)
    measured: dict[str, Callable[[Figures], str]] = {}
    if main is not None:
        measured |= columns(figures)
    rows = [
        {
            "name": name,
            "macs": (short(f.macs), share(f.macs, first.macs)),
            "params": (short(f.params), share(f.params, first.params)),
            "measures": [show(f) for show in measured.values()],
            "bar": None if main is None or main.unit != "%" else main.of(f),
        }
        for name, f in networks
    ]
    return Panel("stages", "Stages", {"rows": rows, "measures": list(measured), "main": main})
