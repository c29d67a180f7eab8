"""A comparison as an HTML page, from cells that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import secateurs as sc
from secateurs.report.page import render
from secateurs.studies.comparison.outcomes import NOT_RUN, Outcome
from tests.report.pages import Page
from tests.studies.comparing import made_up


@pytest.fixture
def comparison() -> sc.Comparison:
    return made_up()


def test_the_page_has_the_table_and_the_frontiers(comparison: sc.Comparison, tmp_path: Path) -> None:
    page = Page(comparison.report(tmp_path / "page.html").read_text())
    headings, lines = comparison.lines()
    assert [e.text for e in page.of("th")] == headings
    assert [e.text.strip() for e in page.of("td")] == [text for line in lines for text in line]
    assert len(page.of("figure")) == 2  # against the MACs and the parameters: no time was measured
    assert "zoo:resnet20" in page.text
    assert "finetune" in page.text
    assert all(note in page.text for note in comparison.notes)


def test_the_spread_over_seeds_is_drawn(comparison: sc.Comparison, tmp_path: Path) -> None:
    page = Page(comparison.report(tmp_path / "page.html").read_text())
    bars = [e.attributes["d"] for e in page.of("path") if (e.attributes.get("class") or "").startswith("spread")]
    assert len(bars) == 2 * 4  # methods × budgets, in both charts
    assert "Bars are ± one standard deviation over the seeds." in page.text
    one = replace(comparison, cells=tuple(cell for cell in comparison.cells if cell.seed == 0))
    page = Page(one.report(tmp_path / "one.html").read_text())
    assert "standard deviation" not in page.text
    assert not [e for e in page.of("path") if (e.attributes.get("class") or "").startswith("spread")]


def test_it_says_what_the_cells_were_measured_with(comparison: sc.Comparison, tmp_path: Path) -> None:
    first, second, *others = comparison.cells
    assert first.figures is not None
    measured = first.model_copy(
        update={"figures": {**first.figures, "machine": "this machine"}, "versions": {"secateurs": "1", "torch": "2"}}
    )
    cells = (measured, second.model_copy(update={"versions": {"secateurs": "1", "torch": "3"}}), *others)
    page = Page(replace(comparison, cells=cells).report(tmp_path / "page.html").read_text())
    facts = dict(zip([e.text for e in page.of("dt")], [e.text for e in page.of("dd")], strict=True))
    assert facts["images"] == "1,438 to train on, 359 to validate on"
    assert (facts["machine"], facts["versions"]) == ("this machine", "secateurs 1, torch 2 and 3")
    assert "To reproduce" not in page.text  # these settings are no record of a run


def test_columns_are_sorted_by_values(comparison: sc.Comparison, tmp_path: Path) -> None:
    page = Page(comparison.report(tmp_path / "page.html").read_text())
    headings, lines = comparison.lines()
    keys = [e.attributes.get("data-key") for e in page.of("td")]
    rows = [dict(zip(headings, keys[i : i + len(headings)], strict=True)) for i in range(0, len(keys), len(headings))]
    assert len(rows) == len(lines)
    assert (rows[0]["method"], rows[0]["recovered"], rows[0]["MACs"]) == ("", "90.0", "1000")
    (row,) = [row for row in rows if (row["method"], row["budget"]) == ("l2", "macs=0.3")]
    assert (row["recovered"], row["MACs"], row["seeds"]) == ("83.5", "300.0", "2")


def test_what_comes_from_outside_is_escaped(comparison: sc.Comparison, tmp_path: Path) -> None:
    page = Page(comparison.report(tmp_path / "page.html").read_text())
    assert not page.of("b")
    assert len(page.of("script")) == 1  # the page's own
    assert "<b>mine</b>" in page.text


def test_it_has_a_name_and_replaces_nothing(
    comparison: sc.Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert comparison.report() == Path("comparison.html")
    with pytest.raises(sc.ConfigError, match=r"comparison\.html already exists"):
        comparison.report()
    comparison.report(overwrite=True)
    monkeypatch.setattr(render, "find_spec", lambda name: None)
    with pytest.raises(sc.ConfigError, match="need jinja2"):
        comparison.report("other.html")


def test_what_was_not_run_is_no_failure(comparison: sc.Comparison) -> None:
    left = Outcome(method="pff", budget="macs=0.3", seed=0, failed=NOT_RUN)
    found = replace(comparison, cells=(*comparison.cells, left))
    last = {line[0]: line for line in found.lines()[1]}
    assert (last["aofp"][5], last["pff"][5]) == ("failed", "not run")
    assert "9 of 10 cells are done" in found.notes
    assert not any("cells are done" in note for note in comparison.notes)
