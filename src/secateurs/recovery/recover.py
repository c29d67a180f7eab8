"""Recover accuracy after a cut: reconstruction, fine-tuning, mimicking and distillation, in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from secateurs.errors import ConfigError
from secateurs.plans import Plan
from secateurs.recovery.distil import Distilling
from secateurs.recovery.features import check_names
from secateurs.recovery.mimic import Mimicking
from secateurs.recovery.recipes import Distil, Mimic, Recover
from secateurs.recovery.reconstruct import Reconstruct, reconstruct
from secateurs.recovery.teacher import TeacherHook
from secateurs.training.batches import check_passes, length, measure, split_data
from secateurs.training.engine import Engine
from secateurs.training.objective import Objective
from secateurs.training.options import check_recipe
from secateurs.training.recipe import Phase, Recipe


def phases(recover: Phase | Sequence[Phase] | None) -> list[tuple[str, Phase]]:
    """The phases of recovery in order, each with the name of its folder: `recover`, or if there are several
    `recover-1-mimic`, `recover-2-finetune`. Raises ConfigError for anything but recipes."""
    if recover is None:
        return []
    recipes = list(recover) if isinstance(recover, Sequence) and not isinstance(recover, str) else [recover]
    for recipe in recipes:
        if isinstance(recipe, type) and issubclass(recipe, Phase):
            raise ConfigError(f"recover={recipe.__name__} is a class: pass an instance, sc.{recipe.__name__}(…).")
        if not isinstance(recipe, Phase):
            raise ConfigError(
                f"recover={recipe!r} is not a valid recipe: pass sc.Recover(…), sc.Mimic(…), sc.Distil(…) or "
                "sc.Reconstruct(…), or a list of them."
            )
    if len(recipes) == 1:
        return [("recover", recipes[0])]
    return [(f"recover-{i}-{recipe.mode}", recipe) for i, recipe in enumerate(recipes, start=1)]


def epochs(recipes: Sequence[Phase], train: Any) -> float:
    """Epochs over this data that the recipes train in all; steps count for nothing if the data has no length."""
    each = length(train) or math.inf
    return sum(
        recipe.epochs if recipe.epochs is not None else (recipe.steps or 0) / (recipe.steps_per_epoch or each)
        for recipe in recipes
        if isinstance(recipe, Recipe)
    )


def check(
    recover: Phase | Sequence[Phase] | None, model: nn.Module, data: Any = None, objective: Objective | None = None
) -> None:
    """Raise ConfigError before any work for recipes that are not valid for the uncut network and the objective, DataError for a
    one-shot iterator that is not enough for them."""
    train, _ = split_data(data)
    for _, recipe in phases(recover):
        if isinstance(recipe, Recipe):
            check_recipe(recipe, objective or Objective())
            check_passes(recipe, train)
        if isinstance(recipe, Recipe) and not any(p.requires_grad for p in model.parameters()):
            raise ConfigError(
                f"{type(recipe).__name__} trains the network, and all of its parameters have requires_grad=False: call "
                "requires_grad_(True) on the model, or on the parts of it that are to be trained."
            )
        if isinstance(recipe, Mimic):
            check_names(model, recipe.nodes or ())


def recover(
    model: nn.Module,
    data: Any,
    recipe: Phase,
    *,
    plan: Plan | None = None,
    teacher: nn.Module | None = None,
    example_inputs: Any = None,
    nodes: Sequence[str] = (),
    seed: int = 0,
    resume: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Recover the cut model in place with the recipe. Returns the history: one dict per epoch, or one for `Reconstruct`.

    plan: the plan that the model was cut by, for `Reconstruct`.
    teacher: the original network; it is not modified; a copy of it is run. Without it, `Recover` trains on the task loss alone.
    example_inputs: as for tracing; needed by `Mimic` to find feature maps that kept their shape.
    nodes: feature maps to mimic if the recipe names none; those that changed their shape are skipped.
    options: passed to `Engine`; `Reconstruct` uses `device` and `progress` only. Your own hooks run before the teacher's.
    """
    if isinstance(recipe, Reconstruct):
        if teacher is None or plan is None:
            raise ConfigError(
                "Reconstruct needs the original network and the plan of the cut: pass teacher=… and plan=…."
            )
        return reconstruct(
            model,
            data,
            recipe,
            teacher,
            plan,
            seed,
            options.get("device"),
            options.get("progress", "auto"),
            options.get("objective"),
        )
    assert isinstance(recipe, Recipe)
    options.setdefault("title", "recover" if recipe.mode == "finetune" else recipe.mode)
    taught = _taught(model, recipe, teacher, example_inputs, nodes)
    try:
        hooks = [*options.pop("hooks", ()), *([taught] if taught else [])]
        settled = recipe.settled(measure(recipe, split_data(data)[0])[0])
        engine = Engine(model, data, settled, seed=seed, hooks=hooks, **options)
        if settled is not recipe:
            engine.report.line(f"{options['title']}: peak learning rate {settled.lr:.2g}")
        if taught is None and isinstance(recipe, Recover) and recipe.share:
            engine.report.line(f"{options['title']}: trains on the task loss alone: there is no teacher")
        return [{**line, "phase": recipe.mode} for line in engine.fit(resume=resume)]
    finally:
        if taught:
            taught.close()


def _taught(
    model: nn.Module, recipe: Recipe, teacher: nn.Module | None, example_inputs: Any, nodes: Sequence[str]
) -> TeacherHook | None:
    if not isinstance(recipe, Mimic | Recover) or (isinstance(recipe, Recover) and recipe.share == 0):
        return None
    if teacher is None:
        if isinstance(recipe, Mimic | Distil) or "share" in recipe.model_fields_set:
            raise ConfigError(f"{type(recipe).__name__} needs the original network: pass teacher=….")
        return None
    if isinstance(recipe, Recover):
        return Distilling(model, teacher, recipe, required=recipe.teaches)
    if example_inputs is None:
        raise ConfigError("Mimic needs example_inputs=… to find the feature maps that kept their shape.")
    return Mimicking(model, teacher, recipe, example_inputs, nodes)
