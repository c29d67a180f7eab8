"""λ under control: raised and lowered while training so that the network arrives at its budget, without a search."""

from __future__ import annotations

import math


class Controller:
    """Steers λ so that the cost of the channels that are still open goes down a straight line to the budget.

    λ = base · exp(gain · excess), where excess is how far the cost lies above the line; the base follows slowly, so that
    what λ has to be in the long run is learned, and the exponential answers at once. Far below the line λ is next to
    little, and the loss alone may open gates again. Gates follow late and go on once they move: so the answer is bounded,
    lest λ is far too high by the time that the first of them close.
    """

    REACH = 3.0  # the base stays within a factor of e³ of where it starts …
    BOUND = 0.2  # … and an excess beyond this counts as this

    def __init__(self, start: float, goal: float, arrive: float, gain: float = 12.0, rate: float = 0.1) -> None:
        self.goal, self.arrive, self.gain, self.rate = goal, arrive, gain, rate
        self.low, self.high = math.log(start) - self.REACH, math.log(start) + self.REACH
        self.base = math.log(start)

    def target(self, progress: float) -> float:
        """Where the cost should be after this share of training."""
        return 1.0 - (1.0 - self.goal) * min(1.0, progress / self.arrive)

    def update(self, cost: float, progress: float) -> float:
        """λ for the next step, given the share of the cost that is still open."""
        excess = max(-self.BOUND, min(self.BOUND, cost - self.target(progress)))
        self.base = max(self.low, min(self.high, self.base + self.rate * excess))
        return math.exp(self.base + self.gain * excess)
