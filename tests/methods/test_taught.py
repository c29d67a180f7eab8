"""Methods that train: how long, and with the original as the teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs import recovery
from secateurs.methods.pruner import Taught
from secateurs.testing.networks import images, network
from secateurs.testing.state import assert_equal_states

METHODS = (sc.AOFP, sc.NPN, sc.PFF, sc.OneStep)
HALF = sc.Budget(macs=0.5)


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(images(8, i), torch.arange(8) % 4) for i in range(count)]


@pytest.mark.parametrize("kind", METHODS)
def test_the_length_follows_from_that_of_the_recovery(kind: type[Taught]) -> None:
    method = kind()
    short = method.before(1)
    assert isinstance(short, kind)
    assert short.length == pytest.approx(kind.share / (1 - kind.share))
    assert short.length / (1 + short.length) == pytest.approx(kind.share)  # of all epochs
    assert method.before(0).length == method.before(1000).length == kind.most
    assert kind(epochs=5).before(1).length == 5
    assert kind.preset("paper").length > kind.most or kind is sc.NPN  # a preset with epochs keeps them


def test_epochs_of_a_recovery() -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter(batches())

    recipes = [sc.Reconstruct(), sc.Mimic(epochs=0.5), sc.Recover(steps=6), sc.Recover(steps=6, steps_per_epoch=3)]
    assert recovery.epochs(recipes, batches(4)) == 0.5 + 1.5 + 2
    assert recovery.epochs(recipes, Endless()) == 0.5 + 2
    assert recovery.epochs([], batches()) == 0
    assert recovery.epochs([sc.Recover()], batches()) == 3
    assert math.isclose(recovery.epochs([sc.Recover(epochs=0.1)] * 3, batches()), 0.3)


def test_prune_takes_the_length_from_its_recovery() -> None:
    result = sc.prune(network("residual"), images(1), "npn", HALF, batches(), sc.Recover(epochs=2), progress="silent")
    assert result.method.epochs == pytest.approx(2 * 0.3 / 0.7)  # type: ignore[attr-defined]
    trained = [line for line in result.history if "train_loss" in line]
    assert [line["epoch"] for line in trained] == [1, 1, 2]


@pytest.mark.parametrize("kind", [sc.NPN, sc.PFF, sc.OneStep])
def test_the_original_teaches_by_default_where_it_can(kind: type[Taught], capsys: pytest.CaptureFixture[str]) -> None:
    result = sc.prune(network("residual"), images(1), kind(epochs=1), HALF, batches(), progress="silent")
    (line,) = [h for h in result.history if "train_loss" in h]
    assert line["share"] == kind().distil > 0
    values = [(x, torch.randn(8, 4)) for x, _ in batches()]
    result = sc.prune(network("residual"), images(1), kind(epochs=1), HALF, values, progress="lines", loss=F.mse_loss)
    (line,) = [h for h in result.history if "train_loss" in h]
    assert "share" not in line
    assert f"{kind.name}: trains on the task loss alone, without the original as a teacher" in capsys.readouterr().err
    with pytest.raises(sc.ConfigError, match=r"cannot teach class probabilities.*distil=0"):
        sc.prune(
            network("residual"), images(1), kind(epochs=1, distil=0.5), HALF, values, progress="silent", loss=F.mse_loss
        )


@pytest.mark.parametrize("kind", [sc.NPN, sc.PFF, sc.OneStep])
def test_a_loop_of_ones_own_has_its_own_loss(kind: type[Taught]) -> None:
    """The default has no effect there; what the user sets is refused (tests/test_api.py)."""
    model = network("residual")
    pruner = sc.attach(model, images(1), kind(), HALF, steps=4, epoch_steps=4, data=batches())
    x, y = batches(1)[0]
    assert torch.isfinite(F.cross_entropy(model.train()(x), y) + pruner.penalty())


@pytest.mark.parametrize(
    "settings", [(sc.AOFP, {}), (sc.NPN, {}), (sc.NPN, {"hold": False}), (sc.PFF, {}), (sc.OneStep, {})]
)
def test_what_the_original_alone_teaches_reads_no_labels(settings: tuple[type[Taught], dict[str, Any]]) -> None:
    """Without labels, the network is the one that labels would give."""
    kind, more = settings
    found = [
        sc.prune(
            network("residual"),
            images(1),
            kind(epochs=1, distil=1, **more),
            HALF,
            sc.Data(train),
            sc.Recover(steps=2, share=1),
            progress="silent",
        )
        for train in (batches(), [x for x, _ in batches()])
    ]
    assert found[0].plan == found[1].plan
    assert_equal_states(found[0].model, found[1].model, "with and without labels")


@pytest.mark.parametrize("kind", METHODS)
def test_labels_are_asked_for_where_they_are_read(kind: type[Taught]) -> None:
    inputs = [x for x, _ in batches()]
    with pytest.raises(sc.DataError, match=f"{kind.name} reads labels"):
        sc.prune(network("residual"), images(1), kind(epochs=1, distil=0.5), HALF, sc.Data(inputs), progress="silent")


def test_without_labels_the_original_has_to_be_able_to_teach() -> None:
    """The default gives way to the task loss, but there is none."""
    model = nn.Sequential(network("residual"), nn.Linear(4, 1))
    inputs = [x for x, _ in batches()]
    for options in ({"method": "onestep"}, {"method": "l2", "recover": sc.Recover(steps=2, share=1)}):
        with pytest.raises(sc.ConfigError, match=r"cannot teach class probabilities.*inputs and targets"):
            sc.prune(model, images(1), budget=HALF, data=sc.Data(inputs), progress="silent", **options)


def test_a_loss_of_ones_own_has_no_targets_where_there_are_no_labels() -> None:
    """It is not called, so that what it takes does not matter."""
    inputs = [x for x, _ in batches()]
    pixels = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    result = sc.prune(
        pixels,
        images(1),
        "l2",
        HALF,
        sc.Data(inputs),
        sc.Recover(steps=2, share=1),
        progress="silent",
        loss=F.cross_entropy,
    )
    assert result.history[-1]["share"] == 1
