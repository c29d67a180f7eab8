"""The examples run from top to bottom; notebooks are stored without outputs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import secateurs as sc

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 2


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells(notebook)):
        exec(compile("".join(cell["source"]), f"{notebook.name}[{number}]", "exec"), namespace)
    assert not list(tmp_path.iterdir())  # examples leave nothing behind


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(notebook: Path) -> None:
    assert [cell for cell in cells(notebook) if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.filterwarnings("ignore")  # of Ultralytics
def test_yolo_is_pruned_trained_validated_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ultralytics", "onnx", "onnxscript"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(EXAMPLES / "prune_yolo.py"))
    options = ["--folder", str(tmp_path / "shapes"), "--images", "16", "--size", "64", "--epochs", "1"]
    result = script["main"](options)
    assert result.after.macs <= 0.5 * result.before.macs
    weights = importlib.import_module("onnx").load(tmp_path / "shapes/runs/small/weights/best.onnx").graph.initializer
    assert sum(math.prod(w.dims) for w in weights) < 0.9 * result.before.params


def example(name: str, **options: Any) -> Any:
    """What `main` of an example returns."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**options)


def test_a_loop_of_ones_own_prunes_and_trains_on() -> None:
    model, accuracy = example("plain_loop", count=128, epochs=10)
    whole = sc.count(sc.build("zoo:small_cnn", num_classes=4), torch.zeros(1, 3, 16, 16))
    assert sc.count(model, torch.zeros(1, 3, 16, 16)).macs <= 0.5 * whole.macs
    assert accuracy > 0.5  # of four classes


@pytest.mark.filterwarnings("ignore")  # of the trainers
@pytest.mark.parametrize(("name", "packages"), [
    ("lightning_trainer", ("lightning", "pytorch_lightning")), ("transformers_trainer", ("transformers",)),
])  # fmt: skip
def test_trainers_prune(name: str, packages: tuple[str, ...]) -> None:
    if not any(importlib.util.find_spec(package) for package in packages):
        pytest.skip(f"needs {' or '.join(packages)}")
    model, plan = example(name, count=64, epochs=2)
    whole = sc.build("zoo:small_cnn", num_classes=4)
    assert sc.count(model, torch.zeros(1, 3, 16, 16)).macs <= 0.5 * sc.count(whole, torch.zeros(1, 3, 16, 16)).macs
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in sc.apply(whole, plan).named_parameters()
    }


def test_segmentation_is_recovered_with_a_dice_loss() -> None:
    result = example("segmentation_dice", count=64, epochs=4)
    assert result.after.macs <= 0.5 * result.before.macs
    dice = [getattr(result, name).metrics["Dice"] for name in ("before", "cut", "after")]
    assert dice[2] > dice[1]
    assert result.after.loss == pytest.approx(1 - dice[2], abs=1e-5)


def test_a_network_on_audio_is_recovered() -> None:
    result = example("audio_1d", count=96)
    assert result.after.macs <= 0.5 * result.before.macs
    assert result.after.top1 > 60


def test_a_network_with_two_inputs_is_recovered() -> None:
    result = example("two_inputs", count=128, epochs=5)
    assert result.after.macs <= 0.5 * result.before.macs
    assert result.after.loss < result.cut.loss


def test_the_docs_list_every_example() -> None:
    page = (EXAMPLES.parent / "docs/training.md").read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in page] == []
