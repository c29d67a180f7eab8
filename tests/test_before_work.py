"""What `prune` is told of training and calibration is checked before the method runs, which may take hours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
import secateurs.training as T

X, Y = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
DATA = sc.Data([(X, Y)], [(X, Y)])


class Never(sc.L1):
    def scores(self, task: Any) -> Any:
        raise AssertionError("the method has run")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def pruned(method: sc.L1, data: Any = DATA, recover: Any = None, **options: Any) -> sc.Result:
    options = {"progress": "silent", "check_speed": False, "device": "cpu", **options}
    return sc.prune(net(), X[:1], method, sc.Budget(macs=0.5), data, recover or sc.Recover(epochs=2), **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"progress": "loud"}, "progress='loud' is not valid"),
        ({"track": ["nothing"]}, "track='nothing' is not available"),
        ({"track": "nothing"}, "track='nothing' is not available"),
        ({"save_steps": 0}, "save_steps=0 must be an integer of at least 1"),
        ({"save_steps": 2.5}, r"save_steps=2\.5 must be an integer"),
        ({"save_seconds": "60"}, "save_seconds='60' must be a number"),
        ({"save_seconds": -1}, "save_seconds=-1 must be a number of at least 0"),
        ({"resume": True}, "resume=True needs folder=…"),
        ({"hooks": [print]}, "is not a hook: pass an instance"),
        ({"hooks": [T.Hook]}, "is not a hook: pass an instance"),
        ({"hooks": T.Hook()}, "hooks must be a list"),
        (
            {"recover": sc.Recover(label_smoothing=0.1), "loss": F.cross_entropy},
            "label_smoothing applies to the default",
        ),
        ({"calibrate": [torch.randn(4, 5, 8, 8)]}, r"calibrate=…: .*expects \(N, 3, H, W\)"),
        ({"calibrate": [torch.full((4, 3, 8, 8), torch.nan)]}, r"calibrate=…: .* are NaN or infinite"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], says: str) -> None:
    with pytest.raises(sc.SecateursError, match=says):
        pruned(Never(), **options)


def stream(n: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from [(X, Y)] * n


@pytest.mark.parametrize("recipe", [{"epochs": 2}, {"epochs": 2, "schedule": "constant"}])
def test_training_data_that_is_used_up_too_early(recipe: dict[str, Any]) -> None:
    with pytest.raises(sc.DataError, match=r"one-shot iterator.*steps_per_epoch"):
        pruned(Never(), stream(8), sc.Recover(**recipe))
    assert len(pruned(sc.L1(), stream(8), sc.Recover(**recipe, steps_per_epoch=3)).history) == 2
    assert pruned(sc.L1(), stream(8), sc.Recover(steps=3)).history[-1]["step"] == 3


def test_validation_data_that_can_be_read_only_once() -> None:
    with pytest.raises(sc.DataError, match=r"val is a one-shot iterator, .* several times"):
        pruned(Never(), sc.Data([(X, Y)], stream(1)))
    with pytest.raises(sc.DataError, match="val is a one-shot iterator"):
        T.Engine(net(), sc.Data([(X, Y)], stream(2)), sc.Recover(epochs=2), device="cpu", progress="silent").fit()


def test_a_run_checks_its_recovery(tmp_path: Path) -> None:
    for recover, says in ((sc.Recover(label_smoothing=0.1), "label_smoothing"), (sc.Recover(epochs=2), "one-shot")):
        data = sc.Data(stream(4) if says == "one-shot" else [(X, Y)])
        run = sc.PruneRun(
            net(),
            data,
            tmp_path / says,
            method=Never(),
            budget=sc.Budget(macs=0.5),
            recover=recover,
            loss=F.cross_entropy,
        )
        with pytest.raises(sc.SecateursError, match=says):
            run.check()
