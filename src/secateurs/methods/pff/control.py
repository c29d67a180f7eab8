"""Controls α: the threshold that would meet the budget decreases along a straight line to δ while the network trains."""

from __future__ import annotations

import math


class Controller:
    """α = base · exp(gain · excess), where excess is how far the threshold that the budget currently needs is above the
    line; the base follows slowly. All values start at one, and none is below δ for a long time: the number of dead
    stripes is uninformative until the end, while the needed threshold changes from the first step on.

    After the fraction `arrive` of the training, the set of units to cut is fixed. The loss would keep many of them alive, so
    they are faded out: their values are clipped to a ceiling, which decreases to zero well before the end.
    """

    REACH = 3.0  # the base stays within a factor of e³ of its initial value …
    BOUND = 0.25  # … the excess is clipped to this …
    FADE = 0.6  # … and this fraction of the training after `arrive` is for fading

    def __init__(self, start: float, delta: float, arrive: float, gain: float = 6.0, rate: float = 0.2) -> None:
        self.delta, self.arrive, self.gain, self.rate = delta, arrive, gain, rate
        self.low, self.high = math.log(start) - self.REACH, math.log(start) + self.REACH
        self.base = math.log(start)

    def target(self, progress: float) -> float:
        """The target of the needed threshold after this fraction of training."""
        return 1.0 - (1.0 - self.delta) * min(1.0, progress / self.arrive)

    def settled(self, progress: float) -> bool:
        return progress >= self.arrive

    def ceiling(self, first: float, progress: float) -> float:
        """The ceiling for the units to cut, whose largest value was `first`."""
        return first * max(0.0, 1.0 - (progress - self.arrive) / max(1e-9, self.FADE * (1.0 - self.arrive)))

    def update(self, needed: float, progress: float) -> float:
        """α from now on."""
        if self.settled(progress):
            return 0.0
        excess = max(-self.BOUND, min(self.BOUND, needed - self.target(progress)))
        self.base = max(self.low, min(self.high, self.base + self.rate * excess))
        return math.exp(self.base + self.gain * excess)
