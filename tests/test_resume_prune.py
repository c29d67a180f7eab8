"""NPN killed at any moment and resumed ends where it would have ended anyway, to the bit; nothing is half-written.

SECATEURS_KILLS=20 pytest tests/test_resume_prune.py -k any_moment -s     # more of them, and where each one struck
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateurs as sc
from secateurs import artifact
from secateurs.cli import main
from tests.processes import server

KILLS = int(os.environ.get("SECATEURS_KILLS", "5"))
# Moments that a clock would hardly hit: calls of the operating system that checkpoints and artifacts are written by, the
# first lines that the run reports, the channels' fixing. Counted from 1, over the whole life of a process.
POINTS = ("fsync", "rename", "replace", "report", "fix", "artifact")


def loader() -> Any:
    """Shuffled and augmented anew in each epoch, as a function of the epoch and the batch."""
    from secateurs.data.augment import Augment
    from secateurs.data.loader import ArraySource, Loader

    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (96, 32, 32, 3), generator=g, dtype=torch.uint8)
    targets = torch.randint(0, 4, (96,), generator=g)
    images[torch.arange(96), targets * 8] //= 4  # something to learn
    source = ArraySource(images, targets, device=torch.device("cpu"))
    made = functools.partial(Loader, batch_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    return sc.Data(train=made(source, augment=Augment(pad=2), shuffle=True), val=made(source))


def run(folder: str, resume: bool) -> None:
    """All of it: pruning, the cut, recovery, the artifact."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sc.build("zoo:small_cnn", num_classes=4)
    result = sc.prune(
        model, torch.zeros(1, 3, 32, 32), sc.NPN(epochs=4, calibration=40), sc.Budget(macs=0.5), data=loader(),
        recover=sc.Recover(epochs=2, lr=0.02), folder=folder, resume=resume, save_steps=2, progress="silent",
        report=_reported,
    )  # fmt: skip
    result.save(Path(folder) / "artifact", overwrite=True)


def _reported(line: str) -> None:
    """To be killed at."""


def _dying(call: Callable[..., Any], count: int, after: bool) -> Callable[..., Any]:
    left = count

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def child(folder: str, resume: bool, die_at: tuple[str, int, bool] | None, ready: Any) -> None:
    from secateurs.methods.npn.pruner import NPNPruner

    where: dict[str, tuple[Any, str]] = {
        "fsync": (os, "fsync"),
        "rename": (os, "rename"),
        "replace": (os, "replace"),
        "report": (globals(), "_reported"),
        "fix": (NPNPruner, "_fix"),
        "artifact": (artifact, "_commit"),
    }
    if die_at is not None:
        name, count, after = die_at
        owner, key = where[name]
        if isinstance(owner, dict):
            owner[key] = _dying(owner[key], count, after)
        else:
            setattr(owner, key, _dying(getattr(owner, key), count, after))
    ready.set()
    run(folder, resume)


def start(folder: Path, resume: bool = False, die_at: Any = None, after: float | None = None) -> int:
    """Run in a process, to be killed so many seconds after it has begun; its exit code."""
    ready = server().Event()
    process = server().Process(target=child, args=(str(folder), resume, die_at, ready))
    process.start()
    assert ready.wait(60)
    process.join(after)
    if process.is_alive():
        if after is None:
            raise AssertionError("still running")
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return int(process.exitcode)


def outcome(folder: Path) -> tuple[str, dict[str, Tensor], Any]:
    """The plan, the weights, and what of the card does not depend on the clock."""
    from safetensors.torch import load_file

    from secateurs.artifact.history import records

    path = folder / "artifact"
    plan, card = artifact.read(path)
    history = [{k: v for k, v in h.items() if "second" not in k} for h in records(card.history)]
    kept = {k: card.model_dump(mode="json")[k] for k in ("method", "before", "cut", "after", "error")}
    return plan.to_json(), load_file(path / "model.safetensors"), json.loads(json.dumps([history, kept]))


def names(folder: Path) -> list[str]:
    """All that is in a run's folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def assert_same(folder: Path, other: Path) -> None:
    (plan, weights, card), (plan2, weights2, card2) = outcome(folder), outcome(other)
    assert plan == plan2
    assert weights.keys() == weights2.keys()
    for name, value in weights.items():
        assert torch.equal(value, weights2[name]), name
    assert card == card2


def assert_whole(folder: Path) -> None:
    """What a killed run leaves behind can be read, or is not there."""
    from secateurs.training import CheckpointStore

    for phase in ("prune", "recover"):
        store = CheckpointStore(folder / phase / "checkpoints")
        for step in store.steps():
            store._read(step)
    path = folder / "artifact"
    committed = (path / "card.json").exists() or (path / artifact.NEW / "card.json").exists()
    if committed:
        artifact.read(path)
    elif path.exists():
        with pytest.raises(sc.ArtifactError, match="is missing"):
            artifact.read(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The uninterrupted run, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder) == 0  # the first one warms up
    again = tmp_path_factory.mktemp("again")
    began = time.monotonic()
    assert start(again) == 0
    assert_same(again, folder)
    return folder, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_any_moment(seed: int, whole: tuple[Path, float], tmp_path: Path) -> None:
    reference, seconds = whole
    draw = random.Random(seed)
    chosen: dict[str, Any]
    if seed % 2:
        chosen = {"after": draw.uniform(0.3, 1.0) * seconds}
    else:
        name = POINTS[(seed // 2) % len(POINTS)]
        most = {"fsync": 90, "rename": 40, "replace": 3, "report": 3, "fix": 1, "artifact": 1}[name]
        chosen = {"die_at": (name, draw.randint(1, most), draw.random() < 0.5)}
    folder, code = tmp_path / "run", 0
    while code == 0:  # over before the blow fell
        shutil.rmtree(folder, ignore_errors=True)
        code = start(folder, **chosen)
        if "after" in chosen:
            chosen["after"] *= 0.8
    left = [f"{p}: {sorted(x.name for x in (folder / p / 'checkpoints').glob('*'))}" for p in ("prune", "recover")]
    print(f"\n{chosen}: exit {code}; left behind {left}, artifact {(folder / 'artifact').exists()}")
    assert code == -signal.SIGKILL
    assert_whole(folder)
    assert start(folder, resume=True) == 0
    assert_same(folder, reference)
    assert names(folder) == names(reference)


@pytest.mark.slow
def test_killed_again_and_again(whole: tuple[Path, float], tmp_path: Path) -> None:
    """Every life of the run is cut short after a few checkpoints, until it gets through."""
    folder = tmp_path / "run"
    for life in range(40):
        code = start(folder, resume=life > 0, die_at=("fsync", 37 + life, False))
        assert_whole(folder)
        if code == 0:
            break
    assert code == 0
    assert life > 1
    assert_same(folder, whole[0])
    assert names(folder) == names(whole[0])


@pytest.mark.slow
def test_another_run_is_not_resumed(whole: tuple[Path, float]) -> None:
    with pytest.raises(sc.ConfigError, match=r"another run, which differs in (calibration|budget)"):
        sc.prune(
            sc.build("zoo:small_cnn", num_classes=4), torch.zeros(1, 3, 32, 32), sc.NPN(epochs=4), sc.Budget(macs=0.4),
            data=loader(), folder=whole[0], resume=True, progress="silent",
        )  # fmt: skip


def told(command: list[str], messages: Path) -> None:
    """The command line on a sixth of the digits, with its messages into a pipe."""
    from tests.conftest import fewer_digits

    sys.stderr = messages.open("w", buffering=1)
    with pytest.MonkeyPatch.context() as patch:
        fewer_digits(patch)
        sys.exit(main(command))


@pytest.mark.slow
def test_the_command_line_resumes(tmp_path: Path) -> None:
    """Killed after the pruning phase's second epoch, and once more in recovery."""
    command = ["prune", "zoo:small_cnn", "--normalize", "none", "--method", "npn epochs=3", "--macs", "0.5",
               "--pretrain-epochs", "1", "--recover-epochs", "2", "--batch-size", "32"]  # fmt: skip
    os.mkfifo(messages := tmp_path / "messages")
    runs = [("whole", None), ("run", "npn  epoch 2"), ("run", "recover  epoch 1"), ("run", None)]
    for i, (name, fatal) in enumerate(runs):
        options = ["--out", str(tmp_path / name), *(["--resume"] if i > 1 else [])]
        process = server().Process(target=told, args=([*command, *options], messages))
        process.start()
        said = []
        with messages.open() as lines:
            for line in lines:
                said.append(line)
                if fatal is not None and fatal in line:
                    process.kill()
                    break
        process.join(60)
        assert process.exitcode == (0 if fatal is None else -signal.SIGKILL), "".join(said)
    (plan, card), (plan2, card2) = (artifact.read(tmp_path / name) for name in ("whole", "run"))
    assert plan.to_json() == plan2.to_json()
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert files[0] == files[1]
    assert card.after == card2.after
    assert names(tmp_path / "run") == names(tmp_path / "whole")
    assert not list((tmp_path / "run").rglob("checkpoints"))


@pytest.mark.parametrize("phase", ["prune", "recover"])
def test_a_log_of_somebody_elses_is_found_before_any_work(tmp_path: Path, phase: str) -> None:
    (tmp_path / phase).mkdir()
    (tmp_path / phase / "metrics.jsonl").write_text("mine\n")
    said: list[str] = []
    with pytest.raises(sc.ConfigError, match=rf"{phase}.metrics\.jsonl already exists and is not the log of a run"):
        sc.prune(
            sc.build("zoo:small_cnn", num_classes=4), torch.zeros(1, 3, 32, 32), sc.NPN(epochs=1), sc.Budget(macs=0.4),
            data=loader(), recover=sc.Recover(epochs=1), folder=str(tmp_path), progress="silent", report=said.append,
        )  # fmt: skip
    assert not said
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / phase / "metrics.jsonl"]
