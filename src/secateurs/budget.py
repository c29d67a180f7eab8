"""Budgets: how much of a network may stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from secateurs.errors import BudgetError, Setting
from secateurs.graph import Cost
from secateurs.keywords import explained

FLOPS = "FLOPs are two for each MAC: pass macs=…, half of the FLOPs, or the fraction that stays."
LATER = "There is no budget of time: pass macs=… or params=…."


@explained(BudgetError, {"flops": FLOPS, "FLOPs": FLOPS, "latency": LATER, "ms": LATER})
@dataclass(frozen=True)
class Budget:
    """What may stay: a float up to 1.0 is a fraction, an integer an absolute figure. `Budget(macs=0.5)`,
    `Budget(params=2_000_000)`; with both, both hold.

    align: kept widths are multiples of this many channels. A group of a size that is none may also stay whole; one with
        no more channels than that is never cut.

    Raises BudgetError for figures that are neither.
    """

    macs: float | int | None = None
    params: float | int | None = None
    align: int = 1

    def __post_init__(self) -> None:
        if self.macs is None and self.params is None:
            raise BudgetError(
                "A budget needs a figure, for example ", Setting("macs", 0.5, Budget), " or ",
                Setting("params", 1_000_000, Budget), ".",
            )  # fmt: skip
        for name, value in (("macs", self.macs), ("params", self.params)):
            if value is not None and not _is_figure(value) and not _is_fraction(value):
                raise BudgetError(Setting(name, value), " is not a valid budget: ", *_readings(name, value), ".")
        if isinstance(self.align, bool) or not isinstance(self.align, Integral) or self.align < 1:
            raise BudgetError(Setting("align", self.align), " must be a whole number of channels, 1 or more.")

    def limits(self, base: Cost) -> Cost:
        """The absolute figures that must not be exceeded by a network whose uncut cost is `base`."""
        return Cost(_absolute(self.macs, base.macs), _absolute(self.params, base.params))

    def allows(self, cost: Cost, base: Cost) -> bool:
        limits = self.limits(base)
        return cost.macs <= limits.macs and cost.params <= limits.params

    @property
    def limited(self) -> tuple[str, ...]:
        """The figures that it limits, by name."""
        return tuple(name for name in ("macs", "params") if getattr(self, name) is not None)

    def shares(self, cost: Cost, base: Cost) -> dict[str, float]:
        """A cost as fractions of the uncut cost `base`, for each figure that is limited."""
        return {name: getattr(cost, name) / getattr(base, name) for name in self.limited}

    def check(self, base: Cost, lowest: Cost, hint: tuple[object, ...] = ()) -> None:
        """Raise BudgetError if even the `lowest` cost that cutting can reach is over it: with the fraction that could be met.
        hint: what may help then."""
        limits = self.limits(base)
        for name in ("macs", "params"):
            limit, least, full = getattr(limits, name), getattr(lowest, name), getattr(base, name)
            if least > limit:
                possible = fraction(least, full)
                raise BudgetError(
                    "The budget ", Setting(name, getattr(self, name)), f" ({limit:,} of {full:,}) cannot be met: with "
                    f"everything cut that may be cut, {least:,} remain. The lowest budget that can be met is ",
                    Setting(name, possible), ".", hint=hint, lowest={name: possible},
                )  # fmt: skip


def _is_figure(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 1


def _is_fraction(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, Integral) and 0 < float(value) <= 1


def _readings(name: str, value: Any) -> tuple[object, ...]:
    """The readings of an invalid value, for the message."""
    if isinstance(value, Integral) and not isinstance(value, bool) and value == 1:
        return "all of them are ", Setting(name, 1.0), ", and a network needs more than one"
    if isinstance(value, Real) and not isinstance(value, bool) and 1 < (figure := float(value)) < math.inf:
        meant = ("an absolute figure is an integer, ", Setting(name, int(figure)), ", and a fraction a float up to 1.0")
        return (*meant, ", ", Setting(name, figure / 100)) if figure <= 100 else meant
    return ("give a fraction, a float up to 1.0, or an absolute figure, an integer",)


def _absolute(value: float | int | None, full: int) -> int:
    if value is None:
        return full
    return int(value) if _is_figure(value) else int(value * full)


def fraction(part: int, whole: int) -> float:
    """The smallest fraction of four digits that, as a budget, lets `part` of `whole` stay."""
    digits = -(-part * 10_000 // whole)
    while _absolute(digits / 10_000, whole) < part:  # 0.57 · 100 is 56.99… in binary
        digits += 1
    return digits / 10_000
