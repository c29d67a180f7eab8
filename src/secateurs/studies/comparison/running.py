"""A running comparison: what is foreseen for its cells, which worker measures which, and how long the rest will take."""

from __future__ import annotations

import heapq
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from secateurs.artifact import Figures
from secateurs.errors import ConfigError, Setting
from secateurs.files import dump_json
from secateurs.report import count, duration
from secateurs.report.curves import can_plot
from secateurs.report.page import can_render
from secateurs.studies.comparison import page
from secateurs.studies.comparison.bench import Foreseen, Job, Probe, Record
from secateurs.studies.comparison.compute import SearchCost
from secateurs.studies.comparison.contestants import Cell, budget_text
from secateurs.studies.comparison.crew import Crew
from secateurs.studies.comparison.folder import ComparisonFolder
from secateurs.studies.comparison.outcomes import NOT_RUN, Outcome
from secateurs.studies.comparison.result import Comparison
from secateurs.version import __version__

VERSIONS = {"secateurs": __version__, "torch": torch.__version__, "python": platform.python_version()}
OUT_OF_TIME = f"{NOT_RUN}: out of time"


@dataclass
class Running:
    """A running comparison. limit: in seconds. Cells are referred to by their numbers."""

    crew: Crew
    cells: Sequence[Cell]
    folder: ComparisonFolder | None
    settings: Mapping[str, object]
    epochs: float
    limit: float | None
    say: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    earlier: list[Outcome] = field(default_factory=list)  # of earlier calls' other cells in the folder
    costs: dict[str, SearchCost] = field(default_factory=dict)  # of a method under a budget
    expected: dict[int, float] = field(default_factory=dict)  # seconds of each cell that this call measures
    started: dict[int, float] = field(default_factory=dict)  # when

    def run(self) -> Comparison:
        try:
            return self._run()
        except KeyboardInterrupt:
            if self.folder is not None and self.outcomes:
                raise self.folder.interrupted(len(self.outcomes), len(self.cells)) from None
            raise
        finally:
            self.crew.close()

    def _run(self) -> Comparison:
        if self.folder is not None:
            done = [(i, self.folder.done(cell)) for i, cell in enumerate(self.cells)]
            self.outcomes = {i: found for i, found in done if found is not None}
        missing = [i for i in range(len(self.cells)) if i not in self.outcomes]
        original = self._known_original()
        examples: Mapping[str, int] = {}
        if missing or original is None:
            probe = self.crew.prepare(self.cells)
            original, sizes = probe.original, {"train": probe.images, "val": probe.validation}
            examples = {split: size for split, size in sizes.items() if size is not None}
            if missing:
                warnings = self._foresee(probe, missing)
                self._estimate(probe)
                for line in warnings:
                    self.say(line)
        if self.folder is not None:
            examples = self.folder.begin(self.cells, original, examples)
            self.earlier = self.folder.earlier(self.cells)
        if self.outcomes:
            self.say(f"{len(self.outcomes)} of {len(self.cells)} cells are done already")
        numbers = {self.cells[i].label: i for i in missing}
        for job, record in self.crew.run(self._jobs(missing)):
            self._finish(numbers[job.cell.label], record)
        return self._result(original, examples)

    def _known_original(self) -> Figures | None:
        """The original's figures, of a cell that is done."""
        for found in self.outcomes.values():
            if found.figures is not None:
                return Figures(**found.figures["original"])
        return None

    # -- before the first cell -----------------------------------------------------------------------------------------

    def _foresee(self, probe: Probe, missing: Sequence[int]) -> list[str]:
        """Find out what each method costs under each budget, from another seed's cell or by short runs, and how long each cell
        will take. Returns what is said of them. What fails here is a cell's failure, which is found when it is measured."""
        seconds = {}
        for kind, several in self._kinds(self.outcomes).items():
            done = [figures for i in several if (figures := self.outcomes[i].figures) is not None]
            self.costs[kind] = SearchCost(done[0]["search"]["epoch"], done[0]["search"]["once"])
            seconds[kind] = statistics.fmean(figures["seconds"] for figures in done)
        kinds, warnings = self._kinds(missing), []
        new = [self.cells[several[0]] for kind, several in kinds.items() if kind not in self.costs]
        if new:
            self.say(f"measuring what the cells take: {count(len(new), 'short run')}")
        results = self.crew.run(Job(cell, foresee=True) for cell in new)
        for number, (job, record) in enumerate(results, start=1):
            found: Foreseen | None = record.get("foreseen")
            kind, told = job.cell.kind, f"without an estimate: {record.get('failed')}"
            if found is not None:
                self.costs[kind], seconds[kind] = found.cost, probe.seconds(found)
                warnings += [f"{kind}: {line}" for line in found.warnings]
                told = f"about {duration(seconds[kind])} for a cell"
            self.say(f"short run {number}/{len(new)}: {kind}, {told}")
        self.expected = {i: seconds.get(self.cells[i].kind, 0.0) for i in missing}
        return warnings

    def _kinds(self, cells: Iterable[int]) -> dict[str, list[int]]:
        """By method and budget."""
        found: dict[str, list[int]] = {}
        for i in cells:
            found.setdefault(self.cells[i].kind, []).append(i)
        return found

    def _estimate(self, probe: Probe) -> None:
        """Say how long the cells will take. Raises ConfigError if that is longer than the limit."""
        cells = len(self.expected)
        parallel, seconds = min(self.crew.size, cells), self._together(self.expected.values())
        text = (
            f"{count(cells, 'cell')} of {count(self.epochs, 'training pass')} over "
            f"{count(probe.images, 'image')}: about {duration(seconds)}"
            f"{f', {parallel} at a time' if parallel > 1 else ''} (a step takes {duration(probe.step)})"
        )
        if self.limit is not None and seconds > self.limit:
            raise ConfigError(
                f"{text}, which is longer than ", Setting("minutes", self.limit / 60), ". Take fewer methods, budgets or "
                "seeds, less compute for each (", Setting("epochs"), "), or more time.",
            )  # fmt: skip
        self.say(text)

    def _together(self, seconds: Iterable[float]) -> float:
        """How long cells take, each of which begins when a worker is free."""
        free = [0.0] * self.crew.size
        for one in seconds:
            heapq.heapreplace(free, free[0] + one)
        return max(free)

    # -- the cells -----------------------------------------------------------------------------------------------------

    def _jobs(self, missing: Sequence[int]) -> Iterator[Job]:
        for i in missing:
            now = time.monotonic()
            if self.limit is not None and now - self.began > self.limit:
                return
            cell, self.started[i] = self.cells[i], now
            yield Job(cell, self.costs.get(cell.kind), None if self.folder is None else self.folder.work(cell))

    def _finish(self, i: int, record: Record) -> None:
        cell = self.cells[i]
        record = json.loads(dump_json(record))  # as it is read from a file, numbers that are not finite included
        figures = record.get("figures")
        seconds = record.get("seconds") if figures is None else figures["seconds"]
        found = _outcome(cell, figures=figures, failed=record.get("failed"), seconds=seconds, versions=VERSIONS)
        self.outcomes[i] = found
        if self.folder is not None:
            self.folder.keep(cell, found)
        self.say(f"[{len(self.outcomes)}/{len(self.cells)}] {cell.label}: {self._said(found)}{self._left()}")

    def _said(self, found: Outcome) -> str:
        if found.figures is None:
            return f"failed: {found.failed}"
        one = Comparison((found,), Figures(**found.figures["original"]), self.settings)
        stages = [one.value(found.figures[stage]) for stage in ("cut", "calibrated", "recovered")]
        shown = " → ".join("-" if v is None else f"{v:.4g}" for v in stages)
        return f"{one.heading} {shown}, {duration(found.figures['seconds'])}"

    def _left(self) -> str:
        """How long the other cells will take: what was expected, at the pace of those that are done."""
        if len(self.outcomes) == len(self.cells):
            return ""
        done = [i for i in self.expected if i in self.outcomes and self.outcomes[i].figures is not None]
        took, expected = sum(self.outcomes[i].seconds or 0.0 for i in done), sum(self.expected[i] for i in done)
        pace, now = took / expected if took and expected else 1.0, time.monotonic()
        left = [
            max(0.0, pace * seconds - (now - self.started.get(i, now)))
            for i, seconds in self.expected.items() if i not in self.outcomes
        ]  # fmt: skip
        return f" · about {duration(self._together(left))} left"

    def _result(self, original: Figures | None, examples: Mapping[str, int]) -> Comparison:
        found = tuple(self.outcomes.get(i, _outcome(cell, failed=OUT_OF_TIME)) for i, cell in enumerate(self.cells))
        result = Comparison(found, original, self.settings, examples)
        if self.folder is not None:
            folder, every = self.folder.folder, replace(result, cells=(*found, *self.earlier))
            every.to_csv(folder / "comparison.csv")
            if can_plot() and any(row.recovered is not None for row in every.rows):
                every.plot(folder / "frontier.png")
            if can_render():
                every.report(folder / page.NAME, overwrite=True)
        return result


def _outcome(cell: Cell, **known: Any) -> Outcome:
    label, budget = cell.contestant.label, budget_text(cell.budget)
    return Outcome(method=label, budget=budget, limits=cell.limits, seed=cell.seed, **known)
