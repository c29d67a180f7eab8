"""Methods of one's own: what they return and cannot be used is said by the name of the class, with what to return."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import secateurs as sc
from secateurs.methods import L1, Pruner
from secateurs.testing.networks import images, network
from secateurs.training import Recipe

HALF = sc.Budget(macs=0.5)


def pruned(method: Any, **options: Any) -> sc.Result:
    return sc.prune(network(), images(1), method, HALF, progress="silent", **options)


class Own(sc.Criterion):
    """Whatever a function makes of a group."""

    def of(self, group: Any) -> Any:
        return torch.arange(group.size).float()

    def scores(self, task: Any) -> Any:
        return {g.name: self.of(g) for g in task.groups}


def test_a_class_that_is_not_registered_has_its_own_name() -> None:
    class Other(Own):
        pass

    assert (Own.name, Other.name) == ("Own", "Other")
    assert repr(pruned(Other())).startswith("Result(Other: macs")
    assert type("Mine", (L1,), {}).name == "Mine"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            lambda g: np.ones(g.size),
            r"Bad returned a numpy.ndarray of shape .*: it must return a tensor of \d+ scores, .*torch.as_tensor",
        ),
        (lambda g: None, r"Bad returned no scores for \S+: it must return a tensor of \d+ scores, one per channel\."),
        (lambda g: torch.ones(g.size, 2), r"Bad returned a tensor of shape \(\d+, 2\) for"),
    ],
)
def test_scores_that_cannot_be_used(given: Any, says: str) -> None:
    class Bad(Own):
        def of(self, group: Any) -> Any:
            return given(group)

    with pytest.raises(sc.ConfigError, match=says):
        pruned(Bad())


def test_scores_that_change_the_network() -> None:
    class InPlace(Own):
        def scores(self, task: Any) -> Any:
            return {g.name: g.weights(task.model)[0].abs_().sum(1) for g in task.groups}

    class Data(Own):
        def scores(self, task: Any) -> Any:
            next(task.model.parameters()).data.mul_(0.5)
            return super().scores(task)

    class Trains(Own):
        def scores(self, task: Any) -> Any:
            task.model.train()(images(4))
            return super().scores(task)

    for method in (InPlace(), Data()):
        with pytest.raises(
            sc.ConfigError, match=rf"{type(method).__name__}\.scores has changed \S+\.weight of the network"
        ):
            pruned(method)
    with pytest.raises(sc.ConfigError, match=r"Trains\.scores has changed \S+\.running_mean of the network"):
        pruned(Trains())


def test_scores_may_change_the_network_for_a_moment() -> None:
    class Tries(Own):
        def scores(self, task: Any) -> Any:
            weight = next(task.model.parameters()).data
            held = weight.clone()
            weight.zero_()
            weight.copy_(held)
            return super().scores(task)

    pruned(Tries())


def test_scores_that_are_not_by_group() -> None:
    class Nothing(Own):
        def scores(self, task: Any) -> Any:
            return None

    class Misnamed(Own):
        def scores(self, task: Any) -> Any:
            return {**super().scores(task), f"{task.groups[0].name}x": torch.ones(2)}

    with pytest.raises(sc.ConfigError, match=r"Nothing.scores must return \{group name: tensor .*\}, not a NoneType"):
        pruned(Nothing())
    batches = [(images(4), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(sc.ConfigError, match=r"Nothing.scores must return"):
        sc.sensitivity(network(), images(1), Nothing(), sc.Data(batches, batches))
    with pytest.raises(
        sc.ConfigError, match=r"Misnamed returned scores for '\S+x', which is not a group. Did you mean"
    ):
        pruned(Misnamed())


def test_a_selection_that_is_none() -> None:
    class Nothing(sc.Method):
        def select(self, task: Any) -> Any:
            return None

    with pytest.raises(sc.ConfigError, match=r"Nothing.select must return the channels to keep, .* not a NoneType"):
        pruned(Nothing())


class Idle(sc.TrainingMethod):
    def recipe(self, task: Any) -> Recipe:
        return Recipe(steps=1, epochs=None)

    def attach(self, task: Any) -> Pruner:
        return Idler(task)


class Idler(Pruner):
    def _finish(self) -> Any:
        return None


def test_a_pruner_that_selects_nothing() -> None:
    batches = [(images(4), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(sc.ConfigError, match=r"Idler._finish must return the channels to keep"):
        pruned(Idle(), data=batches)
    pruner = sc.attach(network(), images(1), Idle(), HALF, steps=1, epoch_steps=1, data=batches)
    with pytest.raises(sc.ConfigError, match=r"Idler._finish must return the channels to keep"):
        pruner.plan()


@pytest.mark.parametrize(
    ("base", "says"),
    [
        (sc.Criterion, r"Empty has no scores: define scores\(task\), which returns \{group name"),
        (sc.Method, r"Empty has no select: define select\(task\), which returns the channels"),
        (sc.TrainingMethod, r"Empty has no attach: define attach\(task\), which returns a Pruner"),
    ],
)
def test_a_class_without_what_it_must_define(base: Any, says: str) -> None:
    method = type("Empty", (base,), {"__module__": __name__})()
    with pytest.raises(sc.ConfigError, match=says):
        pruned(method, data=[(images(4), torch.zeros(4, dtype=torch.long))])


def test_a_function_is_not_a_setting() -> None:
    class Holds(Own):
        power: float = 1.0
        fn: object = None

    assert Holds(fn=3).fn == 3
    with pytest.raises(sc.ConfigError, match=r"The setting 'fn' of Holds is a function, and settings are JSON"):
        Holds(fn=lambda g: g)


def test_messages_show_what_is_set_of_a_budget() -> None:
    class Whole(sc.Method):
        def select(self, task: Any) -> Any:
            return {}

    assert repr(sc.Budget(macs=0.5)) == "Budget(macs=0.5)"
    assert repr(sc.Budget(params=9, latency=0.6, align=8)) == "Budget(params=9, align=8, latency=0.6)"
    with pytest.raises(sc.BudgetError, match=r"over its Budget\(macs=0\.5\): a method"):
        pruned(Whole())


def test_a_function_is_not_a_method() -> None:
    with pytest.raises(
        sc.ConfigError, match=r"is not a method: subclass sc.Criterion, call the function in scores\(task\), and pass"
    ):
        pruned(torch.norm)
