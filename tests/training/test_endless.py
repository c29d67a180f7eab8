"""Iterables without an end, and those that don't say their length."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import secateurs as sc
import secateurs.recovery as R
import secateurs.training as T
from secateurs.data import load
from secateurs.errors import ConfigError, DataError
from secateurs.methods.assess import spread
from secateurs.training import batches as B

from .helpers import Noisy, batches, engine, net, same

HALF = sc.Budget(macs=0.5)


def loops() -> Iterator[Any]:
    while True:
        yield from batches(3)


class Stream(torch.utils.data.IterableDataset[Any]):
    """Examples without an end."""

    def __iter__(self) -> Iterator[Any]:
        for x, y in loops():
            yield from zip(x, y, strict=True)


class Marked:
    """Says that it is endless in a way of its own."""

    def __len__(self) -> int:
        return 10**30

    def __iter__(self) -> Iterator[Any]:
        return loops()


ENDLESS: dict[str, Callable[[], Any]] = {
    "a generator function that loops": lambda: loops,
    "a DataLoader of an IterableDataset": lambda: torch.utils.data.DataLoader(Stream(), batch_size=8),
    "a function that returns a cycle": lambda: lambda: itertools.cycle(batches(3)),
    "a length that is no length": lambda: Marked(),
}
ONCE: dict[str, Callable[[], Any]] = {
    "a cycle": lambda: itertools.cycle(batches(3)),
    "a generator that loops": loops,
}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(B, "ENDLESS", 20)


def recipe(**settings: Any) -> R.Recover:
    return R.Recover(**{"epochs": 2, "precision": "fp32", **settings})


@pytest.mark.parametrize("kind", [*ENDLESS, *ONCE])
def test_training_data_is_refused_with_a_hint(kind: str) -> None:
    make = (ENDLESS | ONCE)[kind]
    for settings in ({}, {"epochs": 1.5}, {"schedule": "constant"}):
        with pytest.raises(DataError, match=r"steps_per_epoch=…"):
            engine(net(), make(), recipe(**settings)).fit()
    with pytest.raises(DataError, match=r"steps_per_epoch=…"):
        sc.prune(net(), batches(1)[0][0], "l1", HALF, make(), recipe(), progress="silent", device="cpu")
    for method in (sc.NPN(epochs=1), sc.AOFP(epochs=1), sc.OneStep(epochs=1), sc.PFF(epochs=1)):
        with pytest.raises((DataError, ConfigError), match="steps_per_epoch=…"):
            sc.prune(net(), batches(1)[0][0], method, HALF, make(), progress="silent", device="cpu")


def test_counting_ends_after_a_while_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(B, "ENDLESS", 10**9)
    monkeypatch.setattr(B, "COUNT_SECONDS", 0.05)
    monkeypatch.setattr(B, "EVALUATE_SECONDS", 0.05)
    with pytest.raises(DataError, match=r"train has no length and did not end within [\d,]+ batches \(0 s"):
        engine(net(), loops).fit()
    with pytest.raises(DataError, match=r"val has no length and did not end within"):
        T.evaluate(net(), loops)
    assert engine(net(), lambda: iter(batches(3))).fit()  # an end is an end


@pytest.mark.parametrize("kind", [*ENDLESS, *ONCE])
def test_steps_per_epoch_makes_epochs(kind: str) -> None:
    make = (ENDLESS | ONCE)[kind]
    e = engine(net(), make(), recipe(steps_per_epoch=5))
    history = e.fit()
    assert (e.total, e.per_epoch, e.step) == (10, 5, 10)
    assert [line["step"] for line in history] == [5, 10]
    e = engine(net(), make(), recipe(steps_per_epoch=5, accumulate=2, epochs=1.5))
    e.fit()
    assert (e.total, e.per_epoch, e.step) == (5, 3, 5)
    e = engine(net(), make(), recipe(epochs=None, steps=7))
    e.fit()
    assert [line["step"] for line in e.history] == [7]
    e = engine(net(), make(), recipe(epochs=None, steps=7, steps_per_epoch=3))
    e.fit()
    assert [line["step"] for line in e.history] == [3, 6, 7]


def test_steps_per_epoch_cuts_data_short_and_does_not_stretch_it() -> None:
    e = engine(net(), batches(6), recipe(steps_per_epoch=4))
    assert [line["step"] for line in e.fit()] == [4, 8]
    e = engine(net(), batches(3), recipe(steps_per_epoch=4))
    assert [line["step"] for line in e.fit()] == [3, 6]
    e = engine(net(), lambda: iter(batches(3)), recipe(steps_per_epoch=4, epochs=1))
    assert [line["step"] for line in e.fit()] == [3, 4]  # it did not say so
    short, listed = net(), net()
    engine(short, batches(6), recipe(steps_per_epoch=4)).fit()
    engine(listed, batches(6)[:4], recipe()).fit()
    assert same(short, listed)
    with pytest.raises(ConfigError, match="steps_per_epoch"):
        recipe(steps_per_epoch=0)


def test_a_one_shot_iterator_goes_on_where_the_last_epoch_ended() -> None:
    seen: list[int] = []

    def numbered() -> Iterator[Any]:
        for i in itertools.count():
            seen.append(i)
            yield batches(1, seed=i)[0]

    one, two = net(), net()
    engine(one, numbered(), recipe(steps_per_epoch=4)).fit()
    assert seen == list(range(8))  # nothing is read ahead and lost
    engine(two, [batches(1, seed=i)[0] for i in range(8)], recipe(epochs=None, steps=8, steps_per_epoch=8)).fit()
    assert len(engine(net(), numbered(), recipe(steps_per_epoch=4)).fit()) == 2


@pytest.mark.parametrize("make", [*ENDLESS.values(), *ONCE.values(), lambda: Noisy(batches(9))])
@pytest.mark.parametrize("stop", [2, 5, 7])
def test_resumed_equals_uninterrupted(make: Callable[[], Any], stop: int, tmp_path: Path) -> None:
    class Kill(T.Hook):
        def __init__(self, at: int | None) -> None:
            self.at = at

        def after_step(self, engine: T.Engine) -> None:
            if engine.step == self.at:
                raise KeyboardInterrupt

    whole, model, again = net(), net(), net()
    settings = recipe(steps_per_epoch=4, epochs=2)
    engine(whole, make(), settings).fit()
    store = T.CheckpointStore(tmp_path / "checkpoints")
    with pytest.raises(KeyboardInterrupt):
        engine(model, make(), settings, checkpoints=store, save_steps=1, hooks=[Kill(stop)]).fit()
    engine(again, make(), settings, checkpoints=store, hooks=[Kill(None)]).fit(resume=True)
    assert same(whole, again)


@pytest.mark.parametrize("method", [sc.NPN, sc.AOFP, sc.OneStep, sc.PFF])
def test_methods_that_train_take_it_as_a_setting(method: Any) -> None:
    chosen = method(epochs=2, steps_per_epoch=3)
    result = sc.prune(net(), batches(1)[0][0], chosen, sc.Budget(macs=0.8), loops, progress="silent", device="cpu")
    assert [line["step"] for line in result.history if "train_loss" in line][-1] <= 6
    assert chosen.model_dump()["steps_per_epoch"] == 3


@pytest.mark.parametrize("kind", [*ENDLESS, *ONCE])
def test_validation_data_is_refused(kind: str) -> None:
    make = (ENDLESS | ONCE)[kind]
    with pytest.raises(DataError, match=r"^val .*Validation data must end"):
        T.evaluate(net(), make())
    with pytest.raises(DataError, match=r"^val .*Validation data must end"):
        sc.prune(net(), batches(1)[0][0], "l1", HALF, sc.Data(batches(2), make()))
    with pytest.raises(DataError, match=r"^val .*Validation data must end"):
        engine(net(), sc.Data(batches(2), make())).fit()
    with pytest.raises(DataError, match=r"^val .*Validation data must end"):
        list(spread(make(), 5))


def test_validation_data_with_an_end() -> None:
    assert T.evaluate(net(), lambda: itertools.islice(loops(), 4)).examples == 32
    assert T.evaluate(net(), batches(25, rows=1)).examples == 25  # it says its length


def test_a_cycle_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(B, "ENDLESS", 10**9)
    with pytest.raises(DataError, match=r"val is an itertools\.cycle, which never ends"):
        T.evaluate(net(), itertools.cycle(batches(2)))
    with pytest.raises(DataError, match=r"train is an itertools\.cycle, which never ends"):
        engine(net(), lambda: itertools.cycle(batches(2))).fit()
    with pytest.raises(DataError, match="steps_per_epoch=…"):
        engine(net(), itertools.cycle(batches(2))).fit()


def test_our_own_data_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of unknown length is counted to its end, however long that takes."""
    pytest.importorskip("datasets")
    pytest.importorskip("PIL.Image")
    from tests.data import sets

    monkeypatch.setattr(B, "ENDLESS", 1)
    sets.tar(tmp_path / "a.tar", 6)
    data = load(f"wds:{tmp_path}/a.tar?val=none", batch_size=2, workers=1)
    monkeypatch.setattr(data.train.source.shards.__class__, "total", None)
    assert B.length(data.train) is None
    e = engine(sc.build("zoo:small_cnn", num_classes=3), data, recipe(epochs=1))
    e.fit()
    assert e.step == 3
