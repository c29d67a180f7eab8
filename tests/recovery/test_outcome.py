"""What recovery made of a network, as the user is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.artifact import Figures
from secateurs.recovery.outcome import worse
from secateurs.testing.networks import images, network


def less_is_better(outputs: Any, targets: Any) -> float:
    return 0.0


less_is_better.higher_is_better = False  # type: ignore[attr-defined]


class Mean:
    higher_is_better = True


@pytest.mark.parametrize(
    ("metrics", "start", "end", "told"),
    [
        ({}, {"top1": 50.0}, {"top1": 40.0}, "Recovery ended at 40.00% top-1, below the 50.00% it started from: try"),
        ({}, {"top1": 50.0}, {"top1": 50.0}, None),
        ({}, {"top1": 50.0}, {"top1": None}, None),
        ({}, {"loss": 1.0}, {"loss": 2.0}, None),
        ({"d": None}, {"metrics": {"d": 0.801}, "loss": 1.0}, {"metrics": {"d": 0.441}, "loss": 2.0}, "d, below the 0.8010"),
        ({"dice": None, "b": None}, {"metrics": {"dice": 0.5, "b": 2.0}}, {"metrics": {"dice": 0.5, "b": 1.0}}, None),
        ({"d": less_is_better}, {"metrics": {"d": 1.0}}, {"metrics": {"d": 2.0}}, "at 2.000 d, above the 1.000"),
        ({"d": less_is_better}, {"metrics": {"d": 2.0}}, {"metrics": {"d": 1.0}}, None),
        ({"mAP": Mean}, {"metrics": {"mAP.map": 0.4}}, {"metrics": {"mAP.map": 0.3}}, "at 0.3000 mAP, below the 0.4000"),
        ({}, {"top1": 93.0}, {"top1": 92.999}, None),
        ({"m": None}, {"metrics": {"m": math.nan}}, {"metrics": {"m": math.nan}}, None),
        ({"m": less_is_better}, {"top1": 50.0}, {"top1": 60.0}, None),
        ({"m": less_is_better}, {"top1": 60.0}, {"top1": 50.0}, None),
        ({"m": None}, {"metrics": {"m": 0.3}, "loss": 0.3}, {"metrics": {"m": 0.1}, "loss": 0.1}, None),  # perhaps an error
        ({"val.m": None}, {"metrics": {"val.m": 0.3}, "loss": 1.0}, {"metrics": {"val.m": 0.1}, "loss": 2.0}, "below the 0.3"),
    ],
)  # fmt: skip
def test_what_became_worse(metrics: Any, start: dict[str, Any], end: dict[str, Any], told: str | None) -> None:
    found = worse(Figures(1, 1, **end), Figures(1, 1, **start), metrics)
    assert (found is None) == (told is None)
    assert told is None or (found is not None and told in found)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_result_says_so(rounds: int) -> None:
    """In its warnings, and on its card."""
    data, lines = [(images(8, i), torch.zeros(8, dtype=torch.long)) for i in range(3)], list[str]()

    def drift(outputs: Any, targets: Any) -> Any:
        return -outputs.mean()

    def mean(outputs: Any, targets: Any) -> Any:
        return -outputs.mean()

    mean.higher_is_better = True  # type: ignore[attr-defined]
    for metric, expected in ((lambda o, t: o.mean(), False), (mean, True)):
        lines.clear()
        result = sc.prune(
            network(), images(1), "l2", sc.Budget(macs=0.6), sc.Data(data, val=data), sc.Recover(epochs=1, share=0, lr=0.1),
            loss=drift, metrics={"m": metric}, rounds=rounds, check_speed=False, progress="silent", report=lines.append,
        )  # fmt: skip
        told = [line for line in result.warnings if "Recovery ended at" in line]
        assert len(told) == expected * rounds
        assert list(result.card().get("warnings", ())) == list(result.warnings)
        assert any("Recovery ended" in line for line in lines) == expected
