"""Calibration of any network, as `prune` does it after a cut."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any

import torch
from torch import nn

from secateurs.artifact.provenance import remember, source_of
from secateurs.data import Data
from secateurs.devices import usable
from secateurs.errors import ConfigError, SecateursError, Setting
from secateurs.graph.copies import copied
from secateurs.graph.inputs import check_model
from secateurs.placement import Placement
from secateurs.recovery import IMAGES, calibrate_
from secateurs.seeds import checked as checked_seed
from secateurs.training import Objective, check_runs, without_labels
from secateurs.training.objective import Forward


def calibrate(
    model: nn.Module,
    batches: Any,
    images: int = IMAGES,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    forward: Forward | None = None,
) -> nn.Module:
    """Return a copy of the network with batch-norm statistics re-estimated on images, without labels: what a cut leaves
    of them belongs to the uncut network. The given model is not modified. `prune` does this after every cut.

    batches: training batches of any kind that `Data` takes, or a `Data`; targets are not read. Our own loaders leave out
        augmentation.
    images: how many are used at most, the first of a pass; a list of batches is read at even distances.
    seed: for batches that draw random numbers. The caller's random state is not changed.
    forward: `forward(model, batch) -> (outputs, targets)`, for batches of any kind: as for `prune`.
    device: where the network runs, by default the model's device. The result is on the model's device, in its dtypes.

    The network runs once, in eval mode, each norm with the statistics of the batch at hand (batches of fewer than 32 images
    are joined). The statistics of the images are pooled exactly, in float64, whatever the norms' momentum.
    Applies to `nn.BatchNorm1d` to `3d`, `nn.SyncBatchNorm` and `nn.InstanceNorm1d` to `3d` with running statistics, trainable
    or not, in any mode; other norms keep theirs. In a process group, statistics are pooled over all processes, which must all
    call this.

    Raises DataError for batches that do not fit the model, or if there is none.
    """
    check_model(model)
    placement, seed = Placement.of(model), checked_seed(seed)
    where = placement.device if device is None else usable(device)
    small = copied(placement.working_copy(model, where))
    source = Data.of(batches).train
    objective = Objective(forward=forward)
    calibrate_(small, without_labels(source, _count(images), seed=seed, whole=objective.whole), objective)
    placement.restore(small)
    if (origin := source_of(model)) is not None:
        remember(small, origin)
    return small


def images_of(calibrate: Any, data: Data | None, seed: int, objective: Objective) -> Any:
    """The batches to calibrate on, or None. They are read several times."""
    if calibrate is False:
        return None
    if calibrate is True:  # a one-shot iterator is left to the training that it was passed for
        return None if data is None or isinstance(data.train, Iterator) else data.train
    try:
        source = Data.of(calibrate).train
    except SecateursError as error:
        raise error.within(Setting("calibrate"), ": ") from error
    if not isinstance(source, Iterator):
        return source
    found = without_labels(source, IMAGES, seed=seed, whole=objective.whole)
    return [batch.inputs if batch.whole else (batch.inputs, batch.targets) for batch in found]


def check_images(images: Any, data: Data | None, model: nn.Module, objective: Objective) -> None:
    """Raise before any work if the model does not run on the first of these batches. Those of `data` are checked with it."""
    if images is None or (data is not None and images is data.train):
        return
    try:
        check_runs(model, Data(images), objective)
    except SecateursError as error:
        raise error.within(Setting("calibrate"), ": ") from error


def _count(images: Any) -> int:
    if isinstance(images, bool) or not isinstance(images, Integral) or images < 2:
        raise ConfigError(f"images={images!r} is not a valid number of images: it must be an integer of at least 2.")
    return int(images)
