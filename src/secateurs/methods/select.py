"""From scores to widths: the largest selection, best channels first, that a budget allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from secateurs.budget import Budget, fraction
from secateurs.errors import BudgetError, Setting
from secateurs.graph import ChannelGraph, ChannelGroup, Cost

Array = np.ndarray
ALL = Setting("scope", "all")


class Widths:
    """Costs and limits of cutting some groups of a graph. A candidate is one width per group."""

    def __init__(self, graph: ChannelGraph, groups: Sequence[ChannelGroup], budget: Budget | None) -> None:
        self.graph, self.groups, self.budget = graph, list(groups), budget
        self.sizes = np.array([g.size for g in self.groups], dtype=np.int64)
        self._at = np.array([graph.index(g.name) for g in self.groups], dtype=np.int64)
        self.base = graph.cost()
        self.step = budget.align if budget else 1
        self.least = np.minimum(self.sizes, self.step)

    def cost(self, widths: Array, stripes: Mapping[str, int] | None = None) -> Cost:
        whole = self.graph.sizes.copy()
        whole[self._at] = widths
        return self.graph.cost(whole, stripes)

    def fits(self, widths: Array) -> bool:
        return self.budget is None or self.budget.allows(self.cost(widths), self.base)

    def aligned(self, widths: Array) -> Array:
        """Widths rounded up to multiples of the alignment, at least one step and at most the whole group."""
        return np.minimum(self.sizes, np.maximum(-(-widths // self.step) * self.step, self.least))

    def check(self, lowest: Cost | None = None) -> None:
        """Raise BudgetError before any work if the budget cannot be met. lowest: the lowest cost that a method which
        cuts more than channels can reach."""
        narrow = len(self.groups) < sum(g.prunable for g in self.graph.groups)  # some are out of scope
        if lowest is None and not self.groups:
            reasons = Counter(g.reason for g in self.graph.groups if g.reason is not None)
            most = reasons.most_common(1)[0][0].message if reasons and not narrow else None
            why = () if most is None else (", mostly because: ", most)
            more = ". See `secateurs inspect`."
            raise BudgetError("No channel group is prunable", *why, more, hint=(ALL, " may help.") if narrow else ())
        if self.budget is not None:
            coarse = self.step > 1 and self.groups
            hints = [
                *([self._coarse()] if coarse else []),
                *([(ALL, " may allow less.")] if narrow else []),
            ]
            hint = tuple(part for i, told in enumerate(hints) for part in (" " * (i > 0), *told))
            self.budget.check(self.base, lowest or self.cost(self.least), hint)

    def _coarse(self) -> tuple[object, ...]:
        """What the alignment does to the lowest cost."""
        align = Setting("align", self.step)
        if self.step >= self.sizes.max():
            return (
                align,
                f" is too coarse: no group has more than {self.sizes.max()} channels, so none can be cut.",
            )
        finest = self.cost(np.ones_like(self.sizes))
        macs, params = fraction(finest.macs, self.base.macs), fraction(finest.params, self.base.params)
        return (
            align, " sets this limit: with ", Setting("align", 1), " the lowest is ", Setting("macs", macs), " or ",
            Setting("params", params), ".",
        )  # fmt: skip


def select_within_budget(widths: Widths, scores: Mapping[str, Array]) -> dict[str, Array]:
    """Cut the lowest scores over all groups until the budget is met; then restore what still fits.

    Within one channel (one alignment step) of the budget and never over it: no further channel of any group
    could be kept.
    """
    orders = [np.argsort(-scores[g.name], kind="stable") for g in widths.groups]  # best first
    sizes = widths.sizes
    group = np.repeat(np.arange(len(sizes)), sizes)
    flat = np.concatenate([scores[g.name] for g in widths.groups])
    ranking = group[np.argsort(flat, kind="stable")]  # the group that loses a channel, worst channel first

    def after(cuts: int) -> Array:
        lost = np.bincount(ranking[:cuts], minlength=len(sizes))
        return widths.aligned(sizes - lost)

    low, high = 0, len(ranking)  # the fewest cuts that fit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if widths.fits(after(middle)) else (middle + 1, high)
    kept = after(low)
    # Restore in the order of the score of the next channel that a group would regain.
    fill(widths, kept, [scores[g.name][order] for g, order in zip(widths.groups, orders, strict=True)])
    return {g.name: np.sort(o[:k]) for g, o, k in zip(widths.groups, orders, kept, strict=True)}


def fill(widths: Widths, kept: Array, worth: Sequence[Array]) -> None:
    """Grow `kept` in place, one alignment step at a time, as long as anything fits; highest scores first.

    worth: for each group its channels' scores in the order in which they would be kept.
    """
    open_groups = set(np.flatnonzero(kept < widths.sizes).tolist())
    while open_groups:
        g = max(open_groups, key=lambda i: (worth[i][kept[i]], -i))
        before = kept[g]
        kept[g] = min(before + widths.step, widths.sizes[g])
        if not widths.fits(kept):
            kept[g] = before
            open_groups.discard(g)
        elif kept[g] == widths.sizes[g]:
            open_groups.discard(g)
