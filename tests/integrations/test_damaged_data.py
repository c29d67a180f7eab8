"""Damaged images in the middle of an epoch: training goes on, and says how many there were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import secateurs as sc
from secateurs.data import load
from secateurs.training import Engine, Recipe

datasets = pytest.importorskip("datasets")
pytest.importorskip("PIL.Image")
from tests.data import sets  # noqa: E402


def test_counted_at_the_end_of_the_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, broken in (("train-0", (4,)), ("train-1", (12, 14)), ("val-0", ())):
        start = 10 * int(name[-1])
        sets.tar(tmp_path / f"{name}.tar", 10, start=start, broken=broken)
    data = load(
        f"wds:{tmp_path}/train-{{0..1}}.tar,{tmp_path}/val-0.tar", batch_size=5, workers=1, skip_unreadable=True
    )
    model = sc.build("zoo:small_cnn", num_classes=3)
    history = Engine(model, data, Recipe(epochs=2, lr=0.01), folder=tmp_path / "run", progress="lines").fit()
    assert [line["skipped"] for line in history] == [3, 3]
    assert "3 unreadable images left out" in capsys.readouterr().err
    assert [json.loads(line)["skipped"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [
        3,
        3,
    ]
