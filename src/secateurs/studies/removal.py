"""Accuracy of a network as one layer's channels are masked one by one in the order of a criterion (Ding et al., ICML
2019, sec. 4.1 and fig. 3.)"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.errors import ConfigError, nearest
from secateurs.graph import ChannelGroup
from secateurs.methods.aofp.search import BinaryFilterSearch
from secateurs.methods.assess import Assessor, reporter, require_data, spread
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task
from secateurs.methods.oracle.ablation import Ablation, Judging
from secateurs.methods.registry import methods, resolve
from secateurs.training import Batch, Metrics

Order = list[int]
Show = Callable[[int, int], None]  # ablations measured, total

BATCH = 16  # examples per sample of the loss, for AOFP
HOLD = 2 << 30  # bytes of outputs before the layer that may be cached, over all examples


@dataclass(frozen=True)
class Curve:
    """The result of one criterion on one layer."""

    criterion: str
    order: tuple[int, ...]  # channels in the order of removal; the last remaining one is not included
    top1: tuple[float, ...] | None  # on validation data in percent, with 0, 1, … len(order) channels removed
    loss: tuple[float, ...] | None  # likewise; None where nothing says what it is
    examples: int  # examples evaluated to find the order, counted for each ablation
    seconds: float  # seconds to find the order
    metrics: dict[str, tuple[float, ...]] = field(default_factory=dict)  # what the task measures beside them
    figure: str = "top1"  # the one that criteria are compared by: top1, loss, or a name in `metrics`

    @property
    def values(self) -> tuple[float, ...]:
        """What `figure` is with 0, 1, … channels removed."""
        found: tuple[float, ...] = (
            self.metrics[self.figure] if self.figure in self.metrics else getattr(self, self.figure)
        )
        return found

    @property
    def area(self) -> float:
        """The mean of `figure` over all widths: of `top1`, the area under it as a fraction of the area under 100%, in
        percent."""
        return float(np.mean(self.values))

    def asdict(self) -> dict[str, Any]:
        return {**asdict(self), "area": self.area}


def criteria() -> tuple[str, ...]:
    """The names that `one_by_one` accepts: the oracle's forms, AOFP by the final loss, and every registered criterion."""
    return (*_SEARCHES, *(name for name in methods() if isinstance(resolve(name), Criterion)))


def one_by_one(
    task: Task,
    layer: str,
    criterion: str | Criterion,
    *,
    examples: int = 1000,
    validation: int | Sequence[Batch] | None = None,
    precision: str = "fp32",
    figure: str | None = None,
) -> Curve:
    """Mask the channels of one group one by one, in the criterion's order, without training, and measure after each.

    layer: name of the group. task: its model (not modified), graph, data and seed; the budget is not used.
    criterion: one of `criteria()`, or a configured criterion.
        "oracle" (eq. 5) measures the loss without each channel on `examples` training examples, removes the one whose
        absence raises it least, and measures again; "oracle-10x" uses ten times as many, "oracle-degraded" measures only once.
        "aofp" is binary filter search by the final loss, until one filter is left in the search space, with as many
        evaluations as the oracle. Criteria that use data get the same examples.
    validation: batches to measure accuracy on, or the number of validation images, evenly spaced; None for all.
    figure: what criteria are compared by: "top1", "loss", or a metric of the task's objective; None for its first metric,
        else top-1, else the loss.

    Raises ConfigError for an unknown criterion and a figure that is not measured, PlanError for an unknown layer.
    """
    name = criterion if isinstance(criterion, str) else criterion.name
    if name not in criteria():
        raise ConfigError(f"{name!r} is not a valid criterion. {nearest(name, criteria())}")
    require_data(task, name, "is compared on examples")
    group = task.graph[layer]
    if not isinstance(validation, Sequence):
        if task.data.val is None:
            raise ConfigError("Curves are measured on validation data: pass Data(train=…, val=…).")
        validation = list(spread(task.data.val, validation, task.objective.whole))
    with reporter(task, name) as report:

        def show(done: int, total: int) -> None:
            report.total = total
            report.show(done, f"of {layer}'s ablations")

        report.start(None, 0)
        began = time.perf_counter()
        if isinstance(criterion, str) and criterion in _SEARCHES:
            order, evaluated = _SEARCHES[criterion](task, group, examples, precision, show)
        else:
            order, evaluated = _by_score(task, group, criterion, examples)
        seconds = time.perf_counter() - began
    measured = _measure(task, group, order, validation, precision)
    top1, loss = (_series([getattr(m, key) for m in measured]) for key in ("top1", "loss"))
    own = {key: tuple(m.metrics[key] for m in measured) for key in measured[0].metrics}
    known = [*own, *(["top1"] if top1 else []), *(["loss"] if loss else [])]
    if not known:
        raise ConfigError("Nothing is measured of these outputs: pass metrics={…}, or loss=fn(outputs, targets).")
    if figure is not None and figure not in known:
        raise ConfigError(f"{figure!r} is not measured here. {nearest(figure, known)}")
    return Curve(name, tuple(order), top1, loss, evaluated, seconds, own, figure or known[0])


def _series(values: Sequence[float | None]) -> tuple[float, ...] | None:
    """The values, or None if one is missing."""
    found = tuple(value for value in values if value is not None)
    return found if len(found) == len(values) else None


def _measure(
    task: Task, group: ChannelGroup, order: Order, validation: Sequence[Batch], precision: str
) -> list[Metrics]:
    """What is measured with 0, 1, 2 … channels of the order removed."""
    masks = torch.ones(len(order) + 1, group.size)
    for i, channel in enumerate(order):
        masks[i + 1 :, channel] = 0
    return Judging(Assessor(task, validation, precision=precision), group).figures(masks)


# -- orders ------------------------------------------------------------------------------------------------------------


def _oracle(
    task: Task, group: ChannelGroup, examples: int, precision: str, show: Show, rescore: bool = True
) -> tuple[Order, int]:
    assessor = Assessor(task, examples, precision=precision)
    total = group.size * (group.size + 1) // 2 - 1 if rescore else group.size
    alive, order, done = np.ones(group.size, dtype=bool), list[int](), 0
    with Ablation(assessor, group, HOLD) as ablation:
        while alive.sum() > 1:
            left = np.flatnonzero(alive)
            masks = torch.from_numpy(alive).float().repeat(len(left), 1)
            masks[torch.arange(len(left)), torch.from_numpy(left)] = 0
            loss = ablation(masks)[:, 0].numpy()
            _finite(loss, group)
            done += len(left)
            show(done, total)
            ranked = left[np.argsort(loss, kind="stable")]
            ranked = ranked[:1] if rescore else ranked[:-1]
            alive[ranked] = False
            order += ranked.tolist()
    return order, done * assessor.examples


def _aofp(task: Task, group: ChannelGroup, examples: int, precision: str, show: Show) -> tuple[Order, int]:
    """Every removed filter is found with as many evaluations as the oracle would use for it, including those of the loss with
    nothing ablated, the reference of the samples."""
    assessor = Assessor(task, examples, precision=precision, rows=BATCH)
    generator, count = task.generator(), len(assessor.batches)
    sizes = [batch.rows for batch in assessor.batches]
    search = BinaryFilterSearch(group.size, cost=1)
    total = (group.size * (group.size + 1) // 2 - 1) * count
    order, done, evaluated, at = list[int](), 0, 0, 0
    with Ablation(assessor, group, HOLD) as ablation:
        while search.live:
            base = torch.stack([ablation.on(i, _mask(search.alive)) for i in range(count)])[:, 0].cpu().double().numpy()
            evaluated += assessor.examples
            done += count
            allowed = (search.width - 1) * count  # batches
            while True:
                steps = int(np.log2(len(search.space)))  # until a single one is left
                search.cost = max(1, round(allowed / steps))
                while not search.full:
                    ablated, i = search.draw(generator), at % count
                    loss = float(ablation.on(i, _mask(search.alive, ablated))[0])
                    _finite(np.array([loss]), group)
                    search.record(ablated, (loss - base[i]) / sizes[i])
                    at, done, evaluated = at + 1, done + 1, evaluated + sizes[i]
                allowed -= search.batches
                show(min(done, total), total)
                move = search.finish(theta=-np.inf)  # no damage is small enough to stop before a single filter is left
                if move.kind == "restarted":
                    break
            search.prune(move.picked)
            order += move.picked.tolist()
    return order, evaluated


def _mask(alive: np.ndarray, ablated: np.ndarray | None = None) -> Tensor:
    mask = torch.from_numpy(alive).float()
    if ablated is not None:
        mask[torch.from_numpy(ablated)] = 0
    return mask


def _finite(loss: np.ndarray, group: ChannelGroup) -> None:
    if not np.isfinite(loss).all():
        raise ConfigError(
            f"The loss without channels of {group.name} is not finite: check the weights for NaN and infinities."
        )


def _by_score(task: Task, group: ChannelGroup, criterion: str | Criterion, examples: int) -> tuple[Order, int]:
    """Channels with the lowest scores first, and the number of examples that the criterion used."""
    method = resolve(criterion)
    looks = "examples" in type(method).model_fields
    if looks and isinstance(criterion, str):
        method = resolve(method, examples=examples)
    assert isinstance(method, Criterion)
    only = _OneGroup(**{f.name: getattr(task, f.name) for f in fields(task)}, only=group)
    scores = method.checked(only, method.scores(only))[group.name]
    return np.argsort(scores, kind="stable")[:-1].tolist(), getattr(method, "examples", 0)


@dataclass(frozen=True)
class _OneGroup(Task):
    only: ChannelGroup | None = None

    @property
    def groups(self) -> list[ChannelGroup]:
        return [self.only] if self.only is not None else []


_SEARCHES: dict[str, Callable[[Task, ChannelGroup, int, str, Show], tuple[Order, int]]] = {
    "oracle": _oracle,
    "oracle-10x": lambda task, group, n, precision, show: _oracle(task, group, 10 * n, precision, show),
    "oracle-degraded": lambda task, group, n, precision, show: _oracle(task, group, n, precision, show, False),
    "aofp": _aofp,
}
