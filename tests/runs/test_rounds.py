"""Runs in rounds: artifacts of rounds in the run's folder, resumed after a kill, replaced as a whole, combined with stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs import artifact
from secateurs.errors import ConfigError
from secateurs.training import CheckpointStore

pytestmark = pytest.mark.usefixtures("few_digits")

DIGITS = sc.DataSpec("digits", normalize="none", batch_size=96)
RECOVER = sc.Recover(epochs=1, lr=0.01, precision="fp32")


def running(folder: Path, **settings: Any) -> sc.PruneRun:
    settings = {
        "method": "l1", "budget": sc.Budget(macs=0.4), "rounds": 3, "recover": RECOVER, "pretrain_epochs": 0,
        "device": "cpu", **settings,
    }  # fmt: skip
    return sc.PruneRun("zoo:small_cnn", DIGITS, folder, **settings)


def equal(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def dying(patch: pytest.MonkeyPatch, at: int) -> None:
    save, left = CheckpointStore.save, at

    def killed(store: CheckpointStore, step: int, state: dict[str, Any]) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return save(store, step, state)

    patch.setattr(CheckpointStore, "save", killed)


def test_a_run_in_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    whole = running(tmp_path / "whole", log=lines.append).start()
    assert [name for name, _ in whole.networks] == [
        "before", "after round 1", "after round 2", "after the cut", "calibrated", "after recovery",
    ]  # fmt: skip
    macs = [figures.macs for _, figures in whole.networks]
    assert macs == sorted(macs, reverse=True)
    assert sum(line.startswith("round ") for line in lines) == 3
    card = json.loads((tmp_path / "whole" / "card.json").read_text())
    assert "rounds" not in card  # it is the whole, not a round
    assert [e["round"] for e in card["history"] if e.get("event") == "round"] == [1, 2, 3]
    assert not list((tmp_path / "whole").rglob("step-*"))
    for number in (1, 2):
        folder = tmp_path / "whole" / f"round-{number}"
        assert artifact.is_round(folder)
        assert not artifact.read(folder)[1].functions  # the task's are none of the user's own

    with monkeypatch.context() as patch:
        dying(patch, 1)
        with pytest.raises(KeyboardInterrupt, match="the same run with resume=True continues"):
            running(tmp_path / "r").start()
    with pytest.raises(ConfigError, match="it differs in rounds"):
        running(tmp_path / "r", rounds=2).start(resume=True)
    with pytest.raises(ConfigError, match="it differs in schedule"):
        running(tmp_path / "r", schedule="cubic").start(resume=True)
    with pytest.raises(ConfigError, match="it differs in recover"):
        running(tmp_path / "r", recover=None).start(resume=True)
    with pytest.raises(ConfigError, match="holds an artifact: resume=True continues it"):
        running(tmp_path / "r").start()
    lines.clear()
    resumed = running(tmp_path / "r", log=lines.append).start(resume=True)
    assert "1 of 3 rounds are done already" in lines
    assert equal(resumed.model, whole.model)
    assert resumed.plan.to_json() == whole.plan.to_json()
    names = [sorted(p.relative_to(f) for p in f.rglob("*")) for f in (tmp_path / "whole", tmp_path / "r")]
    assert names[0] == names[1]
    again = running(tmp_path / "r").start(resume=True)
    assert again.networks == resumed.networks


def test_a_run_that_replaces_another_starts_from_its_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(tmp_path / "r", rounds=4).start()
    (tmp_path / "r" / "round-3" / "notes.txt").write_text("mine")
    sc.load(tmp_path / "r" / "round-1")
    sc.prune(sc.build("zoo:small_cnn"), torch.zeros(1, 3, 32, 32), "l1", sc.Budget(macs=0.5)).save(
        tmp_path / "r" / "round-9"
    )
    with monkeypatch.context() as patch:
        dying(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            running(tmp_path / "r", seed=1).start(overwrite=True)
    assert not artifact.exists(tmp_path / "r" / "round-1")
    assert artifact.exists(tmp_path / "r")  # until the new one is there
    assert artifact.exists(tmp_path / "r" / "round-9")  # saved by the user
    resumed, whole = running(tmp_path / "r", seed=1).start(resume=True), running(tmp_path / "w", seed=1).start()
    assert equal(resumed.model, whole.model)
    assert (tmp_path / "r" / "round-3" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "r" / "round-3" / "card.json").exists()


def test_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rounds=3: pff cuts stripes"):
        running(tmp_path / "r", method="pff").check()
    with pytest.raises(ConfigError, match="rounds=3 needs a budget"):
        running(tmp_path / "r", method=sc.OneStep(rate=2.0), budget=None).check()
    with pytest.raises(ConfigError, match="rounds=0 is not valid"):
        running(tmp_path / "r", rounds=0).check()
    sc.prune(sc.build("zoo:small_cnn"), torch.zeros(1, 3, 32, 32), "l1", sc.Budget(macs=0.5)).save(
        tmp_path / "r" / "round-2"
    )
    with pytest.raises(ConfigError, match="round-2 holds an artifact that is not a round's"):
        running(tmp_path / "r").check()


def test_rounds_of_channels_then_stripes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    then = [sc.Stage(sc.L2(), 0.3)]
    whole = running(tmp_path / "whole", rounds=2, then=then).start()
    assert artifact.is_round(tmp_path / "whole" / "1-l1" / "round-1")
    assert [name for name, _ in whole.networks][:2] == ["before", "after l1"]
    assert not any("round" in e for e in whole.history)
    for at in (1, 2):
        with monkeypatch.context() as patch:
            dying(patch, at)
            with pytest.raises(KeyboardInterrupt):
                running(tmp_path / str(at), rounds=2, then=then).start()
        assert equal(running(tmp_path / str(at), rounds=2, then=then).start(resume=True).model, whole.model)
