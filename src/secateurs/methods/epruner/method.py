"""EPruner: keep the exemplar filters that represent the others."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from secateurs.budget import Budget
from secateurs.errors import ConfigError, Setting
from secateurs.graph import ChannelGraph, ChannelGroup
from secateurs.methods.costs import power_of
from secateurs.methods.epruner import weights
from secateurs.methods.epruner.affinity import Affinities, Measure
from secateurs.methods.epruner.counts import exemplars_of, represented_by
from secateurs.methods.method import Method, Task
from secateurs.methods.registry import register
from secateurs.methods.select import Widths, fill, select_within_budget
from secateurs.methods.selection import Channels, Selection

Array = np.ndarray

PAPER: Mapping[str, Any] = {"similarity": "distance", "widths": "beta", "init": "exemplar", "inner": True}


def _late(first: int, of: int, factor: float) -> Mapping[str, Any]:
    """The paper's settings, with the released code's second β from one of the pruned layers on."""
    return {**PAPER, "late": round(factor, 3), "late_from": round(first / of, 3)}


@register("epruner")
class EPruner(Method):
    """Exemplar filters by affinity propagation (Lin et al., TNNLS 2021, sec. III).

    Each channel is a data point formed from all filters that produce it, biases appended; affinity propagation determines which
    of them are exemplars. `beta` sets how much to prune: then each group has as many exemplars as one β for all gives. With a
    budget, the widths of the groups follow from the budget and `widths`, and β is searched for each group until it has
    as many exemplars as its width.
    """

    knob = "beta"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": PAPER,
        "googlenet": PAPER,  # `inner` is for it
        "vgg16": _late(8, 13, 0.92 / 0.73),
        "resnet18": _late(6, 8, 0.86 / 0.73),
        "resnet34": _late(14, 16, 0.92 / 0.75),
        "resnet50": _late(13, 16, 0.85 / 0.73),
        "resnet101": _late(28, 33, 0.92 / 0.67),
        "resnet152": _late(45, 50, 0.92 / 0.63),
    }

    beta: float | None = Field(
        default=None, gt=0, description="β of eq. 3: larger keeps fewer; without it, a budget is needed"
    )
    late: float = Field(default=1.0, gt=0, description="β of the late layers, as a multiple of that of the others")
    late_from: float = Field(
        default=0.6, ge=0, le=1, description="where late layers begin, as a fraction of all pruned layers"
    )
    similarity: Measure | None = Field(
        default=None,
        description="'distance': the negative squared distance of two filters (the paper's, and the default if beta is set); "
        "'residual': what is left of a filter when the other one, scaled, stands in for it (the default with a budget)",
    )
    widths: Literal["uniform", "beta"] = Field(
        default="uniform",
        description="the groups' widths within a budget: the same fraction of each, or as one β for all gives (the paper's)",
    )
    cost: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="with widths='uniform': a group loses the more, the higher this power of what its channels cost; "
        "None: the power that measures best on training images, 0 without data",
    )
    inner: bool = Field(
        default=False,
        description="prune only channels that one layer reads and that are not concatenated with others (the paper's choice "
        "in GoogLeNet)",
    )
    init: Literal["exemplar", "merge", "projection", "l1", "random"] = Field(
        default="merge",
        description="weights of the pruned network before recovery: 'merge' adds the weights with which consumers read a "
        "removed channel to those of its exemplar; the others are those of sec. III-C and Table V",
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

    def feasible(self, task: Task) -> None:
        self._widths(task).check()

    def unused(self, task: Task) -> Mapping[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        if self.late == 1:
            found["late_from"] = ("late layers have the same β, with ", Setting("late", 1, EPruner))
        if self.beta is not None or self.widths == "beta":
            found["cost"] = ("β decides how much of each layer stays",)
        elif self.widths == "uniform":
            found["late"] = found["late_from"] = (
                Setting("widths", "uniform", EPruner),
                " keeps the same share of every layer",
            )
            if self.init == "l1":
                norms = ("the norms choose the filters, and ", Setting("widths", "uniform", EPruner), " how many")
                found |= dict.fromkeys(("similarity", "damping", "iterations", "convergence", "diagonal"), norms)
        return found

    def select(self, task: Task) -> Selection:
        return self.selector(task)(task)

    def selector(self, task: Task) -> Callable[[Task], Selection]:
        """With similarities that are computed, and a power of the costs that is measured, once."""
        filters = [g.filters(task.model, self.bias) for g in self._widths(task).groups]
        measure = self.similarity or ("residual" if self.beta is None else "distance")
        affinities = Affinities(filters, diagonal=self.diagonal, measure=measure)
        norms = [f.abs().sum(1).cpu().numpy() for f in filters] if self.init == "l1" else None

        @functools.cache  # several powers of the costs, and several budgets of time, come to the same widths
        def chosen(counts: tuple[int, ...]) -> list[Array]:
            if norms is None:
                return self._of(affinities, np.array(counts))
            return [np.sort(np.argsort(-n, kind="stable")[:k]) for n, k in zip(norms, counts, strict=True)]

        power = 0.0
        if self.beta is None and self.widths == "uniform":
            power = power_of(self.cost, task, lambda power: Selection(self._kept(task, affinities, chosen, power)[0]))

        def select(other: Task) -> Selection:
            kept, beta = self._kept(other, affinities, chosen, power)
            record: dict[str, Any] = {} if beta is None else {"beta": round(beta, 6)}
            if norms is None:  # otherwise what is kept are no exemplars
                clusters = enumerate(kept.items())
                record["groups"] = {name: represented_by(affinities.similar(i), k) for i, (name, k) in clusters}
            other.note(event="exemplars", **record, kept=sum(map(len, kept.values())), of=sum(map(len, filters)))
            return Selection(kept)

        return select

    def _kept(
        self, task: Task, affinities: Affinities, chosen: Callable[[tuple[int, ...]], list[Array]], power: float
    ) -> tuple[Channels, float | None]:
        """What stays within the task's budget, and the β of all groups if there is one. chosen: so many filters of each."""
        widths, beta = self._widths(task), self.beta
        if beta is not None:
            found = _arrays(self._find(affinities, self._betas(beta, len(affinities))))
            kept = self._as_many(affinities, found, widths.aligned(_count(found)))
        elif self.widths == "beta":
            beta, kept = self._common(affinities, widths)
        else:
            return _channels(widths, chosen(tuple(_uniform(widths, power).tolist()))), None
        if self.init == "l1":
            kept = chosen(tuple(_count(kept).tolist()))
        return _channels(widths, kept), beta

    def initialize(self, task: Task, selection: Selection, small: nn.Module) -> None:
        if self.init == "merge":
            weights.merge(task, selection, small)
        elif self.init == "projection":
            weights.project(task, selection, small)
        elif self.init == "random":
            weights.reset(task, small)

    def _widths(self, task: Task) -> Widths:
        groups = [g for g in task.groups if not self.inner or _inner(g, task.graph) or task.bound(g).most < g.size]
        return task.widths_of(groups)

    def _betas(self, beta: float, layers: int) -> list[float]:
        """β of each layer."""
        first = round(self.late_from * layers)
        return [beta * (self.late if i >= first else 1.0) for i in range(layers)]

    def _find(self, affinities: Affinities, betas: list[float]) -> list[Tensor]:
        return affinities.exemplars(
            betas, iterations=self.iterations, damping=self.damping, convergence=self.convergence
        )

    def _of(self, affinities: Affinities, count: Array) -> list[Array]:
        """The exemplars of each layer, as many as its count."""
        return exemplars_of(affinities, count.tolist(), self._find)

    def _as_many(self, affinities: Affinities, kept: list[Array], count: Array) -> list[Array]:
        """These exemplars where there are as many as the count, and as many others elsewhere."""
        other = [i for i, k in enumerate(kept) if len(k) != count[i]]
        found = dict(zip(other, self._of(affinities.of(other), count[other]), strict=True)) if other else {}
        return [found.get(i, k) for i, k in enumerate(kept)]

    def _common(self, affinities: Affinities, widths: Widths) -> tuple[float, list[Array]]:
        """The smallest β for which as many channels as exemplars fit the budget; and the exemplars of the widths that the
        budget then leaves, which are those of this β where there are as many."""

        def at(beta: float) -> list[Array]:
            return _arrays(self._find(affinities, self._betas(beta, len(affinities))))

        def fits(kept: list[Array]) -> bool:
            return widths.fits(widths.aligned(_count(kept)))

        low, high = 0.0, 1.0
        more = [np.arange(n) for n in widths.sizes]  # as β → 0, every filter is its own exemplar
        if fits(more):
            return low, self._as_many(affinities, more, widths.most)
        kept = at(high)
        while not fits(kept):
            if high > 1e6:  # one exemplar per group is still over the budget: the narrowest widths
                kept = [k[:1] for k in kept]
                break
            low, more, high = high, kept, high * 4
            kept = at(high)
        while high - low > 1e-4 * high:
            beta = (low + high) / 2
            found = at(beta)
            if fits(found):
                high, kept = beta, found
            else:
                low, more = beta, found
        count = widths.aligned(_count(kept))
        # First the groups in which the next smaller β has more exemplars, and in these the first ones.
        fill(widths, count, [_worth(n, len(k), len(m)) for n, k, m in zip(widths.sizes, kept, more, strict=True)])
        return high, self._as_many(affinities, kept, count)


def _worth(size: int, sure: int, likely: int) -> Array:
    likely = max(sure, likely)
    return np.repeat([2.0, 1.0, 0.0], [sure, likely - sure, size - likely])


def _uniform(widths: Widths, power: float) -> Array:
    """The same fraction of each group, as much as the budget allows; with a power, groups lose as much more as their channels
    cost."""
    ranks = {g.name: 1 - np.arange(g.size) / g.size for g in widths.groups}
    found = select_within_budget(widths, ranks, power)
    return np.array([len(found[g.name]) for g in widths.groups])


def _inner(group: ChannelGroup, graph: ChannelGraph) -> bool:
    """Whether one layer reads the group's channels and no others."""
    reads = {(s.param, s.axis) for s in group.slots if s.consumes}
    together = {g.name for g in graph.groups for s in g.slots if s.consumes and (s.param, s.axis) in reads}
    return len(group.consumers) == 1 and together == {group.name}


def _arrays(found: list[Tensor]) -> list[Array]:
    return [k.cpu().numpy() for k in found]


def _channels(widths: Widths, kept: list[Array]) -> Channels:
    return {g.name: k for g, k in zip(widths.groups, kept, strict=True)}


def _count(kept: list[Array]) -> Array:
    return np.array([len(k) for k in kept])
