"""Measure a network: the loss, a classifier's top-1 and top-5 accuracy, and custom metrics."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.data.bundle import no_batch
from secateurs.data.structure import kind_of, leaves
from secateurs.devices import device_of, usable
from secateurs.errors import DataError, SecateursError, TrainingError
from secateurs.graph.copies import copied
from secateurs.graph.modes import evaluating
from secateurs.training import batches as B
from secateurs.training import precision as P
from secateurs.training.checks import Check, unscaled
from secateurs.training.losses import CrossEntropy, Loss, heads, ignored_by, labeled, to_device
from secateurs.training.objective import Judged, Objective, classified

log = logging.getLogger("secateurs")


@dataclass(frozen=True)
class Metrics:
    """The figures of a network. loss: per example; None if no loss is defined. top1, top5: accuracy in percent, of the examples
    with a label that the loss does not ignore; None if the task is not classification. examples: how many were read. seconds:
    the time it took. metrics: custom metrics by name.
    """

    top1: float | None
    top5: float | None
    loss: float | None
    examples: int
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def topk_correct(outputs: Any, targets: Any, ks: tuple[int, ...] = (1,), *, known: bool = False) -> Tensor | None:
    """Return the number of examples whose class is among the k highest logits, for each k: (len(ks),) on the logits' device.
    None if the task is not classification. known: it is known to be classification."""
    if not known and not classified(outputs, targets):
        return None
    logits = heads(outputs)[0]  # (N, classes)
    if targets.ndim > 1:
        targets = targets.argmax(1)
    k = min(max(ks), logits.shape[1])
    top = logits.topk(k, dim=1).indices if k > 1 else logits.argmax(1, keepdim=True)
    found = top == targets[:, None]  # (N, k)
    return torch.stack([found[:, :n].any(1).sum() for n in ks]).float()


class Meter:
    """Accumulates measurements, batch by batch."""

    def __init__(
        self, metrics: Mapping[str, Any], device: torch.device, *, together: bool, loss: Loss | None = None
    ) -> None:
        """together: several processes have different examples, and the figures cover all of them. loss: whose mean is over the
        examples whose label it does not ignore, if it has an `ignore_index`."""
        self.device = device
        self.ignored, self._ignores = ignored_by(loss), hasattr(loss, "ignore_index")
        self.sums = torch.zeros(6, device=device)  # loss, its examples, top-1, top-5, examples with a label, examples
        self.total = torch.zeros(6, dtype=torch.float64)
        self.has_loss = self.by_class = True
        self.own = {name: _own(name, metric, device, together) for name, metric in metrics.items()}
        self._batches = 0

    def add(self, found: Judged, rows: int) -> None:
        mine = labeled(found.targets, rows, self.ignored, self.sums)
        if found.loss is None:
            self.has_loss = False
        else:
            counted = mine if self._ignores else mine.new_full((), rows)
            self.sums[0] += torch.where(counted > 0, found.loss.float() * counted, 0)  # NaN if all labels are ignored
            self.sums[1] += counted
        right = topk_correct(found.outputs, found.targets, (1, 5)) if self.by_class else None
        if right is None:
            self.by_class = False
        else:
            self.sums[2:4] += right
        self.sums[4] += mine
        self.sums[5] += rows
        for name, metric in self.own.items():
            with _computing(name):
                metric.add(found.outputs, found.targets, rows)
        self._batches += 1
        if self._batches % 64 == 0:  # float32 on the device, float64 here, to keep precision in long passes
            self._drain()

    def _drain(self) -> None:
        self.total += self.sums.cpu().double()
        self.sums.zero_()

    def metrics(self, reduce: Callable[[Tensor], Tensor] | None, seconds: float) -> Metrics | None:
        """Return the figures; None if there were no examples."""
        self._drain()
        if reduce is not None:
            self.total = reduce(self.total.to(self.device, torch.float32)).cpu().double()
        lost, counted, top1, top5, known, n = self.total.tolist()
        if not n:
            return None
        own: dict[str, float] = {}
        for name, metric in self.own.items():
            with _computing(name):
                own |= _named(name, metric.value(reduce))
        right = (100 * top1 / known, 100 * top5 / known) if self.by_class and known else (None, None)
        return Metrics(right[0], right[1], lost / counted if self.has_loss and counted else None, int(n), seconds, own)


@contextmanager
def _computing(name: str) -> Iterator[None]:
    """Convert errors of a custom metric within this context to a DataError with its name."""
    try:
        yield
    except SecateursError:
        raise
    except Exception as error:
        raise DataError(f"The metric {name!r} cannot be computed: {type(error).__name__}: {error}") from error


class _Function:
    """A function of outputs and targets that returns the mean over the examples of a batch."""

    def __init__(self, name: str, function: Callable[[Any, Any], Any], device: torch.device) -> None:
        self.name, self.function, self.device = name, function, device
        self.sums = [0.0, 0.0]

    def add(self, outputs: Any, targets: Any, rows: int) -> None:
        self.sums[0] += self._number(self.function(outputs, targets)) * rows
        self.sums[1] += rows

    def _number(self, value: Any) -> float:
        if isinstance(value, Real | np.generic):
            return float(value)
        if (isinstance(value, Tensor) and value.numel() == 1) or (isinstance(value, np.ndarray) and value.size == 1):
            return float(value.item())
        if not isinstance(value, Tensor | np.ndarray) and hasattr(value, "__float__"):  # a Decimal
            return float(value)
        several = isinstance(value, Mapping | tuple | list)
        raise DataError(
            f"The metric {self.name!r} must return a scalar, the mean over the batch's examples, not {kind_of(value)}.",
            hint="For several figures pass several functions." if several else (),
        )

    def value(self, reduce: Callable[[Tensor], Tensor] | None) -> float:
        sums = torch.tensor(self.sums, dtype=torch.float32, device=self.device)
        total, n = (sums if reduce is None else reduce(sums)).tolist()
        return total / n if n else math.nan


class _Torchmetric:
    """A copy of a torchmetrics metric, which can merge the results of several processes."""

    def __init__(self, metric: Any, device: torch.device, together: bool) -> None:
        self.metric = copy.deepcopy(metric).to(device)
        self.metric.reset()
        for one in [self.metric, *(self.metric.values() if isinstance(self.metric, Mapping | nn.ModuleDict) else ())]:
            if hasattr(one, "sync_on_compute"):
                one.sync_on_compute = together

    def add(self, outputs: Any, targets: Any, rows: int) -> None:
        self.metric.update(_logits(outputs), targets)

    def value(self, reduce: Callable[[Tensor], Tensor] | None) -> Any:
        return self.metric.compute()


def _own(name: str, metric: Any, device: torch.device, together: bool) -> _Function | _Torchmetric:
    if all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset", "to")):
        return _Torchmetric(metric, device, together)
    return _Function(name, metric, device)


def _logits(outputs: Any) -> Any:
    """Return the main output of a network that returns several, as the losses read it. Other outputs are returned as is."""
    try:
        return heads(outputs)[0]
    except TrainingError:
        return outputs


def _named(name: str, value: Any) -> dict[str, float]:
    """Return a metric's figures by name. Those of a dict are called `name.key`. Values that are not numbers are left out."""
    if isinstance(value, Mapping):
        return {n: x for key, inner in value.items() for n, x in _named(f"{name}.{key}", inner).items()}
    if isinstance(value, Tensor):
        return {name: float(value)} if value.numel() == 1 else {}
    return {name: float(value)} if isinstance(value, int | float) else {}


def higher_is_better(metric: Any) -> bool:
    """Whether a higher value of a metric is better. This is the default for a metric that does not say."""
    return getattr(metric, "higher_is_better", True) is not False


def check_data(model: nn.Module, data: Any, objective: Objective | None = None) -> None:
    """Raise DataError before any work if the first batch of `data.train` or `data.val` does not fit the model or the
    objective, or if the validation data is a one-shot iterator. Runs in eval mode on the model's device. Training data that is
    one is skipped, because this would consume it.

    A custom loss or step is not checked on training batches, because it may need the model in train mode.
    """
    objective = objective or Objective()
    train, val = B.split_data(data)
    for split, source in (("train", train), ("val", val)):
        if split == "val":
            B.check_again(source)
        if source is None or isinstance(source, Iterator):
            continue
        raw = B.first(source, split)
        batch = B.as_batch(raw, 0, split, labels=split == "val", whole=objective.whole)
        if split == "train" and not batch.whole and any(map(unscaled, leaves(batch.inputs))):
            log.warning(
                "the images have values from 0 to 255: if the network was trained on images in [0, 1], or normalized ones, "
                "prepare them in the same way"
            )
        if split == "val" or (objective.by_classes and batch.labeled):
            evaluate(
                model, [raw], objective=objective if split == "val" else replace(objective, metrics={}), split=split
            )
        elif not objective.whole or objective.forward is not None:
            with torch.no_grad(), evaluating(model):
                list(runs([batch], objective, model, split=split))


def check_runs(model: nn.Module, data: Any, objective: Objective) -> None:
    """Raise DataError before any work if a copy of the model does not run on the first batch of `data.train`. Labels are not
    read. A one-shot iterator is skipped."""
    train, _ = B.split_data(data)
    if isinstance(train, Iterator):
        return
    batch = B.as_batch(B.first(train, "train"), 0, labels=False, whole=objective.whole)
    probe = copied(model)
    with torch.no_grad(), evaluating(probe):
        list(runs([batch], objective, probe))


def runs(
    batches: Iterable[B.Batch], objective: Objective, *models: nn.Module, split: str = "train"
) -> Iterator[tuple[B.Batch, list[Any]]]:
    """Yield each batch, in the models' dtype and on their device, with each model's outputs for it. Raises DataError if a batch
    does not fit a model, or if it makes the inputs of the first model NaN or infinite."""
    check, device = Check(models[0], split), device_of(models[0])

    def refuse(model: nn.Module, args: Any, kwargs: Any) -> None:
        given = [x for x in leaves([*args, *kwargs.values()]) if x.is_floating_point() and x.isnan().any()]
        B.check_finite(given, "", "the model's inputs")  # infinite ones may be a mask

    for at, raw in enumerate(batches):
        index = at if raw.number is None else raw.number
        batch = B.to_device(check.fit(raw, index), device)
        with ExitStack() as stack:
            if batch.whole:  # others are checked as they are read
                stack.callback(models[0].register_forward_pre_hook(refuse, with_kwargs=True).remove)
            with check.running(batch, index):
                outputs = [objective.outputs(model, batch) for model in models]
        yield batch, outputs


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Any,
    *,
    device: torch.device | str | None = None,
    objective: Objective | None = None,
    default: Loss | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
    reduce: Callable[[Tensor], Tensor] | None = None,
    share: tuple[int, int] = (0, 1),
    split: str = "val",
) -> Metrics:
    """Evaluate the model in eval mode and return its figures. Its mode is restored.

    `batches`: iterable of (inputs, targets), or of what the objective's functions take, or a function that returns one.
    `default`: the loss if the objective has none, instead of cross-entropy.
    `device`: where to run; by default, the model's device. On another device, a copy runs. `reduce` sums a tensor over
    processes. `share` = (rank, world) selects this process's rows of each batch. `split`: the name of the batches in errors.

    Raises DataError for batches that are not pairs, are empty, or do not fit the model or the loss, for NaN in the first
    batch, for a pass without a batch, and for an iterable without a length that does not end within a million batches or
    an hour.
    """
    where = device_of(model) if device is None else usable(device)
    if where != device_of(model):
        model = copied(model).to(where)
    objective = objective or Objective()
    default = default or CrossEntropy()
    began = time.perf_counter()
    meter = Meter(objective.metrics, where, together=share[1] > 1, loss=objective.loss or default)
    check = Check(model, split)
    with evaluating(model):
        for index, raw in enumerate(B.bounded(batches, split, B.EVALUATE_SECONDS, B.ENDING)):
            batch = check.fit(B.as_batch(raw, index, split, whole=objective.whole), index)
            if batch.rows < share[1] and share[0]:
                continue  # fewer rows than processes: the first process takes them all
            if batch.rows >= share[1]:
                batch = B.share(batch, *share)
            with check.running(batch, index), P.autocast(precision, where):
                batch = to_device(batch, where, channels_last, objective.loss or default)
                found = objective.judge(model, batch, default)
                meter.add(found, batch.rows)
    done = meter.metrics(reduce, time.perf_counter() - began)
    if done is None:
        raise DataError(f"There is no data to evaluate on. {no_batch(batches, split)}")
    return done
