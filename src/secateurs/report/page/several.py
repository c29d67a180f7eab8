"""Compare several runs: a sortable table, and plots of accuracy against cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from secateurs.artifact import Figures
from secateurs.artifact.timings import Timing
from secateurs.markup import Markup
from secateurs.report.figures import duration, share, short
from secateurs.report.page.differences import Cell, Column, asked, column, differing
from secateurs.report.page.main import Measure, main_measure
from secateurs.report.page.originals import Original, originals
from secateurs.report.page.panels.error import short as short_error
from secateurs.report.page.panels.speed import milliseconds
from secateurs.report.page.run import Run
from secateurs.report.page.svg import Axis, Curve, Mark, chart, symbol


@dataclass(frozen=True)
class Frontier:
    """A plot of the measure against a cost: all runs, and the best runs at each cost that share an original."""

    title: str
    drawn: Markup


def table(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the headings and rows of the table. Each heading says whether its column holds numbers. Settings are shown if they
    differ between runs: the seed, the network, the data, and everything else on their cards. The time is the fraction of the
    original's time that was measured under a latency budget. Speed-ups come from `secateurs bench`."""
    measure, key = common_measure(runs), _key(runs)
    looks = appearance(legend(runs))
    differing = _differing(runs)
    heads = [("run", False), ("method", False), *((head, number) for head, number, _ in differing)]
    heads += [("MACs", True), ("", True), ("params", True), ("", True)]
    if measure is not None:
        heads += [(f"{measure.name} {name}", True) for name in ("before", "cut", "calibrated", "after")]
    timed = any(run.card.latency is not None for run in runs)
    heads += [("time", True)] * timed + [("speed-up", True)] * (key is not None) + [("error", True), ("run time", True)]
    rows = []
    for i, (run, name) in enumerate(zip(runs, legend(runs), strict=True), start=1):
        before, after, card = run.networks[0][1], run.networks[-1][1], run.card
        cells = [
            Cell(run.name, run.name.lower(), f"#run-{i}"),
            Cell(run.methods, run.methods.lower(), symbol=symbol(*looks[name])),
            *(column[i - 1] for _, _, column in differing),
            *(
                Cell(text, key)
                for a, b in ((before.macs, after.macs), (before.params, after.params))
                for text, key in ((short(b), b), (share(b, a), b / (a or 1)))
            ),
        ]
        if measure is not None:
            calibrated = dict(run.networks).get("calibrated")  # None if the run did not calibrate
            values = [None if f is None else measure.of(f) for f in (before, card.cut, calibrated, after)]
            cells += [Cell(measure.text(value), value) for value in values]
        if timed:
            limit = card.latency
            cells.append(Cell("-", None) if limit is None else Cell(f"{limit.ratio:.1%}", limit.ratio))
        if key is not None:
            row = _timing(run, key)
            cells.append(Cell("-", None) if row is None else Cell(f"{row.ratio.median:.2f}×", row.ratio.median))
        cells.append(Cell(short_error(card.error), card.error))
        cells.append(Cell("-" if card.seconds is None else duration(card.seconds), card.seconds))
        rows.append(cells)
    return {"heads": heads, "rows": rows}


def _differing(runs: Sequence[Run]) -> list[Column]:
    """Return the columns, besides the method, that differ between the runs."""
    begun = originals(runs)
    columns = [
        column("seed", [run.card.seed for run in runs]),
        column("network", [one.network for one in begun]),
        column("data", [one.data for one in begun]),
        *asked(runs),
    ]
    return differing(columns)


def legend(runs: Sequence[Run]) -> list[str]:
    """Return each run's method and, if they differ, its network and data."""
    names = originals(runs)
    several = len(set(names)) > 1
    return [f"{run.methods}, {name}" if several else run.methods for run, name in zip(runs, names, strict=True)]


def appearance(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Map each name in a legend to a color and a shape. The shape distinguishes it without color, too."""
    return {name: (i % 6, (i + i // 6) % 5) for i, name in enumerate(dict.fromkeys(names))}


def frontiers(runs: Sequence[Run]) -> list[Frontier]:
    """Plot the measure against the MACs, the parameters and the time. A plot needs at least two runs with known values."""
    measure, key = common_measure(runs), _key(runs)
    if measure is None:
        return []
    costs: list[tuple[str, Callable[[Run, Figures, bool], float | None], Callable[[float], str]]] = [
        ("MACs", lambda run, figures, first: figures.macs, short),
        ("parameters", lambda run, figures, first: figures.params, short),
    ]
    if key is not None:
        runtime = key[0] if key[1] is None else f"{key[0]}, batch {key[1]}"
        machine = Counter(row.machine for run in runs if (row := _timing(run, key))).most_common(1)[0][0]
        costs.append((f"time on {runtime}", lambda run, figures, first: _time(run, key, machine, first), milliseconds))
    return [
        Frontier(name, drawn) for name, cost, form in costs if (drawn := _frontier(runs, measure, name, cost, form))
    ]


def _frontier(
    runs: Sequence[Run],
    measure: Measure,
    name: str,
    cost: Callable[[Run, Figures, bool], float | None],
    form: Callable[[float], str],
) -> Markup | None:
    looks, names = appearance(legend(runs)), originals(runs)
    marks: dict[Original, list[Mark]] = {name: [] for name in names}
    origins: dict[tuple[float, float], Mark] = {}
    for i, (run, named, own) in enumerate(zip(runs, legend(runs), names, strict=True), start=1):
        for figures, first in ((run.networks[0][1], True), (run.networks[-1][1], False)):
            x, y = cost(run, figures, first), measure.of(figures)
            if x is None or y is None:
                continue
            what = run.name if not first else "original" if len(marks) == 1 else own
            told = f"{what}: {measure.label} {measure.text(y)}, {name} {form(x)}"
            if first:
                origins[round(x, 9), y] = Mark(x, y, told, 6, 0, hollow=True)
            else:
                marks[own].append(Mark(x, y, told, *looks[named], link=f"#run-{i}"))
    shown = [mark for several in marks.values() for mark in several]
    if len(shown) < 2:
        return None
    curves = [
        Curve(f"the best at each cost{f': {own}' * (len(marks) > 1)}", [(m.x, m.y) for m in _best(several, measure.higher)],
              6, dashed=True)
        for own, several in marks.items()
        if len(several) > 1
    ]  # fmt: skip
    across = Axis(name, form, zero=True)
    return chart(
        across, Axis(measure.label), curves, [*origins.values(), *shown], title=f"{measure.name} against {name}"
    )


def _best(marks: Sequence[Mark], higher: bool) -> list[Mark]:
    """Return the marks for which no other mark is better at the same or a lower cost, cheapest first."""
    found: list[Mark] = []
    for mark in sorted(marks, key=lambda m: (m.x, -m.y if higher else m.y)):
        if not found or (mark.y > found[-1].y if higher else mark.y < found[-1].y):
            found.append(mark)
    return found


def common_measure(runs: Sequence[Run]) -> Measure | None:
    return main_measure([figures for run in runs for figures in (run.card.before, run.networks[-1][1])])


def _key(runs: Sequence[Run]) -> tuple[str, int | None] | None:
    """Return the runtime and batch size that most runs were measured with; None if none were measured."""
    found = Counter((str(row.target), row.batch) for run in runs if run.timings for row in run.timings.rows)
    return found.most_common(1)[0][0] if found else None


def _timing(run: Run, key: tuple[str, int | None]) -> Timing | None:
    rows = run.timings.rows if run.timings else []
    return next((row for row in rows if (str(row.target), row.batch) == key), None)


def _time(run: Run, key: tuple[str, int | None], machine: str, first: bool) -> float | None:
    """Return a run's time on this machine. Times on other machines cannot be compared with it."""
    row = _timing(run, key)
    return None if row is None or row.machine != machine else (row.original if first else row.pruned).median
