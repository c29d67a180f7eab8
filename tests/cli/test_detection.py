"""Detection on the command line, from drawn shapes to an artifact."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.detectors import shapes


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torchvision", "torchmetrics", "faster_coco_eval")),
    reason="extras",
)
def test_a_detector(run: Any, tmp_path: Path) -> None:
    folder = shapes(tmp_path / "shapes")
    out = tmp_path / "r"
    job = ("prune", "python:tests.tasks.detectors:faster_rcnn", "--task", "detection", "--data", f"coco:{folder}",
           "--batch-size", 4, "--method", "l2", "--macs", 0.7, "--pretrain-epochs", 1,
           "--recover-epochs", 1, "--out", out)  # fmt: skip
    ran = run(*job)
    assert ran.status == 0, ran.err
    assert "mAP50" in ran.out
    assert "example_targets" not in ran.err
    card = json.loads((out / "card.json").read_text())
    assert card["task"]["name"] == "detection"
    assert card["data"]["data"] == f"coco:{folder}"
    assert card["source"]["num_classes"] == 4
    assert set(card["after"]["metrics"]) == {"mAP.map", "mAP.map_50", "mAP.map_75"}
    if (out / "predictions.png").exists():  # with matplotlib
        assert (out / "predictions.png").read_bytes().startswith(b"\x89PNG")
    evaluated = run("evaluate", out, "--trust-code", "--json")
    assert evaluated.status == 0, evaluated.err
    assert "mAP.map" in evaluated.out
    again = run(*job, "--resume")
    assert again.status == 0
    assert "finished already" in again.err
