"""A run that dies at any operation on a file, each of them in turn, and is resumed leaves what an uninterrupted one does."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs import artifact
from secateurs.files import check_writable
from secateurs.recovery import recover
from secateurs.runs.folder import RunFolder
from secateurs.runs.training import trained
from secateurs.training import CheckpointStore, Recipe
from tests.training.helpers import batches

SETTINGS = {"seed": 0, "weights": None, "recover": {"mode": "finetune"}}
DATA = sc.Data(train=batches(3))
CALLS = ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir", "chmod")


class Killed(BaseException):
    """The process is gone: nothing that it would have done afterwards happens."""


@contextlib.contextmanager
def dying(at: int = sys.maxsize) -> Iterator[list[str]]:
    """Every operation on a file from number `at` on fails as if the process had been killed just before it."""
    done: list[str] = []

    def mortal(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            if len(done) >= at:
                raise Killed
            done.append(name)
            return call(*args, **options)

        return wrapped

    def opening(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if len(done) >= at and set(mode) & set("wxa"):
            raise Killed
        done.extend(["open"] * bool(set(mode) & set("wxa")))
        return original(path, mode, *args, **options)

    original = builtins.open
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            # Disks are slow, and what the system knows survives the process.
            call = (lambda handle: None) if name == "fsync" else getattr(os, name)
            patch.setattr(os, name, mortal(name, call))
        patch.setattr(builtins, "open", opening)
        patch.setattr(io, "open", opening)
        patch.setattr(tempfile, "mkdtemp", mortal("mkdtemp", tempfile.mkdtemp))
        yield done


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def run(out: Path, resume: bool) -> None:
    """What `secateurs prune` does to its folder, on the smallest of networks: all its own code that writes there."""
    folder = RunFolder(out)
    if folder.check(SETTINGS, resume=resume, overwrite=False):
        folder.tidy()
        return
    check_writable(out)
    folder.begin(SETTINGS, resume=resume)
    recipe = Recipe(epochs=1, lr=0.05, precision="fp32")
    device = torch.device("cpu")
    model = trained(
        network(), DATA, recipe, folder, "pretrain", folder.pretrained, seed=0, device=device, resume=resume
    )
    inputs = torch.zeros(1, 3, 8, 8)
    plan = sc.trace(model, inputs).plan({"0": [0, 1, 5]})
    small = sc.apply(model, plan)
    own = out / "recover"
    history = recover(
        small, DATA, sc.Recover(epochs=2, lr=0.01, precision="fp32"), resume=resume, folder=own, save_steps=2,
        checkpoints=CheckpointStore(own / "checkpoints"), progress="silent", device="cpu",
    )  # fmt: skip
    steady = [{k: v for k, v in line.items() if "second" not in k} for line in history]
    figures = sc.Figures(100, 100)
    result = sc.Result(small, plan, *[figures] * 4, 0.0, sc.L1(), steady, None)
    artifact.save(out, small, plan, result.card(), overwrite=True)
    folder.finish(SETTINGS)


def contents(folder: Path) -> dict[str, Any]:
    """Every file and folder, and what is in them; of a log what does not depend on the clock."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = path.read_bytes() if path.is_file() else None
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in line.items() if "second" not in k} for line in lines]
    return found


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateurs.training.progress import Reporter

    monkeypatch.setattr(Reporter, "line", lambda *_: None)


@pytest.mark.parametrize("third", range(3))
def test_a_run_that_dies_at_any_operation_on_a_file(third: int, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with dying() as done:
        run(whole, resume=False)
    expected = contents(whole)
    assert sorted(expected) == [
        "card.json", "model.safetensors", "plan.json", "pretrain", "pretrain/metrics.jsonl", "pretrained.safetensors",
        "recover", "recover/metrics.jsonl", "run.json",
    ]  # fmt: skip
    assert {"open", "fsync", "rename", "replace", "unlink", "rmdir"} <= set(done)
    for at in range(third, len(done), 3):
        out = tmp_path / str(at)
        with dying(at), contextlib.suppress(Killed):
            run(out, resume=False)
        with dying():
            run(out, resume=True)
            run(out, resume=True)  # a finished one sweeps what was left of finishing
        now = contents(out)
        assert sorted(now) == sorted(expected), (at, done[at])
        for name, content in expected.items():
            assert now[name] == content, (at, done[at], name)


def test_a_run_that_dies_twice(tmp_path: Path) -> None:
    """… and once more while it is resumed."""
    whole = tmp_path / "whole"
    with dying() as done:
        run(whole, resume=False)
    for at in range(3, len(done), 9):
        out = tmp_path / str(at)
        with dying(at), contextlib.suppress(Killed):
            run(out, resume=False)
        with dying(at // 2), contextlib.suppress(Killed):
            run(out, resume=True)
        with dying():
            run(out, resume=True)
            run(out, resume=True)
        assert contents(out) == contents(whole), (at, done[at])
