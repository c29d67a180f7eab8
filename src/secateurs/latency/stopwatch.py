"""Measure a cut network against the original, end to end on a target."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from secateurs.deploy.clock import LEAST, Program, in_turn
from secateurs.deploy.inputs import batched
from secateurs.deploy.runners import runner
from secateurs.deploy.target import Target, threaded
from secateurs.graph.modes import unwatched
from secateurs.latency.slices import Cut, sliced
from secateurs.plans import Plan
from secateurs.surgery import apply

SLOW = 0.3  # seconds of a run above which fewer rounds are measured
FEW = 4  # rounds of slow runs


@dataclass(frozen=True)
class Measured:
    """A cut network's time. ratio: the median over rounds of its time divided by the original's. noise: the standard error of
    that median, as a fraction of it. before: the median seconds of one run of the original. after: the seconds of the cut
    network, `before · ratio`."""

    ratio: float
    noise: float
    before: float
    after: float

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> Measured:
        """Compute it from the times of both networks in each round."""
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        noise = 1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios)) / median  # for normal values
        typical = statistics.median(before)
        return cls(median, noise, typical, typical * median)


class Stopwatch:
    """Measures cuts of a network; see `stopwatch`."""

    def __init__(self, model: nn.Module, inputs: Any, target: Target, original: Program, cut: Cut) -> None:
        self.model, self.inputs, self.target, self.original, self._cut = model, inputs, target, original, cut
        self.exact = True  # whether the last cut itself was measured, not a file that stands in for it

    def measure(self, plan: Plan, *, seconds: float = 0.3, margin: float = math.inf, most: float = 4.0) -> Measured:
        """Measure the network cut by a plan. In a runtime that runs files, the original's file with its weights cut stands in
        for it where possible.

        seconds: how long to measure. margin: keep measuring until the noise is no larger than this, for up to `most` seconds.
        """
        with unwatched():
            program = self._cut(plan)
        self.exact = program is None
        if program is not None:
            return self._paired(program, seconds, margin, most)
        return self.confirm(apply(self.model, plan), seconds=seconds, margin=margin, most=most)

    def confirm(
        self, network: nn.Module, *, seconds: float = 1.0, margin: float = math.inf, most: float = 4.0
    ) -> Measured:
        """Measure a network as it is, in the target's own runtime."""
        with unwatched(), runner(network, self.inputs, self.target) as run:
            return self._paired(run.program, seconds, margin, most)

    def _paired(self, cut: Program, seconds: float, margin: float, most: float) -> Measured:
        before: list[float] = []
        after: list[float] = []
        end = time.perf_counter() + most
        while True:
            with unwatched():
                found = in_turn({"original": self.original, "cut": cut}, seconds, FEW if self._slow else LEAST)
            before += found["original"]
            after += found["cut"]
            measured = Measured.of(before, after)
            if measured.noise <= margin or time.perf_counter() >= end:
                return measured

    @cached_property
    def _slow(self) -> bool:
        began = time.perf_counter()
        self.original.run()
        self.original.wait()
        return time.perf_counter() - began > SLOW


@contextmanager
def stopwatch(model: nn.Module, inputs: Any, target: Target) -> Iterator[Stopwatch]:
    """Yield a stopwatch for cuts of this network, on these inputs at the target's batch size. Use as a context manager.

    Raises ConfigError for a target that this machine cannot run, and ExportError for a network that cannot be exported to it.
    """
    inputs = batched(inputs, target.batch)
    with ExitStack() as stack:
        stack.enter_context(threaded(target))
        target.check()
        with unwatched():
            original, cut = stack.enter_context(sliced(model, inputs, target))
            if original is None:
                original = stack.enter_context(runner(model, inputs, target)).program
        yield Stopwatch(model, inputs, target, original, cut)
