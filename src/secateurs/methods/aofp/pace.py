"""The schedule of a budgeted run: how much of the cost should be left by when, and what θ follows from it."""

from __future__ import annotations

from collections.abc import Mapping

Shares = Mapping[str, float]


class Pace:
    """Controls θ: θ grows while the cost is above a straight line to the budget, and shrinks, never below its initial value,
    while the cost is below it. By at most `growth` in a full search, since the effect of θ shows only after one.

    goal: the fraction of each limited figure that the budget leaves. Each has a line of its own, and the one that is furthest
    behind counts. With a growth of 1, θ is constant and nothing is due before the end. begin, end: the steps between which
    all layers are searched; nothing is expected of the warm-up before.
    """

    ARRIVE = 0.9  # fraction of the search after which the budget should be met
    BAND = 0.02  # an excess of this or more counts in full

    def __init__(self, theta: float, growth: float, goal: Shares, begin: float, end: float) -> None:
        self.theta, self.start, self.growth, self.goal = theta, theta, growth, goal
        self.begin, self.length = begin, end - begin

    def excess(self, now: Shares, step: float) -> float:
        """By how much the cost is above the line, as a fraction of the original; negative below it."""
        return max(self._above(now, step, 0.0), default=0.0)

    def due(self, now: Shares, step: float, search: float) -> float:
        """By how much the cost is above a line that starts after the first full search, of so many steps: filters that the
        search has not picked until then are due."""
        if self.growth == 1:
            return 0.0
        return max(self._above(now, step, min(search, self.ARRIVE / 2 * self.length)), default=0.0)

    def _above(self, now: Shares, step: float, late: float) -> list[float]:
        """The excess of each figure over a line that starts so many steps late."""
        gone, all_of_it = step - self.begin - late, self.ARRIVE * self.length - late
        way = min(1.0, gone / all_of_it) if gone > 0 and all_of_it > 0 else 0.0
        return [share - (1.0 - (1.0 - self.goal[name]) * way) for name, share in now.items()]

    def update(self, now: Shares, step: float, searches: float) -> float:
        """θ after this step, and this fraction of a full search."""
        excess = max(-1.0, min(1.0, self.excess(now, step) / self.BAND))
        self.theta = min(max(self.start, 1.0), max(self.start, self.theta * self.growth ** (excess * searches)))
        return self.theta
