from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import secateurs as sc

NET = "zoo:small_cnn"


@pytest.fixture(scope="module")
def artifact(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from secateurs.cli import main

    out = tmp_path_factory.mktemp("run") / "r"
    settings = ("--method", "l1", "--macs", "0.5", "--pretrain-epochs", "2", "--recover-epochs", "1")
    assert main(["prune", NET, "--data", f"folder:{images}", "--normalize", "none", *settings, "--out", str(out)]) == 0
    return out


def test_an_artifact_measures_what_its_card_says(run, artifact):
    ran = run("evaluate", artifact)
    assert ran.status == 0, ran.err
    assert "measured now" in ran.out
    assert "on the card" in ran.out
    found = json.loads(run("evaluate", artifact, "--json").out)
    for name in ("macs", "params", "top1", "top5"):
        assert found["measured"][name] == found["card"]["after"][name]
    assert found["measured"]["loss"] == pytest.approx(found["card"]["after"]["loss"])
    assert found["measured"]["examples"] == 16


def test_other_data_and_another_builder(run, artifact, images):
    ran = run("evaluate", artifact, "--data", "digits")
    assert ran.status == 1
    assert "2 outputs and the data 10 classes: give the data that it was pruned for." in ran.err
    ran = run("evaluate", artifact, "--num-classes", 2)
    assert ran.status == 2
    assert "--num-classes requires --model" in ran.err
    ran = run("evaluate", artifact, "--model", NET, "--num-classes", 2, "--data", f"folder:{images}")
    assert ran.status == 0, ran.err


def _smooth(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def test_a_loss_and_metrics_of_ones_own(run, images, tmp_path):
    """They are not on the card; the accuracy can be measured all the same."""
    spec = f"folder:{images}"
    data = sc.data.load(spec, normalize="none")
    for name, functions in (("loss", {"loss": _smooth}), ("metric", {"metrics": {"error": _smooth}})):
        result = sc.prune(
            sc.build(NET, num_classes=2),
            torch.zeros(1, *data.input_shape),
            "l1",
            sc.Budget(macs=0.6),
            data,
            **functions,
        )
        result.save(tmp_path / name)
        ran = run("evaluate", tmp_path / name, "--data", spec, "--normalize", "none", "--json")
        assert ran.status == 0, ran.err
        assert f"measured with functions of its own ({next(iter(functions))})" in ran.err
        assert "measured here as the task classification is" in ran.err
        found = json.loads(ran.out)
        assert found["measured"]["top1"] == found["card"]["after"]["top1"] is not None
        assert (found["measured"]["loss"] is None) == (name == "loss")
    ran = run("evaluate", tmp_path / "loss", "--data", spec, "--normalize", "none")
    assert "measured now" in ran.out
    ran = run(
        "evaluate", tmp_path / "loss", "--data", spec, "--normalize", "none", "--task", "classification", "--json"
    )
    assert json.loads(ran.out)["measured"]["loss"] is not None
    ran = run("evaluate", tmp_path / "loss", "--data", "digits")
    assert ran.status == 2
    assert "as a classifier it cannot be measured: It has 2 outputs and the data 10 classes" in ran.err
    assert "Measure it in Python, or give --task" in ran.err


def test_any_network_with_its_weights(run, images, tmp_path):
    save_file(sc.build(NET, num_classes=2).state_dict(), tmp_path / "w.safetensors")
    args = ("--model", NET, "--weights", tmp_path / "w.safetensors", "--data", f"folder:{images}")
    ran = run("evaluate", *args)
    assert ran.status == 0, ran.err
    assert "on the card" not in ran.out


def test_it_says_what_it_measured_on(run, artifact, images):
    assert f"folder:{images}, not normalized" in run("evaluate", artifact).out
    found = json.loads(run("evaluate", artifact, "--normalize", "cifar10", "--json").out)["measured"]
    assert (found["data"], found["normalize"]) == (f"folder:{images}", "cifar10")


def test_the_card_names_its_data_for_any_working_directory(run, images, tmp_path, monkeypatch):
    rest = ("--pretrain-epochs", 0, "--method", "l1", "--macs", 0.5, "--recover", "none", "--out", tmp_path / "r")
    monkeypatch.chdir(images.parent)
    assert run("prune", NET, "--data", f"folder:{images.name}", *rest).status == 0
    monkeypatch.chdir(tmp_path)
    ran = run("evaluate", "r")
    assert ran.status == 0, ran.err
    ran = run("prune", NET, "--data", f"folder:{images}", *rest, "--resume")
    assert "finished already" in ran.err  # the same data by another name


def _changed(artifact: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(artifact, target)
    card = json.loads((target / "card.json").read_text())
    (target / "card.json").write_text(json.dumps({**card, **changes}))
    return target


def test_a_card_that_names_no_data(run, artifact, images, tmp_path):
    folder = _changed(artifact, tmp_path / "r", data=None)
    ran = run("evaluate", folder)
    assert ran.status == 2
    assert "does not say which data it is for: give --data" in ran.err
    assert run("evaluate", folder, "--data", f"folder:{images}").status == 0


def test_data_that_is_there_no_more(run, artifact, tmp_path):
    ran = run("evaluate", _changed(artifact, tmp_path / "r", data={"data": "folder:/nowhere"}))
    assert ran.status == 1
    assert "no folder /nowhere" in ran.err
    assert "--data overrides it" in ran.err


def test_a_card_that_names_no_builder(run, artifact, tmp_path):
    folder = _changed(artifact, tmp_path / "r", source=None)
    ran = run("evaluate", folder)
    assert ran.status == 2
    assert "does not say how to build its network: give --model, such as --model python:package.module:Net." in ran.err
    assert run("evaluate", folder, "--model", NET, "--num-classes", 2).status == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"after": "x"},
        {"before": {"macs": 1}},
        {"cut": {"macs": 1, "params": 2, "top1": "high"}},
        {"source": {"spec": 3}},
        {"source": "zoo:small_cnn"},
        {"data": ["digits"]},
        {"data": {"data": 3}},
        {"data": {"data": "digits", "batch_size": "many"}},
    ],
)
def test_a_damaged_card_is_one_message(run, artifact, tmp_path, changes):
    ran = run("evaluate", _changed(artifact, tmp_path / "r", **changes))
    assert ran.status == 1
    assert "card.json is not valid: field" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_damaged_images_are_counted(run, artifact, images, tmp_path, caplog):
    shutil.copytree(images, tmp_path / "images")
    broken = tmp_path / "images" / "val" / "dark" / "00.png"
    broken.write_bytes(broken.read_bytes()[:60])
    command = ("evaluate", artifact, "--data", f"folder:{tmp_path / 'images'}")
    ran = run(*command)
    assert ran.status == 1
    assert f"1 of 48 files cannot be read: {broken} (" in ran.err
    assert "pass --skip-unreadable to skip them" in ran.err
    ran = run(*command, "--skip-unreadable")
    assert ran.status == 0, ran.err
    assert f"1 of 48 files cannot be read: {broken} (" in caplog.text
    assert ": 15 images in " in ran.out
    assert ", 1 that can't be read left out" in ran.out


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((), "Give the folder of an artifact"),
        (("/nowhere",), "There is no folder /nowhere"),
        (("--model", NET), "untrained"),
        (("--model", NET, "--weights", "nowhere.safetensors"), "there is no such file"),
    ],
)
def test_errors(run, tokens, message):
    ran = run("evaluate", *tokens)
    assert ran.status == (1 if "There is no" in message or "there is no" in message else 2)
    assert message in ran.err


def test_a_damaged_artifact(run, artifact, tmp_path):
    for name in ("plan.json", "card.json"):
        (tmp_path / name).write_bytes((artifact / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((artifact / "model.safetensors").read_bytes()[:-1])
    ran = run("evaluate", tmp_path)
    assert ran.status == 1
    assert "damaged" in ran.err


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are UTF-8 here")
def test_a_folder_whose_name_is_not_utf8(run, artifact, images, tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(images, root)
    ran = run("evaluate", artifact, "--data", f"folder:{root}")
    assert ran.status == 0, ran.err
    assert r"caf\xe9, not normalized" in ran.out
    for path in (root / "val").rglob("*.png"):
        path.write_text("")
    ran = run("evaluate", artifact, "--data", f"folder:{root}", "--skip-unreadable")
    assert ran.status == 1
    assert "None of the 16 images in" in ran.err
    assert r"caf\xe9" in ran.err
