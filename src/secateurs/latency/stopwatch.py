"""A cut network beside the original, measured end to end on a target."""

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

SLOW = 0.3  # seconds of a run from which on fewer rounds must do
FEW = 4  # rounds of those


@dataclass(frozen=True)
class Measured:
    """A cut network's time. ratio: over the original's within a round, the median. noise: the standard error of that median,
    as a fraction of it. before, after: seconds of one run of the original, the median, and of the cut network by that ratio."""

    ratio: float
    noise: float
    before: float
    after: float

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> Measured:
        """Of the two times, round by round."""
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        noise = 1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios)) / median  # of a median of normal values
        typical = statistics.median(before)
        return cls(median, noise, typical, typical * median)


class Stopwatch:
    """Measures cuts of a network; see `stopwatch`."""

    def __init__(self, model: nn.Module, inputs: Any, target: Target, original: Program, cut: Cut) -> None:
        self.model, self.inputs, self.target, self.original, self._cut = model, inputs, target, original, cut
        self.exact = True  # whether the last cut was measured itself, and not in a file that stands for it

    def measure(self, plan: Plan, *, seconds: float = 0.3, margin: float = math.inf, most: float = 4.0) -> Measured:
        """The network cut by a plan. For a runtime of files the original's file with its weights cut stands for it, where that
        is possible.

        seconds: to measure for. margin: measure on, for `most` seconds, until the noise is no larger.
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
        """A network as it is, in the target's own runtime."""
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
    """Context with a stopwatch for cuts of this network, on these inputs at the target's batch size.

    Raises ConfigError for a target that this machine cannot run, ExportError for a network that cannot be exported to it.
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
