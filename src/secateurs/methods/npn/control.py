"""Controls λ: adjusts it during training so that the network reaches its budget without a search."""

from __future__ import annotations

import math


class Controller:
    """Controls λ so that the cost of the open channels decreases along a straight line to the budget.

    λ = base · exp(gain · excess), where excess is how far the cost is above the line; the base follows slowly, so that
    it learns the long-run value of λ, and the exponential reacts at once. Far below the line λ is close to
    zero, and the loss may open gates again. Gates respond late and keep moving: so the reaction is bounded,
    or λ would be far too high by the time the first gates close.
    """

    REACH = 3.0  # the base stays within a factor of e³ of its initial value …
    BOUND = 0.2  # … and the excess is clipped to this

    def __init__(self, start: float, goal: float, arrive: float, gain: float = 12.0, rate: float = 0.1) -> None:
        self.goal, self.arrive, self.gain, self.rate = goal, arrive, gain, rate
        self.low, self.high = math.log(start) - self.REACH, math.log(start) + self.REACH
        self.base = math.log(start)

    def target(self, progress: float) -> float:
        """The target cost after this fraction of training."""
        return 1.0 - (1.0 - self.goal) * min(1.0, progress / self.arrive)

    def update(self, cost: float, progress: float) -> float:
        """λ for the next step, given the fraction of the cost that is still open."""
        excess = max(-self.BOUND, min(self.BOUND, cost - self.target(progress)))
        self.base = max(self.low, min(self.high, self.base + self.rate * excess))
        return math.exp(self.base + self.gain * excess)
