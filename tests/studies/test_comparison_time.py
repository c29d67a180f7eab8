"""What is said of a comparison before and while it runs: how long it takes, and what its cells have too little compute for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.artifact import Figures
from secateurs.methods import Method, resolve
from secateurs.methods.pruner import TrainingMethod
from secateurs.studies.comparison.bench import Bench, Foreseen, Job, Probe, Record
from secateurs.studies.comparison.compute import SearchCost, divided, recovery_cost, search_cost
from secateurs.studies.comparison.contestants import Cell, Contestant
from secateurs.studies.comparison.folder import ComparisonFolder
from secateurs.studies.comparison.running import Running
from secateurs.studies.comparison.work import Network, Work
from secateurs.tasks.purpose import Purpose
from tests.studies.comparing import batches, tiny

ORIGINAL = Figures(macs=1000, params=100, top1=90.0)
L2 = 10 + 2 * 10 * 1.0 + 6 * 0.5  # seconds that are expected: once, 20 steps, 6 evaluations


@dataclass
class Clock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@dataclass
class Timed:
    """A crew on a clock of its own. cell: the seconds of one. fails: this seed's."""

    clock: Clock
    cell: Callable[[Job], float]
    size: int = 1
    fails: int | None = None
    jobs: list[Job] = field(default_factory=list)

    def prepare(self, cells: Sequence[Cell]) -> Probe:
        self.clock.now += 1000
        return Probe(ORIGINAL, step=1.0, evaluation=0.5, steps=10, images=100)

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Record]]:
        busy: list[tuple[float, Job]] = []
        while True:
            while len(busy) < self.size and (job := next(jobs, None)) is not None:
                self.jobs.append(job)
                busy.append((self.clock.now + (500 if job.foresee else self.cell(job)), job))
            if not busy:
                return
            self.clock.now, job = first = min(busy, key=lambda one: one[0])
            busy.remove(first)
            yield job, self._record(job)

    def _record(self, job: Job) -> Record:
        method = job.cell.contestant.method
        if job.foresee:
            once = 10.0 if method.name == "l2" else 77.0
            warnings = () if method.name == "l2" else ("too little",)
            return {"foreseen": Foreseen(SearchCost(0.0, 100.0, once), 3.0, 6, warnings)}
        if job.cell.seed == self.fails:
            return {"failed": "broken", "seconds": 0.0}
        stages = dict.fromkeys(("original", "cut", "calibrated", "recovered"), asdict(ORIGINAL))
        search = {"epoch": 0.0, "once": 100.0, "epochs": 0.0, "steps": 0}
        return {"figures": {**stages, "search": search, "passes": 3.0, "seconds": self.cell(job)}}

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("secateurs.studies.comparison.running.time", made)
    return made


def lines_of(
    crew: Timed,
    *methods: str,
    seeds: int = 4,
    limit: float | None = None,
    folder: Path | None = None,
    resume: bool = False,
) -> list[str]:
    cells = [Cell(Contestant.of(name), sc.Budget(macs=0.5), seed) for seed in range(seeds) for name in methods]
    kept, lines = None if folder is None else ComparisonFolder(folder, {}), []
    if kept is not None:
        kept.check(resume=resume, overwrite=False)
    Running(crew, cells, kept, {}, 3.0, limit, lines.append, began=crew.clock.now).run()
    return lines


def left(lines: Sequence[str]) -> list[str]:
    return [line.rpartition(" · about ")[2] for line in lines if line.startswith("[") and line.endswith("left")]


# -- how long it takes -------------------------------------------------------------------------------------------------


def test_what_is_done_once_is_in_the_estimate(clock: Clock) -> None:
    lines = lines_of(Timed(clock, lambda job: 11.0), "l2")
    assert lines[0] == "measuring what the cells take: 1 short run"
    assert lines[1] == "short run 1/1: l2, macs=0.5, about 33 s for a cell"
    assert lines[2].startswith("4 cells of 3 training passes over 100 images: about 2:12 (")  # 4 · 33 s
    assert L2 == 33


def test_what_is_left_goes_by_the_cells_and_not_by_the_preparation(clock: Clock) -> None:
    assert left(lines_of(Timed(clock, lambda job: 11.0), "l2")) == ["33 s left", "22 s left", "11 s left"]


def test_what_is_left_of_slower_methods(clock: Clock) -> None:
    """Of which 100 s are expected."""
    crew = Timed(clock, lambda job: 66.0 if job.cell.contestant.label == "l2" else 200.0)
    assert left(lines_of(crew, "l2", "epruner", seeds=2)) == ["7:46 left", "4:26 left", "3:20 left"]


def test_what_is_left_with_several_at_a_time(clock: Clock) -> None:
    lines = lines_of(Timed(clock, lambda job: 12.0 + job.cell.seed, size=2), "l2", seeds=5)
    assert lines[2].startswith("5 cells of 3 training passes over 100 images: about 1:39, 2 at a time")
    assert left(lines) == ["24 s left", "24 s left", "13 s left", "12 s left"]


def test_of_a_failed_cell_nothing_is_concluded(clock: Clock) -> None:
    crew = Timed(clock, lambda job: 11.0, fails=0)
    assert left(lines_of(crew, "l2")) == ["1:39 left", "22 s left", "11 s left"]


def test_nothing_is_run_that_is_expected_to_take_longer_than_the_limit(clock: Clock) -> None:
    crew = Timed(clock, lambda job: 11.0)
    with pytest.raises(sc.ConfigError, match=r"about 2:12 .* is longer than minutes=2\.18"):
        lines_of(crew, "l2", limit=131)
    assert all(job.foresee for job in crew.jobs)
    crew.jobs.clear()
    lines_of(crew, "l2", limit=1500 + 133)  # with the preparation
    assert sum(not job.foresee for job in crew.jobs) == 4


def test_when_time_is_over_no_cell_begins(clock: Clock, tmp_path: Path) -> None:
    lines = lines_of(Timed(clock, lambda job: 70.0), "l2", limit=1500 + 133, folder=tmp_path)
    assert [line[:5] for line in lines[3:]] == ["[1/4]", "[2/4]"]
    again = Timed(clock, lambda job: 70.0)
    lines = lines_of(again, "l2", folder=tmp_path, resume=True)
    assert [(job.foresee, job.cell.seed) for job in again.jobs] == [(False, 2), (False, 3)]
    assert lines[0].startswith("2 cells of 3 training passes over 100 images: about 2:20")  # as the others took


def test_seconds_of_what_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def prune(model: Any, inputs: Any, method: Method, *_: Any, **__: Any) -> Any:
        clock.now += 4
        steps = 0
        if isinstance(method, TrainingMethod):
            method.select(None)  # type: ignore[arg-type]
            steps = int(3 * method.epochs)  # type: ignore[attr-defined]
        clock.now += 6
        return SimpleNamespace(history=[{"train_loss": 1.0, "step": steps}])

    def select(method: sc.AOFP, _task: Any) -> None:
        assert method.epochs is not None
        clock.now += 3 * method.epochs

    monkeypatch.setattr(sc.AOFP, "select", select)
    monkeypatch.setattr("secateurs.studies.comparison.compute.prune", prune)
    monkeypatch.setattr("secateurs.studies.comparison.compute.time", SimpleNamespace(perf_counter=clock.monotonic))
    for name in ("l2", "aofp"):
        found = search_cost(tiny(), torch.zeros(1, 3, 8, 8), resolve(name), sc.Budget(macs=0.5), batches().train, 0)
        assert found.seconds == 10


# -- too little compute ------------------------------------------------------------------------------------------------


def bench(epochs: float, recover: Sequence[Any] = (sc.Recover(),)) -> Bench:
    torch.manual_seed(0)
    work = Work(Network(module=tiny()), torch.zeros(1, 3, 8, 8), batches(), Purpose(), tuple(recover), epochs=epochs)
    return Bench(work, "cpu")


@pytest.mark.parametrize("method", ["l2", "aofp"])
@pytest.mark.parametrize("recover", [(sc.Recover(),), (sc.Reconstruct(images=16), sc.Recover(share=0))])
def test_nothing_left_for_recovery(method: str, recover: tuple[Any, ...]) -> None:
    """As is said with enough compute, there is something left: as much as goes to what is done once."""
    cell = Cell(Contestant.of(method), sc.Budget(macs=0.5), 0)
    cost = bench(1.0).search_cost(cell)
    division = bench(1.0, recover).division(cell, cost)
    assert division.recovery[-1].epochs == 0  # type: ignore[attr-defined]
    line = division.warnings[-1]
    taken, enough, rest = (
        re.findall(r"[\d.]*\d", line)[0],
        *re.findall(r"With (\S+) epochs, it would get (\S+) p", line)[0],
    )
    assert float(taken) == pytest.approx(division.passes, rel=0.01)
    there = bench(float(enough), recover).division(cell, cost)
    assert there.warnings == ()
    last = there.recovery[-1]
    assert last.epochs * recovery_cost(last, 0.5, 32) == pytest.approx(float(rest), rel=0.1)  # type: ignore[attr-defined]
    assert there.passes == pytest.approx(float(enough))


def test_it_is_said_where_the_run_starts_in_the_cells_and_below_the_table() -> None:
    lines: list[str] = []
    options: dict[str, Any] = {"budgets": [0.5], "data": batches(), "report": lines.append}
    found = sc.compare(tiny(), methods=["l2"], seeds=2, epochs=0.5, **options)
    warned = [line for line in lines if "which leaves nothing for recovery" in line]
    assert [line.startswith("l2, macs=0.5: its search, cut and calibration take ") for line in warned] == [True]
    (line,) = found.cells[0].figures["warnings"]
    assert warned[0].endswith(line)
    assert found.notes[2:] == (f"l2, macs=0.5, all seeds: {line}",)


def test_what_is_foreseen() -> None:
    """Nothing of the user's is in it: a class of the main module has another name in another process."""
    found = bench(10.0).foresee(Cell(Contestant.of("l2"), sc.Budget(macs=0.5), 0))
    assert found.passes == pytest.approx(10)
    epochs = (10 - found.cost.once / 32) / (0.5 + 1 / 3)
    assert found.evaluations == 4 + math.ceil(epochs)
    assert found.cost.seconds > 0
    assert {type(value) for value in vars(found).values()} == {SearchCost, float, int, tuple}


def test_of_no_recovery_nothing_is_said() -> None:
    cell = Cell(Contestant.of("l2"), sc.Budget(macs=0.5), 0)
    there = bench(0.1, ())
    assert there.foresee(cell).warnings == ()


def test_a_search_of_less_than_a_step() -> None:
    cost = SearchCost(epoch=2.0, once=0.0)
    options: dict[str, Any] = {"cost": cost, "images": 100, "steps": 10, "width": 0.5, "recover": []}
    short = divided(resolve("aofp"), 0.25, 0.4, **options)
    assert short.warnings == (
        "its search gets 0.5 of a training step, and takes one. With 0.8 epochs it would get one.",
    )
    assert divided(resolve("aofp"), 0.25, 0.8, **options).warnings == ()
    assert divided(resolve("aofp", epochs=0.01), 0.25, 0.8, **options).warnings == ()  # as was asked
