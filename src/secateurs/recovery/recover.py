"""Getting the accuracy back after a cut: fine-tuning, mimicking, distillation, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from secateurs.errors import ConfigError
from secateurs.recovery.distil import Distilling
from secateurs.recovery.features import check_names
from secateurs.recovery.mimic import Mimicking
from secateurs.recovery.recipes import Distil, Mimic
from secateurs.recovery.teacher import TeacherHook
from secateurs.training.engine import Engine
from secateurs.training.recipe import Recipe


def phases(recover: Recipe | Sequence[Recipe] | None) -> list[tuple[str, Recipe]]:
    """The recipes of recovery in order, each with the name of its folder: `recover`, or where there are several
    `recover-1-mimic`, `recover-2-finetune`. ConfigError for anything that is no recipe."""
    if recover is None:
        return []
    recipes = list(recover) if isinstance(recover, Sequence) and not isinstance(recover, str) else [recover]
    for recipe in recipes:
        if not isinstance(recipe, Recipe):
            raise ConfigError(
                f"recover={recipe!r}: give sc.Recover(…), sc.Mimic(…) or sc.Distil(…), or a list of them."
            )
    if len(recipes) == 1:
        return [("recover", recipes[0])]
    return [(f"recover-{i}-{recipe.mode}", recipe) for i, recipe in enumerate(recipes, start=1)]


def check(recover: Recipe | Sequence[Recipe] | None, model: nn.Module) -> None:
    """Raise ConfigError before any work for recipes that the uncut network shows to be wrong already."""
    for _, recipe in phases(recover):
        if isinstance(recipe, Mimic):
            check_names(model, recipe.nodes or ())


def recover(
    model: nn.Module,
    data: Any,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    example_inputs: Any = None,
    nodes: Sequence[str] = (),
    seed: int = 0,
    resume: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Trains the cut model in place as the recipe says; returns the history, one dict per epoch.

    teacher: the original network, for `Mimic` and `Distil`; it is left as it is, and a copy of it asked.
    example_inputs: as for tracing, for `Mimic`, which looks for feature maps that the cut has not changed.
    nodes: feature maps to mimic where the recipe names none, as far as they have kept their shape.
    options: `Engine`'s. A hook of your own comes before the teacher's.
    """
    options.setdefault("title", "recover" if recipe.mode == "finetune" else recipe.mode)
    taught = _taught(model, recipe, teacher, example_inputs, nodes)
    try:
        hooks = [*options.pop("hooks", ()), *([taught] if taught else [])]
        return Engine(model, data, recipe, seed=seed, hooks=hooks, **options).fit(resume=resume)
    finally:
        if taught:
            taught.close()


def _taught(
    model: nn.Module, recipe: Recipe, teacher: nn.Module | None, example_inputs: Any, nodes: Sequence[str]
) -> TeacherHook | None:
    if not isinstance(recipe, Mimic | Distil):
        return None
    if teacher is None:
        raise ConfigError(f"{type(recipe).__name__} needs the original network: teacher=….")
    if isinstance(recipe, Distil):
        return Distilling(model, teacher, recipe)
    if example_inputs is None:
        raise ConfigError("Mimic needs example_inputs=…, to see which feature maps have kept their shape.")
    return Mimicking(model, teacher, recipe, example_inputs, nodes)
