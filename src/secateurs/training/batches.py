"""Batches from whatever the user has: our loaders, a DataLoader, a list, a function that returns an iterator."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from secateurs.errors import DataError
from secateurs.training.recipe import Recipe
from secateurs.training.seeds import borrowed, seed_all

log = logging.getLogger("secateurs")


@runtime_checkable
class Resumable(Protocol):
    """What our own loaders offer: every batch is a function of (seed, epoch, batch index)."""

    def __len__(self) -> int: ...
    def set_epoch(self, epoch: int) -> None: ...
    def iter_from(self, batch_index: int) -> Iterator[Any]: ...


class Batch(NamedTuple):
    inputs: Any  # (N, ...) tensor, or a tuple or dict of them
    targets: torch.Tensor  # (N,) class indices, or (N, classes) probabilities


def split_data(data: Any) -> tuple[Any, Any]:
    """(train, val) of a Data object, or (data, None) of a plain iterable."""
    if hasattr(data, "train"):
        return data.train, getattr(data, "val", None)
    return data, None


def length(source: Any) -> int | None:
    """Batches in one pass, or None where the source does not say."""
    try:
        return len(source)
    except TypeError:  # also what an IterableDataset's DataLoader raises
        return None


def count(source: Any) -> int:
    """Batches in one pass, by making one."""
    if isinstance(source, Iterator):
        raise DataError(
            "The length of the training data is unknown, and being a one-shot iterator it cannot be counted first. "
            "Give the recipe steps=..., or pass a list, a DataLoader or a function that returns a fresh iterator."
        )
    return sum(1 for _ in _open(source, 0, 0)[0])


def measure(recipe: Recipe, source: Any) -> tuple[int | None, int | None]:
    """(steps to take, steps per epoch), None where unknown. Data without a length is counted only if that is needed:
    a schedule other than 'constant', or a part of an epoch, has to know where the end is."""
    n = length(source)
    if n is None and recipe.epochs:
        blind = recipe.schedule == "constant" and not recipe.warmup and recipe.epochs == int(recipe.epochs)
        if not blind:
            with borrowed():
                n = count(source)
            log.info("the training data has no length; counted %d batches", n)
    per_epoch = math.ceil(n / recipe.accumulate) if n else None
    if recipe.epochs is None or recipe.epochs == 0:
        return recipe.steps or 0, per_epoch
    return math.ceil(recipe.epochs * per_epoch - 1e-9) if per_epoch else None, per_epoch


def _open(source: Any, epoch: int, start: int) -> tuple[Iterator[Any], bool]:
    """An iterator that stands before batch `start`, and whether it needs the global generators seeded."""
    if hasattr(source, "set_epoch"):
        source.set_epoch(epoch)
    if hasattr(source, "iter_from"):
        return iter(source.iter_from(start)), False
    fresh: Iterable[Any] = source() if callable(source) and not hasattr(source, "__iter__") else source
    try:
        return iter(fresh), True
    except TypeError:
        raise DataError(
            f"Data must be an iterable of (inputs, targets) batches, not a {type(source).__name__}."
        ) from None


def walk(source: Any, *, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[int, Batch, bool]]:
    """Yields (batch index, batch, is it the pass's last) from batch `start` on, one batch read ahead.

    Plain iterables are replayed from their beginning: each batch is drawn under generators seeded for it, so the
    replay draws the same.
    """
    seed_all(seed, "data", epoch)
    iterator, seeded = _open(source, epoch, start)
    index = 0 if seeded else start
    ahead: Any = None
    have = False
    while True:
        if seeded:
            seed_all(seed, "data", epoch, index)
        try:
            raw = next(iterator)
        except StopIteration:
            break
        if have:
            yield index - 1, as_batch(ahead, index - 1), False
        if index >= start:
            ahead, have = raw, True
        index += 1
    if have:
        yield index - 1, as_batch(ahead, index - 1), True
    elif start == 0 or index < start:
        raise DataError(_nothing(source, epoch, start, index))


def _nothing(source: Any, epoch: int, start: int, found: int) -> str:
    if start:
        return (
            f"Epoch {epoch + 1} ended after {found} batches, but training had got to batch {start}: the data changed."
        )
    if epoch and isinstance(source, Iterator):
        return (
            f"The training data ran out after its first pass (epoch {epoch + 1} got nothing): it is a one-shot "
            "generator. Pass a list, a DataLoader, or a function that returns a fresh iterator for every epoch."
        )
    return f"The training data is empty (epoch {epoch + 1} got no batch)."


def as_batch(raw: Any, index: int) -> Batch:
    if not isinstance(raw, (tuple, list)) or len(raw) != 2:
        shape = f"{type(raw).__name__} of {len(raw)}" if isinstance(raw, (tuple, list)) else type(raw).__name__
        raise DataError(f"Batch {index} is a {shape}; expected a pair (inputs, targets).")
    inputs, targets = raw
    if not isinstance(targets, torch.Tensor) or targets.ndim == 0:
        raise DataError(f"Batch {index}: targets must be a tensor of N class indices, got {type(targets).__name__}.")
    return Batch(inputs, targets)


def apply(function: Callable[[torch.Tensor], torch.Tensor], inputs: Any) -> Any:
    """The function on every tensor of the inputs, which keep their structure."""
    if isinstance(inputs, torch.Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: apply(function, value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(apply(function, value) for value in inputs)
    return inputs


def place(batch: Batch, device: torch.device, channels_last: bool = False) -> Batch:
    def move(x: torch.Tensor) -> torch.Tensor:
        if channels_last and x.ndim == 4:
            return x.to(device, non_blocking=True, memory_format=torch.channels_last)
        return x.to(device, non_blocking=True)

    return Batch(apply(move, batch.inputs), batch.targets.to(device, non_blocking=True))


def share(batch: Batch, rank: int, world: int) -> Batch:
    """This process's rows of a batch that every process has read. Fewer rows than processes: all keep
    all of them, which leaves gradients right (the mean over copies) and only the unbiased variance a shade off."""
    rows = batch.targets.shape[0]
    if world == 1 or rows < world:
        return batch
    low, high = rows * rank // world, rows * (rank + 1) // world
    return Batch(apply(lambda x: x[low:high], batch.inputs), batch.targets[low:high])
