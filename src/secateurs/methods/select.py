"""From scores to widths: the largest selection, best channels first, that a budget allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from secateurs.budget import Budget, fraction
from secateurs.deploy.target import Target
from secateurs.errors import BudgetError, ConfigError, Setting
from secateurs.graph import ChannelGraph, ChannelGroup, Cost
from secateurs.graph.reasons import Kind
from secateurs.latency import solver
from secateurs.methods.limits import ALL, Bounds, free, limiting
from secateurs.methods.ranking import per_cost
from secateurs.proposed import looser

Array = np.ndarray
FLOOR = 0.1
LARGER = Setting("batch", of=Target)
QUIETER = ("Try again in ten minutes, when the machine is less busy, or measure a larger batch, ", LARGER, ".")
REASONS = 2  # that are named of a budget that cannot be met …
TELLING = 0.02  # … if they hold this much of the cost
LEAST = 1e-3  # a relative price is at least this


def prices(budget: Budget, base: Cost, counts: Array, cost: Callable[[Array], Cost], step: Array | int = 1) -> Array:
    """What one less of each kind saves under a budget, relative to the mean over all: (kinds,). A limit counts by how much of
    its cost has to go; if nothing has to go, all are ones.

    counts: (kinds,) how many there are. cost: what such counts cost. step: (kinds,) so many are cut together: less of them
    may cost no less time.
    """
    steps = np.maximum(1, np.minimum(np.broadcast_to(step, counts.shape), counts - 1))
    goals, whole = budget.shares(budget.limits(base), base), budget.shares(cost(counts), base)
    saved = np.zeros(len(counts))
    for i in range(len(counts)):
        fewer = counts.copy()
        fewer[i] -= steps[i]
        left = budget.shares(cost(fewer), base)
        saved[i] = sum(max(0.0, 1 - goal) * (whole[name] - left[name]) for name, goal in goals.items()) / steps[i]
    mean = float((saved * counts).sum() / max(1, counts.sum()))
    return np.maximum(saved / mean, LEAST) if mean > 0 else np.ones(len(counts))


class Widths:
    """Costs and limits of cutting some groups of a graph. A candidate is one width per group.

    floor: the fraction of its channels that every group keeps if the budget allows it, however low their scores. Scores are
        hardly comparable between layers, and a layer of one channel is a loss that no other layer makes up for.
    bounds: what the user says about groups, these and others.
    lowest, most: (groups,) the widths that a selection has at least and at most, whatever the budget.
    step: (groups,) widths are multiples of these, or whole.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        groups: Sequence[ChannelGroup],
        budget: Budget | None,
        floor: float = FLOOR,
        bounds: Bounds | None = None,
    ) -> None:
        self.graph, self.groups, self.budget, self.bounds = graph, list(groups), budget, bounds or {}
        self.sizes = np.array([g.size for g in self.groups], dtype=np.int64)
        self._at = np.array([graph.index(g.name) for g in self.groups], dtype=np.int64)
        self.base = graph.cost()
        self.step = self._steps()
        own = [self.bounds.get(g.name) or free(g) for g in self.groups]
        self.lowest, self.most = (
            self.rounded(np.array(w, dtype=np.int64)) for w in ([b.least for b in own], [b.most for b in own])
        )
        self._floored = np.array([b.floored for b in own], dtype=bool)
        self._whole = np.array([b.whole or g.size for b, g in zip(own, self.groups, strict=True)], dtype=np.int64)
        self.floor = floor if budget else 0.0  # without a budget, a method's own threshold decides

    def _steps(self) -> Array:
        align = self.budget.align if self.budget else 1
        if align != "auto":
            return np.full(len(self.groups), align, dtype=np.int64)
        if self.graph.clock is None:
            raise ConfigError(
                Setting("align", "auto"), " needs a graph with a latency model: pass the budget to prune(…)."
            )
        return self.graph.clock.steps[self._at]

    @cached_property
    def least(self) -> Array:
        """The widths that a selection keeps at least: the floor, lowered by the same fraction for all groups just as far as the
        budget requires. A budget that `lowest` meets is met by these, too."""
        if self.fits(widths := self.above(self.floor)):
            return widths
        steps = [np.arange(1, n * self.floor) / n for n in np.unique(self._whole)]  # where a width changes
        shares = np.unique(np.concatenate([np.zeros(1), *steps]))
        low, high = 0, len(shares)  # the first that doesn't fit
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.fits(self.above(shares[middle])) else (low, middle)
        return self.above(shares[max(0, low - 1)])

    def above(self, share: float) -> Array:
        """The smallest widths with at least this fraction of every original group, aligned; of a group for which the user says
        how far it may be cut, the smallest that this allows."""
        # A share of 3 / 30 of 30 channels is 3, whatever the rounding of their product.
        widths = np.where(self._floored, np.ceil(self._whole * share - 1e-9), 1).astype(np.int64)
        return np.maximum(self.rounded(widths), self.lowest)

    def rounded(self, widths: Array) -> Array:
        """Widths rounded up to multiples of the alignment, at least one step and at most the whole group."""
        steps = np.maximum(-(-widths // self.step), 1)
        return np.minimum(self.sizes, steps * self.step)

    def cost(self, widths: Array, stripes: Mapping[str, int] | None = None) -> Cost:
        whole = self.graph.sizes.astype(np.asarray(widths).dtype)
        whole[self._at] = widths
        return self.graph.cost(whole, stripes)

    def prices(self) -> Array:
        """What a channel of each group costs under the budget, relative to the mean over all channels: (groups,)."""
        if self.budget is None:
            return np.ones(len(self.sizes))
        return prices(self.budget, self.base, self.sizes, self.cost, self.step)

    def fits(self, widths: Array) -> bool:
        return self.budget is None or self.budget.allows(self.cost(widths), self.base)

    def aligned(self, widths: Array) -> Array:
        """Widths rounded up to multiples of the alignment, at least `least` and at most `most`."""
        return np.minimum(np.maximum(self.rounded(widths), self.least), self.most)

    def shrinking(self, widths: Array) -> Array:
        """The groups that may lose channels on the way from these widths to a selection: those above `most`, and while the
        budget is not met, all above `least`. (groups,) bools; none once these widths may be those of a selection."""
        over = widths > self.most
        return over if self.fits(self.aligned(widths)) else over | (widths > self.least)

    def check(self, lowest: Cost | None = None) -> None:
        """Raise BudgetError before any work if the budget cannot be met. lowest: the lowest cost that a method which
        cuts more than channels can reach."""
        cut = {g.name for g in self.groups}
        left = [g for g in self.graph.groups if g.prunable and g.name not in cut]
        limited = [self.bounds[g.name] for g in left if g.name in self.bounds]  # kept whole by the user …
        narrow = any((self.bounds.get(g.name) or free(g)).least < g.size for g in left)  # … and some are out of scope
        if lowest is None and not self.groups:
            reasons = Counter(g.reason for g in self.graph.groups if g.reason is not None)
            most = reasons.most_common(1)[0][0].message if reasons and not narrow else None
            said: list[object] = ["No channel group is prunable"]
            if limits := limiting(limited):
                said = [*_listed(limits), f" leave{'s' * (len(limits) == 1)} no channel group to cut"]
            elif most is not None:
                said += [", mostly because: ", most]
            raise BudgetError(*said, ". See `secateurs inspect`.", hint=(ALL, " may help.") if narrow else ())
        if self.budget is not None:
            doubt = "" if self.graph.clock is None else self.graph.clock.doubt
            limits = limiting([*limited, *(self.bounds[g.name] for g in self.groups if g.name in self.bounds)])
            hints = [
                *([(*_listed(limits), f" limit{'s' * (len(limits) == 1)} what may be cut.")] if limits else []),
                *looser(limits),
                *(self._held(self.budget) if lowest is None else ()),
                *(
                    [self._coarse(self.budget)]
                    if self.groups and (self.step > 1).any() and not self.budget.is_timed
                    else []
                ),
                *([(ALL, " may allow less.")] if narrow else []),
                *([(f"This is in doubt: {doubt}. ", *QUIETER)] if doubt and self.budget.is_timed else []),
            ]
            hint = tuple(part for i, parts in enumerate(hints) for part in (" " * (i > 0), *parts))
            self.budget.check(self.base, lowest or self.cost(self.lowest), hint)

    def _held(self, budget: Budget) -> list[tuple[object, ...]]:
        """What keeps most of the cost from being cut, by what it costs, and the lowest cost without it: sentences."""
        if budget.is_timed:
            return []
        name = "macs" if budget.macs is not None else "params"
        shortcuts = any(not g.internal for g in self.groups)  # whether they are in scope
        why: dict[str, list[ChannelGroup]] = {}
        for g in self.graph.groups:
            if g.reason is not None and g.reason.kind is not Kind.OUTPUT and (g.internal or shortcuts):
                why.setdefault(g.reason.detail, []).append(g)
        widths = self.graph.sizes.copy()
        widths[self._at] = self.lowest
        least, base = getattr(self.graph.cost(widths), name), getattr(self.base, name)
        found: list[tuple[int, list[ChannelGroup]]] = []
        for groups in why.values():
            fewer = widths.copy()
            for g in groups:
                fewer[self.graph.index(g.name)] = (self.bounds.get(g.name) or free(g)).least
            found.append((getattr(self.graph.cost(fewer), name), groups))
        return [
            (
                f"{', '.join(g.name for g in groups[:2])}{f' and {len(groups) - 2} more' * (len(groups) > 2)} cannot be cut: ",
                groups[0].reason.message, ". Without that, the lowest would be about ",
                Setting(name, fraction(cost, base)), ".",
            )
            for cost, groups in sorted(found, key=lambda one: one[0])[:REASONS]
            if least - cost >= TELLING * base and groups[0].reason is not None
        ]  # fmt: skip

    def _coarse(self, budget: Budget) -> tuple[object, ...]:
        """What the alignment does to the lowest cost."""
        align = Setting("align", budget.align)
        if (self.step >= self.sizes).all():
            return (
                align,
                f" is too coarse: no group has more than {self.sizes.max()} channels, so none can be cut.",
            )
        finest = self.cost(Widths(self.graph, self.groups, None, bounds=self.bounds).lowest)
        macs, params = fraction(finest.macs, self.base.macs), fraction(finest.params, self.base.params)
        return (
            align, " sets this limit: with ", Setting("align", 1), " the lowest is ", Setting("macs", macs), " or ",
            Setting("params", params), ".",
        )  # fmt: skip


def _listed(settings: Sequence[Setting]) -> tuple[object, ...]:
    """a, b and c"""
    joints = [", "] * (len(settings) - 2) + [" and "] + [""]
    return tuple(part for pair in zip(settings, joints[-len(settings) :], strict=True) for part in pair)


def select_within_budget(widths: Widths, scores: Mapping[str, Array], cost: float = 0.0) -> dict[str, Array]:
    """Cut the lowest scores over all groups until the budget is met; then restore what still fits. cost: the power of what a
    channel costs by which scores are divided, see `per_cost`.

    Within one channel (one alignment step) of the budget and never over it: no further channel of any group
    could be kept.
    """
    if cost:
        prices = widths.prices()
        scores = {g.name: per_cost(scores[g.name], p, cost) for g, p in zip(widths.groups, prices, strict=True)}
    orders = [np.argsort(-scores[g.name], kind="stable") for g in widths.groups]  # best first
    sizes = widths.sizes
    group = np.repeat(np.arange(len(sizes)), sizes)
    flat = np.concatenate([scores[g.name] for g in widths.groups])
    ranking = group[np.argsort(flat, kind="stable")]  # the group that loses a channel, worst channel first

    def after(cuts: int) -> Array:
        lost = np.bincount(ranking[:cuts], minlength=len(sizes))
        return widths.aligned(sizes - lost)

    low, high = 0, len(ranking)  # the fewest cuts that fit
    if widths.fits(after(0)):  # by a latency model, a cut network may take longer than the whole one
        high = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if widths.fits(after(middle)) else (middle + 1, high)
    kept = after(low)
    # Restore in the order of the score of the next channel that a group would regain.
    worth = [scores[g.name][order] for g, order in zip(widths.groups, orders, strict=True)]
    fill(widths, kept, worth)
    kept = on_edges(widths, kept, worth)
    return {g.name: np.sort(o[:k]) for g, o, k in zip(widths.groups, orders, kept, strict=True)}


def fill(widths: Widths, kept: Array, worth: Sequence[Array]) -> None:
    """Grow `kept` in place, one alignment step at a time, as long as anything fits; highest scores first.

    worth: for each group its channels' scores in the order in which they would be kept.
    """
    open_groups = set(np.flatnonzero(kept < widths.most).tolist())
    while open_groups:
        g = max(open_groups, key=lambda i: (worth[i][kept[i]], -i))
        before = kept[g]
        kept[g] = min(before + widths.step[g], widths.most[g])
        if not widths.fits(kept):
            kept[g] = before
            open_groups.discard(g)
        elif kept[g] == widths.most[g]:
            open_groups.discard(g)


REACH = 2  # steps around a width that are looked at
PAIRS = 150  # of groups that meet in a layer, at most; with more of them, each group's change is taken on its own


def on_edges(widths: Widths, kept: Array, worth: Sequence[Array]) -> Array:
    """With a latency model, the best widths around these, over all groups jointly; others as they are.

    The order of the scores has led to `kept`, which has about the right cost in every layer. What is left is a knapsack of a
    few steps: a width that is fast on the hardware is worth more than one that is not. A knapsack keeps what is worth most for
    its cost, and the scores say already how much costs count: so a channel is worth its score times what it costs around
    `kept`, with which the knapsack of a network without a staircase would keep what the scores do.
    """
    budget = widths.budget
    if budget is None or not budget.needs_target or widths.graph.clock is None or not len(kept):
        return kept
    lowest = min((float(w.min()) for w in worth if len(w)), default=0.0)
    limits, pairs = budget.figures(budget.limits(widths.base)), _pairs(widths)

    def cost(candidate: Array) -> Array:
        return budget.figures(widths.cost(candidate))

    candidates = [_around(widths, i, int(k)) for i, k in enumerate(kept)]
    costs = [_cost_around(lambda w: float((cost(w) / limits).sum()), kept, i, own) for i, own in enumerate(candidates)]
    gains = [
        np.concatenate([[0.0], np.cumsum((np.asarray(w, dtype=np.float64) - lowest) * each)])
        for w, each in zip(worth, costs, strict=True)
    ]
    room = limits
    for _ in range(3):
        found = solver.best(
            candidates, [gain[own] for gain, own in zip(gains, candidates, strict=True)],
            cost, room, kept, pairs if len(pairs) <= PAIRS else (),
        )  # fmt: skip
        if found is None:
            return kept
        if widths.fits(found):
            fill(widths, found, worth)
            total = [sum(gain[k] for gain, k in zip(gains, own, strict=True)) for own in (found, kept)]
            return found if total[0] > total[1] else kept
        room = room * np.minimum(1.0, limits / cost(found))
    return kept


def _around(widths: Widths, group: int, width: int) -> Array:
    """The widths of a group that are a few steps from one of it."""
    step, least, most = int(widths.step[group]), int(widths.least[group]), int(widths.most[group])
    steps = (width // step + np.arange(-REACH, REACH + 1)) * step
    return np.unique(np.clip([*steps[steps > 0], width], least, most)).astype(np.int64)


def _cost_around(cost: Callable[[Array], float], kept: Array, group: int, candidates: Array) -> float:
    """What a channel of a group costs between its narrowest and its widest candidate. cost: of widths, as a fraction of the
    limits."""
    low, high = (cost(solver.replaced(kept, (group, int(width)))) for width in (candidates[0], candidates[-1]))
    return max(high - low, 0.0) / max(1, int(candidates[-1] - candidates[0]))


def _pairs(widths: Widths) -> list[tuple[int, int]]:
    """The groups that meet in a layer: one as what it takes, one as what it makes."""
    sides: dict[str, dict[int, set[int]]] = {}
    for i, group in enumerate(widths.groups):
        for slot in group.slots:
            sides.setdefault(slot.param, {}).setdefault(slot.axis, set()).add(i)
    found = set()
    for axes in sides.values():
        flat = [(axis, i) for axis, own in axes.items() for i in own]
        found |= {(min(i, j), max(i, j)) for a, i in flat for b, j in flat if a < b and i != j}
    return sorted(found)
