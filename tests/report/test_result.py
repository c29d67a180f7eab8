"""`result.report`: where it writes, what it refuses; and what results and graphs show in a notebook."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.calls import call
from secateurs.markup import Markup, html_table, tag
from secateurs.plans.widths import layer_widths
from secateurs.report.page import Run, render
from tests.networks import CASES, image
from tests.report.conftest import X, data, network, pruned
from tests.report.pages import Page


def test_it_returns_the_path(results: dict[str, sc.Result], tmp_path: Path) -> None:
    path = results["epruner"].report(tmp_path / "new" / "page.html")
    assert path == tmp_path / "new" / "page.html"
    assert Page(path.read_text()).panels


def test_it_has_a_name(results: dict[str, sc.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert results["l1"].report() == Path("report.html")
    assert (tmp_path / "report.html").exists()


def test_a_bench_is_shown(results: dict[str, sc.Result], tmp_path: Path) -> None:
    result = results["l1"]
    bench = sc.bench(network().eval(), result.model.eval(), X, seconds=0.01)
    assert f"{bench.speedup:.2f}×" in Page(result.report(tmp_path / "page.html", bench=bench).read_text()).text


def test_without_data_there_is_still_a_page(tmp_path: Path) -> None:
    result = sc.prune(network(), X, "l1", sc.Budget(macs=0.5))
    page = Page(result.report(tmp_path / "page.html").read_text())
    assert set(page.panels) == {"stages", "error", "widths", "record"}
    inexact = dataclasses.replace(result, error=float("nan"))
    assert "not verified" in Page(inexact.report(tmp_path / "other.html").read_text()).text


def test_what_exists_is_not_replaced(results: dict[str, sc.Result], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(sc.ConfigError, match=r"page\.html already exists: overwrite=True replaces it"):
        results["l1"].report(path)
    assert path.read_text() == "mine"
    results["l1"].report(path, overwrite=True)
    assert path.read_text().startswith("<!doctype html>")
    with pytest.raises(sc.ConfigError, match="is a folder: name a file"):
        results["l1"].report(tmp_path)
    with pytest.raises(sc.ConfigError, match=r"a report is: name a file that ends in \.html, such as .*x\.html"):
        results["l1"].report(tmp_path / "x.pdf")
    assert not (tmp_path / "x.pdf").exists()
    for wrong in (True, {"speedup": 2}, results["l1"]):
        with pytest.raises(
            sc.ConfigError, match=r"bench is an? .*: pass what sc\.bench\(model, result\.model, inputs\) returned"
        ):
            results["l1"].report(tmp_path / "y.html", bench=wrong)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(sc.ArtifactError, match="is a file: give a folder"):
        results["l1"].report(tmp_path / "file" / "page.html")


def test_without_jinja2(results: dict[str, sc.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "find_spec", lambda name: None)
    with pytest.raises(sc.ConfigError, match=r"need jinja2: pip install 'secateurs\[report\]'"):
        results["l1"].report(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
    assert "<table>" in results["l1"]._repr_html_()


@pytest.mark.parametrize("method", ["onestep", "epruner", "l1"])
def test_the_call_that_is_shown_repeats_the_result(method: str, results: dict[str, sc.Result]) -> None:
    result = results[method]
    text = call(Run.of("x", result.plan, result.card()).card)
    for shown, ours in (
        ("model = ...", "model = network()"), ("sc.Data(train=..., val=...)", "batches()"), ("torch.randn", "torch.zeros"),
        ("\n)", '\n    progress="silent",\n)'),
    ):  # fmt: skip
        assert shown in text
        text = text.replace(shown, ours)
    names: dict[str, Any] = {"network": network, "batches": data}
    exec(text, names)
    assert names["result"].plan.to_json() == result.plan.to_json()
    assert names["result"].after == result.after


def test_a_result_shows_itself(results: dict[str, sc.Result]) -> None:
    page = Page(f"<body>{results['l1']._repr_html_()}</body>")
    assert [row.text.strip() for row in page.of("tr")][1].startswith("before")
    assert f"{results['l1'].after.top1:.2f}" in page.text
    assert "masked ≡ sliced" in page.text
    heads = [
        e.text for e in Page(f"<body>{sc.prune(network(), X, 'l1', sc.Budget(macs=0.5))._repr_html_()}</body>").of("th")
    ]
    assert heads == ["", "MACs", "", "params", ""]


def test_a_graph_shows_itself() -> None:
    graph = sc.trace(CASES["residual"].make(), image())
    page = Page(f"<body>{graph._repr_html_()}</body>")
    assert len(page.of("tr")) == 1 + len(graph.groups)
    assert all(str(g.reason) in page.text for g in graph.groups if not g.prunable)


def test_names_are_escaped() -> None:
    model = network("<img src=x onerror=alert(1)>")
    graph = sc.trace(model, X)
    result = pruned("l1", model, recover=None)
    for shown in (graph._repr_html_(), html_table(["<b>"], [["'\"&<script>"]]), result._repr_html_()):
        assert not {"img", "script", "b"} & {e.name for e in Page(f"<body>{shown}</body>").elements}


def test_tags() -> None:
    assert tag("a", "<", Markup("<b></b>"), href='"x"', class_="y", data_z=None) == (
        '<a href="&quot;x&quot;" class="y">&lt;<b></b></a>'
    )
    assert tag("rect", x=1 / 3, stroke_width=2.0) == '<rect x="0.33" stroke-width="2"></rect>'


def test_widths_of_layers_of_other_kinds() -> None:
    parts = (nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1))
    model = nn.Sequential(*parts)
    graph = sc.trace(model, torch.zeros(1, 3, 8, 8))
    plan = graph.plan({"0": range(3), "1": range(4)})
    expected = {"0": (8, 3), "1": (6, 4), "2": (6, 4), "3": (2, 2)}
    assert layer_widths(sc.apply(model, plan), plan) == expected


def test_the_call_that_is_shown_names_what_is_not_on_record() -> None:
    """Without the user's loss and metrics it would run all the same, and measure something else."""
    model, inputs = network(), torch.zeros(1, 3, 16, 16)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets)

    result = sc.prune(
        model, inputs, "l1", sc.Budget(macs=0.6), data(), loss=loss, metrics={"own": loss}, calibrate=False, progress="silent"
    )  # fmt: skip
    text = call(Run.of("x", result.plan, result.card()).card)
    assert "    loss=...,\n    metrics=...,\n" in text
    assert "step=" not in text
    assert "forward=" not in text
    assert "    calibrate=False,\n" in text


def test_the_call_that_is_shown_names_the_task() -> None:
    result = sc.prune(network(), torch.zeros(1, 3, 16, 16), "l1", sc.Budget(macs=0.6), task="classification")
    assert '    task="classification",\n' in call(Run.of("x", result.plan, result.card()).card)
