from __future__ import annotations

import json
from pathlib import Path

import pytest
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
    assert "2 outputs and the data 10 classes" in ran.err
    ran = run("evaluate", artifact, "--model", NET, "--num-classes", 2, "--data", f"folder:{images}")
    assert ran.status == 0, ran.err


def test_any_network_with_its_weights(run, images, tmp_path):
    save_file(sc.build(NET, num_classes=2).state_dict(), tmp_path / "w.safetensors")
    args = ("--model", NET, "--weights", tmp_path / "w.safetensors", "--data", f"folder:{images}")
    ran = run("evaluate", *args)
    assert ran.status == 0, ran.err
    assert "on the card" not in ran.out


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
    assert ran.status == 1
    assert message in ran.err


def test_a_damaged_artifact(run, artifact, tmp_path):
    for name in ("plan.json", "card.json"):
        (tmp_path / name).write_bytes((artifact / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((artifact / "model.safetensors").read_bytes()[:-1])
    ran = run("evaluate", tmp_path)
    assert ran.status == 1
    assert "damaged" in ran.err
