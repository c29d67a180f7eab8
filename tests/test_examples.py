"""The examples run from top to bottom; notebooks are stored without outputs."""

from __future__ import annotations

import importlib
import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

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
