"""The table, files and plot of a comparison under budgets of time, from figures that are made up."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

import secateurs as sc
from secateurs.artifact import Figures
from secateurs.studies.comparison import result
from secateurs.studies.comparison.contestants import Cell, Contestant
from secateurs.studies.comparison.outcomes import Outcome, Spread

ORIGINAL = Figures(macs=1000, params=200, top1=90.0)
CPU = {"runtime": "torch-cpu", "threads": 1}


def cell(
    method: str, ratio: float | None, *, budget: sc.Budget | None = None, seed: int = 0, goal: float = 0.8,
    noise: float = 0.01, before: float = 0.004, target: Any = CPU, top1: float = 80.0,
) -> Outcome:  # fmt: skip
    """ratio: None without a measured time."""
    network = {"macs": 500, "params": 150, "top1": top1, "top5": None, "loss": 1.0, "metrics": {}}
    latency = {
        "target": target, "goal": goal, "ratio": ratio, "noise": noise, "before": before, "after": (ratio or 0) * before
    }  # fmt: skip
    figures: dict[str, Any] = dict.fromkeys(("cut", "calibrated", "recovered"), network)
    figures |= {"passes": 1.0, "seconds": 2.0} | ({} if ratio is None else {"latency": latency})
    one = Cell(Contestant.of(method), budget or sc.Budget(latency=0.8), seed)
    text = " ".join(f"{name}={value:g}" for name, value in one.limits.items())
    return Outcome(method=method, budget=text, seed=seed, limits=one.limits, figures=figures)


def comparison(*cells: Outcome) -> sc.Comparison:
    return sc.Comparison(cells, ORIGINAL)


def times(found: sc.Comparison) -> list[str]:
    """The column of the rows."""
    headings, lines = found.lines()
    return [line[headings.index("time")] for line in lines[1:]]


def axis(found: sc.Comparison, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[float]]:
    """The label of the plot's x axis, and where the points are."""
    drawn: list[Any] = []
    monkeypatch.setattr(result, "frontier", lambda path, lines, original, *, x, y: drawn.extend([x, lines]) or path)
    found.plot("frontier.svg")
    return drawn[0], [point[0] for points in drawn[1].values() for point in points]


# -- the budget and what was measured ----------------------------------------------------------------------------------


def test_a_row_that_is_over_the_budget_is_marked() -> None:
    found = comparison(cell("l2", 0.79), cell("random", 0.79), cell("random", 0.837, seed=1), cell("l1", 0.857))
    assert [row.held for row in found.rows] == ["yes", "no", "no"]
    assert times(found) == ["79.0%", "* 81.3% ± 3.3%", "* 85.7%"]
    assert "* 85.7%" in found.table()
    told = "* over the budget of time by more than the noise of the measurement"
    alike = "the seeds made no difference to random, latency=0.8: "
    assert [note for note in found.notes[1:] if not note.startswith(alike)] == [f"{told}, with one seed or more"]
    assert told in found.html()
    assert comparison(found.cells[3]).notes[1:] == (told,)


def test_within_the_noise_there_is_another_mark() -> None:
    found = comparison(
        cell("l2", 0.8), cell("l1", 0.843, noise=0.052), cell("l1", 0.79, seed=1), cell("random", 0.843, noise=0.05),
        cell("random", 0.843, noise=0.052, seed=1), cell("index", None),
    )  # fmt: skip
    assert [row.held for row in found.rows] == ["yes", "unsure", "no", None]
    assert [time[:3] for time in times(found)] == ["80.", "? 8", "* 8", ""]
    assert [note[0] for note in found.notes[1:3]] == ["*", "?"]
    told = "? measured over the budget of time by no more than the noise, with one seed or more"
    assert comparison(*found.cells[1:3]).notes[1] == told


def test_nothing_is_said_of_rows_within_the_budget() -> None:
    assert len(comparison(cell("l2", 0.8), cell("random", None)).notes) == 1


@pytest.mark.parametrize(
    ("budget", "goal", "ratio", "held"),
    [
        (sc.Budget(latency=1.0), 1.0, 1.05, "no"),
        (sc.Budget(ms=3.0), 0.75, 0.74, "yes"),
        (sc.Budget(ms=3.0), 0.75, 0.78, "no"),
        (sc.Budget(ms=5.0), 1.0, 1.05, "yes"),  # slower than the original's 4 ms, and within the budget
        (sc.Budget(ms=5.0), 1.0, 1.3, "no"),
        (sc.Budget(latency=1.0, ms=5.0), 1.0, 1.05, "no"),
    ],
)
def test_budgets_of_milliseconds(budget: sc.Budget, goal: float, ratio: float, held: str) -> None:
    assert cell("l2", ratio, budget=budget, goal=goal).held == held


def test_the_time_has_its_deviation() -> None:
    found = comparison(cell("l2", 0.78), cell("l2", 0.8, seed=1))
    assert times(found) == ["79.0% ± 1.4%"]


def test_the_files_have_milliseconds() -> None:
    found = comparison(cell("l2", 0.75), cell("l2", 0.85, seed=1), cell("random", None))
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [line["held"] for line in lines] == ["yes", "no", ""]
    names = ("latency", "latency_goal", "latency_noise", "ms_before", "ms_after")
    assert [float(lines[0][name]) for name in names] == pytest.approx([0.75, 0.8, 0.01, 4.0, 3.0])
    assert {lines[2][name] for name in names} == {""}
    row, other = json.loads(found.to_json())["rows"]
    assert row["ms_before"] == {"mean": 4.0, "sd": 0.0}
    assert row["ms_after"]["mean"] == pytest.approx(3.2)
    assert row["held"] == "no"
    assert (other["ms_before"], other["held"]) == (None, None)
    assert found.rows[0].ms_before == Spread(4.0, 0.0)


def test_a_cell_knows_what_its_budget_limits() -> None:
    def limits(budget: sc.Budget) -> dict[str, float]:
        return Cell(Contestant.of("l2"), budget, 0).limits

    assert limits(sc.Budget(macs=0.5, params=100, align=8)) == {"macs": 0.5, "params": 100}
    assert limits(sc.Budget(latency=0.6, target="torch-cpu")) == {"latency": 0.6}
    assert limits(sc.Budget(ms=3.0)) == {"ms": 3.0}


# -- the plot ----------------------------------------------------------------------------------------------------------


def test_the_plot_is_over_what_the_budgets_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    macs, params, both = sc.Budget(macs=0.5), sc.Budget(params=0.75), sc.Budget(macs=0.5, params=0.75)
    timed, ms = cell("l2", 0.8), cell("l2", 0.6, budget=sc.Budget(ms=2.4))
    for cells, label, points in (
        ([cell("l2", None, budget=macs)], "MACs, % of the original's", [50.0]),
        ([cell("l2", None, budget=params)], "parameters, % of the original's", [75.0]),
        ([timed, ms], "time, % of the original's", [80.0, 60.0]),
        ([cell("l2", None, budget=both)], "MACs, % of the original's", [50.0]),
        ([timed, cell("l2", None, budget=macs)], "MACs, % of the original's", [50.0, 50.0]),
        ([timed, cell("l1", 0.8, target={"runtime": "onnxruntime"})], "MACs, % of the original's", [50.0, 50.0]),
    ):
        x, at = axis(comparison(*cells), monkeypatch)
        assert (x, at) == (label, pytest.approx(points))


def test_without_the_original_the_plot_has_absolute_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sc.Comparison((cell("l2", None, budget=sc.Budget(params=0.75)),))
    assert axis(found, monkeypatch) == ("parameters", [150.0])
    assert axis(sc.Comparison((cell("l2", 0.75),)), monkeypatch) == ("time, % of the original's", [75.0])


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = comparison(cell("l2", 0.8), cell("l1", 0.7)).plot(tmp_path / "f.svg").read_text()
    with pytest.raises(sc.ArtifactError, match=r"f\.svg/g\.svg could not be written"):
        comparison(cell("l2", 0.8)).plot(tmp_path / "f.svg" / "g.svg")
    assert "time, % of the original's" in text


def test_a_figure_that_is_not_finite_is_not_silently_left_out_of_the_mean() -> None:
    fine, other = cell("l2", None), cell("l2", None, seed=1)
    assert not comparison(fine, other).rows[0].warnings
    assert other.figures is not None
    lost = {**other.figures, "recovered": {**other.figures["recovered"], "top1": None}}
    found = comparison(fine, other.model_copy(update={"figures": lost})).rows[0]
    assert (found.seeds, found.recovered) == (2, Spread(80.0, None))
    assert found.warnings == ("seed 1: top-1 % (recovered) is not a finite number, and not in the mean",)
