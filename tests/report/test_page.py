"""The page of a run, and of several: what is on it, for each method, and that it needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import secateurs as sc
from secateurs.artifact import TIMINGS, save_timings
from secateurs.calls import call, label
from secateurs.report.page import Run, html
from secateurs.report.page.originals import caution, originals
from secateurs.report.page.several import appearance, legend, table
from tests.report.conftest import METHODS, X, network, pruned
from tests.report.pages import Page

COMMON = {"stages", "error", "widths", "curve", "record"}
OWN = {"aofp": "moves", "npn": "gates", "pff": "shapes", "onestep": "layers", "epruner": "exemplars"}


def edited(folder: Path, to: Path, edit: Any) -> Path:
    """A copy of an artifact with another card."""
    shutil.copytree(folder, to)
    card = json.loads((to / "card.json").read_text())
    edit(card)
    (to / "card.json").write_text(json.dumps(card))
    return to


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_its_panels(method: str, folders: dict[str, Path]) -> None:
    run = Run.read(folders[method])
    page = Page(html([run]))
    assert set(page.panels) == COMMON | ({OWN[method]} if method in OWN else set())
    assert run.notes == []
    assert f"pruned by {method}" in page.text


def test_the_figures_are_those_of_the_result(results: dict[str, sc.Result]) -> None:
    result = results["l1"]
    run = Run.of("x", result.plan, result.card())
    page = Page(html([run]))
    stages = next(e for e in page.of("section") if e.attributes.get("class") == "panel-stages").text
    for figures in (result.before, result.cut, result.calibrated, result.after):
        assert f"{figures.top1:.2f}" in stages
        assert f"{figures.loss:.3f}" in stages
    assert f"{result.error:.1e}" in page.text
    rows = {name: (before, after) for name, (before, after) in run.widths.items()}
    assert rows["first"] == (12, result.model.first.out_channels)  # type: ignore[union-attr]
    assert rows["fc"] == (4, 4)
    assert list(rows) == ["first", "second", "last", "fc"]


@pytest.mark.parametrize("method", METHODS)
def test_it_loads_nothing(method: str, folders: dict[str, Path]) -> None:
    source = html([Run.read(folders[method])])
    page = Page(source)
    for one in page.elements:
        assert one.name not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "srcset", "action", "background"} & one.attributes.keys()
        assert (one.attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttpRequest|WebSocket", source)
    assert "default-src 'none'" in source


def test_moves_lead_from_the_original_to_the_result(results: dict[str, sc.Result]) -> None:
    result = results["aofp"]
    (data,) = Page(html([Run.of("x", result.plan, result.card())])).data
    groups = next(h["groups"] for h in result.history if h.get("event") == "search")
    widths = list(data["sizes"])
    for changes in data["changes"]:
        for i, width in changes:
            widths[i] = width
    assert data["sizes"] == [12, 16, 16][: len(groups)]
    assert widths == [
        len(result.plan.groups.get(name, range(n))) for name, n in zip(groups, data["sizes"], strict=True)
    ]
    assert data["steps"][-1][1] == "the end"


def test_gates_are_counted(results: dict[str, sc.Result]) -> None:
    result = results["npn"]
    (data,) = Page(html([Run.of("x", result.plan, result.card())])).data
    assert {sum(bins) for bins in data["bins"]} == {12 + 16 + 16}
    (gates,) = (h for h in result.history if h.get("event") == "gates")
    assert {name: sum(bins) for name, bins in gates["histograms"].items()} == {"first": 12, "second": 16, "last": 16}


def test_an_artifact_of_an_earlier_version_has_fewer_panels(folders: dict[str, Path], tmp_path: Path) -> None:
    def older(card: dict[str, Any]) -> None:
        for name in ("budget", "scope", "recover", "seed", "signature", "calibrated", "history_version"):
            card.pop(name, None)
        for entry in card["history"]:
            for name in ("histogram", "histograms", "groups"):
                entry.pop(name, None)
        card["history"] = [h for h in card["history"] if h.get("event") not in ("search", "crucial")]

    for method in METHODS:
        run = Run.read(edited(folders[method], tmp_path / method, older))
        page = Page(html([run]))
        assert set(page.panels) >= COMMON
        assert not {"moves", "exemplars", "layers"} & set(page.panels)


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("search", {"sizes": "many"}), ("search", {"sizes": [1]}), ("search", {"macs": 0}), ("move", {"widths": [1]}),
        ("open", {"histogram": [-1, 2]}), ("gates", {"histograms": {"first": []}}), ("exemplars", {"groups": {"first": [99]}}),
        ("exemplars", {"groups": {"first": []}}), ("crucial", {"scores": {"first": "high"}}),
    ],
)  # fmt: skip
def test_entries_that_cannot_be_shown_are_named(
    event: str, fields: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    method = {"search": "aofp", "move": "aofp", "open": "npn", "gates": "npn", "exemplars": "epruner"}.get(
        event, "onestep"
    )

    def edit(card: dict[str, Any]) -> None:
        for entry in card["history"]:
            if entry.get("event") == event:
                entry |= fields

    run = Run.read(edited(folders[method], tmp_path / "run", edit))
    page = Page(html([run]))
    assert run.notes
    assert all(note in page.text for note in run.notes)


def test_an_inexact_cut_says_that_it_was_not_verified(folders: dict[str, Path], tmp_path: Path) -> None:
    run = Run.read(edited(folders["l1"], tmp_path / "run", lambda card: card.update(error=None)))
    page = Page(html([run]))
    assert "not verified" in page.text
    assert "masked ≡ sliced" not in page.text


def test_metrics_of_the_users_own_come_first_where_there_is_no_top1(results: dict[str, sc.Result]) -> None:
    card = json.loads(json.dumps(results["l1"].card()))
    for stage in ("before", "cut", "calibrated", "after"):
        card[stage] |= {"top1": None, "top5": None, "metrics": {"mIoU": 0.5 if stage == "before" else 0.4}}
    page = Page(html([Run.of("x", results["l1"].plan, card)]))
    assert "mIoU 0.4000 0.5000 → 0.4000 (−0.1000)" in page.text


def test_rounds_show_the_last_search_and_the_whole_training() -> None:
    result = pruned("aofp", rounds=2, recover=sc.Recover(epochs=1))
    page = Page(html([Run.of("x", result.plan, result.card())]))
    assert "after round 1" in page.text
    (data,) = page.data
    assert sum(data["sizes"]) < 12 + 16 + 16  # those of the second round
    assert [e.text for e in page.of("td")].count("fine-tuning") == 2


def test_a_budget_of_time_is_shown_as_it_was_kept(results: dict[str, sc.Result]) -> None:
    result = results["l1"]
    limit = {
        "target": {"runtime": "onnxruntime", "threads": 1},
        "goal": 0.6,
        "noise": 0.01,
        "predicted": 0.57,
        "ratio": 0.582,
        "before": 0.01,
        "after": 0.00582,
    }
    page = Page(html([Run.of("x", result.plan, {**result.card(), "latency": limit})]))
    assert "allowed 60.0% of the original's time on onnxruntime; 58.2% was measured (10 ms → 5.82 ms)" in page.text
    assert "Time 58.2% 10 → 5.82 ms on onnxruntime" in page.text
    beside = table(
        [Run.of("x", result.plan, {**result.card(), "latency": limit}), Run.of("y", result.plan, result.card())]
    )
    at = [name for name, _ in beside["heads"]].index("time")
    assert [row[at].text for row in beside["rows"]] == ["58.2%", "-"]
    assert "time" not in [name for name, _ in table([Run.of("y", result.plan, result.card())])["heads"]]
    run = Run.of(
        "x", result.plan, {**result.card(), "budget": {"latency": 0.6, "align": "auto", "target": limit["target"]}}
    )
    assert 'budget=sc.Budget(latency=0.6, target=sc.Target("onnxruntime", threads=1)),' in call(run.card)


def test_several_runs_are_compared(folders: dict[str, Path]) -> None:
    runs = [Run.read(folders[name]) for name in ("l1", "epruner", "onestep")]
    page = Page(html(runs))
    assert "3 pruned networks" in page.text
    rows = page.of("tr")
    assert [len(page.of("details", class_="run")), len(page.of("table", class_="sortable"))] == [3, 1]
    assert any("epruner" in row.text for row in rows)
    charts = [e.attributes["aria-label"] for e in page.of("svg", class_="chart")]
    assert {"Top-1 against MACs", "Top-1 against parameters"} <= set(charts)
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert all(f"#{one}" in {e.attributes.get("href") for e in page.of("a")} for one in ("run-1", "run-2", "run-3"))


def begun(result: sc.Result, **changes: Any) -> Run:
    """A run whose card is changed: `before` and `method` are merged, the rest is replaced."""
    card = json.loads(json.dumps(result.card()))
    for name in ("before", "method"):
        card[name] |= changes.pop(name, {})
    run = Run.of("x", result.plan, {**card, **changes})
    run.label = label(run.card)
    return run


def test_settings_and_seeds_tell_runs_of_one_method_apart(results: dict[str, sc.Result]) -> None:
    of = results["l1"]
    runs = [begun(of, seed=0), begun(of, method={"ranking": "layer"}, seed=0), begun(of, seed=7)]
    found = table(runs)
    heads = [head for head, _ in found["heads"]]
    assert heads[:3] == ["run", "method", "seed"]
    assert not {"network", "data"} & set(heads)
    rows = [[cell.text for cell in row[1:3]] for row in found["rows"]]
    assert rows == [["l1", "0"], ["l1 ranking=layer", "0"], ["l1", "7"]]
    looks = appearance(legend(runs))
    assert list(looks) == ["l1", "l1 ranking=layer"]
    assert len(set(looks.values())) == 2
    assert "seed" not in [head for head, _ in table(runs[:2])["heads"]]
    assert len(Page(html(runs)).of("details", class_="run")) == 3
    twice = begun(of, earlier=[{"method": "l2", "before": vars(of.before)}])
    assert table([twice, runs[0]])["rows"][0][1].text == "l2, then l1"


ASKED: dict[str, tuple[str, list[dict[str, Any]], list[str]]] = {
    "budgets": ("budget", [{"budget": {"macs": macs, "align": 1}} for macs in (0.5, 0.3)], ["macs 0.5", "macs 0.3"]),
    "alignment": (
        "budget", [{"budget": {"macs": 0.5, "align": 1}}, {"budget": {"macs": 0.5, "align": 8}}],
        ["macs 0.5, align 1", "macs 0.5, align 8"],
    ),
    "whether it recovered": (
        "recovery", [{"recover": []}, {"recover": {"mode": "finetune", "epochs": 2.0, "momentum": 0.9}}],
        ["none", "finetune epochs 2"],
    ),
    "how it recovered": (
        "recovery",
        [{"recover": [{"mode": "finetune", "epochs": 2.0, "ema": x, "momentum": 0.9}, {"mode": "mimic"}]} for x in (0.0, 0.9)],
        ["finetune epochs 2, ema 0, then mimic", "finetune epochs 2, ema 0.9, then mimic"],
    ),
    "limits": ("max cut", [{}, {"limits": {"exclude": ["a"], "max_cut": {"*": 0.5}}}], ["-", "*=0.5"]),
    "excluded": ("exclude", [{}, {"limits": {"exclude": ["a", "b.*"], "max_cut": {"*": 0.5}}}], ["-", "a b.*"]),
    "calibration": ("calibrate", [{"calibrate": False}, {}], ["no", "yes"]),
    "scope": ("scope", [{"scope": "all"}, {"scope": "internal"}], ["all", "internal"]),
    "batches": ("batch size", [{"data": {"data": "d", "batch_size": n}} for n in (128, 64)], ["128", "64"]),
    "a task": (
        "task", [{"task": {"name": "segmentation", "dice": dice, "ignore": 255}} for dice in (0.0, 1.0)],
        ["segmentation dice 0", "segmentation dice 1"],
    ),
    "versions": ("torch", [{"versions": {"torch": "2.1"}}, {"versions": {"torch": "2.13"}}], ["2.1", "2.13"]),
    "functions": ("functions", [{"functions": ["loss"]}, {}], ["loss", "-"]),
    "a schedule": ("schedule", [{"schedule": "cubic"}, {"schedule": "linear"}], ["cubic", "linear"]),
    "what a later version has": ("new setting", [{"new_setting": 1}, {"new_setting": 2}], ["1", "2"]),
    "of many parts": ("new: x", [{"new": {"x": 1, "y": 1}}, {"new": {"x": 2, "y": 1}}], ["1", "2"]),
    "long ones": ("only", [{"limits": {"only": ["ab" * 40, x]}} for x in "ab"], [f"{'ab' * 29}a… ({i})" for i in (1, 2)]),
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
def test_whatever_runs_were_asked_for_and_differs_has_a_column(what: str, results: dict[str, sc.Result]) -> None:
    head, changes, texts = ASKED[what]
    runs = [begun(results["l1"], **{"data": {"data": "d"}, **change}) for change in changes]
    found = table(runs)
    heads = [name for name, _ in found["heads"]]
    assert [row[heads.index(head)].text for row in found["rows"]] == texts
    others = {"exclude", "max cut"} - {head} if head in ("exclude", "max cut") else set()
    fixed = {name for name, _ in table([begun(results["l1"]), begun(results["l1"])])["heads"]}
    assert set(heads) - fixed == {head} | others
    assert head in [e.text for e in Page(html(runs)).of("th")]


def test_rounds_and_their_number_are_shown(results: dict[str, sc.Result]) -> None:
    rounds = pruned("l1", rounds=2, schedule="cubic", recover=None)
    assert 'schedule="cubic"' in call(begun(rounds).card)
    found = table([begun(rounds), begun(pruned("l1", recover=None))])
    at = [name for name, _ in found["heads"]].index("rounds")
    assert [[cell.text for cell in row[at : at + 2]] for row in found["rows"]] == [["2", "cubic"], ["1", "-"]]


def test_numbers_are_sorted_as_numbers(results: dict[str, sc.Result]) -> None:
    runs = [begun(results["l1"], data={"data": "d", "batch_size": n}) for n in (128, 64, None)]
    found = table(runs)
    at = [name for name, _ in found["heads"]].index("batch size")
    assert found["heads"][at] == ("batch size", True)
    assert [row[at].key for row in found["rows"]] == [128, 64, None]


def lines(page: Page) -> list[str]:
    """The frontiers of all charts."""
    return [e.text for e in page.of("title") if e.text.startswith("the best at each cost")]


def test_runs_of_other_networks_and_data_are_not_compared(results: dict[str, sc.Result]) -> None:
    of = results["l1"]
    small, digits = {"spec": "zoo:small_cnn"}, {"data": "digits"}
    same = [begun(of, source=small, data=digits), begun(of, source=small, data=digits, seed=1)]
    assert caution(same) == ""
    assert lines(Page(html(same))) == ["the best at each cost"] * 2
    other = [
        begun(of, source={"spec": "zoo:resnet20"}, data={"data": "folder:/d"}, seed=seed, before={"macs": 10**8})
        for seed in (0, 1)
    ]
    runs = [*same, *other]
    assert caution(runs) == "Not all of these runs can be compared: their networks and their data differ."
    found = table(runs)
    assert [head for head, _ in found["heads"]][2:5] == ["seed", "network", "data"]
    assert [cell.text for cell in found["rows"][3][3:5]] == ["zoo:resnet20", "folder:/d"]
    page = Page(html(runs))
    assert caution(runs) in page.text
    assert lines(page) == [f"the best at each cost: {name}" for name in dict.fromkeys(map(str, originals(runs)))] * 2
    assert set(legend(runs)) == {"l1, zoo:small_cnn on digits", "l1, zoo:resnet20 on folder:/d"}
    assert lines(Page(html([same[0], other[0]]))) == []  # one of each: there is nothing to join


def test_originals_of_one_name_with_other_figures_are_told_apart(results: dict[str, sc.Result]) -> None:
    of = results["l1"]
    loss = of.before.loss
    assert loss is not None
    runs = [
        begun(of), begun(of, before={"loss": loss * 1.0001}), begun(of, before={"loss": loss * 1.1}),
        begun(of, before={"macs": of.before.macs + 1}),
        begun(of, before={"loss": loss * 1.1}, functions=["loss"]),  # its own, so that it says nothing
        begun(of, before={"top1": None, "top5": None, "loss": None}),  # nothing was measured
    ]  # fmt: skip
    assert [one.network.removeprefix("custom network, original ") for one in originals(runs)] == list("112311")
    assert caution(runs) == "Not all of these runs can be compared: the figures of their originals differ."
    assert caution([runs[0], runs[1]]) == ""
    assert "network" in [head for head, _ in table(runs)["heads"]]


def test_a_method_that_is_not_known_shows_all_of_its_settings(results: dict[str, sc.Result]) -> None:
    assert (
        label(begun(results["l1"], method={"name": "theirs", "size": [1, 2]}).card)
        == "theirs ranking=global cost=0 size=[1,2]"
    )
    paper = sc.AOFP.preset("paper", epochs=40)
    assert label(begun(results["l1"], method={"name": "aofp", **paper.model_dump(mode="json")}).card) == (
        "aofp preset=paper epochs=40"
    )


def test_times_of_several_machines_are_not_in_one_plot(results: dict[str, sc.Result]) -> None:
    times = sc.bench(network().eval(), results["l1"].model.eval(), X, seconds=0.01).record()
    runs = []
    for machine in ("this", "this", "that"):
        record = json.loads(json.dumps(times))
        for row in record["rows"]:
            row["machine"] = machine
        runs.append(Run.of(machine, results["l1"].plan, results["l1"].card(), record))
    told = [e.text for e in Page(html(runs)).of("title") if "time on" in e.text]
    assert sum(text.startswith("this") for text in told) == 2
    assert not any(text.startswith("that") for text in told)


def test_measured_times_are_compared_with_the_macs_that_ran(results: dict[str, sc.Result]) -> None:
    """The original of a widened network is narrower than what was pruned, and inputs may have another size."""
    result = results["l1"]
    record = sc.bench(result.model.eval(), result.model.eval(), X, seconds=0.01).record()
    page = Page(html([Run.of("a", result.plan, result.card(), record)]))
    assert "MACs alone would give 1.00×." in page.text


def test_measured_times_are_shown_if_they_are_of_this_network(
    folders: dict[str, Path], results: dict[str, sc.Result], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["l1"], tmp_path / "run")
    bench = sc.bench(network().eval(), results["l1"].model.eval(), X, seconds=0.01)
    save_timings(folder, bench.record())
    run = Run.read(folder)
    page = Page(html([run]))
    assert "speed" in page.panels
    assert f"{bench.speedup:.2f}×" in page.text
    other = shutil.copytree(folders["epruner"], tmp_path / "other")
    shutil.copy(folder / TIMINGS, other / TIMINGS)
    run = Run.read(other)
    assert "speed" not in Page(html([run])).panels
    assert "of another network" in run.notes[0]
    (other / TIMINGS).write_text("{}")
    assert "The measured times are not shown" in Run.read(other).notes[0]
    with pytest.raises(sc.ArtifactError, match="would be replaced: move it"):
        save_timings(other, bench.record())
