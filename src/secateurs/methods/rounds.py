"""Iterative pruning: how a cut is divided into rounds, and what the user's limits mean in each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal, get_args

from secateurs.budget import Budget
from secateurs.errors import ConfigError, Message, Setting, nearest
from secateurs.graph import ChannelGraph, ChannelGroup, Cost
from secateurs.methods.limits import Bound, Bounds, free
from secateurs.methods.method import Method, Scope
from secateurs.seeds import mix

Schedule = Literal["linear", "cubic"]


@dataclass(frozen=True)
class Rounds:
    """In how many rounds a network is cut, and how far each of them goes.

    schedule: of the fraction that is cut. "linear": every round cuts the same share of the original. "cubic": the first rounds
        cut most, and the last ones little (Zhu and Gupta, 2017).

    Raises ConfigError for values that are not valid.
    """

    count: int = 1
    schedule: Schedule = "linear"

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, Integral) or self.count < 1:
            raise ConfigError(Setting("rounds", self.count), " is not valid: it must be an integer of at least 1.")
        known = get_args(Schedule)
        if self.schedule not in known:
            raise ConfigError(
                Setting("schedule", self.schedule),
                f" is not a schedule of rounds. {nearest(str(self.schedule), known)}",
            )

    def __iter__(self) -> Any:
        """The rounds' numbers, from 1."""
        return iter(range(1, self.count + 1))

    def check(self, method: Method, budget: Budget | None) -> None:
        """Raise ConfigError for a method that cannot cut in several rounds, and if nothing says how far they go.

        budget: of the whole, or what ratios stand for.
        """
        if self.count == 1:
            return
        several = Setting("rounds", self.count)
        if method.cuts == "stripes":
            raise ConfigError(
                several, f": {method.name} cuts stripes, and what a stripe convolution puts out cannot be cut any further. Cut "
                "channels in rounds, for example with ", Setting("method", "l2"), ", and stripes last, in one cut.",
            )  # fmt: skip
        if budget is None:
            raise ConfigError(
                several, " needs a budget, which the rounds approach step by step, for example ",
                Setting("macs", 0.5, Budget), ".",
            )  # fmt: skip

    def progress(self, number: int) -> float:
        """The share of the way to the final budget that is behind the network after this round: 1.0 after the last."""
        left = 1 - number / self.count
        return 1 - (left if self.schedule == "linear" else left**3)

    def budget(self, number: int, final: Budget | None, base: Cost) -> Budget | None:
        """What may stay after a round, as absolute figures. base: the cost of the original."""
        if final is None or self.count == 1:
            return final
        limits, done = final.limits(base), self.progress(number)
        figures: dict[str, Any] = {
            name: max(2, limit if done == 1 else full - math.ceil((full - limit) * done))
            for name in final.limited
            for limit, full in [(getattr(limits, name), getattr(base, name))]
            if name != "latency"
        }
        if limits.latency is not None and base.latency is not None and final.is_timed:
            figures["ms"] = 1000 * (base.latency - (base.latency - limits.latency) * done)
        return Budget(**figures, align=final.align, target=final.target)

    def seed(self, number: int, seed: int) -> int:
        """The seed of a round: that of the first is the given one."""
        return seed if number == 1 else mix(seed, "round", number)

    def record(self) -> dict[str, Any]:
        """The settings as a run records them; none for one cut."""
        return {} if self.count == 1 else {"rounds": int(self.count), "schedule": self.schedule}


ONE_ROUND = Rounds()


def folder_of(number: int, count: int) -> str:
    """Where a round keeps its files, within the folder of the whole: the last one in that folder itself."""
    return "" if number == count else f"round-{number}"


def carried(bounds: Bounds, original: ChannelGraph, graph: ChannelGraph, scope: Scope, done: float) -> dict[str, Bound]:
    """Limits that hold for the whole, as the limits of a round.

    bounds: of the original's groups. graph: that of the network which the round cuts. done: `Rounds.progress` of it. Groups
    with a ratio approach their width as the cost approaches its budget; they may arrive there sooner.
    """
    wholes = {group.name: group for group in original.groups}
    return {
        group.name: _carried(group, wholes.get(group.name), bounds, done)
        for group in graph.groups
        if group.prunable and (scope == "all" or group.internal)
    }


def _carried(group: ChannelGroup, whole: ChannelGroup | None, bounds: Mapping[str, Bound], done: float) -> Bound:
    if whole is None or whole.producers != group.producers:
        why = Message("kept whole: its channels are grouped in another way than in the original")
        return Bound(group.size, group.size, False, True, message=why)
    bound = bounds.get(group.name) or free(whole)
    most = math.ceil(whole.size - (whole.size - bound.most) * done - 1e-9)
    return replace(
        bound, least=min(group.size, max(bound.least, group.least)), most=min(group.size, most), whole=whole.size
    )
