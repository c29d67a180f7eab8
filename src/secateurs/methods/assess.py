"""A copy of a network in eval mode and a fixed set of examples, for methods that evaluate many variants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from secateurs.data.bundle import no_batch
from secateurs.data.structure import leaves
from secateurs.devices import channels_last_, device_of, usable
from secateurs.errors import ConfigError, DataError
from secateurs.graph.copies import copied
from secateurs.methods.method import Task
from secateurs.seeds import preserve_rng_state, seed_all
from secateurs.training import batches as B
from secateurs.training import precision as P
from secateurs.training import processes
from secateurs.training.checks import Check
from secateurs.training.metrics import topk_correct
from secateurs.training.objective import Judged
from secateurs.training.progress import Reporter

VALUES = 2**25  # of the inputs of a batch: 222 images of 224 × 224


class Assessor:
    """`model` is a private copy of the task's model, in eval mode and without gradients; `batches` have `rows` examples each,
    by default many, but of large images as many as the data has in a batch.

    examples: as many from the beginning of training (of epoch 0, augmented as training is), which are held on the device; or
        batches of validation, of which there may be more than fit there.

    Each of several processes evaluates all of them, so that all get the same result.
    """

    def __init__(
        self, task: Task, examples: int | Iterable[B.Batch], *, precision: str = "fp32", rows: int | None = None,
        labels: bool = True,
    ) -> None:  # fmt: skip
        device = task.engine_options.get("device")
        self.device = device_of(task.model) if device is None else usable(device)
        self.precision = P.resolve(precision, self.device, task.model)
        self.channels_last = P.wants_channels_last("auto", self.precision, self.device, task.model)
        self.model = copied(task.model).to(self.device).eval().requires_grad_(False)
        if self.channels_last:
            channels_last_(self.model)
        self.objective, self.labels = task.objective, labels
        self.rows, self._most = rows or (256 if self.device.type == "cpu" else 2048), None if rows else VALUES
        if not isinstance(examples, Iterable):
            head = _head(task.data.train, int(examples), task.seed, labels, self.objective.whole)
            self.batches = [self.moved(batch) for batch in self.sliced(head)]
        else:
            self.batches = self.sliced(examples, "val")
        self.examples = sum(b.rows for b in self.batches)

    def moved(self, batch: B.Batch) -> B.Batch:
        """The batch on the device."""
        return B.to_device(batch, self.device, self.channels_last)

    def sliced(self, batches: Iterable[B.Batch], split: str = "train") -> list[B.Batch]:
        """The batches in slices of `rows`, each of images of one size; those that the user's functions take, as they are.

        Raises DataError for batches that do not fit the model or each other.
        """
        self.check = Check(self.model, split)
        if self.objective.whole:
            return [self.check.fit(batch, index, every=True) for index, batch in enumerate(batches)]
        pieces, waiting, held = list[B.Batch](), 0, []
        for index, batch in enumerate(batches):
            batch = self.check.alike(self.check.fit(batch, index, every=True), index)
            if pieces and not B.fits(pieces[0], batch):
                held += [B.joined(pieces)] if waiting else []
                pieces, waiting = [], 0
            if self._most is not None:  # known to fit into memory: what training takes at a time
                each = max(1, sum(x.numel() for x in leaves(batch.inputs)) // batch.rows)
                self.rows = min(self.rows, max(batch.rows, self._most // each))
            pieces.append(batch)
            waiting += batch.rows
            while waiting >= self.rows:
                whole = B.joined(pieces)
                held.append(B.rows_of(whole, 0, self.rows))
                pieces, waiting = [B.rows_of(whole, self.rows, waiting)], waiting - self.rows
        if waiting:
            held.append(B.joined(pieces))
        return held

    def judge(self, batch: B.Batch) -> Judged:
        """The outputs, targets and loss in evaluation."""
        with self.check.running(batch, batch.number), P.autocast(self.precision, self.device):
            return self.objective.judge(self.model, batch)

    def run(self, batch: B.Batch) -> tuple[Tensor, Tensor]:
        """The loss summed over the batch's examples, and the number of top-1 hits: two scalars on the device, both zero
        without labels."""
        with self.check.running(batch), P.autocast(self.precision, self.device):
            zero = torch.zeros((), device=self.device)
            if not self.labels:
                self.objective.outputs(self.model, batch)
                return zero, zero
            with self._same_draws():
                found = self.objective.measured(self.model, batch)
            if found.loss is None:
                return zero, zero
            right = topk_correct(found.outputs, found.targets)
            return found.loss.float() * batch.rows, zero if right is None else right[0]

    @contextmanager
    def _same_draws(self) -> Iterator[None]:
        """Context in which a step of the user's own draws the same random numbers for every variant of the network: a
        detector samples the boxes that its loss counts."""
        if self.objective.step is None:
            yield
            return
        with preserve_rng_state():
            seed_all(0)
            yield


def reporter(task: Task, title: str) -> Reporter:
    """A progress reporter like the engine's; only one of several processes reports."""
    mode = task.engine_options.get("progress", "auto")
    return Reporter(mode if processes.first() else "silent", title)


def require_data(task: Task, name: str, what: str) -> None:
    """Raise ConfigError if the task has no data."""
    if task.data is None:
        raise ConfigError(f"{name} {what}: pass data=….")


def spread(source: Any, examples: int | None, whole: bool = False) -> Iterator[B.Batch]:
    """`examples` rows of validation data, evenly spaced, since such data is often sorted by class. None: all of them."""
    source = _whole(source)
    if examples is None:
        yield from _all(source, whole)
        return
    total = int(getattr(source, "samples", 0)) or sum(batch.rows for batch in _all(source, whole))
    if not total:
        raise DataError(no_batch(source, "val"))
    at = torch.arange(min(examples, total)) * total // min(examples, total)  # sorted and distinct
    seen = 0
    for batch in _all(source, whole):
        n = batch.rows
        mine = at[(at >= seen) & (at < seen + n)] - seen
        seen += n
        if len(mine):
            yield B.taken(batch, mine)


def _head(source: Any, examples: int, seed: int, labels: bool, whole: bool) -> Iterator[B.Batch]:
    """The first examples of the training data's first epoch."""
    left = examples
    with preserve_rng_state():
        for _, batch, _ in B.walk(_whole(source), seed=seed, epoch=0, labels=labels, whole=whole):
            n = min(left, batch.rows)
            yield B.rows_of(batch, 0, n)
            left -= n
            if not left:
                return


def _whole(source: Any) -> Any:
    return source.whole() if hasattr(source, "whole") else source


def _all(source: Any, whole: bool) -> Iterator[B.Batch]:
    for i, raw in enumerate(B.bounded(source, "val", B.EVALUATE_SECONDS, B.ENDING)):
        yield B.as_batch(raw, i, "val", whole=whole)
