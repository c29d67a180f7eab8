from __future__ import annotations

import pytest
import torch

import secateurs.recovery as R
from secateurs.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 0}, "Recover(lr=0): must be greater than 0 (peak learning rate; None: chosen by the number of steps)"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"epochs": -1}, "epochs=-1"),
        ({"epochs": 1, "steps": 5}, "epochs and steps are mutually exclusive"),
        ({"learning_rate": 1}, "'learning_rate' is not a valid setting"),
        ({"epoch": 1}, "Did you mean epochs"),
        ({"schedule": "linear"}, "schedule='linear'"),
        ({"schedule": "step"}, "needs milestones"),
        ({"milestones": (1, 2)}, "only valid with schedule='step'"),
        ({"schedule": "step", "milestones": (2, 1)}, "must be positive and ascending"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"precision": "int8"}, "precision='int8'"),
    ],
)
def test_bad_settings_are_explained(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=r"Recover[:(]") as found:
        R.Recover(**settings)
    assert words in str(found.value)


def test_validating_a_dict_gives_the_same_error() -> None:
    with pytest.raises(ConfigError, match="lr=-1"):
        R.Recover.model_validate({"lr": -1})


def test_recipe_round_trips_and_is_frozen() -> None:
    recipe = R.Recover(steps=7, schedule="step", milestones=(3, 5))
    assert R.Recover.model_validate_json(recipe.model_dump_json()) == recipe
    assert R.Recover().epochs == 3
    with pytest.raises(ValueError, match="frozen"):
        recipe.lr = 1


def test_onecycle_and_cosine_agree_with_torch() -> None:
    total = 50
    for name, build in {
        "onecycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=total, cycle_momentum=False),
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total),
    }.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = build(optimizer)
        recipe = R.Recover(schedule=name, lr=1.0)
        for step in range(total):
            ours, theirs = recipe.factor(step / total, 0), optimizer.param_groups[0]["lr"]
            assert abs(ours - theirs) < 0.08  # torch peaks a step earlier and ends on its last step
            optimizer.step()
            scheduler.step()


def test_step_and_warmup() -> None:
    recipe = R.Recover(schedule="step", milestones=(1, 2.5), gamma=0.1)
    assert [recipe.factor(0, at) for at in (0, 1, 2, 3)] == pytest.approx([1, 0.1, 0.1, 0.01])
    warm = R.Recover(schedule="constant", warmup=0.5)
    assert [warm.factor(t, 0) for t in (0.25, 0.5, 1)] == [0.5, 1, 1]
