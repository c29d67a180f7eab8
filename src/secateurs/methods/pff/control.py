"""Controls α: the threshold that would meet the budget decreases along a straight line to δ while the network trains."""

from __future__ import annotations

import math


class Controller:
    """α = base · exp(gain · excess), where excess is how far the threshold that the budget currently needs is above the
    line, which starts at the threshold that the budget needs before training; the base follows slowly. The number of stripes
    below δ is uninformative until the end, while the needed threshold changes from the first step on.

    start: the first α. first: the threshold that the budget needs before training. arrive: fraction of the training after
    which the stripes and channels to cut are chosen. most: the highest α, from the gradient that opposes it, once that
    is known. A stronger α moves all values alike: it destroys the network and distinguishes nothing.
    """

    REACH = 3.0  # the base stays within a factor of e³ of its initial value …
    BOUND = 0.25  # … and the excess is clipped to this

    def __init__(
        self, start: float, delta: float, arrive: float, first: float = 1.0, gain: float = 6.0, rate: float = 0.2
    ) -> None:
        self.delta, self.arrive, self.first, self.gain, self.rate = delta, arrive, max(first, delta), gain, rate
        self.low, self.high = math.log(start) - self.REACH, math.log(start) + self.REACH
        self.base = math.log(start)
        self.most = math.inf

    def target(self, progress: float) -> float:
        """The target of the needed threshold after this fraction of training."""
        return self.first - (self.first - self.delta) * min(1.0, progress / self.arrive)

    def settled(self, progress: float) -> bool:
        return progress >= self.arrive

    def update(self, needed: float, progress: float) -> float:
        """α from now on."""
        if self.settled(progress):
            return 0.0
        excess = max(-self.BOUND, min(self.BOUND, needed - self.target(progress)))
        self.base = max(self.low, min(self.high, self.base + self.rate * excess))
        return min(self.most, math.exp(self.base + self.gain * excess))
