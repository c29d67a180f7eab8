"""What recovery cannot do with a network and its data, found before any work: by one batch, with a copy of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Raise ConfigError if the uncut network cannot be trained on the data, or the original cannot teach it; DataError if it
    does not fit the data. A one-shot iterator is left as it is."""
    trains, (train, _) = [recipe for recipe in recipes if isinstance(recipe, Recipe)], split_data(data)
    if not trains or isinstance(train, Iterator):
        return
    check = Check(model, "train")
    batch = as_batch(first(train, "train"), 0, labels=False, whole=objective.whole)
    batch = to_device(check.fit(batch, 0), device_of(model))
    for recipe in trains:
        try:
            with preserve_rng_state(), torch.no_grad(), check.running(batch, 0):
                _try(recipe, model, batch, objective)
        except TrainingError as error:
            raise ConfigError(error) from error
        except DataError:
            if objective.step is None:
                raise  # a step may compute gradients, which there are none of here


def _try(recipe: Recipe, model: nn.Module, batch: Batch, objective: Objective) -> None:
    """The first forward pass of a recipe."""
    probe = copied(model).train()
    default = CrossEntropy(recipe.label_smoothing)
    if isinstance(recipe, Recover) and recipe.share:
        teacher = Distilling(probe, model, recipe, required=recipe.teaches)
        outputs, targets, _ = objective.train(probe, batch, default, recipe.mixup)
        teacher.unfit(objective, outputs, targets, batch.labeled)
    elif isinstance(recipe, Mimic) and (recipe.nodes is None or OUTPUT in recipe.nodes):
        hook = TeacherHook(probe, model)
        with Capture(probe, [OUTPUT]) as ours, Capture(hook.teacher, [OUTPUT]) as theirs:
            hook.listen(batch)
            objective.train(probe, batch, default, recipe.mixup)
            hook.outputs(objective, hook.teacher)
            pairs_of(theirs.take()[0], ours.take()[0])
    else:
        objective.train(probe, batch, default, recipe.mixup)
