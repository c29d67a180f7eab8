"""Every registered method passes every check, and a method that breaks a rule fails the check of that rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import secateurs as sc
from secateurs.methods import Selection, Task
from secateurs.testing import CHECKS, check_method
from secateurs.testing.checks import quick


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("method", sc.methods())
def test_method(method: str, check: str) -> None:
    CHECKS[check](quick(method))


class Good(sc.Criterion):
    """ℓ1."""

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: g.filters(task.model).abs().sum(1) for g in task.groups}


def test_a_method_of_ones_own_passes() -> None:
    check_method(Good())


class TakesTooMuch(Good):
    def select(self, task: Task) -> Selection:
        return {g.name: np.arange(1) for g in task.groups}


class Random(Good):
    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: torch.from_numpy(np.random.default_rng().random(g.size)) for g in task.groups}


class Meddles(Good):
    def scores(self, task: Task) -> dict[str, Tensor]:
        next(task.model.parameters()).data.mul_(0.5)
        return super().scores(task)


class Everywhere(Good):
    def select(self, task: Task) -> Selection:
        every = Task(**{**vars(task), "scope": "all"})
        return super().select(every)


@pytest.mark.parametrize(
    ("method", "check", "message"),
    [
        (TakesTooMuch(), "budget_is_met_and_used_up", "is not used up"),
        (Random(), "same_seed_same_plan", "different plans"),
        (Meddles(), "model_is_untouched", "has changed"),
        (Everywhere(), "scope", "are on a shortcut"),
    ],
)
def test_what_breaks_a_rule_fails_the_check_of_that_rule(method: Any, check: str, message: str) -> None:
    others = tuple(name for name in CHECKS if name != check)
    with pytest.raises(AssertionError, match=rf"fails the check '{check}': .*{message}"):
        check_method(method, skip=others)
