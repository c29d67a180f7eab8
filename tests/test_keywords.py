"""Arguments that a constructor does not have, or that are missing: errors of ours, with the names that there are."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import secateurs as sc
from secateurs.errors import BudgetError, ConfigError, DataError, SecateursError


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: sc.Budget(flops=0.5), BudgetError, r"Budget has no flops\. FLOPs are two for each MAC: pass macs=…"),  # type: ignore[call-arg]
        (lambda: sc.Budget(mac=0.5), BudgetError, r"Budget has no mac\. Did you mean macs\?"),  # type: ignore[call-arg]
        (lambda: sc.Budget(time=0.5), BudgetError, "Budget has no time"),  # type: ignore[call-arg]
        (lambda: sc.Budget(0.5, 0.5, 1, 2), BudgetError, "too many positional arguments"),  # type: ignore[call-arg]
        (lambda: sc.Data(val=[1]), DataError, "Data: missing a required argument: 'train'"),  # type: ignore[call-arg]
        (lambda: sc.Data([1], test=[1]), DataError, "Data has no test. Pass val=…"),  # type: ignore[call-arg]
        (lambda: sc.Limits(excluded="a"), ConfigError, r"Limits has no excluded\. Did you mean exclude\?"),  # type: ignore[call-arg]
        (lambda: sc.Stage(), ConfigError, "missing a required argument: 'method'"),  # type: ignore[call-arg]
        (lambda: sc.DataSpec(batchsize=3), ConfigError, "Did you mean batch_size"),  # type: ignore[call-arg]
        (lambda: sc.PruneRun("zoo:resnet20", "digits", "x", round=3), ConfigError, "Did you mean rounds"),  # type: ignore[call-arg]
    ],
)
def test_what_is_wrong_is_named(call: Callable[[], Any], kind: type[SecateursError], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_right_arguments_are_left_alone() -> None:
    assert list(inspect.signature(sc.Budget).parameters) == ["macs", "params", "align", "latency", "ms", "target"]
    budget = sc.Budget(0.5, align=8)
    assert dataclasses.replace(budget, macs=0.25) == sc.Budget(macs=0.25, align=8)
    assert pickle.loads(pickle.dumps(budget)) == budget
