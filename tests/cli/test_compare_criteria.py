from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

import secateurs as sc
from secateurs.cli.compare_criteria import _criteria
from secateurs.report import curves

measure = import_module("secateurs.studies.criteria.measure")
NET, LAYER = "zoo:small_cnn", "conv1"


@pytest.fixture
def job(images: Path, weights: Path) -> tuple[object, ...]:
    tokens = ("compare-criteria", NET, "--weights", weights, "--data", f"folder:{images}", "--batch-size", 16)
    return (*tokens, "--layer", LAYER, "--examples", 8, "--val-examples", 8)


def test_table_curves_and_picture(run, job, tmp_path):
    ran = run(*job, "--criteria", "oracle-degraded, aofp,taylor,l1", "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    rows = [line.split()[0] for line in ran.out.splitlines()[2:6]]
    assert rows == ["oracle-degraded", "aofp", "taylor", "l1"]
    assert "40 channels, top-1" in ran.out
    assert "[2/4] aofp" in ran.err
    saved = json.loads((tmp_path / "r" / "curves.json").read_text())
    assert saved["settings"]["layer"] == LAYER
    assert list(saved["curves"]) == rows
    for curve in saved["curves"].values():
        assert len(set(curve["order"])) == 39
        assert len(curve["top1"]) == len(curve["loss"]) == 40
        assert curve["area"] == pytest.approx(sum(curve["top1"]) / 40)
        assert all(0 <= x <= 100 for x in curve["top1"])
    assert saved["curves"]["oracle-degraded"]["examples"] == 40 * 8
    assert (tmp_path / "r" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_costly_one_only_on_request(run, job, monkeypatch):
    asked = []

    def spy(task, layer, name, **options):
        asked.append((name, layer, options["examples"], options["validation"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "one_by_one", spy)
    for name in ("oracle-10x", "l1"):
        assert run(*job, "--criteria", name).status == 130
    assert asked == [("oracle-10x", LAYER, 8, 8), ("l1", LAYER, 8, 8)]
    assert set(measure.criteria()) - set(_criteria(None)) == {"oracle-10x"}


def test_a_layer_within_a_group(run, job):
    """`plain.3` and `conv2` make the channels of one group."""
    job = tuple("conv2" if token == LAYER else token for token in job)
    ran = run(*job, "--criteria", "index")
    assert ran.status == 0, ran.err
    assert f"{NET}, plain.3: 40 channels" in ran.out
    assert "saved" not in ran.out


def test_resumed_it_measures_what_is_missing(run, job, tmp_path, monkeypatch):
    out = ("--out", tmp_path / "r")
    assert run(*job, "--criteria", "l1,oracle-degraded", *out).status == 0
    first = json.loads((tmp_path / "r" / "curves.json").read_text())["curves"]
    refused = run(*job, "--criteria", "l1", *out)
    assert refused.status == 2
    assert "--resume adds to it, --force replaces it" in refused.err
    ran = run(*job, "--criteria", "l1,random,oracle-degraded", *out, "--resume")
    assert ran.status == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines()[2:5]] == ["l1", "random", "oracle-degraded"]
    assert "random" in ran.err
    assert "oracle-degraded" not in ran.err
    now = json.loads((tmp_path / "r" / "curves.json").read_text())["curves"]
    assert {k: now[k] for k in first} == first
    short = json.loads((tmp_path / "r" / "curves.json").read_text())
    short["curves"]["l1"]["top1"].pop()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "curves.json").write_text(json.dumps(short))
    damaged = run(*job, "--criteria", "l1", "--out", tmp_path / "s", "--resume")
    assert damaged.status == 1
    assert "'curves.l1.top1' has 39 values, expected 40, one for each channel of conv1. --force starts" in damaged.err
    other = run(*job, "--seed", 3, *out, "--resume")
    assert other.status == 2
    assert "differs in seed" in other.err
    assert run(*job, "--seed", 3, "--criteria", "l1", *out, "--force").status == 0
    both = run(*job, "--seed", 3, "--criteria", "l1", *out, "--force", "--resume")
    assert both.status == 2
    assert "mutually exclusive" in both.err


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("curves.png", "mine", "already exists and was not written by this command"),
        ("curves.json", "{", "is not valid JSON"),
        ("curves.json", '{"settings": 1, "curves": {}}', "is not valid: field 'settings'"),
    ],
)
def test_what_somebody_else_wrote_is_never_replaced(run, job, tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    (tmp_path / "curves.tmp").write_text("mine")
    for flag in ((), ("--force",), ("--resume",)):
        ran = run(*job, "--criteria", "l1", "--out", tmp_path, *flag)
        assert ran.status == (2 if name == "curves.png" else 1)
        assert f"{tmp_path / name} {reason}" in ran.err
        assert "give another --out" in ran.err
        assert (tmp_path / name).read_text() == text
    (tmp_path / name).unlink()
    assert run(*job, "--criteria", "l1", "--out", tmp_path).status == 0
    assert (tmp_path / "curves.tmp").read_text() == "mine"


def test_without_matplotlib_that_is_said_first(run, job, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    ran = run(*job, "--criteria", "l1", "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    assert "pip install 'secateurs[report]'" in ran.err.splitlines()[0]
    assert (tmp_path / "r" / "curves.json").is_file()
    assert not (tmp_path / "r" / "curves.png").exists()
    assert "curves.png" not in ran.out
    with pytest.raises(sc.ConfigError, match="matplotlib"):
        curves.plot(tmp_path / "x.png", {"a": ([0, 1], [0, 1])})


def test_pictures_are_drawn_in_any_format(tmp_path):
    many = {f"c{i}": (range(3), [i, 2, 3]) for i in range(20)}
    for suffix, begin in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        path = curves.plot(tmp_path / f"p{suffix}", many, title="t", x="x", y="y")
        assert path.read_bytes().startswith(begin)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("--layer", "conv11"), "no channel group 'conv11'. Did you mean conv1"),
        (("--layer", "fc"), "The channels of fc cannot be cut: "),
        (("--criteria", "l1,taylr"), "there is no criterion 'taylr'. Did you mean taylor"),
        (("--criteria", " ,"), "--criteria names none. Known: oracle, "),
        (("--examples", 0), "--examples"),
    ],
)
def test_refused_before_any_work(run, job, tokens, message, monkeypatch):
    monkeypatch.setattr(measure, "one_by_one", lambda *a, **k: pytest.fail("work was done"))
    ran = run(*job, *tokens) if tokens[0] != "--layer" else run(*job[:8], *job[10:], *tokens)
    assert ran.status in (1, 2)
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1


def test_weights_are_asked_for(run, images):
    ran = run("compare-criteria", NET, "--data", f"folder:{images}", "--layer", LAYER)
    assert ran.status == 2
    assert "Without --weights" in ran.err
