"""The order in which a criterion removes a layer's channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from secateurs.errors import ConfigError
from secateurs.graph import ChannelGroup
from secateurs.methods.aofp.search import BinaryFilterSearch
from secateurs.methods.assess import Assessor
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task
from secateurs.methods.oracle.ablation import Ablation
from secateurs.methods.registry import methods, resolve

Order = list[int]
Show = Callable[[int, int], None]  # ablations measured, total

BATCH = 16  # examples per sample of the loss, for AOFP
HOLD = 2 << 30  # bytes of outputs before the layer that may be cached, over all examples


def criteria() -> tuple[str, ...]:
    """Return the names of all orders: the oracle's forms, AOFP by the final loss, and every registered criterion."""
    return (*_SEARCHES, *(name for name in methods() if isinstance(resolve(name), Criterion)))


def order_by(
    criterion: str | Criterion, task: Task, group: ChannelGroup, examples: int, precision: str, show: Show
) -> tuple[Order, int]:
    """Return the group's channels in the order of removal, without the last one, and how many examples were evaluated to find
    it, counted for each ablation."""
    if isinstance(criterion, str) and criterion in _SEARCHES:
        return _SEARCHES[criterion](task, group, examples, precision, show)
    return _by_score(task, group, criterion, examples)


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
