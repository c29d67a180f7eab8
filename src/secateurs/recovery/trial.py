"""Tries the recovery on one batch with a copy of the network, to find before any work what it cannot do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

import torch
from torch import nn

from secateurs.devices import device_of
from secateurs.errors import ConfigError, DataError, TrainingError
from secateurs.graph.copies import copied
from secateurs.recovery.distil import Distilling
from secateurs.recovery.features import OUTPUT, Capture
from secateurs.recovery.mimic import pairs_of
from secateurs.recovery.recipes import Mimic, Recover
from secateurs.recovery.teacher import TeacherHook
from secateurs.seeds import preserve_rng_state
from secateurs.training.batches import Batch, as_batch, first, split_data, to_device
from secateurs.training.checks import Check
from secateurs.training.losses import CrossEntropy
from secateurs.training.objective import Objective
from secateurs.training.recipe import Phase, Recipe


def check_data(recipes: Sequence[Phase], model: nn.Module, data: Any, objective: Objective) -> None:
    """Raise ConfigError if the original cannot teach the network on the data, or the default loss does not take what the
    network returns. A one-shot iterator is left as it is, and errors of the user's code are left to the training, where
    gradients are computed and hooks run."""
    trains, (train, _) = [recipe for recipe in recipes if isinstance(recipe, Recipe)], split_data(data)
    if not trains or isinstance(train, Iterator):
        return
    check, batch = _first(model, train, objective)
    probe = copied(model).train()
    for recipe in trains:
        with suppress(DataError):
            _tried(recipe, probe, model, check, batch, objective)


def taught(recipe: Recover, model: nn.Module, data: Any, objective: Objective) -> bool:
    """Whether the original teaches the network on the data, as far as the first batch says. Raises ConfigError if it has to,
    and cannot."""
    train, _ = split_data(data)
    if not recipe.share or isinstance(train, Iterator):
        return recipe.share > 0
    with suppress(DataError):
        return _tried(recipe, copied(model).train(), model, *_first(model, train, objective), objective) is None
    return True


def _first(model: nn.Module, train: Any, objective: Objective) -> tuple[Check, Batch]:
    """The first batch, and what checks it."""
    check = Check(model, "train")
    batch = as_batch(first(train, "train"), 0, labels=False, whole=objective.whole)
    return check, to_device(check.fit(batch, 0), device_of(model))


def _tried(
    recipe: Recipe, probe: nn.Module, model: nn.Module, check: Check, batch: Batch, objective: Objective
) -> str | None:
    """Try a recipe on a batch. Returns why the original cannot teach, or None."""
    try:
        with preserve_rng_state(), torch.no_grad(), check.running(batch, 0):
            return _try(recipe, probe, model, batch, objective)
    except TrainingError as error:
        raise ConfigError(error) from error


def _try(recipe: Recipe, probe: nn.Module, model: nn.Module, batch: Batch, objective: Objective) -> str | None:
    """The first forward pass of a recipe. Returns why the original cannot teach, or None."""
    default = CrossEntropy(recipe.label_smoothing)
    if isinstance(recipe, Recover) and recipe.share:
        with closing(Distilling(probe, model, recipe, required=recipe.teaches)) as distilling:
            outputs, targets, _ = objective.train(probe, batch, default, recipe.mixup)
            return distilling.unfit(objective, outputs, targets, batch.labeled)
    if isinstance(recipe, Mimic):
        with (
            closing(TeacherHook(probe, model)) as hook,
            Capture(probe, [OUTPUT]) as ours,
            Capture(hook.teacher, [OUTPUT]) as theirs,
        ):
            hook.listen(batch)
            objective.train(probe, batch, default, recipe.mixup)
            hook.outputs(objective, hook.teacher)
            if OUTPUT in (recipe.nodes or ()):  # without names, the cut decides
                pairs_of(theirs.take()[0], ours.take()[0])
    else:
        objective.train(probe, batch, default, recipe.mixup)
    return None
