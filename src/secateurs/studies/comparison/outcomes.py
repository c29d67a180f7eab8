"""The results of cells, and of a method and a budget over all seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

NOT_RUN = "not run"  # begins the reason where a cell has no figures since it was not measured
Held = Literal["no", "unsure", "yes"]


class Outcome(BaseModel):
    """What is known about a cell: its figures, or why it has none.

    method, budget, seed: as the table names them. limits: the figures of the budget. figures: see `Bench.measure`. versions: of
    the packages that measured it.
    """

    model_config = ConfigDict(frozen=True)

    method: str
    budget: str
    seed: int
    limits: dict[str, float] = Field(default_factory=dict)
    figures: dict[str, Any] | None = None
    failed: str | None = None
    seconds: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def ran(self) -> bool:
        """Whether it was measured, or failed."""
        return not (self.failed or "").startswith(NOT_RUN)

    @property
    def latency(self) -> dict[str, Any] | None:
        """What was measured under a time budget, as a `Latency`."""
        return None if self.figures is None else self.figures.get("latency")

    @property
    def limited(self) -> frozenset[str]:
        """What the budget limits: macs, params, latency."""
        return frozenset("latency" if name == "ms" else name for name in self.limits)

    @property
    def held(self) -> Held | None:
        """Whether the cut network is within its time budget; unsure if it was measured over budget by no more than the
        measurement noise."""
        if (took := self.latency) is None:
            return None
        goal = took["goal"]
        if goal >= 1 and "latency" not in self.limits:  # the original itself is within the milliseconds
            goal = self.limits.get("ms", math.inf) / 1000 / took["before"]
        if took["ratio"] <= goal:
            return "yes"
        return "no" if took["ratio"] * (1 - took["noise"]) > goal else "unsure"


@dataclass(frozen=True)
class Spread:
    """mean ± sd of several values; sd is None for one."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        known = [v for v in values if v is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)

    def text(self, digits: int = 2) -> str:
        mean = f"{self.mean:.{digits}f}"
        return mean if self.sd is None else f"{mean} ± {self.sd:.{digits}f}"

    def percent(self) -> str:
        """The text of fractions: '55.0% ± 1.2%'."""
        return f"{self.mean:.1%}" if self.sd is None else f"{self.mean:.1%} ± {self.sd:.1%}"


@dataclass(frozen=True)
class Row:
    """A method under a budget, over all seeds.

    cut, calibrated, recovered: the compared figure, in the table's unit; None if it was not measured. macs, params: of the
    pruned network. passes: the compute, in training passes. seeds: how many are done. failed: what went wrong. warnings: what
    the results warn of. ran: whether any of its cells was measured, or failed. alike: whether several seeds gave the very same
    figures.

    If the budget limits the time: latency: the measured fraction of the original's time. ms_before, ms_after: milliseconds per
    run of the original and of the pruned network. held: whether the budget holds for all seeds; see `Outcome`.
    """

    method: str
    budget: str
    seeds: int
    cut: Spread | None
    calibrated: Spread | None
    recovered: Spread | None
    macs: Spread | None
    params: Spread | None
    passes: Spread | None
    seconds: Spread | None
    latency: Spread | None = None
    ms_before: Spread | None = None
    ms_after: Spread | None = None
    held: Held | None = None
    failed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    ran: bool = True
    alike: bool = False
