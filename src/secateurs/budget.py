"""Budgets: how much of a network may stay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from torch import nn

from secateurs.deploy.target import Target
from secateurs.errors import BudgetError, ConfigError, Setting
from secateurs.graph import Cost
from secateurs.keywords import explained

FLOPS = "FLOPs are two for each MAC: pass macs=…, half of the FLOPs, or the fraction that stays."
COUNTS = ("macs", "params")
# The limit of a time that the uncut network is within: for a cut one, a latency model may predict a little more.
LOOSE = 2.0


@explained(BudgetError, {"flops": FLOPS, "FLOPs": FLOPS})
@dataclass(frozen=True, repr=False)
class Budget:
    """What may stay: a float up to 1.0 is a fraction, an integer an absolute figure (so is 60e6). `Budget(macs=0.5)`,
    `Budget(params=2_000_000)`, `Budget(latency=0.6, target="onnxruntime")`; with several figures, all of them hold.

    align: kept widths are multiples of this many channels. A group of a size that is none may also stay whole; one with
        no more channels than that is never cut. "auto": the multiples that are fast on the target, for each group; the default
        with a limit of the latency, and otherwise 1.
    latency: the fraction of the original's time for one run, as measured on the target. ms: milliseconds of one run.
    target: where time is measured: `torch-cpu`, `torch-cuda`, `onnxruntime`, `openvino`, or a `Target` with a batch size,
        threads, a precision …; by default PyTorch on the model's device.

    Raises BudgetError for figures that are neither, and ConfigError for a target that does not exist.
    """

    macs: float | int | None = None
    params: float | int | None = None
    align: int | Literal["auto"] | None = None
    latency: float | None = field(default=None, kw_only=True)
    ms: float | None = field(default=None, kw_only=True)
    target: Target | str | None = field(default=None, kw_only=True)
    # The fraction of the predicted time with which the measured time holds, once it is known.
    tight: float | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if all(getattr(self, name) is None for name in (*COUNTS, "latency", "ms")):
            raise BudgetError(
                "A budget needs a figure, for example ", Setting("macs", 0.5, Budget), ", ",
                Setting("params", 1_000_000, Budget), " or ", Setting("latency", 0.5, Budget), ".",
            )  # fmt: skip
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and not _is_figure(value) and not _is_fraction(value):
                raise BudgetError(Setting(name, value), " is not a valid budget: ", *_readings(name, value), ".")
        if self.latency is not None and not _is_fraction(self.latency):
            raise BudgetError(
                Setting("latency", self.latency), " is not a valid budget: it is the fraction of the original's time, a float "
                "up to 1.0; ", *_meant_time(self.latency), ".",
            )  # fmt: skip
        if self.ms is not None and not (is_number(self.ms) and 0 < float(self.ms) < math.inf):
            raise BudgetError(
                Setting("ms", self.ms), " is not a valid budget: it must be a positive number of milliseconds."
            )
        put = object.__setattr__
        for name in (*COUNTS, "latency", "ms"):  # NumPy's numbers are no JSON
            value = getattr(self, name)
            if value is not None:
                put(self, name, int(value) if _is_figure(value) and name in COUNTS else float(value))
        if self.align is None:
            put(self, "align", "auto" if self.is_timed else 1)
        if self.align != "auto" and (
            isinstance(self.align, bool) or not isinstance(self.align, Integral) or self.align < 1
        ):
            raise BudgetError(
                Setting("align", self.align),
                " must be a whole number of channels, 1 or more, or ",
                Setting("align", "auto"),
                ".",
            )
        if self.align != "auto":
            put(self, "align", int(self.align))
        if self.target is not None:
            put(self, "target", Target.of(self.target))
            if not self.needs_target:
                raise BudgetError(
                    Setting("target", str(self.target)), " has no effect on this budget: limit the time (",
                    Setting("latency", 0.6), "), or round widths to what is fast there (", Setting("align", "auto"), ").",
                )  # fmt: skip

    def __repr__(self) -> str:
        """The call that makes it: what is set, beside the defaults."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.repr}
        return f"Budget({', '.join(f'{name}={value!r}' for name, value in stated(given).items())})"

    @property
    def is_timed(self) -> bool:
        """Whether it limits the latency."""
        return self.latency is not None or self.ms is not None

    @property
    def needs_target(self) -> bool:
        """Whether it depends on where the network runs."""
        return self.is_timed or self.align == "auto"

    def on(self, device: str) -> Target:
        """The target; by default PyTorch on a device of this type. Raises ConfigError for a device that is none of ours."""
        if isinstance(self.target, Target):
            return self.target
        if device not in ("cpu", "cuda"):
            raise ConfigError(
                f"The model is on {device}, where time cannot be measured: name a ", Setting("target", "torch-cpu"), "."
            )
        return Target("torch-cuda" if device == "cuda" else "torch-cpu")

    def suited(self, model: nn.Module, device: str) -> Budget:
        """The budget of this network, on a device of this type: time is measured in its precision; see `Target.suited`."""
        if not self.needs_target:
            return self
        target = self.on(device)
        own = target.suited(model)
        return self if own == target else replace(self, target=own)

    def goal(self, seconds: float) -> float:
        """The fraction of the original's measured time, so many seconds, that may stay."""
        return min(self.latency or 1.0, 1.0 if self.ms is None else self.ms / 1000 / seconds)

    def tightened(self, share: float) -> Budget:
        """The same with another limit of the predicted time, a fraction of the original's."""
        made = replace(self)
        object.__setattr__(made, "tight", share)
        return made

    def limits(self, base: Cost) -> Cost:
        """The absolute figures that must not be exceeded by a network whose uncut cost is `base`."""
        latency = base.latency
        if self.is_timed:
            if latency is None:
                raise ConfigError(
                    "A budget of time needs a graph with a latency model: pass it to prune(…), which makes one."
                )
            latency *= self.goal(latency) if self.tight is None else self.tight
        return Cost(_absolute(self.macs, base.macs), _absolute(self.params, base.params), latency)

    def allows(self, cost: Cost, base: Cost) -> bool:
        return bool((self.figures(cost) <= self.figures(self._room(base))).all())

    def _room(self, base: Cost) -> Cost:
        """The limits; of a time that the uncut network already takes, more."""
        limits = self.limits(base)
        if limits.latency is None or self.latency is not None or self.figures(base)[-1] > limits.latency:
            return limits
        return replace(limits, latency=limits.latency * LOOSE)

    @property
    def limited(self) -> tuple[str, ...]:
        """The figures that it limits, by name."""
        counts = tuple(name for name in COUNTS if getattr(self, name) is not None)
        return (*counts, "latency") if self.is_timed else counts

    def figures(self, cost: Cost) -> np.ndarray:
        """The limited figures of a cost: (limits,)."""
        return np.array([getattr(cost, name) for name in self.limited], dtype=np.float64)

    def shares(self, cost: Cost, base: Cost) -> dict[str, float]:
        """A cost as fractions of the uncut cost `base`, for each figure that is limited."""
        return {name: getattr(cost, name) / getattr(base, name) for name in self.limited}

    def check(self, base: Cost, lowest: Cost, hint: tuple[object, ...] = ()) -> None:
        """Raise BudgetError if even the `lowest` cost that cutting can reach is over it: with the fraction that could be met.
        hint: what may help then."""
        limits = self._room(base)
        for name in self.limited:
            limit, least, full = getattr(limits, name), getattr(lowest, name), getattr(base, name)
            if least <= limit:
                continue
            given = getattr(self, name)
            if name == "latency":
                share, of = math.ceil(least / full * 1e4) / 1e4, f"{limit * 1000:.3g} of {full * 1000:.3g} ms"
                remain = f"about {least * 1000:.3g} ms"
            else:
                share, of, remain = fraction(least, full), f"{limit:,} of {full:,}", f"{least:,}"
            asked, possible = Setting(name, given), Setting(name, share)
            if name == "latency" and self.latency is None:
                asked, possible = Setting("ms", self.ms), Setting("ms", float(f"{least * 1005:.3g}"))
            if isinstance(given, int) and given <= 100 < full:
                percent = (f"{given} percent are ", Setting(name, given / 100), ".")
                hint = (*percent, " ", *hint) if hint else percent
            raise BudgetError(
                "The budget ", asked, f" ({of}) cannot be met: with everything cut that may be cut, {remain} remain. The "
                "lowest budget that can be met is ", possible, ".", hint=hint, lowest={name: share},
            )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """As a run records it: JSON-serializable."""
        found: dict[str, Any] = {"macs": self.macs, "params": self.params, "align": self.align}
        found |= {name: getattr(self, name) for name in ("latency", "ms") if getattr(self, name) is not None}
        return found | ({"target": self.target.record()} if isinstance(self.target, Target) else {})


def stated(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a `Budget.record` says beside the defaults."""
    usual = "auto" if record.get("latency") or record.get("ms") else 1
    return {name: value for name, value in record.items() if value is not None and (name, value) != ("align", usual)}


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_figure(value: Any) -> bool:
    return is_number(value) and bool(2 <= value < math.inf) and bool(value == int(value))


def _is_fraction(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, Integral) and 0 < float(value) <= 1


def _readings(name: str, value: Any) -> tuple[object, ...]:
    """The readings of an invalid value, for the message."""
    if isinstance(value, Integral) and not isinstance(value, bool) and value == 1:
        return "an integer is an absolute figure; to keep all, write ", Setting(name, 1.0)
    if is_number(value) and 1 < (figure := float(value)) < math.inf:
        rule = "a fraction is at most 1.0, and an absolute figure is an integer"
        if figure < 2:
            return f"{rule}; to keep all, write ", Setting(name, 1.0)
        if figure <= 100:
            return f"{rule}; {figure:g} percent are ", Setting(name, figure / 100)
        return f"{rule}, ", Setting(name, int(figure))
    return ("give a fraction, a float up to 1.0, or an absolute figure, an integer",)


def _meant_time(latency: Any) -> tuple[object, ...]:
    """What an invalid fraction of the time may be meant as, for the message."""
    if is_number(latency) and latency == 1:
        return "to keep all of it, write ", Setting("latency", 1.0)
    if is_number(latency) and 1 < latency <= 100:
        figure = float(latency)
        percent, time = Setting("latency", figure / 100), Setting("ms", figure)
        return f"{figure:g} percent are ", percent, f", {figure:g} milliseconds ", time
    return Setting("ms", 3.0), " are milliseconds"


def exact(figure: float) -> float | int:
    """A figure that was written without Python's types, as a budget takes it: 60e6 is an integer, and 1 the whole.
    Others are left for the budget to refuse."""
    if isinstance(figure, float) and figure > 1 and figure.is_integer():
        return int(figure)
    return 1.0 if type(figure) is int and figure == 1 else figure


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
