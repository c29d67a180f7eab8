"""A budget that the network meets as it is: methods that train take no step, and change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import secateurs as sc
from secateurs.methods import TrainingMethod
from secateurs.testing.networks import images, network
from secateurs.testing.state import assert_equal_states

DATA = [(images(8, i), torch.arange(8) % 4) for i in range(3)]
METHODS = [
    sc.AOFP(epochs=1), sc.NPN(epochs=1), sc.NPN.preset("paper", epochs=1), sc.OneStep(epochs=1, fold=True), sc.PFF(epochs=1),
    sc.PFF.preset("paper", epochs=1), sc.PFF(epochs=1, penalty="group-lasso"),
]  # fmt: skip


def prune(method: TrainingMethod, **options: Any) -> tuple[torch.nn.Module, sc.Result]:
    model = network()
    return model, sc.prune(
        model, images(1), method, sc.Budget(macs=1.0, params=1.0), DATA, progress="silent", check_speed=False, **options
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name} {sorted(method.model_fields_set)}")
def test_nothing_is_trained(method: TrainingMethod) -> None:
    model, result = prune(method)
    assert not result.plan.groups
    assert not result.plan.stripes
    assert not any("train_loss" in line or line.get("event") == "cost" for line in result.history)
    assert_equal_states(result.model, model, method.name)


@pytest.mark.parametrize("method", METHODS[::2], ids=lambda method: method.name)
def test_but_what_the_user_wants_cut_is(method: TrainingMethod) -> None:
    model = network()
    group = next(g for g in sc.trace(model, images(1)).groups if g.prunable and g.internal)
    _, result = prune(method, ratios={group.name: 0.5})
    assert len(result.plan.groups[group.name]) == group.size // 2
    assert any("train_loss" in line for line in result.history)


def test_in_a_loop_of_ones_own() -> None:
    model = network()
    pruner = sc.attach(model, images(1), sc.PFF(), sc.Budget(macs=1.0), steps=9, epoch_steps=3, data=DATA)
    assert pruner.done
    (F.cross_entropy(model(DATA[0][0]), DATA[0][1]) + pruner.penalty()).backward()
    assert not pruner.plan().kept
