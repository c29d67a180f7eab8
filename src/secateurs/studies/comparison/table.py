"""A comparison's table: rows of mean ± standard deviation, and their lines of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import secateurs.report as report
from secateurs.artifact import Figures
from secateurs.files import dump_json
from secateurs.studies.comparison.outcomes import NOT_RUN, Held, Outcome, Row, Spread

MARKS: Mapping[Held | None, tuple[str, str]] = {  # in the column of the time, and what they say
    "no": ("*", "over the budget of time by more than the noise of the measurement"),
    "unsure": ("?", "measured over the budget of time by no more than the noise"),
}
STAGES = {"cut": "after the cut", "calibrated": "calibrated", "recovered": "recovered"}


@dataclass(frozen=True, repr=False)
class ComparisonTable:
    """The figures of a comparison as rows and lines of text.

    cells: one for each method, budget and seed. original: the figures of the network before any cut. settings: what all cells
    share. examples: how many the data has, by split, if known. figure: the figure that is compared, a name of `Figures`: top1,
    loss, or a metric.
    """

    cells: tuple[Outcome, ...]
    original: Figures | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)

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
        """The rows by budget, and within a budget in the order of the methods."""
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
        for c in cells:
            if lacking := self._lacking(c, several=len(done) > 1):
                said.setdefault(lacking, []).append(c.seed)
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
            failed, told, any(c.ran for c in cells),
            len(done) > 1 and all(figures["recovered"] == done[0]["recovered"] for figures in done),
        )  # fmt: skip

    def _lacking(self, cell: Outcome, several: bool) -> str | None:
        """What to say of stages at which the compared figure of a cell is not finite: it is not in the mean."""
        found = cell.figures or {}
        if self.original is None or self.value(vars(self.original)) is None:  # it is measured nowhere
            return None
        names = [label for stage, label in STAGES.items() if found.get(stage) and self.value(found[stage]) is None]
        rest = ", and not in the mean" if several else ""
        return f"{self.heading} ({report.listing(names, 3)}) is not a finite number{rest}" if names else None

    def value(self, figures: Mapping[str, Any] | None) -> float | None:
        """Return the compared figure of one network."""
        if figures is None:
            return None
        name = self.figure
        found = figures.get(name) if name in ("top1", "loss") else figures["metrics"].get(name)
        return None if found is None else float(found)

    @property
    def targets(self) -> frozenset[str]:
        """The targets that times were measured on, as JSON."""
        return frozenset(dump_json(cell.latency["target"]) for cell in self.cells if cell.latency is not None)

    @property
    def heading(self) -> str:
        """What the figures are, with their unit."""
        return {"top1": "top-1 %"}.get(self.figure, self.figure)

    def lines(self) -> tuple[list[str], list[list[str]]]:
        """Return the headings and the rows of the table."""
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
                stages = ["", "", "failed" if row.ran else NOT_RUN]
            sizes = [self._share(getattr(row, name), name) for name in ("macs", "params")]
            mark = f"{MARKS[row.held][0]} " if row.held in MARKS else ""
            took = [""] if row.latency is None else [mark + row.latency.percent()]
            passes = "" if row.passes is None else row.passes.text()
            lines.append([row.method, row.budget, str(row.seeds), *stages, *sizes, *took * timed, passes])
        return headings, lines

    def text(self, spread: Spread | None) -> str:
        """Return a compared figure as the table shows it."""
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
        """What the table's figures are, what failed, and the warnings about the results, one per line."""
        several = any(row.seeds > 1 for row in self.rows)
        spread = "mean ± standard deviation over seeds; " if several else ""
        found = [f"{', '.join(STAGES.values())}: {self.heading}; {spread}passes: training passes of the original"]
        if (done := sum(cell.ran for cell in self.cells)) < len(self.cells):
            found.append(f"{done} of {report.count(len(self.cells), 'cell')} are done")
        one = ", with one seed or more" if several else ""
        held = {row.held for row in self.rows}
        found += [f"{mark} {told}{one}" for name, (mark, told) in MARKS.items() if name in held]
        if alike := [f"{row.method}, {row.budget}" for row in self.rows if row.alike]:
            found.append(
                f"the seeds made no difference to {report.listing(alike, 3)}: nothing is drawn, and the batches come in a "
                "fixed order, so the deviation says nothing. A DataLoader with shuffle=True shuffles them."
            )
        for row in self.rows:
            found += [f"{row.method}, {row.budget}, {line}" for line in (*row.failed, *row.warnings)]
        return tuple(found)
