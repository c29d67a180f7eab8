from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import secateurs.recovery as R
import secateurs.training as T
from secateurs.errors import ArtifactError, ConfigError

from .helpers import Noisy, Ours, batches, engine, net, same
from .test_engine import Cutter, Gates


class Killed(BaseException):
    pass


class Killer(T.Hook):
    """Ends the run at the given step: never, when there is none."""

    def __init__(self, step: int | None = None):
        self.step = step

    def after_step(self, engine: T.Engine) -> None:
        if engine.step == self.step:
            raise Killed


def loader(items: list[Any]) -> Any:
    """PyTorch's, shuffled with a generator of its own, as its notes on reproducibility recommend."""
    return torch.utils.data.DataLoader(
        items, batch_size=None, shuffle=True, generator=torch.Generator().manual_seed(5)
    )  # fmt: skip


def sampled(items: list[Any]) -> Any:
    """The same, with the generator in the sampler of its batches."""
    random = torch.utils.data.RandomSampler(items, generator=torch.Generator().manual_seed(5))
    batch_sampler = torch.utils.data.BatchSampler(random, 1, drop_last=False)
    return torch.utils.data.DataLoader(items, batch_sampler=batch_sampler, collate_fn=lambda found: found[0])


HARD = {"optimizer": "adamw", "ema": 0.9, "mixup": 0.3, "clip_norm": 1.0, "accumulate": 2, "label_smoothing": 0.1}
CASES: dict[str, tuple[Any, dict[str, Any], list[type[T.Hook]]]] = {
    "plain": (Noisy, {}, []),
    "ours, everything on": (Ours, HARD, []),
    "usual layout": (Noisy, {"channels_last": False, "nesterov": True}, []),
    "cut on the way": (Noisy, {"ema": 0.9}, [Cutter]),
    "two networks": (Ours, {}, [Gates]),
    "a loader's own generator": (loader, {}, []),
    "a sampler's own generator": (sampled, {}, []),
    "fp16": (list, {"precision": "fp16"}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_steps_and_resumed_ends_bit_equal(case: str, tmp_path: Path) -> None:
    wrap, settings, hooks = CASES[case]
    recipe = R.Recover(**{"epochs": 3, "lr": 0.05, "precision": "fp32", **settings})
    whole = net()
    full = engine(whole, wrap(batches(7)), recipe, hooks=[Killer(), *(h() for h in hooks)])
    full.fit()

    rng, store = random.Random(case), T.CheckpointStore(tmp_path / "checkpoints")
    for _ in range(2):
        step, lives = 0, 0
        store.clear()
        while True:
            step = rng.randint(step + 1, step + 8)
            torch.rand(lives)  # the state of the world outside must not matter
            model = net()
            e = engine(
                model,
                wrap(batches(7)),
                recipe,
                hooks=[Killer(step), *(h() for h in hooks)],
                checkpoints=store,
                save_steps=3,
                folder=tmp_path,
            )
            try:
                e.fit(resume=lives > 0)
                break
            except Killed:
                lives += 1
        assert lives > 0
        assert same(model, whole)
        keys = ("epoch", "step", "lr", "train_loss", "train_top1")
        assert [[line[k] for k in keys] for line in e.history] == [[line[k] for k in keys] for line in full.history]
        logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert logged == e.history


def test_resuming_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    store = T.CheckpointStore(tmp_path)
    first, again = net(), net()
    history = engine(first, batches(), checkpoints=store).fit()
    e = engine(again, batches(), checkpoints=store)
    assert e.fit(resume=True) == history
    assert same(first, again)


def test_another_run_is_not_resumed_nor_overwritten(tmp_path: Path) -> None:
    store = T.CheckpointStore(tmp_path)
    recipe, other = (R.Recover(epochs=2, lr=lr, precision="fp32") for lr in (0.02, 0.5))
    engine(net(), batches(), recipe, checkpoints=store).fit()
    with pytest.raises(ConfigError, match="earlier run"):
        engine(net(), batches(), recipe, checkpoints=store).fit()
    with pytest.raises(ConfigError, match=r"differs in lr \(0.02 then, 0.5 now\)"):
        engine(net(), batches(), other, checkpoints=store).fit(resume=True)
    with pytest.raises(ConfigError, match=r"hooks \(none then, 0-Cutter now\)"):
        engine(net(), batches(), recipe, hooks=[Cutter()], checkpoints=store).fit(resume=True)
    with pytest.raises(
        ArtifactError, match=r"tensor .parts.main.module.0.weight. is float32 of shape \(8, 3, 3, 3\), expected"
    ):
        engine(net(width=6), batches(), recipe, checkpoints=store).fit(resume=True)


def test_damaged_last_checkpoint_falls_back_and_ends_the_same(tmp_path: Path) -> None:
    whole, model = net(), net()
    engine(whole, Noisy(batches(7))).fit()
    store = T.CheckpointStore(tmp_path)
    with pytest.raises(Killed):
        engine(net(), Noisy(batches(7)), hooks=[Killer(9)], checkpoints=store, save_steps=2).fit()
    damaged = store.path(store.steps()[-1]) / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    engine(model, Noisy(batches(7)), hooks=[Killer()], checkpoints=store, save_steps=2).fit(resume=True)
    assert same(model, whole)


CHILD = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import secateurs.recovery as R
import secateurs.training as T
from secateurs.training import checkpoint
from tests.training.helpers import Noisy, batches, engine, net

left = int(sys.argv[2])
write = checkpoint._write

def dies(path, data):
    global left
    left -= 1
    if left == 0:  # half of the file is there when the process is gone
        write(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)

checkpoint._write = dies
store = T.CheckpointStore(sys.argv[1])
engine(net(), Noisy(batches(7)), checkpoints=store, save_steps=2).fit(resume=bool(store.steps()))
"""


def test_sigkill_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    whole, model = net(), net()
    engine(whole, Noisy(batches(7))).fit()
    for writes in (8, 5):
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(tmp_path), str(writes)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert any(p.name.startswith(".writing") for p in tmp_path.iterdir())
    store = T.CheckpointStore(tmp_path)
    assert store.steps()
    engine(model, Noisy(batches(7)), checkpoints=store, save_steps=2).fit(resume=True)
    assert same(model, whole)


@pytest.mark.parametrize("text", ["mine\n", '{"epoch": 1, "loss": 0.5}\n', "3\n", "\n"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_log_of_somebody_elses_is_not_written_over(tmp_path: Path, resume: bool, text: str) -> None:
    log, store = tmp_path / "metrics.jsonl", T.CheckpointStore(tmp_path / "checkpoints")
    log.write_text(text)
    for checkpoints in (store, None):
        with pytest.raises(ConfigError, match=r"metrics\.jsonl already exists and is not the log of a run"):
            engine(net(), batches(), folder=tmp_path, checkpoints=checkpoints).fit(resume=resume and bool(checkpoints))
    assert log.read_text() == text
    assert not store.steps()


def test_a_log_of_ours_is_begun_anew(tmp_path: Path) -> None:
    log, store = tmp_path / "metrics.jsonl", T.CheckpointStore(tmp_path / "checkpoints")
    log.write_text("")  # as a run leaves it that was killed before its first checkpoint
    for _ in range(2):
        e = engine(net(), batches(), folder=tmp_path, checkpoints=store)
        e.fit()
        assert [json.loads(line) for line in log.read_text().splitlines()] == e.history
        store.clear()
