"""Read batches from any source: our loaders, a DataLoader, a list, a function that returns an iterator."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from secateurs.data.bundle import checked, fresh_pass, held, no_batch, paired
from secateurs.data.loader import Loader
from secateurs.data.structure import examples, leaves, part
from secateurs.errors import DataError, a_or_an
from secateurs.graph.structures import map_tensors
from secateurs.seeds import mix, preserve_rng_state, seed_all
from secateurs.training.recipe import Recipe

log = logging.getLogger("secateurs")


IGNORED = -100  # a target that cross-entropy ignores


class Batch(NamedTuple):
    inputs: Any  # (N, ...) tensor, or a tuple or dict of them; for a whole batch, the batch itself
    # (N,) class indices, (N, classes) probabilities, or whatever the user's loss takes; None for a whole batch.
    targets: Any
    labeled: bool = True  # False: the data has inputs only, and all targets are IGNORED
    whole: bool = False  # True: it is passed to the user's functions as the data yields it
    number: int | None = None  # index of the data's batch that it begins with, if the order does not give it

    @property
    def rows(self) -> int:
        """The number of examples."""
        return examples(self.targets if isinstance(self.targets, torch.Tensor) else self.inputs)


def split_data(data: Any) -> tuple[Any, Any]:
    """Return (train, val) of a Data object, or (data, None) for a plain iterable."""
    if hasattr(data, "train"):
        return data.train, getattr(data, "val", None)
    return data, None


def length(source: Any) -> int | None:
    """Return the number of batches in one pass, or None if unknown."""
    try:
        return len(source)
    except (TypeError, NotImplementedError, OverflowError):  # an IterableDataset's DataLoader raises TypeError
        return None


# It cannot be known whether an iterable without a length ends. It must end within the first of these limits:
ENDLESS = 1_000_000  # batches
COUNT_SECONDS = 60.0  # for a pass that only counts
EVALUATE_SECONDS = 3600.0  # for a pass that evaluates

COUNTING = (
    "Set steps_per_epoch=…, the batches per epoch (a setting of recipes and of methods that train), or pass data that "
    "has a length."
)
ENDING = (
    "Validation data must end: limit it with itertools.islice, or, if it only takes "
    "long, pass data with a length (a list, a DataLoader)."
)


def bounded(source: Any, split: str, seconds: float, advice: str) -> Iterator[Any]:
    """Yield the batches of one pass. Raises DataError if it does not end within the limits; see `ENDLESS`."""
    fresh = fresh_pass(source)
    if length(source) is not None or isinstance(source, Loader):
        yield from fresh
        return
    if isinstance(fresh, itertools.cycle | itertools.count):
        raise DataError(
            f"{split} is {a_or_an(type(fresh).__module__)}.{type(fresh).__name__}, which never ends. {advice}"
        )
    began = time.monotonic()
    for index, raw in enumerate(fresh):
        took = time.monotonic() - began
        if index >= ENDLESS or took > seconds:
            raise DataError(f"{split} has no length and did not end within {index:,} batches ({took:.0f} s). {advice}")
        yield raw


def first(source: Any, split: str) -> Any:
    """Return the first batch of a pass without changing the caller's random state. Raises DataError if there is none."""
    with preserve_rng_state():
        for raw in fresh_pass(source):
            return raw
    raise DataError(no_batch(source, split))


def count(source: Any) -> int:
    """Count the batches in one pass by running one. Raises DataError if it does not end within the limits."""
    if isinstance(source, Iterator):
        raise DataError(
            "The length of the training data is unknown, and a one-shot iterator cannot be counted first. "
            "Set steps_per_epoch=… (of the method or the recipe) or a recipe's steps=…, or pass a list, a DataLoader or a "
            "function that returns a fresh iterator."
        )
    if hasattr(source, "set_epoch"):
        source.set_epoch(0)
    return sum(1 for _ in bounded(source, "train", COUNT_SECONDS, COUNTING))


def measure(recipe: Recipe, source: Any) -> tuple[int | None, int | None]:
    """Return (steps to take, steps per epoch), each None if unknown. Data without a length is counted only if needed: a
    schedule other than 'constant' needs to know the end, as does a fraction of an epoch."""
    n, limit = length(source), recipe.steps_per_epoch
    if limit is not None:
        n = limit if n is None else min(n, limit)
    elif n is None and recipe.epochs:
        blind = recipe.schedule == "constant" and not recipe.warmup and recipe.epochs == int(recipe.epochs)
        if not blind:
            with preserve_rng_state():
                n = count(source)
            log.info("the training data has no length; counted %d batches", n)
    per_epoch = math.ceil(n / recipe.accumulate) if n else None
    if recipe.epochs is None or recipe.epochs == 0:
        return recipe.steps or 0, per_epoch
    return math.ceil(recipe.epochs * per_epoch - 1e-9) if per_epoch else None, per_epoch


def check_passes(recipe: Recipe, source: Any) -> None:
    """Raise DataError before any work for a one-shot iterator that is not enough for the recipe."""
    if not isinstance(source, Iterator):
        return
    measure(recipe, source)
    if (recipe.epochs or 0) > 1 and recipe.steps_per_epoch is None:
        raise DataError(
            f"The training data is a one-shot iterator, which is used up after one of epochs={recipe.epochs:g}. Set "
            "steps_per_epoch=… if it goes on, or pass a list, a DataLoader, or a function that returns a fresh iterator."
        )


def _open(source: Any, epoch: int, start: int) -> tuple[Iterator[Any], bool]:
    """Return an iterator positioned before batch `start`, and whether the global generators must be seeded for it."""
    if hasattr(source, "set_epoch"):
        source.set_epoch(epoch)
    if hasattr(source, "iter_from"):
        return iter(source.iter_from(start)), False
    fresh = fresh_pass(source)
    if getattr(fresh, "persistent_workers", False):
        # The workers of a DataLoader are seeded when they start: those of the last pass would draw on from where it ended.
        fresh._iterator = None  # type: ignore[attr-defined]
    return iter(fresh), True


def seed_generators(source: Any, *words: int | str) -> None:
    """Seed the generators that the user gave to a PyTorch DataLoader or its samplers. They would run on from pass to pass, and
    start again in another process."""
    batches = getattr(source, "batch_sampler", None)
    for owner in (source, getattr(source, "sampler", None), batches, getattr(batches, "sampler", None)):
        if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
            generator.manual_seed(mix(*words))


def walk(
    source: Any, *, seed: int, epoch: int, start: int = 0, limit: int | None = None, replay: bool = False,
    labels: bool = True, whole: bool = False,
) -> Iterator[tuple[int, Batch, bool]]:  # fmt: skip
    """Yield (batch index, batch, whether it is the last of the pass) from batch `start` on, reading one batch ahead.

    limit: maximum number of batches in a pass; a one-shot iterator continues from its position in the next pass.
    replay: a one-shot iterator is at its beginning, and `epoch` such passes must be skipped.
    labels: whether labels are read; if not, batches may be inputs only.
    whole: whether batches are passed on whole.

    Plain iterables are replayed from the beginning. The generators are seeded before each batch, and a DataLoader's own before
    each pass, so the replay draws the same batches.
    """
    seed_all(seed, "data", epoch)
    seed_generators(source, seed, "data", epoch)
    iterator, seeded = _open(source, epoch, start)
    if replay and limit is not None and isinstance(source, Iterator):
        _replay(iterator, seed, epoch, limit)
    index = 0 if seeded else start
    end = ENDLESS if limit is None and length(source) is None and not isinstance(source, Loader) else limit
    ahead: Any = None
    have = False
    while end is None or index < end:
        if seeded:
            seed_all(seed, "data", epoch, index)
        try:
            raw = next(iterator)
        except StopIteration:
            break
        if have:
            yield index - 1, as_batch(ahead, index - 1, labels=labels, whole=whole), False
        if index >= start:
            ahead, have = raw, True
        index += 1
    if limit is None and index == end:
        raise DataError(f"train has no length and did not end within {index:,} batches of an epoch. {COUNTING}")
    if have:
        yield index - 1, as_batch(ahead, index - 1, labels=labels, whole=whole), True
    elif start == 0 or index < start:
        raise DataError(_nothing(source, epoch, start, index))


def _replay(iterator: Iterator[Any], seed: int, epochs: int, limit: int) -> None:
    """Draw the batches of a one-shot iterator's earlier epochs again, with the same random state."""
    for epoch in range(epochs):
        seed_all(seed, "data", epoch)
        for index in range(limit):
            seed_all(seed, "data", epoch, index)
            next(iterator, None)


def _nothing(source: Any, epoch: int, start: int, found: int) -> str:
    if start:
        return f"Epoch {epoch + 1} ended after {found} batches, but training had reached batch {start}: the data has changed."
    if epoch and isinstance(source, Iterator):
        return (
            f"The training data is exhausted after its first pass (epoch {epoch + 1} got no batch): it is a one-shot "
            "generator. Pass a list, a DataLoader, or a function that returns a fresh iterator for every epoch."
        )
    return f"train is empty: epoch {epoch + 1} got no batch."


def as_batch(raw: Any, index: int, split: str = "train", *, labels: bool = True, whole: bool = False) -> Batch:
    """Convert a raw batch to a Batch. Raises DataError if it is empty or not a pair of inputs and targets. Without `labels`, it
    may be inputs only. If `whole`, it may be anything that holds a tensor."""
    if whole:
        return Batch(held(raw, index, split), None, whole=True)
    if labels:
        return Batch(*paired(raw, index, split))
    inputs, targets = checked(raw, index, split)
    if targets is not None:
        return Batch(inputs, targets)
    one = leaves(inputs)[0]
    return Batch(inputs, one.new_full((len(one),), IGNORED, dtype=torch.long), labeled=False)


def check_again(val: Any) -> None:
    """Raise DataError for validation data that can be read only once: a network is measured several times."""
    if isinstance(val, Iterator):
        raise DataError(
            "val is a one-shot iterator, used up after one pass, and a network is measured several times. Pass a list, "
            f"a DataLoader, or a function that returns a fresh iterator. {ENDING}"
        )


def check_labels(source: Any, readers: Sequence[str]) -> None:
    """Raise DataError before any work if there are readers of labels and the first batch is inputs only. One-shot
    iterators are checked when they are read, because this check would consume them."""
    if not readers or isinstance(source, Loader | Iterator):
        return
    if checked(first(source, "train"), 0, "train")[1] is None:
        raise DataError(
            f"{readers[0]} reads labels, and the training batches of this data are inputs only: pass pairs "
            "(inputs, targets), or say what your batches hold with step=… or forward=…."
        )


def to_device(batch: Batch, device: torch.device, channels_last: bool = False) -> Batch:
    def move(x: torch.Tensor) -> torch.Tensor:
        if channels_last and x.ndim == 4:
            return x.to(device, non_blocking=True, memory_format=torch.channels_last)
        return x.to(device, non_blocking=True)

    targets = map_tensors(lambda x: x.to(device, non_blocking=True), batch.targets)
    return batch._replace(inputs=map_tensors(move, batch.inputs), targets=targets)


def share(batch: Batch, rank: int, world: int) -> Batch:
    """Return this process's rows of a batch that every process has read. With fewer rows than processes, every process
    keeps all rows. Gradients are then still correct (the mean over copies), and only the unbiased variance changes slightly."""
    rows = batch.rows
    if world == 1 or rows < world:
        return batch
    low, high = rows * rank // world, rows * (rank + 1) // world
    return rows_of(batch, low, high)


def rows_of(batch: Batch, low: int, high: int) -> Batch:
    """Return the batch's rows from `low` up to `high`."""
    return taken(batch, slice(low, high))


def taken(batch: Batch, rows: Any) -> Batch:
    """Return some of the batch's rows. rows: a slice, or a tensor of indices."""
    n = batch.rows
    return batch._replace(inputs=part(batch.inputs, rows, n), targets=part(batch.targets, rows, n))


def joined(batches: Sequence[Batch]) -> Batch:
    """Concatenate batches into one."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    targets = None if first.whole else _cat([b.targets for b in batches])
    return Batch(_cat([b.inputs for b in batches]), targets, all(b.labeled for b in batches), first.whole, first.number)


def _cat(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: _cat([p[name] for p in parts]) for name in first}
    if isinstance(first, (tuple, list)):
        return tuple(_cat(list(each)) for each in zip(*parts, strict=True))
    return torch.cat(parts)


def without_labels(source: Any, examples: int, *, seed: int, rows: int = 32, whole: bool = False) -> Iterator[Batch]:
    """Yield the first examples of a pass, with or without labels. Our own loaders yield them without augmentation.
    Neither the caller's random state nor the loader's epoch changes. The same seed gives the same examples.

    examples: the maximum number; fewer if the pass ends earlier. A list is read at even intervals, because it may be sorted.
    rows: smaller batches are joined until they have this many examples, if their shapes allow. Whole batches are never joined.

    Raises DataError for inputs that are not finite. The code that runs the network must check whole batches itself, because
    their targets may have values that the user's functions ignore.
    """
    left, waiting = examples, list[Batch]()
    with preserve_rng_state():
        # A batch has at least one example, so `examples` batches are enough, and endless data is read no further.
        plain, numbers = _plain(source, examples, whole)
        for index, batch, last in walk(plain, seed=seed, epoch=0, limit=examples, labels=False, whole=whole):
            piece = rows_of(batch, 0, min(left, batch.rows))._replace(number=numbers[index] if numbers else index)
            if not whole:
                check_finite(leaves(piece.inputs), f"Batch {piece.number} of train: ", "its inputs")
            left -= min(left, batch.rows)
            if waiting and not fits(waiting[0], piece):
                yield joined(waiting)
                waiting = []
            waiting.append(piece)
            if sum(b.rows for b in waiting) >= rows or last or not left:
                yield joined(waiting)
                waiting = []
            if not left:
                return


def _plain(source: Any, examples: int, whole: bool) -> tuple[Any, list[int]]:
    """Return the batches to read examples from, and their indices if the source is a list."""
    if isinstance(source, Loader):
        return source.plain(), []
    if isinstance(source, (list, tuple)) and source:
        each = as_batch(source[0], 0, labels=False, whole=whole).rows
        count = min(len(source), -(-examples // each))
        numbers = [i * len(source) // count for i in range(count)]
        return [source[i] for i in numbers], numbers
    return source, []


def check_finite(found: Sequence[torch.Tensor], where: str, what: str) -> None:
    """Raise DataError if any values are NaN or infinite."""
    floats = [x for x in found if x.is_floating_point()]
    if bad := sum(int((~x.isfinite()).sum()) for x in floats):
        total = sum(x.numel() for x in found)
        raise DataError(f"{where}{bad:,} of {total:,} values of {what} are NaN or infinite.")


def fits(one: Batch, other: Batch) -> bool:
    """Whether two batches can be joined."""
    if one.whole:
        return False
    rows = [[(x.shape[1:], x.dtype, x.device) for x in leaves((b.inputs, b.targets))] for b in (one, other)]
    return rows[0] == rows[1] and type(one.inputs) is type(other.inputs)
