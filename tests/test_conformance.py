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
from secateurs.testing.checks import prune, quick
from secateurs.testing.networks import network


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
        return {g.name: torch.rand(g.size) for g in task.groups}


class Meddles(Good):
    def select(self, task: Task) -> Selection:
        next(task.model.parameters()).data.mul_(0.5)
        return super().select(task)


def test_the_given_model_is_untouched_whatever_a_method_does() -> None:
    CHECKS["model_is_untouched"](Meddles())


class TakesTooLittle(Good):
    def select(self, task: Task) -> Selection:
        return {}


def test_a_budget_is_never_exceeded_whatever_a_method_answers() -> None:
    with pytest.raises(sc.BudgetError, match=r"keeps [\d,]+ MACs .*, over its Budget\(macs=0\.5"):
        prune(TakesTooLittle(), network(), sc.Budget(macs=0.5))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (
            lambda g: torch.ones(g.size + 1),
            r"returned a tensor of shape \(.*\) for \S+: it must return a tensor of \d+ scores, one per channel",
        ),
        (lambda g: [1.0] * g.size, "returned a list of .* torch.as_tensor"),
        (lambda g: torch.full((g.size,), float("nan")), "not finite"),
    ],
)
def test_scores_that_do_not_fit_are_said_so(scores: Any, message: str) -> None:
    class Wrong(Good):
        def scores(self, task: Task) -> dict[str, Tensor]:
            return {g.name: scores(g) for g in task.groups}

    class Forgets(Good):
        def scores(self, task: Task) -> dict[str, Tensor]:
            return {g.name: torch.ones(g.size) for g in task.groups[1:]}

    with pytest.raises(sc.ConfigError, match=message):
        prune(Wrong(), network(), sc.Budget(macs=0.5))
    with pytest.raises(sc.ConfigError, match=r"Forgets returned no scores for \S+: it must return"):
        prune(Forgets(), network(), sc.Budget(macs=0.5))


class Everywhere(Good):
    def select(self, task: Task) -> Selection:
        every = Task(**{**vars(task), "scope": "all"})
        return super().select(every)


@pytest.mark.parametrize(
    ("method", "check", "message"),
    [
        (TakesTooMuch(), "budget_is_met_and_used_up", "is not used up"),
        (Random(), "same_seed_same_plan", "different plans"),
        (Everywhere(), "scope", "are on a shortcut"),
    ],
)
def test_what_breaks_a_rule_fails_the_check_of_that_rule(method: Any, check: str, message: str) -> None:
    others = tuple(name for name in CHECKS if name != check)
    with pytest.raises(AssertionError, match=rf"fails the check '{check}': .*{message}"):
        check_method(method, skip=others)


class KeepsAll(sc.Method):
    def select(self, task: Task) -> Selection:
        return {}


def test_whatever_a_method_raises_fails_the_check() -> None:
    with pytest.raises(
        AssertionError, match=r"KeepsAll fails the check '\w+': BudgetError: KeepsAll keeps [\d,]+ MACs"
    ):
        check_method(KeepsAll())
    with pytest.raises(sc.ConfigError, match="There is no method 'nothing'"):
        check_method("nothing")


def test_scores_by_group() -> None:
    class ByGroup(Good):
        def scores(self, task: Task) -> dict[Any, Tensor]:
            return {task.graph[name]: found for name, found in super().scores(task).items()}

    CHECKS["budget_is_met_and_used_up"](ByGroup())
