"""The entries of a history, as an artifact has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs import artifact
from secateurs.artifact import Card
from secateurs.artifact.history import Calibrated, Epoch, Event, Reconstructed, Record, Warned, records

HISTORY: list[dict[str, Any]] = [
    {"event": "search", "groups": ["a"], "macs": 3},
    {"epoch": 1, "step": 2, "lr": 0.1, "train_loss": 1.5, "seconds": 3, "nodes": ["layer1"], "phase": "mimic"},
    {"event": "calibrated", "images": 8, "norms": 2, "layers": ["conv"], "left": []},
    {"event": "reconstructed", "images": 8, "seconds": 1.0, "layers": [{"weight": "conv.weight", "solved": True}]},
    {"anything": [1, None]},
]


def saved(folder: Path, history: Any) -> Path:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    x = torch.zeros(1, 3, 4, 4)
    result = sc.prune(model, x, "l2", sc.Budget(macs=0.6))
    result.history[:] = history
    result.save(folder)
    return folder


def edited(folder: Path, **fields: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    card |= fields
    if card["history_version"] is None:
        del card["history_version"]
    (folder / "card.json").write_text(json.dumps(card))


def test_entries_are_read_as_what_they_are_and_written_as_they_were(tmp_path: Path) -> None:
    _, card = artifact.read(saved(tmp_path / "a", HISTORY))
    assert [type(e) for e in card.history] == [Event, Epoch, Calibrated, Reconstructed, Record]
    assert records(card.history) == HISTORY
    assert card.history_version == 1


def test_a_card_without_a_version_is_read_and_a_newer_one_is_not(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", [{"epoch": 1, "train_loss": None}])
    edited(folder, history_version=None)
    _, card = artifact.read(folder)
    assert records(card.history) == [{"epoch": 1, "train_loss": None}]
    edited(folder, history_version=2)
    with pytest.raises(sc.ArtifactError, match="history_version"):
        artifact.read(folder)


@pytest.mark.parametrize(
    "entry",
    [{"epoch": 0}, {"epoch": 1, "seconds": "long"}, {"event": 3}, {"event": "calibrated", "layers": 2}, "text", None],
)
def test_an_entry_that_does_not_fit_is_refused(tmp_path: Path, entry: Any) -> None:
    folder = saved(tmp_path / "a", [])
    edited(folder, history=[entry])
    with pytest.raises(sc.ArtifactError, match="history"):
        artifact.read(folder)


def test_the_schema_has_the_entries() -> None:
    assert {"Epoch", "Event", "Calibrated", "Reconstructed"} <= Card.model_json_schema()["$defs"].keys()


class Doubtful(sc.Method):
    """Keeps every other channel, and has its doubts, at length."""

    name = "doubtful"

    def select(self, task: sc.Task) -> dict[str, Any]:
        task.warn("This cut\nis doubtful" + ", very" * 1000 + ".")
        task.warn("x\x1b" * 1000)
        task.note(event="warning", layer="conv")  # an event of its own, which has the same name
        return {group.name: list(range(0, group.size, 2)) for group in task.groups}


def test_what_a_method_warns_of_is_in_the_result_and_on_its_card(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    result = sc.prune(model, torch.randn(1, 3, 8, 8), Doubtful(), sc.Budget(macs=0.6), check_speed=False)
    line, other = result.warnings
    assert line.startswith("This cut is doubtful, very, very")
    assert (len(line), len(other)) == (1000, 1000)
    result.save(tmp_path)
    _, card = artifact.read(tmp_path)
    assert card.warnings == [line, other]
    assert [type(entry) for entry in card.history] == [Warned, Warned, Event]
