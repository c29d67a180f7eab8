"""Whatever an artifact holds is text on the page, and nothing else: names of layers, classes, settings, events, paths."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

import secateurs as sc
from secateurs.calls import call, label
from secateurs.grammar import written
from secateurs.report.page import Run, html, write
from tests.report.conftest import network, pruned
from tests.report.pages import Page

HOSTILE = (
    "<script>hit=1</script>", "</script><script>hit=1</script>", "</style><img src=x onerror=hit=1>", "\"' onmouseover='hit=1",
    "<!--", "]]>", "{{ 7*7 }}{% if %}", "\u2028x", "javascript:hit=1", "&lt;b&gt;",
)  # fmt: skip
KNOWN = (
    "html head meta title style script body header main footer section details summary h1 h2 h3 p span a b i strong code pre "
    "button div ul li dl dt dd figure figcaption input output table thead tbody tr th td bdi svg g line path rect circle "
    "polygon text"
)


def check(source: str, *expected: str) -> None:
    """The page has no elements, scripts or handlers that are not ours, and shows the text."""
    page = Page(source)
    assert {e.name for e in page.elements} <= set(KNOWN.split())
    kinds = [e.attributes.get("type") for e in page.of("script")]
    assert kinds.count(None) == 1
    assert set(kinds) <= {None, "application/json"}
    assert len(page.of("style")) == 1
    for e in page.elements:
        assert not [name for name in e.attributes if name.startswith("on")]
        assert not (e.attributes.get("href") or "").strip().lower().startswith("javascript")
    everything = page.of("html")[0].text
    for text in expected:
        assert text in everything


@pytest.mark.parametrize("method", ["aofp", "npn", "epruner", "onestep"])
def test_names_of_layers(method: str) -> None:
    first, second = "<script>hit=1</script>", "'\"></style><img src=x onerror=hit=1>"
    result = pruned(method, network(first, second))
    run = Run.of("x", result.plan, result.card())
    check(html([run]), first, second)
    check(html([run, run]), first, second)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_texts_of_a_card(hostile: str, results: dict[str, sc.Result]) -> None:
    printable = hostile if hostile.isprintable() else "x"
    runs = []
    for name, result in results.items():
        card = json.loads(json.dumps(result.card()))
        card |= {
            "warnings": [printable], "versions": {printable: printable},
            "data": {"data": name + printable, "normalize": printable},
            "method": {"name": printable, printable: printable}, "task": {"name": printable},
            "source": {"spec": printable}, "recover": [{"mode": printable, "epochs": printable}],
            "limits": {"exclude": [printable]}, "budget": {printable: printable},
            "earlier": [{"method": printable, "before": card["before"]}],
        }  # fmt: skip
        card["signature"]["classes"] = [printable]
        for stage in ("before", "cut", "calibrated", "after"):
            card[stage]["metrics"] = {printable: 0.5}
        for entry in card["history"]:
            entry |= {k: printable for k in ("group", "reason", "phase") if k in entry}
            if "epoch" in entry:
                entry[printable] = 1.0
            for field in ("groups", "scores", "layers", "histograms"):
                if isinstance(entry.get(field), dict):
                    entry[field] = {f"{k}{printable}": v for k, v in entry[field].items()}
                elif entry.get("event") == "search" and field in entry:
                    entry[field] = [f"{k}{printable}" for k in entry[field]]
        run = Run.of(hostile, result.plan, card)
        run.command, run.notes, run.label = hostile, [hostile], label(run.card)
        runs.append(run)
    check(html(runs[:1]), hostile)
    check(
        html(runs),
        hostile,
        f"second{printable}",
        " ".join([printable, *written({printable: printable})]),
        f"{printable} on l1{printable}",
    )


def test_the_call_holds_no_code_of_a_card(
    results: dict[str, sc.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what it names imported."""
    (tmp_path / "theirs.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    evil = 'x=1); hit(); sc.prune("'
    card = json.loads(json.dumps(results["l1"].card()))
    card |= {
        "source": {"spec": evil, evil: evil}, "method": {"name": "python:theirs:Method", evil: evil}, "budget": {evil: evil},
        "limits": {evil: [evil], "exclude": [evil]}, "recover": [{"mode": "finetune", evil: evil, "lr": evil}], "scope": evil,
    }  # fmt: skip
    tree = ast.parse(call(Run.of("x", results["l1"].plan, card).card))
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert sorted(called) == ["sc.Budget", "sc.Data", "sc.Recover", "sc.build", "sc.prune", "torch.randn"]


def test_a_folder_with_such_a_name(folders: dict[str, Path], tmp_path: Path) -> None:
    name = "<img src=x onerror=hit=1>'\""
    folder = shutil.copytree(folders["l1"], tmp_path / name)
    check(html([Run.read(folder)]), name)


def test_data_with_a_path_that_is_not_utf8(results: dict[str, sc.Result], tmp_path: Path) -> None:
    card = {**json.loads(json.dumps(results["l1"].card())), "data": {"data": "folder:/d/\udcff"}}
    runs = [Run.of("x", results["l1"].plan, each) for each in (card, results["l1"].card())]
    check(write(runs, tmp_path / "page.html").read_text(encoding="utf-8"), "folder:/d/\\xff")
