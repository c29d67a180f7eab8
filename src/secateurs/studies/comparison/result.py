"""The result of a comparison: its cells, rows of mean ± standard deviation, and the table."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from secateurs import report
from secateurs.artifact import Figures
from secateurs.files import dump_json
from secateurs.markup import Markup, join, tag
from secateurs.runs.folder import write
from secateurs.studies.comparison.frontier import frontier

Held = Literal["no", "unsure", "yes"]
MARKS: Mapping[Held | None, tuple[str, str]] = {  # in the column of the time, and what they say
    "no": ("*", "over the budget of time by more than the noise of the measurement"),
    "unsure": ("?", "measured over the budget of time by no more than the noise"),
}
COSTS = {"macs": "MACs", "params": "parameters", "latency": "time"}
STAGES = {"cut": "after the cut", "calibrated": "calibrated", "recovered": "recovered"}


class Outcome(BaseModel):
    """What is known about a cell: its figures, or why it has none.

    method, budget, seed: as the table names them. limits: the figures of the budget. figures: see `Bench.measure`.
    """

    model_config = ConfigDict(frozen=True)

    method: str
    budget: str
    seed: int
    limits: dict[str, float] = Field(default_factory=dict)
    figures: dict[str, Any] | None = None
    failed: str | None = None
    seconds: float | None = None

    @property
    def latency(self) -> dict[str, Any] | None:
        """What was measured under a budget of time, as a `Latency`."""
        return None if self.figures is None else self.figures.get("latency")

    @property
    def limited(self) -> frozenset[str]:
        """What the budget limits: macs, params, latency."""
        return frozenset("latency" if name == "ms" else name for name in self.limits)

    @property
    def held(self) -> Held | None:
        """Whether the cut network is within its budget of time; unsure if it was measured over it, by no more than the noise of
        the measurement."""
        if (took := self.latency) is None:
            return None
        goal = took["goal"]
        if goal >= 1 and "latency" not in self.limits:  # the original itself is within the milliseconds
            goal = self.limits.get("ms", math.inf) / 1000 / took["before"]
        if took["ratio"] <= goal:
            return "yes"
        return "no" if took["ratio"] * (1 - took["noise"]) > goal else "unsure"


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

    def percent(self) -> str:
        """Of fractions: '55.0% ± 1.2%'."""
        return f"{self.mean:.1%}" if self.sd is None else f"{self.mean:.1%} ± {self.sd:.1%}"


@dataclass(frozen=True)
class Row:
    """A method under a budget, over all seeds.

    cut, calibrated, recovered: of the figure that is compared, in the table's unit; None where it was not measured. macs,
    params: of the pruned network. passes: the compute, in training passes. seeds: how many are done. failed: what went wrong.
    warnings: what was said of the results.

    Where the budget limits the time: latency: the fraction of the original's that was measured. ms_before, ms_after:
    milliseconds of one run, of the original and of the pruned network. held: whether the budget holds with all seeds; see
    `Outcome`.
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
    ms_before: Spread | None = None
    ms_after: Spread | None = None
    held: Held | None = None
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

        def timed(name: str, factor: float = 1.0) -> Spread | None:
            return plain(lambda f: factor * f["latency"][name] if "latency" in f else None)

        failed = tuple(f"seed {c.seed}: {c.failed}" for c in cells if c.failed is not None)
        said: dict[str, list[int]] = {}
        for c in cells:
            for line in (c.figures or {}).get("warnings", ()):
                said.setdefault(line, []).append(c.seed)
        held = {c.held for c in cells}
        told = tuple(
            f"{'all seeds' if 1 < len(done) == len(seeds) else 'seed ' + ', '.join(map(str, seeds))}: {line}"
            for line, seeds in said.items()
        )
        return Row(
            method, budget, len(done), of("cut"), of("calibrated"), of("recovered"),
            plain(lambda f: f["recovered"]["macs"]), plain(lambda f: f["recovered"]["params"]),
            plain(lambda f: f["passes"]), plain(lambda f: f["seconds"]),
            timed("ratio"), timed("before", 1000), timed("after", 1000), next((h for h in get_args(Held) if h in held), None),
            failed, told,
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

    def _lines(self) -> tuple[list[str], list[list[str]]]:
        """The headings and the rows of the table."""
        timed = any(row.latency is not None for row in self.rows)
        headings = ["method", "budget", "seeds", *STAGES.values(), "MACs", "params", *["time"] * timed, "passes"]
        original, lines = self.original, []
        if original is not None:
            whole = self._figure(Spread.of([self.value(vars(original))]))
            sizes = [report.short(original.macs), report.short(original.params)]
            lines.append(["original", "", "", "", "", whole, *sizes, *[""] * timed, ""])
        for row in self.rows:
            stages = [self._figure(getattr(row, stage)) for stage in STAGES]
            if not row.seeds:
                stages = ["", "", "failed"]
            sizes = [self._share(getattr(row, name), name) for name in ("macs", "params")]
            mark = f"{MARKS[row.held][0]} " if row.held in MARKS else ""
            took = [""] if row.latency is None else [mark + row.latency.percent()]
            passes = "" if row.passes is None else row.passes.text()
            lines.append([row.method, row.budget, str(row.seeds), *stages, *sizes, *took * timed, passes])
        return headings, lines

    def _figure(self, spread: Spread | None) -> str:
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
        one = ", with one seed or more" if several else ""
        held = {row.held for row in self.rows}
        found += [f"{mark} {told}{one}" for name, (mark, told) in MARKS.items() if name in held]
        for row in self.rows:
            found += [f"{row.method}, {row.budget}, {line}" for line in (*row.failed, *row.warnings)]
        return tuple(found)

    def rich(self) -> Table:
        """The table, for a console of rich."""
        headings, lines = self._lines()
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
        headings, lines = self._lines()

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

    @property
    def limited(self) -> str:
        """What all budgets limit: macs, params, or latency, the time on one target. Where that is not one of them, macs."""
        done = [cell for cell in self.cells if cell.figures is not None]
        limited = {cell.limited for cell in done}
        targets = {dump_json(cell.latency["target"]) for cell in done if cell.latency is not None}
        names = next(iter(limited)) if len(limited) == 1 and len(targets) < 2 else ()
        return next(iter(names)) if len(names) == 1 else "macs"

    def plot(self, path: str | Path) -> Path:
        """The frontier: the figure after recovery over what is left of the cost that the budgets limit (the MACs, where they
        limit several), a line for each method, as a picture whose format is that of the suffix (.png, .svg, .pdf). Raises
        ConfigError if matplotlib is not installed."""
        cost, known = self.limited, self.original
        whole = 1.0 if cost == "latency" else None if known is None else getattr(known, cost)
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for row in self.rows:
            left: Spread | None = getattr(row, cost)
            if row.recovered is not None and left is not None:
                share = 100 * left.mean / whole if whole else left.mean
                lines.setdefault(row.method, []).append((share, row.recovered.mean, row.recovered.sd or 0.0))
        original = None if known is None else self.value(vars(known))
        unit = f"{COSTS[cost]} kept, %" if whole else COSTS[cost]
        return frontier(Path(path), lines, original, x=unit, y=f"{self.heading} after recovery")
