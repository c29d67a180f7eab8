from __future__ import annotations

import json
from pathlib import Path

import pytest

import secateurs as sc
from secateurs import artifact
from secateurs.runs.sources import DataSpec

NET = "zoo:small_cnn"


@pytest.fixture
def job(images: Path, weights: Path) -> tuple[object, ...]:
    tokens = ("sensitivity", NET, "--weights", weights, "--data", f"folder:{images}", "--batch-size", 16)
    return (*tokens, "--images", 8)


def test_the_table_and_the_file_that_prune_takes(run, job, images, weights, tmp_path):
    out = tmp_path / "s"
    ran = run(*job, "--share", 0.25, 0.5, "--method", "l1", "--drop", 100, "--out", out)
    assert ran.status == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].split() == ["group", "channels", "25%", "cut", "50%", "cut", "keep"]
    assert [line.split()[0] for line in lines[2:5]] == ["stem.0", "plain.0", "conv1"]
    assert [line.split()[-1] for line in lines[2:5]] == ["0.50"] * 3  # all of them tolerate the largest share
    assert "3 groups at 2 shares, each measured on 8 images, and again after calibration on 8" in ran.err
    assert "cut alone by l1, calibrated on 8 images" in ran.out
    assert (out / "sensitivity.png").exists()
    assert json.loads((out / "sensitivity.json").read_text())["settings"]["weights"] == artifact.digest(weights)
    net = ("inspect", NET, "--num-classes", 2)
    ran = run(*net, "--ratios", out / "sensitivity.json", "--ratios-drop", 100, "--ratio", "conv1=1")
    assert f"keeps 8 by --ratios {out}/sensitivity.json" in ran.out
    assert "kept whole by --ratio conv1=1" in ran.out
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"plain.0": 0.25}))
    pruned = run(
        "prune", NET, "--weights", weights, "--data", f"folder:{images}", "--method", "l1", "--ratios", own, "--recover",
        "none", "--out", tmp_path / "p",
    )  # fmt: skip
    assert pruned.status == 0, pruned.err
    assert json.loads((tmp_path / "p/run.json").read_text())["settings"]["weights"] == artifact.digest(weights)
    assert {n: len(k) for n, k in sc.Plan.from_json((tmp_path / "p/plan.json").read_bytes()).groups.items()} == {
        "plain.0": 8
    }


def test_a_study_bounds_what_a_budget_decides(run, job, images, weights, tmp_path):
    out = tmp_path / "s"
    ran = run(*job, "--share", 0.5, "--no-calibrate", "--out", out, "--scope", "all")
    assert ran.status == 0, ran.err
    file, net = out / "sensitivity.json", ("inspect", NET, "--num-classes", 2)
    ran = run(*net, "--max-cut", file, "--max-cut-drop", 100, "--max-cut", "conv1=0.25", "--max-cut", 0.9)
    assert "keeps at least 2 by --max-cut 0.9" in ran.out  # the last of several counts
    ran = run(*net, "--max-cut", 0.9, "--max-cut", file, "--max-cut-drop", 100, "--max-cut", "conv1=0.25")
    assert f"keeps at least 8 by --max-cut {file}" in ran.out
    assert "keeps at least 30 by --max-cut conv1=0.25" in ran.out
    prune = ("prune", NET, "--weights", weights, "--data", f"folder:{images}", "--method", "l1", "--recover", "none")
    ran = run(*prune, "--macs", 0.6, "--max-cut", file, "--max-cut-drop", 100, "--out", tmp_path / "p")
    assert ran.status == 0, ran.err
    card = json.loads((tmp_path / "p" / "card.json").read_text())
    assert 0.5 < card["after"]["macs"] / card["before"]["macs"] <= 0.6
    assert set(card["limits"]["max_cut"].values()) == {0.5}
    drop = ("--ratios", file, "--ratios-drop", 100, "--out", tmp_path / "q")
    said = " ".join(run(*prune, *drop).err.split())
    assert f"--ratios {file} cuts plain.3, but it is on a shortcut, and only --scope all cuts those" in said
    assert "The study was measured with --scope all: add it here, too." in said
    said = " ".join(run(*prune, *drop, "--scope", "all", "--macs", 0.1).err.split())
    assert f"Ratios fix how much is kept: with --max-cut {file} --max-cut-drop … the budget decides" in said
    assert "a drop above 100 allows more" in said
    assert "give --max-cut FILE.json" in run(*net, "--max-cut", 0.5, "--max-cut-drop", 1).err
    (tmp_path / "r.json").write_text('{"conv1": 0.5}')
    said = " ".join(run(*net, "--max-cut", tmp_path / "r.json").err.split())
    assert (
        "r.json is not what a sensitivity study wrote. Bounds of your own are given as --max-cut layer4.*=0.5." in said
    )


def test_few_images_are_warned_of(run, job):
    ran = run(*job, "--share", 0.5, "--no-calibrate")
    assert "points, one image is 12.50" in ran.out
    said = "warning: a drop of 1 point is within the noise: raise --images or --drop, or take --metric loss."
    assert said in ran.out
    assert "warning" not in run(*job, "--share", 0.5, "--no-calibrate", "--drop", 60).out


def test_it_resumes_and_replaces(run, job, tmp_path, monkeypatch):
    out = ("--out", tmp_path / "s")
    assert run(*job, *out, "--no-calibrate").status == 0
    with monkeypatch.context() as patch:
        patch.setattr(DataSpec, "load", lambda *_: pytest.fail("the data was loaded"))
        refused = run(*job, *out)
    assert (refused.status, "--resume continues it, --force replaces it" in refused.err) == (2, True)
    assert "differs in calibrate" in run(*job, *out, "--resume").err
    ran = run(*job, *out, "--resume", "--no-calibrate")
    assert ran.status == 0
    assert "sensitivity.json is finished already: nothing to do." in ran.err
    assert run(*job, *out, "--force").status == 0
    assert json.loads((tmp_path / "s/sensitivity.json").read_text())["calibrated_on"] == 8


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("--resume",), "--resume and --force are about what is in --out"),
        (("--share", "1.5"), "--share 1.5 is not valid"),
        (("--method", "aofp"), "--method aofp does not score channels"),
        (("--metric", "mIoU"), "--metric mIoU is not measured. Known: loss, top1, top5."),
    ],
)
def test_what_is_refused(run, job, tokens, message):
    ran = run(*job, *tokens)
    assert ran.status == 2
    assert message in " ".join(ran.err.split())


def test_an_untrained_network_is_refused(run):
    assert f"Without --weights {NET} is untrained" in run("sensitivity", NET).err


def test_files_of_ratios_that_are_none(run, tmp_path):
    file = tmp_path / "r.json"
    for content, message in (
        ('{"conv1": "half"}', "conv1 must have a fraction to keep"),
        ("[1]", "r.json is not valid"),
        ('{"format": "secateurs"}', "it is not what a sensitivity study wrote"),
        ('{"conv1": 2}', "conv1=2 is not valid: it must be a fraction above 0"),
    ):
        file.write_text(content)
        ran = run("inspect", NET, "--ratios", file)
        assert ran.status in (1, 2)
        assert message in " ".join(ran.err.split())
    file.write_text('{"conv1": 0.5}')
    assert "which no drop changes" in run("inspect", NET, "--ratios", file, "--ratios-drop", 1).err
    assert "give --ratios FILE" in run("inspect", NET, "--ratios-drop", 1).err
