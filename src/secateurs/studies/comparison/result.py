"""The result of a comparison: its table on a console, in a notebook, and as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

import secateurs.report as report
from secateurs.files import dump_json
from secateurs.markup import Markup, join, tag
from secateurs.report.page import check, save
from secateurs.runs.folder import unwritten, write
from secateurs.studies.comparison import page
from secateurs.studies.comparison.frontier import frontier
from secateurs.studies.comparison.outcomes import Spread
from secateurs.studies.comparison.table import STAGES, ComparisonTable

COSTS = {"macs": "MACs", "params": "parameters", "latency": "time"}


@dataclass(frozen=True, repr=False)
class Comparison(ComparisonTable):
    """The result of `compare`. `print(comparison)` shows the table.

    cells: one for each method, budget and seed. original: the figures of the network before any cut. settings: what all cells
    share. examples: how many the data has, by split, if known. figure: the figure that is compared, a name of `Figures`: top1,
    loss, or a metric.
    """

    def rich(self) -> Table:
        """The table, for a rich console."""
        headings, lines = self.lines()
        made = report.table(*headings, left=2)
        for line in lines:
            made.add_row(*line)
        return made

    def table(self) -> str:
        """The table as text: the original, then a row for each method and budget; below it what failed."""
        return "\n".join([report.as_text(self.rich()), "", *self.notes])

    __str__ = __repr__ = table

    def html(self) -> str:
        """The table as an HTML fragment, with everything in it escaped."""
        headings, lines = self.lines()

        def row(kind: str, values: Sequence[str]) -> Markup:
            return tag("tr", *(tag(kind, value) for value in values))

        head, body = tag("thead", row("th", headings)), tag("tbody", *(row("td", line) for line in lines))
        table = tag("table", head, body, class_="secateurs-comparison")
        return join([table, *(tag("p", note) for note in self.notes)])

    def _repr_html_(self) -> str:
        return self.html()

    # -- as files ------------------------------------------------------------------------------------------------------

    def asdict(self) -> dict[str, Any]:
        """Everything, as JSON types."""
        rows = [
            {**vars(row), **{k: v and vars(v) for k, v in vars(row).items() if isinstance(v, Spread)}}
            for row in self.rows
        ]
        return {
            "settings": dict(self.settings),
            "examples": dict(self.examples),
            "figure": self.figure,
            "original": None if self.original is None else vars(self.original),
            "rows": rows,
            "cells": [cell.model_dump(mode="json") for cell in self.cells],
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as JSON; also written to a file, if one is named."""
        text = dump_json(self.asdict(), indent=1)
        if path is not None:
            write(Path(path), text)
        return text

    def to_csv(self, path: str | Path | None = None) -> str:
        """One line per cell, as CSV; also written to a file, if one is named."""
        file = io.StringIO()
        times = ["latency", "latency_goal", "latency_noise", "ms_before", "ms_after", "held"]
        names = ["method", "budget", "seed", *STAGES, "macs", "params", *times, "passes", "seconds", "failed"]
        lines = csv.DictWriter(file, names, lineterminator="\n")
        lines.writeheader()
        for cell in self.cells:
            line: dict[str, Any] = {
                "method": cell.method,
                "budget": cell.budget,
                "seed": cell.seed,
                "failed": cell.failed,
            }
            if (figures := cell.figures) is not None:
                line |= {stage: self.value(figures.get(stage)) for stage in STAGES}
                line |= {name: figures["recovered"][name] for name in ("macs", "params")}
                line |= {name: figures[name] for name in ("passes", "seconds")}
            if (took := cell.latency) is not None:
                ms = (1000 * took[name] for name in ("before", "after"))
                line |= zip(times, [took["ratio"], took["goal"], took["noise"], *ms, cell.held], strict=True)
            lines.writerow(line)
        text = file.getvalue()
        if path is not None:
            write(Path(path), text)
        return text

    def report(self, path: str | Path = page.NAME, *, overwrite: bool = False) -> Path:
        """Write the comparison as an HTML page that needs no other file and no network: a sortable table, and the figure after
        recovery against each cost. Returns its path, by default in the working directory.

        Raises ConfigError without jinja2 and for a file that exists or does not end in .html, ArtifactError if it cannot be
        written.
        """
        check(path, overwrite=overwrite)
        return save(page.html(self), path)

    def _plotted(self) -> str:
        """What all budgets limit: macs, params, or latency, the time on one target. Where that is not one of them, macs."""
        every = {cell.limited for cell in self.cells if cell.figures is not None}
        if len(every) != 1 or len(self.targets) > 1:
            return "macs"
        names: list[str] = list(*every)
        return names[0] if len(names) == 1 else "macs"

    def plot(self, path: str | Path) -> Path:
        """Draw the frontier: the figure after recovery over the remaining cost that the budgets limit (the MACs, if they limit
        several), with a line for each method, to a file whose suffix sets the format (.png, .svg, .pdf). Raises ConfigError if
        matplotlib is not installed, ArtifactError if the file cannot be written."""
        cost, known = self._plotted(), self.original
        whole = 1.0 if cost == "latency" else None if known is None else getattr(known, cost)
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for row in self.rows:
            left: Spread | None = getattr(row, cost)
            if row.recovered is not None and left is not None:
                share = 100 * left.mean / whole if whole else left.mean
                lines.setdefault(row.method, []).append((share, row.recovered.mean, row.recovered.sd or 0.0))
        original = None if known is None else self.value(vars(known))
        unit = f"{COSTS[cost]}, % of the original's" if whole else COSTS[cost]
        try:
            return frontier(Path(path), lines, original, x=unit, y=f"{self.heading} after recovery")
        except OSError as error:
            raise unwritten(Path(path), error) from error
