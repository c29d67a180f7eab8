"""Compute in training passes: forward and backward through the uncut network over all training images, 3 · MACs for each.

All that runs is counted, as costs are everywhere, in short searches with the method's own settings: AOFP's second path and
NPN's pruner, too. Of two searches, one twice as long as the other, the difference is what training costs, and the rest is
what the method does once, before and after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from secateurs.api import prune
from secateurs.budget import Budget
from secateurs.data import Data
from secateurs.data.structure import examples
from secateurs.errors import ConfigError
from secateurs.graph import Cost, count
from secateurs.graph.counter import MacCounter
from secateurs.methods import Method, TrainingMethod
from secateurs.methods.pruner import Taught
from secateurs.recovery import Reconstruct, Recover
from secateurs.training import Phase, Recipe

STEPS = 3  # steps per epoch of the short searches
EPOCHS = 2
USUAL_SHARE = 0.3  # of the compute, for the search of a method that trains and names no share of its own

Unit = Literal["macs", "steps"]


@dataclass(frozen=True)
class SearchCost:
    """epoch: of one epoch of the method's own training, in training passes over the same images. once: of everything else, in
    training passes of one image."""

    epoch: float
    once: float


@dataclass(frozen=True)
class Division:
    """How a cell's compute is divided: `epochs` of the method's own training (0 if it does not train), and recovery. passes:
    what both of them take, and whatever the method does once."""

    method: Method
    epochs: float
    recovery: list[Phase]
    passes: float


def search_cost(
    model: nn.Module, inputs: Any, method: Method, budget: Budget, train: Any, seed: int, **options: Any
) -> SearchCost:
    """Measured by running it. inputs: of one example or more. train: the batches that the search will read. options: of
    `prune`."""
    image = 3 * count(model, inputs).macs / examples(inputs)

    def run(chosen: Method) -> float:
        with MacCounter() as counter:
            prune(model, inputs, chosen, budget, Data(train), seed=seed, progress=False, check_speed=False, **options)
        return counter.macs / image

    if not isinstance(method, TrainingMethod):
        return SearchCost(0.0, run(method))
    rows = sum(examples(batch) for batch, _ in zip(train, range(STEPS), strict=False))
    short, long = (run(lasting(method, epochs, steps_per_epoch=STEPS)) for epochs in (EPOCHS, 2 * EPOCHS))
    epoch = (long - short) / (EPOCHS * rows)
    return SearchCost(epoch, max(0.0, short - EPOCHS * rows * epoch))


def lasting(method: Method, epochs: float, **settings: Any) -> Method:
    """The method with so many epochs of its own training, and other settings. Raises ConfigError for one whose length cannot
    be set."""
    if "epochs" not in type(method).model_fields:
        raise ConfigError(
            f"{method.name} trains while it prunes, and has no setting epochs: its share of the compute cannot be set."
        )
    return type(method)(**{**method.model_dump(exclude_unset=True), "epochs": epochs, **settings})


def recovery_cost(phase: Phase, macs: float, images: int) -> float:
    """Of one epoch of recovery, or of a reconstruction, in training passes over these images through the uncut network.

    macs: the share that the cut network has. A teacher runs forward only, which is a third of a pass.
    """
    if isinstance(phase, Reconstruct):  # one forward pass of each network
        return min(phase.images, images) / images * (1 + macs) / 3
    taught = not isinstance(phase, Recover) or phase.share > 0
    return macs + taught / 3


def shared(phases: Sequence[Phase], passes: float, macs: float, images: int) -> list[Phase]:
    """The phases of recovery, which share these passes; those that train do so evenly."""
    found = list(phases)
    trained = [phase for phase in found if isinstance(phase, Recipe)]
    fixed = sum(recovery_cost(phase, macs, images) for phase in found if not isinstance(phase, Recipe))
    left = max(0.0, passes - fixed)
    for i, phase in enumerate(found):
        if isinstance(phase, Recipe):
            epochs = left / len(trained) / recovery_cost(phase, macs, images)
            given = {"epochs": epochs} if phase.steps is None else {"epochs": epochs, "steps": None}
            found[i] = phase.model_copy(update=given)
    return found


def search_share(method: Method, search: float | None) -> float:
    """Of the compute, what a method's own training gets: `search`, or by default the method's own share."""
    if not isinstance(method, TrainingMethod):
        return 0.0
    if search is not None:
        return search
    return method.share if isinstance(method, Taught) else USUAL_SHARE


def divided(
    method: Method, share: float, total: float, cost: SearchCost, images: int, width: float, recover: Sequence[Phase]
) -> Division:
    """The division of `total` passes. share: of the method's own training, unless it has `epochs` set. width: what an epoch of
    the cut network costs, in passes. Raises ConfigError where the method's own training is all that there is, or more."""
    once, epochs = cost.once / images, 0.0
    if isinstance(method, TrainingMethod):
        given = getattr(method, "epochs", None) if "epochs" in method.model_fields_set else None
        epochs = share * total / cost.epoch if given is None else float(given)
        method = lasting(method, epochs)
    left = total - once - epochs * cost.epoch
    if epochs * cost.epoch > total * (1 + 1e-6):
        raise ConfigError(
            f"{method.name} with {epochs:g} epochs takes {epochs * cost.epoch:.2g} passes, and a cell has {total:g}: "
            "give fewer epochs to the method, or more passes to the cells."
        )
    recovery = shared(recover, left, width, images)
    spent = sum(getattr(phase, "epochs", 1) * recovery_cost(phase, width, images) for phase in recovery)
    return Division(method, epochs, recovery, once + epochs * cost.epoch + spent)


def width_of(budget: Budget, cost: Cost, unit: Unit) -> float:
    """What an epoch of the cut network costs, in passes. With `unit="steps"`, and under a budget that does not limit MACs, it
    counts as one pass."""
    macs = getattr(budget, "macs", None)
    if unit == "steps" or macs is None:
        return 1.0
    return float(macs) if isinstance(macs, float) else min(1.0, macs / cost.macs)
