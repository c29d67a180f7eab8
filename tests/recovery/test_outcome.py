"""What recovery made of a network, as the user is told."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("metrics", "start", "end", "told"),
    [
        ({}, {"top1": 50.0}, {"top1": 40.0}, "recovery left top-1 at 40.00%, worse than the 50.00% that it began with: try"),
        ({}, {"top1": 50.0}, {"top1": 50.0}, None),
        ({}, {"top1": 50.0}, {"top1": None}, None),
        ({}, {"loss": 1.0}, {"loss": 2.0}, None),
        ({"dice": None}, {"metrics": {"dice": 0.801}}, {"metrics": {"dice": 0.441}}, "dice at 0.4410, worse than the 0.8010"),
        ({"dice": None, "b": None}, {"metrics": {"dice": 0.5, "b": 2.0}}, {"metrics": {"dice": 0.5, "b": 1.0}}, None),
        ({"d": less_is_better}, {"metrics": {"d": 1.0}}, {"metrics": {"d": 2.0}}, "d at 2.000, worse than the 1.000"),
        ({"d": less_is_better}, {"metrics": {"d": 2.0}}, {"metrics": {"d": 1.0}}, None),
        ({"mAP": None}, {"metrics": {"mAP.map": 0.4}}, {"metrics": {"mAP.map": 0.3}}, "at 0.3000, worse than the 0.4000"),
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

    for metric, expected in ((lambda o, t: o.mean(), False), (mean, True)):
        lines.clear()
        result = sc.prune(
            network(), images(1), "l2", sc.Budget(macs=0.6), sc.Data(data, val=data), sc.Recover(epochs=1, share=0, lr=0.1),
            loss=drift, metrics={"m": metric}, rounds=rounds, check_speed=False, progress="silent", report=lines.append,
        )  # fmt: skip
        told = [line for line in result.warnings if "recovery left m at" in line]
        assert len(told) == expected * rounds
        assert list(result.card().get("warnings", ())) == list(result.warnings)
        assert any("recovery left" in line for line in lines) == expected
