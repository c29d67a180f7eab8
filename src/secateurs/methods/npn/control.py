"""Controls λ: adjusts it during the search so that the network reaches its budget without a search over runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from secateurs.budget import Budget
from secateurs.methods.select import Widths


class Shares:
    """What the channels cost under each limit of the budget, as fractions of the whole network's cost."""

    def __init__(self, widths: Widths) -> None:
        budget, base = widths.budget, widths.base
        self.widths, self._measured = widths, Budget(macs=1.0) if budget is None else budget
        self.figures = self._measured.limited
        limits = [] if budget is None else budget.shares(budget.limits(base), base).values()
        self.goals = [min(1.0, limit) for limit in limits]

    def of(self, widths: np.ndarray) -> list[float]:
        """The share of the cost that these widths have, one for each limit (of the MACs if there is none)."""
        return list(self._measured.shares(self.widths.cost(widths), self.widths.base).values())


class Controller:
    """Controls λ so that the cost of the open channels decreases along a straight line to the budget.

    λ = base · exp(gain · excess), where excess is how far the cost is above the line, under the limit for which it is
    farthest. The base follows the scale of the loss's gradient, and integrates the excess over the search; the exponential
    reacts at once. Far below the line λ is close to zero, and the loss may open gates again. Gates
    respond late and keep moving: so the excess is bounded, or λ would be far too high by the time the first gates close. The
    line ends early, so that there is time to correct.

    One measurement of the scale is not enough: the loss of a network that is its own teacher has no gradient before the first
    gates close. Nor is it measured to the end: a network that adapts to its gates opposes less and less.
    """

    BOUND = 0.2  # the excess is clipped to this
    RATE = 12.0  # by how much log λ grows in a search with this excess all along
    GENTLE = 0.3  # λ starts at this times the one that would close a typical gate
    ARRIVE = 0.75  # the fraction of the search after which the budget should be met

    def __init__(self, start: float, goals: Sequence[float], gain: float = 12.0) -> None:
        self.goals, self.gain = list(goals), gain
        self.base = math.log(start)
        self.scale: float | None = None  # the logarithm of λ's scale, once it is measured

    def follow(self, typical: float, pace: float) -> None:
        """Follow λ's scale, as `Pulls` measured it in the last step: to begin with at once, then this fraction of the way."""
        now = math.log(self.GENTLE * typical)
        if self.scale is None:
            self.base = self.scale = now
        else:
            moved = pace * (now - self.scale)
            self.scale += moved
            self.base += moved

    def targets(self, progress: float) -> list[float]:
        """The target cost after this fraction of the search, for each limit."""
        done = min(1.0, progress / self.ARRIVE)
        return [1.0 - (1.0 - goal) * done for goal in self.goals]

    def update(self, shares: Sequence[float], progress: float, step: float) -> float:
        """λ for the next step, given the shares of the costs that are still open. step: the progress in one step."""
        excess = max(share - target for share, target in zip(shares, self.targets(progress), strict=True))
        # Gates that closed too fast open again late, while λ is close to zero already: that is not the base's fault.
        rate = self.RATE * step * (1.0 if excess > -self.BOUND else 0.1)
        excess = max(-self.BOUND, min(self.BOUND, excess))
        self.base = max(-40.0, min(10.0, self.base + rate * excess / self.BOUND))  # finite, whatever happens
        return math.exp(self.base + self.gain * excess)


class Pulls:
    """How hard the loss opens the gates, and how hard the penalty closes them: the gradients of both by the gates.

    sums: (channels + 1,) the loss's gradient, summed over the images of a batch, and the sum of the penalty's.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights.cpu()  # (channels,) of the gates in the penalty
        self.sums = torch.zeros(len(weights) + 1, device=weights.device)

    def by_loss(self, gate: Tensor) -> Tensor:
        """The gates that the network uses, (channels,) or (N, channels)."""
        return self._felt(gate, self.sums[:-1], lambda grad: grad.reshape(-1, len(self.weights)).sum(0))

    def by_penalty(self, gate: Tensor) -> Tensor:
        """The gates that the penalty uses."""
        return self._felt(gate, self.sums[-1], lambda grad: grad.sum())

    def _felt(self, gate: Tensor, total: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        def feel(grad: Tensor) -> None:
            total.add_(reduce(grad.detach().float()))

        gate = gate.view_as(gate)
        if gate.requires_grad:
            gate.register_hook(feel)
        return gate

    def typical(self, sums: Tensor, lam: float) -> float | None:
        """λ at which the penalty closes a typical gate as hard as the loss opens it; None if undetermined. The penalty's
        own gradient at `lam` tells by what the loop multiplies both: a loss scale, the share of an accumulated step.

        sums: as above, on the CPU."""
        factor = float(sums[-1]) / (lam * float(self.weights.sum()))
        typical = float((sums[:-1] / self.weights).square().mean().sqrt()) / factor if factor > 0 else math.nan
        return typical if math.isfinite(typical) and typical > 0 else None
