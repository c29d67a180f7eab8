"""Runtimes and clocks that are made up: times follow from widths, and no test waits for a machine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import secateurs as sc
from secateurs.deploy.target import Target
from secateurs.latency import build, runtimes
from secateurs.latency.geometry import Geometry
from secateurs.latency.stopwatch import Measured
from secateurs.plans import Plan
from secateurs.surgery import apply

STEP = 4  # the widths that the made-up hardware likes are multiples of this


def piece(geometry: Geometry, widths: tuple[int, int]) -> float:
    """Seconds: as if widths were padded to the next multiple of `STEP`."""
    i, o = (math.ceil(n / STEP) * STEP for n in widths)
    work = math.prod(geometry.kernel or (1,)) * math.prod(geometry.space or (1,)) * (i * o if geometry.square else o)
    return 1e-6 + 1e-9 * geometry.batch * work


class Watch:
    """In place of a stopwatch. truth: the fraction of the time that a network takes with such fractions of the MACs and
    parameters. noise: by what each measurement is off, in turn. seconds: of the
    original."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        truth: Callable[[float, float], float],
        noise: Sequence[float] = (0.0,),
        error: float = 0.001,
        seconds: float = 0.01,
    ) -> None:
        self.model, self.inputs, self.truth, self.error, self.seconds = model, inputs, truth, error, seconds
        self.noise = itertools.cycle(noise)
        self.whole = sc.count(model, inputs)
        self.measured: list[float] = []
        self.exact = True

    def measure(self, plan: Plan, **settings: Any) -> Measured:
        return self.confirm(apply(self.model, plan))

    def confirm(self, network: nn.Module, **settings: Any) -> Measured:
        cost = sc.count(network, self.inputs)
        ratio = self.truth(cost.macs / self.whole.macs, cost.params / self.whole.params) * (1 + next(self.noise))
        self.measured.append(ratio)
        return Measured(ratio, self.error, self.seconds, self.seconds * ratio)


def usual(macs: float, params: float) -> float:
    return 0.1 + 0.9 * (0.9 * macs + 0.1 * params) ** 0.85


def launch_bound(macs: float, params: float) -> float:
    return 0.97 + 0.03 * macs


class Fakes:
    """What the fixture `fakes` gives. watches: all stopwatches that were made."""

    def __init__(self) -> None:
        self.truth: Callable[[float, float], float] = usual
        self.noise: Sequence[float] = (0.0,)
        self.error, self.seconds = 0.001, 0.01
        self.watches: list[Watch] = []
        self.calls: list[tuple[Geometry, int]] = []

    def measure(self, geometry: Geometry, points: Sequence[tuple[int, int]], target: Target) -> list[float]:
        self.calls.append((geometry, len(points)))
        return [piece(geometry, p) for p in points]

    @contextmanager
    def stopwatch(self, model: nn.Module, inputs: Any, target: Target) -> Iterator[Watch]:
        self.watches.append(Watch(model, inputs, self.truth, self.noise, self.error, self.seconds))
        yield self.watches[-1]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fakes:
    from secateurs import timing

    made = Fakes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runtimes, "measure", made.measure)
    monkeypatch.setattr(build, "stopwatch", made.stopwatch)
    monkeypatch.setattr(timing, "stopwatch", made.stopwatch)
    return made
