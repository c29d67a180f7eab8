"""Which stripes to keep: by a threshold, or the best that a budget allows; and which channels are cut with the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from secateurs.errors import ConfigError
from secateurs.graph import Cost
from secateurs.methods.method import Task
from secateurs.methods.select import prices
from secateurs.methods.selection import Selection
from secateurs.methods.stripes.blocks import Blocks
from secateurs.stripes import StripeConv

Array = np.ndarray
FEW = 0.05  # if a budget would leave a smaller fraction of the stripes than this, channels are cut as well


def kernels(task: Task) -> dict[str, tuple[int, ...]]:
    """Weights whose stripes can be cut, with the number of filters and the kernel's size."""
    return {name: shape for name, shape in task.kernels.items() if math.prod(shape[1:]) > 1}


def check_kernels(task: Task, method: str) -> None:
    """Raise ConfigError if the network has no such weights, with what its convolutions are instead."""
    if kernels(task):
        return
    why = "no convolution that stripes can be cut from"
    if any(isinstance(m, StripeConv) for m in task.model.modules()):
        why = "only convolutions whose stripes are already cut"
    if task.kernels != task.graph.kernels:
        why += " within the limits of the task"
    if found := _unsupported(task.model):
        why += f" (the network has {', '.join(f'{n} {kind}' for kind, n in found.items())})"
    raise ConfigError(
        f"{method} found {why}: there is nothing to prune. Stripes are cut from nn.Conv1d, nn.Conv2d and nn.Conv3d with more "
        "than one kernel position, one group and padding with zeros. Methods that cut channels prune convolutions of any kind: "
        "npn, aofp, epruner, l2 …"
    )


def _unsupported(model: nn.Module) -> Counter[str]:
    """How many convolutions there are of each kind that has no stripes to cut."""
    found: Counter[str] = Counter()
    for conv in model.modules():
        if not isinstance(conv, _ConvNd):
            continue
        if type(conv) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
            found[type(conv).__name__] += 1
        elif conv.groups > 1:
            found["grouped or depthwise"] += 1
        elif math.prod(conv.kernel_size) == 1:
            found["of " + ("×".join(map(str, conv.kernel_size)) if len(conv.kernel_size) > 1 else "kernel size 1")] += 1
        elif conv.padding_mode != "zeros":
            found[f"with padding_mode={conv.padding_mode!r}"] += 1
    return found


def channel_scores(task: Task) -> list[Array]:
    """Mean absolute weight of each channel, relative to its group's mean: for each group in scope (size,)."""
    found = []
    for group in task.groups:
        s = group.filters(task.model).abs().mean(1).double().cpu().numpy()
        found.append(s / s.mean() if s.mean() > 0 else s)
    return found


@dataclass(frozen=True)
class Left:
    """What is left of a network."""

    alive: Array  # (stripes,) bool
    channels: list[Array]  # for each group (size,) bool
    widths: Array  # channels left of each of those groups
    counts: Array  # stripes left of each layer


class Stripes:
    """All stripes of all kernels of a network, concatenated; a stripe is identified by its position.

    kernels: weight name → (filters, *kernel), as in `ChannelGraph.kernels`.
    blocks: the filters of a block keep the same positions, so its stripes at one position are kept or cut together; None:
    each filter is a block. See `blocks`; with all filters of a layer in one block, layers are cut shape-wise.
    floor: the minimum fraction of its stripes that every layer keeps; at least one stripe.
    """

    def __init__(
        self,
        task: Task,
        kernels: Mapping[str, tuple[int, ...]],
        blocks: Blocks | None = None,
        floor: float = 0.0,
    ) -> None:
        self.task, self.widths, self.kernels, self.blocks = task, task.widths, dict(kernels), blocks
        shapes = list(self.kernels.values())
        positions = np.array([math.prod(shape[1:]) for shape in shapes], dtype=np.int64)
        self.sizes = np.array([math.prod(shape) for shape in shapes], dtype=np.int64)
        self.least = np.maximum(1, np.ceil(floor * self.sizes)).astype(np.int64)
        filters = np.array([shape[0] for shape in shapes], dtype=np.int64)
        first = np.cumsum(np.r_[0, filters])
        self.filters = int(first[-1])
        self.layer = np.repeat(np.arange(len(shapes)), self.sizes)
        self.filter = np.repeat(np.arange(self.filters), np.repeat(positions, filters))
        self.unit = np.arange(len(self.layer))  # the unit that a stripe is kept or cut with
        if blocks is not None:
            units, start = [], 0
            for name, p in zip(self.kernels, positions.tolist(), strict=True):
                of_filter = blocks[name]
                units.append((start + of_filter[:, None] * p + np.arange(p)).ravel())
                start += (int(of_filter.max()) + 1) * p
            self.unit = np.concatenate(units)
        self.units = int(self.unit.max()) + 1
        at = dict(zip(self.kernels, first, strict=False))
        # For each group in scope the filters that produce its channels, (size, m), and whether there are no others.
        self.makers: list[Array] = []
        self.whole: list[bool] = []
        for g in self.widths.groups:
            slots = [s for s in g.slots if s.produces]
            own = [s for s in slots if s.param in at and s.axis == 0]
            self.makers.append(
                np.concatenate([np.zeros((g.size, 0), np.int64), *(at[s.param] + s.index for s in own)], 1)
            )
            self.whole.append(len(own) == len(slots))

    def __len__(self) -> int:
        return len(self.layer)

    def split(self, flat: Array) -> dict[str, Array]:
        """One value for each stripe, by kernel: (filters, *kernel)."""
        parts = np.split(flat, np.cumsum(self.sizes)[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.kernels.items(), parts, strict=True)}

    def means(self, scores: Array) -> Array:
        """The scores of units, (units,): the means of those of their stripes, (stripes,)."""
        if self.blocks is None:
            return scores
        return np.bincount(self.unit, scores, self.units) / np.bincount(self.unit, minlength=self.units)

    def worth(self, power: float) -> Array:
        """What scores are multiplied by for comparison between layers: (layers,). What a stripe of the layer costs under the
        budget, to the power of -power: a cheap stripe may be worth less than a costly one and stay."""
        budget, sizes = self.task.budget, self.widths.sizes
        if budget is None or power == 0:
            return np.ones(len(self.sizes))
        each = prices(
            budget, self.widths.base, self.sizes,
            lambda counts: self.widths.cost(sizes, dict(zip(self.kernels, counts.tolist(), strict=True))),
        )  # fmt: skip
        return np.asarray(each**-power)

    # -- what is left without some stripes and channels ---------------------------------------------------------------

    def left(self, alive: Array, scores: Array, channels: Sequence[Array] | None = None) -> Left:
        """What is left without the dead stripes and the cut channels; a layer that would have too few
        stripes keeps its best ones, and a group that would have too few channels the best stripe of more filters. Channels
        whose filters have no stripes are cut, too, if their group is in scope.

        alive: (stripes,). scores: (units,).
        """
        scores = scores[self.unit]
        if channels is None:
            channels = [np.ones(n, dtype=bool) for n in self.widths.sizes]
        else:
            stays = np.ones(self.filters, dtype=bool)
            for makers, kept in zip(self.makers, channels, strict=True):
                stays[makers[~kept].ravel()] = False
            possible = stays[self.filter]
            alive = alive & possible
            scores = np.where(possible, scores, -np.inf)
        counts = np.bincount(self.layer[alive], minlength=len(self.sizes))
        if (counts < self.least).any():
            alive = alive.copy()
            ends = np.cumsum(self.sizes)
            for i in np.flatnonzero(counts < self.least).tolist():
                own = slice(ends[i] - self.sizes[i], ends[i])
                best = np.argsort(-scores[own], kind="stable")[: self.least[i]]
                alive[own] |= np.isin(self.unit[own], self.unit[own][best]) & np.isfinite(scores[own])
                counts[i] = alive[own].sum()
        filters = np.zeros(self.filters, dtype=bool)
        filters[self.filter[alive]] = True
        found = []
        for i, (makers, whole, kept) in enumerate(zip(self.makers, self.whole, channels, strict=True)):
            stays = kept & filters[makers].any(1) if whole else kept
            if (more := min(self.widths.least[i], kept.sum()) - stays.sum()) > 0:
                alive, stays = self._more(alive, scores, makers, kept, stays, more)
                filters[self.filter[alive]] = True
                stays = kept & filters[makers].any(1) if whole else stays  # others of their blocks
            found.append(stays)
        counts = np.bincount(self.layer[alive], minlength=len(self.sizes))
        widths = np.array([int(k.sum()) for k in found], dtype=np.int64)
        for i, n in enumerate(self.widths.aligned(widths).tolist()):
            if n > widths[i]:  # kept for alignment although dead: those that are kept anyway, then any
                spare = np.flatnonzero(~found[i])
                spare = spare[np.argsort(~channels[i][spare], kind="stable")][: n - widths[i]]
                found[i] = found[i].copy()
                found[i][spare] = True
                widths[i] = n
        return Left(alive, found, widths, counts)

    def _more(
        self, alive: Array, scores: Array, makers: Array, kept: Array, stays: Array, more: int
    ) -> tuple[Array, Array]:
        """With the best stripe of each of the `more` best channels that have no stripes: stripes and channels, bools."""
        alive, stays = alive.copy(), stays.copy()
        best: dict[int, tuple[float, int]] = {}  # channel → its best stripe's score, and that stripe
        for channel in np.flatnonzero(kept & ~stays).tolist():
            own = np.flatnonzero(np.isin(self.filter, makers[channel]))
            stripe = int(own[np.argmax(scores[own])])
            best[channel] = float(scores[stripe]), stripe
        for channel in sorted(best, key=lambda c: (-best[c][0], c))[:more]:
            alive[best[channel][1]] = stays[channel] = True
        if self.blocks is not None:  # the others of their units, of filters that can stay
            alive = alive | (np.isin(self.unit, self.unit[alive]) & np.isfinite(scores))
        return alive, stays

    def cost(self, left: Left) -> Cost:
        return self.widths.cost(left.widths, dict(zip(self.kernels, left.counts.tolist(), strict=True)))

    def capped(self, channel_scores: Callable[[], Sequence[Array]]) -> list[Array] | None:
        """The best channels of the groups whose widths the user has set, and all of the others; None if there are no such
        groups."""
        most = self.widths.most
        if (most == self.widths.sizes).all():
            return None
        return [_rank(-s) < n for s, n in zip(channel_scores(), most, strict=True)]

    def lowest(self) -> Cost:
        """The lowest possible cost: the minimum number of stripes of each layer and of channels."""
        channels = [np.arange(n) < least for n, least in zip(self.widths.sizes, self.widths.lowest, strict=True)]
        return self.cost(self.left(np.zeros(len(self), dtype=bool), np.zeros(self.units), channels))

    def fits(self, left: Left) -> bool:
        budget = self.task.budget
        return budget is None or budget.allows(self.cost(left), self.widths.base)

    # -- choosing -----------------------------------------------------------------------------------------------------

    def needed(self, scores: Array, channel_scores: Callable[[], Sequence[Array]]) -> float:
        """The threshold that would meet the budget now; see `select_within_budget`."""
        cuts, _ = self._cuts(scores, channel_scores)
        return float(np.sort(scores)[cuts - 1]) if cuts else 0.0

    def select_within_budget(self, scores: Array, channel_scores: Callable[[], Sequence[Array]]) -> tuple[Left, float]:
        """The best stripes that the budget allows, to within one stripe and never over it, and the corresponding
        threshold. If stripes alone do not suffice, the worst channels are cut as well, the same fraction of both.

        scores: (units,). channel_scores: for each group (size,), comparable between groups; called only if needed.
        """
        cuts, after = self._cuts(scores, channel_scores)
        rank = _rank(scores)
        alive, channels = (rank >= cuts)[self.unit], self.capped(channel_scores)
        if after is not None:
            channels = self._wider(alive, scores, after(cuts / self.units), channel_scores())
        delta = float(np.sort(scores)[cuts - 1]) if cuts else 0.0
        return self._fuller(self.left(alive, scores, channels), rank), delta

    def _cuts(
        self, scores: Array, channel_scores: Callable[[], Sequence[Array]]
    ) -> tuple[int, Callable[[float], list[Array]] | None]:
        """How many units to cut, and which channels to cut with that fraction of them, if any."""
        rank, capped = _rank(scores), self.capped(channel_scores)

        def fits(k: int) -> bool:
            channels = capped if after is None else after(k / self.units)
            return self.fits(self.left((rank >= k)[self.unit], scores, channels))

        after: Callable[[float], list[Array]] | None = None
        few = int((1 - FEW) * self.units)
        if fits(few):
            return _first(few, fits), None
        after = _worst_first(self.widths.sizes, channel_scores(), self.widths.aligned)
        return _first(self.units, fits), after

    def _wider(self, alive: Array, scores: Array, channels: list[Array], worth: Sequence[Array]) -> list[Array]:
        """Restore the best channels that still fit, one alignment step at a time."""
        channels, most = [c.copy() for c in channels], self.widths.most
        closed = {i for i, c in enumerate(channels) if c.sum() >= most[i]}
        while len(closed) < len(channels):
            best = [(-np.inf, -i) if i in closed else (float(worth[i][~c].max()), -i) for i, c in enumerate(channels)]
            i = int(max(range(len(channels)), key=lambda j: best[j]))
            before = channels[i].copy()
            spare = np.flatnonzero(~before)
            channels[i][spare[np.argsort(-worth[i][spare], kind="stable")][: self.widths.step[i]]] = True
            if not self.fits(self.left(alive, scores, channels)):
                channels[i] = before
                closed.add(i)
            elif channels[i].sum() >= most[i]:
                closed.add(i)
        return channels

    def _fuller(self, left: Left, rank: Array) -> Left:
        """Restore the best stripes that still fit and whose channels are kept."""
        budget = self.task.budget
        alive, counts = left.alive.copy(), left.counts.copy()
        stays = np.ones(self.filters, dtype=bool)
        for makers, kept in zip(self.makers, left.channels, strict=True):
            stays[makers[~kept].ravel()] = False
        back = ~alive & stays[self.filter]
        if budget is None or not back.any():
            return left
        sizes = np.bincount(self.unit[back], minlength=self.units)
        layer = np.zeros(self.units, dtype=np.int64)
        layer[self.unit] = self.layer
        limits, now = budget.figures(budget.limits(self.widths.base)), budget.figures(self.cost(left))
        room = limits - now
        price = np.zeros((len(counts), len(room)))  # of one more stripe
        for i in range(len(counts)):
            more = counts.copy()
            more[i] += 1
            price[i] = budget.figures(self.cost(Left(alive, left.channels, left.widths, more))) - now
        regained = np.zeros(self.units, dtype=bool)
        for u in np.argsort(-rank):
            if sizes[u] and (price[layer[u]] * sizes[u] <= room).all():
                room -= price[layer[u]] * sizes[u]
                counts[layer[u]] += sizes[u]
                regained[u] = True
        fuller = Left(alive | (back & regained[self.unit]), left.channels, left.widths, counts)
        return fuller if self.fits(fuller) else left  # the latency of stripes is not linear

    def selection(self, left: Left) -> Selection:
        """The form that a plan takes; layers that keep all their stripes are left out."""
        channels = {g.name: np.flatnonzero(kept) for g, kept in zip(self.widths.groups, left.channels, strict=True)}
        return Selection(channels, {name: kept for name, kept in self.split(left.alive).items() if not kept.all()})


def _rank(scores: Array) -> Array:
    """Ranks; 0 is cut first."""
    rank = np.empty(len(scores), dtype=np.int64)
    rank[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    return rank


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest k up to `most` for which the condition holds; it is assumed to hold for `most`."""
    low, high = 0, 0 if holds(0) else most  # by a latency model, a cut network may take longer than the whole one
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _worst_first(
    sizes: Array, scores: Sequence[Array], aligned: Callable[[Array], Array]
) -> Callable[[float], list[Array]]:
    """A function: fraction to cut → for each group the kept channels, (size,) bool."""
    orders = [np.argsort(-s, kind="stable") for s in scores]  # best first
    group = np.repeat(np.arange(len(sizes)), sizes)
    ranking = group[np.argsort(np.concatenate([np.zeros(0), *scores]), kind="stable")]

    def after(share: float) -> list[Array]:
        lost = np.bincount(ranking[: round(share * len(ranking))], minlength=len(sizes))
        found = [np.zeros(n, dtype=bool) for n in sizes]
        for kept, order, n in zip(found, orders, aligned(sizes - lost), strict=True):
            kept[order[:n]] = True
        return found

    return after
