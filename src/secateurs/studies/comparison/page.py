"""A comparison as an HTML page: the table, and the remaining figure at each cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import secateurs.report as report
from secateurs.report.page.differences import Cell
from secateurs.report.page.panels.record import settings as written_out
from secateurs.report.page.render import rendered
from secateurs.report.page.several import Frontier, appearance
from secateurs.report.page.svg import Axis, Curve, Mark, chart, symbol
from secateurs.studies.comparison.command import command, recovery
from secateurs.studies.comparison.outcomes import Row, Spread
from secateurs.studies.comparison.table import ComparisonTable

NAME = "comparison.html"
Look = tuple[int, int]  # color and shape


def html(comparison: ComparisonTable) -> str:
    """Return the page: one file that needs no other."""
    looks = appearance(row.method for row in comparison.rows)
    return rendered(
        "comparison.html",
        f"{report.count(len(looks), 'method')} compared",
        "the cells of the comparison",
        facts=list(_facts(comparison)),
        table=_table(comparison, looks),
        frontiers=list(_frontiers(comparison, looks)),
        figure=comparison.heading,
        looks={method: symbol(*look) for method, look in looks.items()},
        notes=comparison.notes,
        spread=any(row.recovered is not None and row.recovered.sd for row in comparison.rows),
        command=command(comparison.settings, comparison.cells),
    )


def _facts(comparison: ComparisonTable) -> Iterator[tuple[str, str]]:
    """What all cells share, and what they were measured with."""
    settings, examples = comparison.settings, comparison.examples
    for name in ("model", "data"):
        if isinstance(value := settings.get(name), str):
            yield name, value
    if examples:
        names = {"train": "to train on", "val": "to validate on"}
        yield "images", ", ".join(f"{size:,} {names.get(split, split)}" for split, size in examples.items())
    if isinstance(task := settings.get("task"), Mapping) and isinstance(task.get("name"), str):
        yield "task", task["name"]
    if isinstance(value := settings.get("scope"), str):
        yield "scope", value
    if settings.get("limits"):
        yield "limits", written_out("", settings["limits"])
    if "epochs" in settings:
        yield "compute", f"{report.count(settings['epochs'], 'training pass')} of the original for each cell"
    if (phases := recovery(settings.get("recover"))) is not None:
        yield "recovery", phases
    machines = dict.fromkeys(str(where) for cell in comparison.cells if (where := (cell.figures or {}).get("machine")))
    if machines:
        yield "machine", ", ".join(machines)
    versions: dict[str, dict[str, None]] = {}
    for cell in comparison.cells:
        for name, version in cell.versions.items():
            versions.setdefault(name, {})[version] = None
    if versions:
        yield "versions", ", ".join(f"{name} {' and '.join(several)}" for name, several in versions.items())


def _table(comparison: ComparisonTable, looks: Mapping[str, Look]) -> dict[str, Any]:
    """The heads and rows of the table, as `report.page.several.table` has them."""
    headings, lines = comparison.lines()
    timed = "time" in headings
    keys = [_keys(row, timed) for row in comparison.rows]
    if (original := comparison.original) is not None:
        figure = comparison.value(vars(original))
        keys.insert(0, ["", None, None, None, None, figure, original.macs, original.params, *[None] * timed, None])
    rows = []
    for texts, line in zip(lines, keys, strict=True):
        first, *others = (Cell(text, key) for text, key in zip(texts, line, strict=True))
        look = looks.get(first.text)
        rows.append([Cell(first.text, first.key, symbol=look and symbol(*look)), *others])
    return {"heads": [(name, i > 1) for i, name in enumerate(headings)], "rows": rows}


def _keys(row: Row, timed: bool) -> list[Any]:
    """What the columns are sorted by."""
    spreads = [row.cut, row.calibrated, row.recovered, row.macs, row.params, *[row.latency] * timed, row.passes]
    return [row.method.lower(), row.budget, row.seeds, *(spread and spread.mean for spread in spreads)]


def _frontiers(comparison: ComparisonTable, looks: Mapping[str, Look]) -> Iterator[Frontier]:
    """The figure after recovery against the MACs, the parameters, and the time where that was measured on one target."""
    rows, original = comparison.rows, comparison.original
    value = None if original is None else comparison.value(vars(original))
    costs: list[tuple[str, Callable[[Row], Spread | None], float | None, Callable[[float], str]]] = [
        ("MACs", lambda row: row.macs, None if original is None else original.macs, report.short),
        ("parameters", lambda row: row.params, None if original is None else original.params, report.short),
    ]
    if len(comparison.targets) == 1:
        costs.append(("share of the original's time", lambda row: row.latency, 1.0, lambda share: f"{share:.0%}"))
    for name, of, whole, form in costs:
        marks: dict[str, list[Mark]] = {}
        for row in rows:
            if (cost := of(row)) is not None and row.recovered is not None:
                told = f"{row.method}, {row.budget}: {comparison.text(row.recovered)}, {name} {form(cost.mean)}"
                mark = Mark(cost.mean, row.recovered.mean, told, *looks[row.method], spread=row.recovered.sd or 0.0)
                marks.setdefault(row.method, []).append(mark)
        if not marks:
            continue
        curves = [Curve(method, sorted((m.x, m.y) for m in found), looks[method][0]) for method, found in marks.items()]
        rings = [] if value is None or whole is None else [Mark(whole, value, "original", 6, 0, hollow=True)]
        across = Axis(name, form, zero=True)
        drawn = chart(
            across, Axis(comparison.heading), curves, [*rings, *(m for found in marks.values() for m in found)],
            title=f"{comparison.heading} against {name}",
        )  # fmt: skip
        yield Frontier(name, drawn)
