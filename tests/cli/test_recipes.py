"""How the command line's options become recipes of recovery."""

from __future__ import annotations

import pytest

import secateurs as sc
from secateurs.cli.recipes import RecoverOptions


def test_the_papers_mimicking_is_at_hand() -> None:
    (found,) = RecoverOptions(recover="mimic:15", mimic_lr=1e-3, milestones="5,10").recipes()
    paper = sc.Mimic.preset("paper")
    assert isinstance(found, sc.Mimic)
    assert {k: getattr(found, k) for k in type(paper).model_fields} == dict(paper)


def test_every_phase_that_trains_has_the_optimizer_and_the_milestones() -> None:
    options = RecoverOptions(
        recover="reconstruct:64,mimic:2,finetune:2", optimizer="adamw", milestones="1.5", gamma=0.5
    )
    reconstruct, *trained = options.recipes()
    assert reconstruct == sc.Reconstruct(images=64)
    for recipe in trained:
        assert (recipe.optimizer, recipe.schedule, recipe.milestones, recipe.gamma) == ("adamw", "step", (1.5,), 0.5)
        assert (recipe.factor(0.5, 1.0), recipe.factor(0.8, 1.6)) == (1.0, 0.5)
    (plain,) = RecoverOptions(recover="finetune:2").recipes()
    assert (plain.optimizer, plain.schedule) == ("sgd", "onecycle")


def test_a_preset_has_milestones() -> None:
    (found,) = RecoverOptions(recover="mimic preset=paper", gamma=0.5).recipes()
    assert found == sc.Mimic(preset="paper", gamma=0.5)


def test_names_with_commas_are_quoted() -> None:
    (found,) = RecoverOptions(recover='mimic:2 nodes="a b",c', mimic_lr=0.1).recipes()
    (same,) = RecoverOptions(recover="mimic:2", nodes='"a b",c', mimic_lr=0.1).recipes()
    assert found == same == sc.Mimic(epochs=2, nodes=("a b", "c"), lr=0.1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"milestones": "5,x"}, "milestones=.*'x' must be a valid number"),
        ({"milestones": "9,5"}, "milestones must be positive and ascending"),
        ({"milestones": "5", "lr_schedule": "cosine"}, "--lr-schedule cosine and --milestones are mutually exclusive"),
        ({"gamma": 0.5}, "--gamma requires --milestones"),
        ({"milestones": " "}, "--milestones names none: give epochs, such as --milestones 5,10"),
        (
            {"recover": "reconstruct", "precision": "bf16"},
            "--precision is an option of phases that train, and --recover names none",
        ),
        ({"recover": ""}, "A recovery has no name: write, for example, 'finetune:10 lr=0.05'"),
        ({"recover": "finetune share=50%"}, "^share=50%: write share=0.5"),
        ({"recover": "mimic preset=[1]"}, r"preset=1 is not a preset of Mimic"),
    ],
)
def test_what_makes_no_sense(options: dict[str, object], says: str) -> None:
    with pytest.raises(sc.ConfigError, match=says):
        RecoverOptions(**options).recipes()  # type: ignore[arg-type]
