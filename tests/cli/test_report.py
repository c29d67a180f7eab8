"""`secateurs report`: where it writes, what it refuses, and the command that it says repeats a run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.artifact import digest
from secateurs.runs import PruneRun
from secateurs.runs.command import _budget, command, shareable

NET = "zoo:small_cnn"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    result = sc.prune(sc.build(NET, num_classes=2), torch.randn(1, 3, 32, 32), "l1", sc.Budget(macs=0.5))
    return result.save(tmp_path_factory.mktemp("artifact") / "a")


def test_one_run_has_its_page_in_its_folder(run, artifact):
    ran = run("report", artifact)
    assert ran.status == 0, ran.err
    page = artifact / "report.html"
    assert ran.out.startswith(f"{page}: 1 run, ")
    assert "zoo:small_cnn pruned by l1" in page.read_text()
    again = run("report", artifact)
    assert again.status == 2
    assert "report.html already exists: --force replaces it" in again.err
    assert run("report", artifact, "--force").status == 0


@pytest.fixture
def other(artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(artifact, tmp_path / artifact.parent.name / artifact.name)


def test_several_runs_are_on_one_page(run, artifact, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run("report", artifact, other)
    assert ran.out.startswith("report.html: 2 runs, ")
    page = (tmp_path / "report.html").read_text()
    assert "2 pruned networks" in page
    names = re.findall(r'<span class="name">(.*?)</span>', page)  # the last two parts of both paths are the same
    assert len(set(names)) == 2
    assert all(name.endswith(f"{artifact.parent.name}/a") for name in names)
    assert run("report", artifact, other, "--out", tmp_path / "new" / "b.html").status == 0


def test_a_run_that_is_given_twice_is_shown_once(run, artifact, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(artifact)
    ran = run("report", artifact, other, f"{artifact}/", tmp_path / "link", artifact / "card.json")
    assert ran.out.startswith("report.html: 2 runs, ")
    told = "5 runs were given, some of them more than once: each is shown once."
    assert told in ran.err
    assert told in (tmp_path / "report.html").read_text()
    (other / "report.html").unlink(missing_ok=True)
    ran = run("report", other, other)  # one run, whose page is in its folder
    assert ran.out.startswith(f"{other / 'report.html'}: 1 run, ")


def test_a_comparison_by_its_file_and_among_runs(run, artifact, tmp_path):
    settings = {"model": NET, "data": "digits", "epochs": 1.0, "recover": []}
    body = {"format": "secateurs-comparison", "version": 1, "settings": settings, "original": {"macs": 1, "params": 1}}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "comparison.json").write_text(json.dumps(body))
    assert run("report", tmp_path / "c" / "comparison.json").out.startswith(
        f"{tmp_path / 'c' / 'comparison.html'}: 0 cells"
    )
    for given in (tmp_path / "c", tmp_path / "c" / "comparison.json"):
        ran = run("report", artifact, given, "--out", tmp_path / "page.html")
        assert (ran.status, ran.out) == (2, "")
        assert (
            f"{tmp_path / 'c'} is a comparison, which has a page of its own: `secateurs report {tmp_path / 'c'}`"
            in ran.err
        )


def test_runs_and_results_in_python(artifact, other, tmp_path, monkeypatch):
    result = sc.prune(sc.build(NET, num_classes=2), torch.randn(1, 3, 32, 32), "l1", sc.Budget(macs=0.4))
    monkeypatch.chdir(tmp_path)
    assert sc.report([artifact, str(other), result]) == Path("report.html")
    page = (tmp_path / "report.html").read_text()
    assert "3 pruned networks" in page
    assert "SmallCNN, 3" in page
    assert "result = sc.prune(" in page
    assert sc.report(artifact, "one.html").read_text().count('<details class="run"') == 0
    for wrong, told in (
        ([], "There is no run to report on"), ([3], "3 is not a run: pass the folder"), ({}, "There is no run"),
    ):  # fmt: skip
        with pytest.raises(sc.ConfigError, match=told):
            sc.report(wrong, "two.html")
    with pytest.raises(sc.ConfigError, match="already exists: overwrite=True replaces it"):
        sc.report([artifact])


def test_the_settings_of_a_method_are_its_label(run, artifact, tmp_path):
    layer = sc.prune(
        sc.build(NET, num_classes=2), torch.randn(1, 3, 32, 32), sc.L1(ranking="layer"), sc.Budget(macs=0.5)
    )
    layer.save(tmp_path / "layer")
    page = tmp_path / "page.html"
    assert run("report", artifact, tmp_path / "layer", "--out", page).status == 0
    assert "pruned by l1 ranking=layer to" in page.read_text()
    assert "pruned by l1 to" in page.read_text()


def test_what_is_not_a_run_is_refused(run, artifact, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text('{"finished": false, "settings": {}}')
    (tmp_path / "redesigned" / "pruned").mkdir(parents=True)
    (tmp_path / "redesigned" / "run.json").write_text('{"finished": true, "settings": {}}')
    (tmp_path / "redesigned" / "pruned" / "card.json").write_text("{}")
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared" / "comparison.json").write_text("{}")
    for folder, told in (
        ("compared", "it is not the record of a comparison"),
        ("missing", "There is no folder"), ("begun", "The run is not finished: --resume continues it."),
        (".", "is not a complete artifact"), ("redesigned", f"It holds an artifact: {tmp_path / 'redesigned' / 'pruned'}."),
    ):  # fmt: skip
        ran = run("report", tmp_path / folder, "--out", tmp_path / "page.html")
        assert ran.status == 1
        assert told in ran.err
    assert run("report").status == 2
    assert not (tmp_path / "page.html").exists()


def test_without_jinja2(run, artifact, tmp_path, monkeypatch):
    from secateurs.report.page import render

    monkeypatch.setattr(render, "find_spec", lambda name: None)
    ran = run("report", artifact, "--out", tmp_path / "page.html")
    assert ran.status == 2
    assert "Reports need jinja2: pip install 'secateurs[report]'" in ran.err


def test_times_that_bench_saved_are_on_the_page(run, artifact, tmp_path):
    asked = ("--target", "torch-cpu", "--seconds", 0.01, "--input", "3,20,28")
    assert run("bench", artifact, *asked, "--save").status == 0
    found = json.loads((artifact / "bench.json").read_text())
    page = tmp_path / "page.html"
    assert run("report", artifact, "--out", page).status == 0
    assert f"{found['rows'][0]['ratio']['median']:.2f}×" in page.read_text()
    assert "The inputs were 3×20×28." in page.read_text()
    (artifact / "bench.json").unlink()


RUNS: dict[str, dict[str, Any]] = {
    "plain": {"budget": sc.Budget(macs=0.5), "recover": sc.Recover(epochs=3)},
    "trained first": {"budget": sc.Budget(params=1000, align=4), "pretrain_epochs": 2, "recover": None, "seed": 7},
    "settings": {
        "method": sc.AOFP(epochs=1.5, theta=0.05), "budget": sc.Budget(macs=123456), "scope": "all", "allow_inexact": True,
        "calibrate": False, "num_classes": 2,
    },
    "names": {"method": sc.OneStep(crucial=("conv1", "conv 2")), "budget": sc.Budget(macs=0.5), "recover": sc.Mimic(epochs=1)},
    "knob": {"method": sc.EPruner(beta=0.73), "recover": [sc.Reconstruct(images=256), sc.Recover(epochs=2)]},
    "limits": {
        "budget": sc.Budget(macs=0.6), "exclude": ["conv1"], "ratios": {"conv2*": 0.5}, "min_channels": 4,
        "max_cut": {"*": 0.8}, "rounds": 3, "schedule": "cubic",
    },
    "recipes": {
        "budget": sc.Budget(macs=0.5), "recover": [
            sc.Mimic(epochs=1, lr=0.01, function="mse", nodes=("conv1", "conv2")),
            sc.Recover(epochs=2, lr=0.03, share=0.5, temperature=2, schedule="step", milestones=(1,), gamma=0.2, ema=0.99,
                       label_smoothing=0.1, weight_decay=1e-4),
        ],
    },
    "labels alone": {"budget": sc.Budget(macs=0.5), "recover": sc.Recover(epochs=2, share=0, temperature=2)},
    "task": {"budget": sc.Budget(macs=0.5), "task": "segmentation"},
    "time": {"budget": sc.Budget(latency=0.6, params=0.9, target=sc.Target("torch-cpu", threads=2))},
    "milliseconds": {"budget": sc.Budget(ms=1.5, align=1, target="torch-cpu")},
}  # fmt: skip


def record_of(run: PruneRun) -> dict[str, Any]:
    """What `run.json` has of it."""
    return json.loads(json.dumps(run._cut().record()))


@pytest.mark.parametrize("name", RUNS)
def test_the_command_makes_the_same_run(name, run, images, tmp_path, monkeypatch):
    folder, weights = tmp_path / "run", tmp_path / "w e i g h t s.safetensors"
    settings = dict(RUNS[name])
    if "pretrain_epochs" not in settings:
        from safetensors.torch import save_file

        save_file(sc.build(NET, num_classes=2).state_dict(), weights)
        settings["weights"] = weights
    data = sc.DataSpec(f"folder:{images}", normalize="none", batch_size=16)
    record = record_of(PruneRun(NET, data, folder, **settings))
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"finished": True, "settings": record}))
    found = command(folder)
    assert found is not None
    note, line = found.split("\n", 1) if found.startswith("#") else ("", found)
    assert (record["weights"] is None) == (note == "")
    assert str(record["weights"] or "") in note
    words = [str(weights) if word == "WEIGHTS.safetensors" else word for word in shlex.split(line.replace("\\\n", ""))]
    captured = []

    def start(self: PruneRun, **options: Any) -> None:
        captured.append(record_of(self))
        raise sc.SecateursError("not run")

    monkeypatch.setattr(PruneRun, "start", start)
    assert run(*words[1:]).err == "secateurs: not run\n"
    assert captured == [record]


def test_the_model_card_of_a_run_has_its_command(run, images, weights, tmp_path):
    out, again = tmp_path / "run", tmp_path / "again"
    given = ("--data", f"folder:{images}", "--batch-size", 16, "--method", "l1", "--macs", 0.5, "--recover", "none")
    assert run("prune", NET, "--weights", weights, *given, "--then", "l2:0.4", "--out", out).status == 0
    for folder, first in ((out / "1-l1", NET), (out, "PATH/1-l1")):
        page = (folder / "README.md").read_text()
        (code,) = re.findall(r"## How it was made\n\n```sh\n(.*?)\n```", page, re.DOTALL)
        assert f"secateurs prune {first}" in code
        assert f"--data folder:PATH/{images.name}" in code
        assert str(tmp_path) not in page
        assert str(images.parent) not in page
        assert (f"# WEIGHTS.safetensors: SHA-256 {digest(weights)}" in code) == (first == NET)
    PruneRun(NET, sc.DataSpec(f"folder:{images}", batch_size=16), again, method="l1", budget=sc.Budget(macs=0.5),
             weights=weights).start()  # fmt: skip
    page = (again / "README.md").read_text()
    assert "result = sc.prune(" in page
    assert "secateurs prune" not in page


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("digits", "digits"), ("hf:uoft-cs/cifar10?image=img", "hf:uoft-cs/cifar10?image=img"),
        ("folder:/home/me/cifar10", "folder:PATH/cifar10"), ("hf:/home/me/cifar10?image=img", "hf:PATH/cifar10?image=img"),
        ("coco:/home/me/coco?val=/home/me/val.json&train=train.json", "coco:PATH/coco?train=train.json&val=PATH/val.json"),
        ("wds:https://host/a-{0..9}.tar?token=1", None),
        ("wds:https://me:secret@host/x/a-{0..9}.tar,/data/b.tar?val=https://host/v.tar&classes=5",
         "wds:PATH/a-{0..9}.tar,PATH/b.tar?val=PATH/v.tar&classes=5"),
    ],
)  # fmt: skip
def test_what_others_see_of_a_data_spec(spec, shown):
    record = {
        "model": NET,
        "data": spec,
        "normalize": None,
        "batch_size": None,
        "image_size": None,
        "method": {"name": "l1"},
    }
    record |= {"budget": {"macs": 0.5}, "scope": None, "calibrate": True, "recover": None, "seed": 0}
    if shown is None:  # no spec
        assert shareable(record) is None
        return
    words = shlex.split(shareable(record).replace("\\\n", ""))
    assert words[words.index("--data") + 1] == shown


def test_a_file_puts_no_code_into_the_command(images, tmp_path, monkeypatch):
    """Nor is what it names imported."""
    (tmp_path / "theirs.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    record = record_of(PruneRun(NET, sc.DataSpec(f"folder:{images}"), tmp_path, budget=sc.Budget(macs=0.5)))
    evil = "x\n'; touch hit #"
    for change in (
        {"weights": evil}, {"model": evil}, {"data": evil}, {"scope": evil}, {"task": {"name": evil}},
        {"method": {"name": "python:theirs:Method", evil: evil}},
        {"budget": {"macs": evil, evil: 1}}, {"limits": {"exclude": [evil], "ratios": {evil: 0.5}}},
    ):  # fmt: skip
        (tmp_path / "run.json").write_text(json.dumps({"finished": True, "settings": {**record, **change}}))
        found = command(tmp_path)
        if found is not None:
            words = shlex.split(found.replace("\\\n", ""), comments=False)
            assert words[:2] == ["secateurs", "prune"]
            assert "touch" not in words
            assert any(evil in word for word in words)


def test_a_budget_of_time_as_options():
    target = {"runtime": "torch-cpu", "threads": 2}
    record = {"macs": 0.5, "params": None, "align": 8, "latency": 0.6, "target": target}
    assert [" ".join(words) for words in _budget(record)] == [
        "--macs 0.5", "--latency 0.6", "--align 8", "--target torch-cpu", "--target-set threads=2",
    ]  # fmt: skip
    assert list(_budget({"ms": 3.0, "align": "auto"})) == [["--ms", "3"]]


class Mine(sc.L1):
    """A method of the user's own."""


def test_what_is_in_python_only_is_in_no_command(images, tmp_path):
    def of(data: Any = f"folder:{images}", method: Any = "l1") -> str | None:
        record = record_of(PruneRun(NET, data, tmp_path, method=method, budget=sc.Budget(macs=0.5)))
        (tmp_path / "run.json").write_text(json.dumps({"finished": True, "settings": record}))
        return command(tmp_path)

    assert of(method=Mine()) is None
    assert of(data=sc.Data([(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))])) is None
    assert "--method python:tests.cli.test_report:Mine" in str(of(method="python:tests.cli.test_report:Mine"))


def test_a_run_that_no_command_makes_has_none(tmp_path):
    for settings in ({}, {"command": "redesign"}, {"model": "x"}, {"method": {"name": "nobody's"}}):
        (tmp_path / "run.json").write_text(json.dumps({"finished": True, "settings": settings}))
        assert command(tmp_path) is None
    (tmp_path / "run.json").write_text("{")
    assert command(tmp_path) is None
