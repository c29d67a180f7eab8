"""α under control: the threshold that would meet the budget comes down a straight line to δ while the network trains."""

from __future__ import annotations

import math


class Controller:
    """α = base · exp(gain · excess), where excess is how far the threshold that the budget needs now lies above the
    line; the base follows slowly. All values are one at first, and none is below δ for long: the number of dead
    stripes says nothing until the end, while the needed threshold moves from the first step on.

    After `arrive`, a share of the training, it is settled what has to go. The loss would hold on to much of it for good, so
    it is faded out: its values may not be above a ceiling, which comes down to zero well before the end.
    """

    REACH = 3.0  # the base stays within a factor of e³ of where it starts …
    BOUND = 0.25  # … an excess beyond this counts as this …
    FADE = 0.6  # … and of the training that is left after `arrive`, this share is for fading

    def __init__(self, start: float, delta: float, arrive: float, gain: float = 6.0, rate: float = 0.2) -> None:
        self.delta, self.arrive, self.gain, self.rate = delta, arrive, gain, rate
        self.low, self.high = math.log(start) - self.REACH, math.log(start) + self.REACH
        self.base = math.log(start)

    def target(self, progress: float) -> float:
        """Where the needed threshold should be after this share of training."""
        return 1.0 - (1.0 - self.delta) * min(1.0, progress / self.arrive)

    def settled(self, progress: float) -> bool:
        return progress >= self.arrive

    def ceiling(self, first: float, progress: float) -> float:
        """For what has to go, whose largest value was `first`."""
        return first * max(0.0, 1.0 - (progress - self.arrive) / max(1e-9, self.FADE * (1.0 - self.arrive)))

    def update(self, needed: float, progress: float) -> float:
        """α from now on."""
        if self.settled(progress):
            return 0.0
        excess = max(-self.BOUND, min(self.BOUND, needed - self.target(progress)))
        self.base = max(self.low, min(self.high, self.base + self.rate * excess))
        return math.exp(self.base + self.gain * excess)
