"""The result of a comparison: its cells, rows of mean ± standard deviation, and the table."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from secateurs import report
from secateurs.artifact import Figures
from secateurs.files import dump_json
from secateurs.markup import Markup, join, tag
from secateurs.report.page import check, save
from secateurs.runs.folder import write
from secateurs.studies.comparison import page
from secateurs.studies.comparison.frontier import frontier

STAGES = {"cut": "after the cut", "calibrated": "calibrated", "recovered": "recovered"}


class Outcome(BaseModel):
    """What is known about a cell: its figures, or why it has none.

    method, budget, seed: as the table names them. figures: see `Bench.measure`.
    """

    model_config = ConfigDict(frozen=True)

    method: str
    budget: str
    seed: int
    figures: dict[str, Any] | None = None
    failed: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Spread:
    """mean ± sd of several values; sd is None for one."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        known = [v for v in values if v is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)

    def text(self, digits: int = 2) -> str:
        mean = f"{self.mean:.{digits}f}"
        return mean if self.sd is None else f"{mean} ± {self.sd:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """A method under a budget, over all seeds.

    cut, calibrated, recovered: of the figure that is compared, in the table's unit; None where it was not measured. macs,
    params: of the pruned network. passes: the compute, in training passes. latency: the fraction of the original's time that
    was measured, where the budget limits it. seeds: those that are done. failed: what went wrong. warnings: what was
    said of the results.
    """

    method: str
    budget: str
    seeds: int
    cut: Spread | None
    calibrated: Spread | None
    recovered: Spread | None
    macs: Spread | None
    params: Spread | None
    passes: Spread | None
    seconds: Spread | None
    latency: Spread | None = None
    failed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` returns. `print(comparison)` shows the table.

    cells: one for each method, budget and seed. original: the figures of the network before any cut. settings: what all cells
    share. figure: what is compared, a name of `Figures`: top1, loss, or a metric.
    """

    cells: tuple[Outcome, ...]
    original: Figures | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figure(self) -> str:
        """What is compared: top-1, or the task's or the user's own metric, or the loss."""
        primary, metrics = (
            str(self.settings.get("primary", "top1")),
            {} if self.original is None else self.original.metrics,
        )
        if primary in metrics:
            return primary
        if self.original is None or self.original.top1 is not None:
            return "top1"
        return next(iter(metrics), "loss")

    @property
    def rows(self) -> tuple[Row, ...]:
        """By budget, and within a budget in the order of the methods."""
        several: dict[tuple[str, str], list[Outcome]] = {}
        for budget in dict.fromkeys(cell.budget for cell in self.cells):
            for cell in self.cells:
                if cell.budget == budget:
                    several.setdefault((cell.method, budget), []).append(cell)
        return tuple(self._row(*key, cells) for key, cells in several.items())

    def _row(self, method: str, budget: str, cells: Sequence[Outcome]) -> Row:
        done = [cell.figures for cell in cells if cell.figures is not None]

        def of(stage: str) -> Spread | None:
            return Spread.of([self.value(figures.get(stage)) for figures in done])

        def plain(value: Callable[[dict[str, Any]], float | None]) -> Spread | None:
            return Spread.of([value(figures) for figures in done])

        failed = tuple(f"seed {c.seed}: {c.failed}" for c in cells if c.failed is not None)
        said: dict[str, list[int]] = {}
        for c in cells:
            for line in (c.figures or {}).get("warnings", ()):
                said.setdefault(line, []).append(c.seed)
        told = tuple(
            f"{'all seeds' if 1 < len(done) == len(seeds) else 'seed ' + ', '.join(map(str, seeds))}: {line}"
            for line, seeds in said.items()
        )
        return Row(
            method, budget, len(done), of("cut"), of("calibrated"), of("recovered"),
            plain(lambda f: f["recovered"]["macs"]), plain(lambda f: f["recovered"]["params"]),
            plain(lambda f: f["passes"]), plain(lambda f: f["seconds"]),
            plain(lambda f: f["latency"]["ratio"] if "latency" in f else None), failed, told,
        )  # fmt: skip

    def value(self, figures: Mapping[str, Any] | None) -> float | None:
        """The figure that is compared, of one network."""
        if figures is None:
            return None
        name = self.figure
        found = figures.get(name) if name in ("top1", "loss") else figures["metrics"].get(name)
        return None if found is None else float(found)

    @property
    def heading(self) -> str:
        """What the figures are, with their unit."""
        return {"top1": "top-1 %"}.get(self.figure, self.figure)

    # -- as text -------------------------------------------------------------------------------------------------------

    def lines(self) -> tuple[list[str], list[list[str]]]:
        """The headings and the rows of the table."""
        timed = any(row.latency is not None for row in self.rows)
        headings = ["method", "budget", "seeds", *STAGES.values(), "MACs", "params", *["time"] * timed, "passes"]
        original, lines = self.original, []
        if original is not None:
            whole = self.text(Spread.of([self.value(vars(original))]))
            sizes = [report.short(original.macs), report.short(original.params)]
            lines.append(["original", "", "", "", "", whole, *sizes, *[""] * timed, ""])
        for row in self.rows:
            stages = [self.text(getattr(row, stage)) for stage in STAGES]
            if not row.seeds:
                stages = ["", "", "failed"]
            sizes = [self._share(getattr(row, name), name) for name in ("macs", "params")]
            took = [""] if row.latency is None else [f"{100 * row.latency.mean:.1f}%"]
            passes = "" if row.passes is None else row.passes.text()
            lines.append([row.method, row.budget, str(row.seeds), *stages, *sizes, *took * timed, passes])
        return headings, lines

    def text(self, spread: Spread | None) -> str:
        """A figure that is compared, as the table shows it."""
        if spread is None:
            return "-"
        return spread.text(2 if self.figure == "top1" else 3)

    def _share(self, value: Spread | None, name: str) -> str:
        """A cost, and what it is of the original's."""
        if value is None:
            return ""
        whole = "" if self.original is None else f" ({report.share(value.mean, getattr(self.original, name))})"
        return f"{report.short(value.mean)}{whole}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the table's figures are, what failed, and what was said of the results, a line each."""
        several = any(row.seeds > 1 for row in self.rows)
        spread = "mean ± standard deviation over seeds; " if several else ""
        found = [f"{', '.join(STAGES.values())}: {self.heading}; {spread}passes: training passes of the original"]
        for row in self.rows:
            found += [f"{row.method}, {row.budget}, {line}" for line in (*row.failed, *row.warnings)]
        return tuple(found)

    def rich(self) -> Table:
        """The table, for a console of rich."""
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
        """The table as a fragment of HTML, everything in it escaped."""
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
        """A line for each cell, as CSV; also written to a file, if one is named."""
        file = io.StringIO()
        names = ["method", "budget", "seed", *STAGES, "macs", "params", "latency", "passes", "seconds", "failed"]
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
                line["latency"] = figures["latency"]["ratio"] if "latency" in figures else None
                line |= {name: figures[name] for name in ("passes", "seconds")}
            lines.writerow(line)
        text = file.getvalue()
        if path is not None:
            write(Path(path), text)
        return text

    def report(self, path: str | Path = page.NAME, *, overwrite: bool = False) -> Path:
        """Write the comparison as an HTML page that needs no other file and no network: the table, which can be sorted, and the
        figure after recovery against each cost. Returns its path, by default in the working directory.

        Raises ConfigError without jinja2 and for a file that exists, ArtifactError if it cannot be written.
        """
        check(path, overwrite=overwrite)
        return save(page.html(self), path)

    def plot(self, path: str | Path) -> Path:
        """The frontier: the figure after recovery over the MACs that are left, a line for each method, as a picture whose
        format is that of the suffix (.png, .svg, .pdf). Raises ConfigError if matplotlib is not installed."""
        whole = None if self.original is None else self.original.macs
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for row in self.rows:
            if row.recovered is not None and row.macs is not None:
                share = 100 * row.macs.mean / whole if whole else row.macs.mean
                lines.setdefault(row.method, []).append((share, row.recovered.mean, row.recovered.sd or 0.0))
        original = None if self.original is None else self.value(vars(self.original))
        unit = "MACs kept, %" if whole else "MACs"
        return frontier(Path(path), lines, original, x=unit, y=f"{self.heading} after recovery")
