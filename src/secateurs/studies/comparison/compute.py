"""Compute in training passes: forward and backward through the uncut network over all training images, 3 · MACs for each.

Everything that runs is counted, like costs everywhere else, in short searches with the method's own settings, including AOFP's
second path and NPN's pruner. Two searches are run, one twice as long as the other; their difference is the cost of training.
The rest is what the method does once, and the calibration after the cut. Calibration depends on which channels were cut, so it
is counted separately, and the larger of the two counts is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from torch import nn

from secateurs.api import prune
from secateurs.budget import Budget
from secateurs.data import Data
from secateurs.data.bundle import fresh_pass
from secateurs.data.structure import examples
from secateurs.errors import ConfigError
from secateurs.graph import Cost, count
from secateurs.graph.counter import MacCounter
from secateurs.methods import Method, Task, TrainingMethod
from secateurs.methods.pruner import Taught
from secateurs.recovery import Reconstruct, Recover
from secateurs.report import count as counted
from secateurs.training import Phase, Recipe

STEPS = 3  # steps per epoch of the short searches
EPOCHS = 2
USUAL_SHARE = 0.3  # of the compute, for the search of a method that trains and names no share of its own

Unit = Literal["macs", "steps"]


@dataclass(frozen=True)
class SearchCost:
    """The cost of a search. epoch: one epoch of the method's own training, in training passes over the same images. once:
    everything else, in training passes of one image. seconds: the time of everything else, measured here."""

    epoch: float
    once: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Division:
    """How a cell's compute is divided: `epochs` of the method's own training (0 if it does not train), and recovery. passes:
    what both of them take, plus what the method does once. warnings: what there is too little compute for."""

    method: Method
    epochs: float
    recovery: list[Phase]
    passes: float
    warnings: tuple[str, ...] = ()


def search_cost(
    model: nn.Module, inputs: Any, method: Method, budget: Budget, train: Any, seed: int, **options: Any
) -> SearchCost:
    """Measure the cost of a search by running it. inputs: one example or more. train: the batches that the search will read.
    options: passed to `prune`."""
    image = 3 * count(model, inputs).macs / examples(inputs)

    def run(chosen: Method) -> tuple[np.ndarray, int]:
        """(2, 2): of the search and of the rest, passes of an image and seconds; and the steps of the search."""
        read: list[tuple[float, float]] = []

        def note() -> None:
            read.append((counter.macs / image, time.perf_counter()))

        with MacCounter() as counter:
            note()
            chosen = _observed(chosen, note) if isinstance(chosen, TrainingMethod) else chosen
            result = prune(
                model, inputs, chosen, budget, Data(train), seed=seed, progress=False, check_speed=False, **options
            )
            note()
        return np.diff([read[0], read[-2], read[-1]], axis=0), searched(result.history, method)

    if not isinstance(method, TrainingMethod):
        return SearchCost(0.0, *map(float, run(method)[0].sum(0)))
    sizes = [examples(batch) for batch in islice(fresh_pass(train), STEPS)]
    settings = {"compile": False} if "compile" in type(method).model_fields else {}  # compiled kernels are not counted
    ((short, after), fewer), ((long, later), more) = (
        run(lasting(method, epochs, steps_per_epoch=STEPS, **settings)) for epochs in (EPOCHS, 2 * EPOCHS)
    )
    # A search ends early when its budget is met: in both runs, or even at once.
    trained = np.maximum(long - short, 0) / (more - fewer) if more > fewer else long / max(1, more)  # of a step
    once, seconds = np.maximum(short - fewer * trained, 0) + np.maximum(after, later)
    epoch = float(trained[0]) * len(sizes) / sum(sizes) if more else 0.0
    return SearchCost(epoch, float(once), float(seconds))


def searched(history: Sequence[Mapping[str, Any]], method: Method) -> int:
    """Return the number of steps of a method's own training. Recovery's lines, which may follow, name another phase."""
    trained = (line for line in history if "train_loss" in line and line.get("phase", method.name) == method.name)
    return max((line["step"] for line in trained), default=0)


def _observed(method: Method, selected: Callable[[], None]) -> Method:
    """A copy of the method, which calls this function whenever it has selected the channels."""
    kind: Any = type(method)

    def select(self: Any, task: Task) -> Any:
        found = kind.select(self, task)
        selected()
        return found

    observed = method.model_copy()
    body = {"select": select, "name": method.name, "__module__": kind.__module__}
    object.__setattr__(observed, "__class__", type(kind.__name__, (kind,), body))
    return observed


def lasting(method: Method, epochs: float, **settings: Any) -> Method:
    """Return the method with this many epochs of its own training, and other settings. Raises ConfigError if its length cannot
    be set."""
    if "epochs" not in type(method).model_fields:
        raise ConfigError(
            f"{method.name} trains while it prunes, and has no setting epochs: its share of the compute cannot be set."
        )
    whole = type(method).model_fields["epochs"].annotation is int
    return method.model_copy(update={"epochs": max(1, round(epochs)) if whole else epochs, **settings})


def _in_all(one: Method | Phase, steps: int) -> float:
    """How many of its own epochs, which may be shorter, are an epoch of all batches."""
    own = getattr(one, "steps_per_epoch", None)
    return 1.0 if own is None else max(1.0, steps / own)


def recovery_cost(phase: Phase, macs: float, images: int) -> float:
    """Return the cost of an epoch of recovery, or of a reconstruction, in training passes of the uncut network over these
    images.

    macs: the share of the MACs that the cut network has. A teacher only runs forward, which is a third of a pass.
    """
    if isinstance(phase, Reconstruct):  # one forward pass of each network
        return min(phase.images, images) / images * (1 + macs) / 3
    taught = not isinstance(phase, Recover) or phase.share > 0
    return macs + taught / 3


def shared(phases: Sequence[Phase], passes: float, macs: float, images: int, steps: int) -> list[Phase]:
    """Return the phases of recovery, which share these passes; those that train share evenly. steps: per epoch."""
    found = list(phases)
    trained = [phase for phase in found if isinstance(phase, Recipe)]
    fixed = sum(recovery_cost(phase, macs, images) for phase in found if not isinstance(phase, Recipe))
    left = max(0.0, passes - fixed)
    for i, phase in enumerate(found):
        if isinstance(phase, Recipe):
            epochs = left / len(trained) / recovery_cost(phase, macs, images) * _in_all(phase, steps)
            given = {"epochs": epochs} if phase.steps is None else {"epochs": epochs, "steps": None}
            found[i] = phase.model_copy(update=given)
    return found


def search_share(method: Method, search: float | None) -> float:
    """Return the share of the compute for a method's own training: `search`, or by default the method's own share."""
    if not isinstance(method, TrainingMethod):
        return 0.0
    if search is not None:
        return search
    return method.share if isinstance(method, Taught) else USUAL_SHARE


def divided(
    method: Method, share: float, total: float, cost: SearchCost, images: int, steps: int, width: float,
    recover: Sequence[Phase],
) -> Division:  # fmt: skip
    """Return the division of `total` passes. share: for the method's own training, unless it has `epochs` set. images, steps:
    per epoch. width: what an epoch of the cut network costs, in passes. Raises ConfigError if the method's own training takes
    more than `total`."""
    once, epochs, warnings = cost.once / images, 0.0, []
    if isinstance(method, TrainingMethod):
        given = getattr(method, "epochs", None) if "epochs" in method.model_fields_set else None
        own = _in_all(method, steps)
        if given is None:  # a search whose budget is met from the start costs nothing, however long it might be
            method = lasting(method, share * total / (cost.epoch or 1.0) * own)
        else:
            share = 0.0
        epochs = float(method.epochs) / own  # type: ignore[attr-defined]
        if share and (taken := epochs * steps) < 1:
            warnings.append(
                f"its search gets {taken:.2g} of a training step, and takes one. With {_up(total / taken)} epochs it would get "
                "one."
            )
    left = total - once - epochs * cost.epoch
    if epochs * cost.epoch > total * (1 + 1e-6):
        raise ConfigError(
            f"{method.name} with {epochs:g} epochs takes {epochs * cost.epoch:.2g} passes, and a cell has {total:g}: "
            "give fewer epochs to the method, or more passes to the cells."
        )
    recovery = shared(recover, left, width, images, steps)
    trained = [phase for phase in recovery if isinstance(phase, Recipe)]
    others = sum(recovery_cost(phase, width, images) for phase in recovery if not isinstance(phase, Recipe))
    lengths = [(phase.epochs or 0.0) / _in_all(phase, steps) for phase in trained]  # epochs of all batches
    if any(length * steps < 1 for length in lengths):
        before = once + epochs * cost.epoch + others
        fixed = before - share * total  # what does not grow with the compute
        enough = max(fixed, len(trained) * max(recovery_cost(phase, width, images) for phase in trained) / steps)
        warnings.append(
            f"its search, cut and calibration{' and the reconstruction' if others else ''} take {before:.3g} of "
            f"{counted(total, 'pass')}, which leaves {'less than a training step' if before < total else 'nothing'} for "
            f"{'the rest of ' if others else ''}recovery. With "
            f"{_up((fixed + enough) / (1 - share))} epochs, it would get {enough:.2g} passes."
        )
    spent = others + sum(
        length * recovery_cost(phase, width, images) for length, phase in zip(lengths, trained, strict=True)
    )
    return Division(method, epochs, recovery, once + epochs * cost.epoch + spent, tuple(warnings))


def _up(value: float) -> str:
    """Rounded up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit) * unit:g}"


def width_of(budget: Budget, cost: Cost, unit: Unit) -> float:
    """Return what an epoch of the cut network costs, in passes. With `unit="steps"`, and under a budget that does not limit
    MACs, it counts as one pass."""
    macs = getattr(budget, "macs", None)
    if unit == "steps" or macs is None:
        return 1.0
    return float(macs) if isinstance(macs, float) else min(1.0, macs / cost.macs)
