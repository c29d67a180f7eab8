"""EPruner: keep the exemplar filters that represent the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from secateurs.budget import Budget
from secateurs.errors import ConfigError, Setting
from secateurs.methods.epruner import weights
from secateurs.methods.epruner.affinity import Affinities
from secateurs.methods.method import Method, Task
from secateurs.methods.registry import register
from secateurs.methods.select import Widths, fill
from secateurs.methods.selection import Selection

Array = np.ndarray


@register("epruner")
class EPruner(Method):
    """Exemplar filters by affinity propagation (Lin et al., TNNLS 2021, sec. III).

    Each channel is a data point formed from all filters that produce it, biases appended; affinity propagation determines how
    many exemplars a group has and which. `beta` sets how much to prune; with a budget it is found by bisection, and the
    last step is trimmed so that the budget is met to within one channel.
    """

    beta: float | None = Field(
        default=None, gt=0, description="β of eq. 3: larger keeps fewer; found from the budget if None"
    )
    init: Literal["exemplar", "projection", "l1", "random"] = Field(
        "exemplar", description="weights of the pruned network before recovery (sec. III-C, Table V)"
    )
    damping: float = Field(default=0.5, ge=0, lt=1, description="λ of eq. 8-9")
    iterations: int = Field(default=200, ge=1, description="maximum number of message-passing iterations")
    convergence: int | None = Field(
        default=15, ge=1, description="stop after this many iterations without change; None: never"
    )
    diagonal: bool = Field(
        default=True, description="include the zero distance to itself in the median, as the released code does"
    )
    bias: bool = Field(default=True, description="append a filter's bias to its weights")

    def check(self, task: Task) -> None:
        if self.beta is None and task.budget is None:
            raise ConfigError(
                "epruner needs a budget, for example ", Setting("macs", 0.5, Budget), ", or ",
                Setting("beta", of=EPruner), " (how much to prune).",
            )  # fmt: skip
        if self.beta is not None and task.budget is not None:
            raise ConfigError(
                Setting("beta", self.beta, EPruner),
                " and budget are mutually exclusive: each sets how much epruner prunes.",
            )

    def select(self, task: Task) -> Selection:
        widths = task.widths
        filters = [g.filters(task.model, self.bias) for g in widths.groups]
        affinities = Affinities(filters, diagonal=self.diagonal)
        find = partial(
            affinities.exemplars, iterations=self.iterations, damping=self.damping, convergence=self.convergence
        )
        if self.beta is not None:
            beta, kept = self.beta, _arrays(find(self.beta))
        else:
            beta, kept = _search(widths, lambda b: _arrays(find(b)))
        if self.init == "l1":
            norms = [f.abs().sum(1).cpu().numpy() for f in filters]
            kept = [np.sort(np.argsort(-n, kind="stable")[: len(k)]) for n, k in zip(norms, kept, strict=True)]
        task.note(event="exemplars", beta=round(beta, 6), kept=sum(map(len, kept)), of=int(widths.sizes.sum()))
        return Selection({g.name: k for g, k in zip(widths.groups, kept, strict=True)})

    def initialise(self, task: Task, selection: Selection, small: nn.Module) -> None:
        if self.init == "projection":
            weights.project(task, selection, small)
        elif self.init == "random":
            weights.reset(task, small)


def _arrays(found: list[Tensor]) -> list[Array]:
    return [k.cpu().numpy() for k in found]


def _search(widths: Widths, find: Callable[[float], list[Array]]) -> tuple[float, list[Array]]:
    """The smallest β whose exemplars fit the budget; its exemplars, and as many of the next smaller β's as still fit."""

    def fits(kept: list[Array]) -> bool:
        return widths.fits(widths.aligned(np.array([len(k) for k in kept])))

    low, high = 0.0, 1.0
    more = [np.arange(n) for n in widths.sizes]  # as β → 0, every filter is its own exemplar
    if fits(more):
        return low, more
    kept = find(high)
    while not fits(kept):
        if high > 1e6:  # one exemplar per group is still over the budget: trim by the budget
            kept = [k[:1] for k in kept]
            break
        low, more, high = high, kept, high * 4
        kept = find(high)
    while high - low > 1e-4 * high:
        beta = (low + high) / 2
        found = find(beta)
        if fits(found):
            high, kept = beta, found
        else:
            low, more = beta, found
    return high, _trim(widths, kept, more)


def _trim(widths: Widths, kept: list[Array], more: list[Array]) -> list[Array]:
    """The exemplars of β, then those of the next smaller β, then any filter, as far as the budget allows."""
    orders, worth = [], []
    for n, sure, likely in zip(widths.sizes, kept, more, strict=True):
        likely = np.setdiff1d(likely, sure)
        rest = np.setdiff1d(np.arange(n), np.concatenate([sure, likely]))
        orders.append(np.concatenate([sure, likely, rest]))
        worth.append(np.repeat([2.0, 1.0, 0.0], [len(sure), len(likely), len(rest)]))
    count = widths.aligned(np.array([len(k) for k in kept]))
    fill(widths, count, worth)
    return [np.sort(o[:k]) for o, k in zip(orders, count, strict=True)]
