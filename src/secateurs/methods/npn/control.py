"""λ under control: raised and lowered while training so that the network arrives at its budget, without a search."""

from __future__ import annotations

import math


class Controller:
    """Steers λ so that the cost of the channels that are still open goes down a straight line to the budget.

    λ = base · exp(gain · excess), where excess is how far the cost lies above the line; the base follows slowly, so that
    what λ has to be in the long run is learned, and the exponential answers at once. Far below the line λ is next to
    nothing, and the loss alone may open gates again.
    """

    def __init__(self, start: float, goal: float, arrive: float, gain: float = 30.0, rate: float = 0.1) -> None:
        self.goal, self.arrive, self.gain, self.rate = goal, arrive, gain, rate
        self.low, self.high = math.log(start) - 7, math.log(start) + 7
        self.base = math.log(start)

    def target(self, progress: float) -> float:
        """Where the cost should be after this share of training."""
        return 1.0 - (1.0 - self.goal) * min(1.0, progress / self.arrive)

    def update(self, cost: float, progress: float) -> float:
        """λ for the next step, given the share of the cost that is still open."""
        excess = max(-0.3, min(0.3, cost - self.target(progress)))
        self.base = max(self.low, min(self.high, self.base + self.rate * excess))
        return math.exp(self.base + self.gain * excess)
