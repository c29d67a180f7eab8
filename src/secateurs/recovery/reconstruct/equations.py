"""Ridge least squares toward given weights, from samples that arrive batch by batch. All sums are float64."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Equations(Protocol):
    """What is kept of samples x (G, m, n) and y (G, m, O) of G independent systems: enough for any loss Σ (x · w − y)²."""

    count: int  # samples

    def add(self, x: Tensor, y: Tensor) -> None: ...

    def merge(self, other: Any) -> None:
        """Add the samples of another, of the same kind."""

    def loss(self, w: Tensor) -> Tensor:
        """Σ (x · w − y)² by output, (G, O). w: (G, n, O)."""

    def mean_rest(self, w: Tensor) -> Tensor:
        """The mean of y − x · w, (G, 1, O). The last input must be the constant 1."""

    def spread(self) -> Tensor:
        """Σ (y − mean)² by output, (G, O)."""

    def solve(self, old: Tensor, ridge: float, inputs: Tensor | None = None, outputs: Tensor | None = None) -> Tensor:
        """argmin Σ (x · w − y)² + λ‖w − old‖² in float64, (G, n, O); λ is `ridge` times the mean of Σ x² over inputs. NaN
        where there is no solution.

        inputs, outputs: the indices to restrict the problem to; `old` is then of that size.
        """


class Moments:
    """The normal equations: n × n, however many samples there are.

    free: how many inputs, the last ones, have no penalty: a constant.
    """

    def __init__(
        self, groups: int, inputs: int, outputs: int, free: int = 0, device: torch.device | None = None
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        self.xx, self.xy = zeros(inputs, inputs), zeros(inputs, outputs)
        self.y, self.yy = zeros(outputs), zeros(outputs)
        self.free, self.count = free, 0

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        self.xx.baddbmm_(x.mT, x)
        self.xy.baddbmm_(x.mT, y)
        self.y += y.sum(1)
        self.yy += y.square().sum(1)
        self.count += x.shape[1]

    def merge(self, other: Moments) -> None:
        for name in ("xx", "xy", "y", "yy", "count"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def loss(self, w: Tensor) -> Tensor:
        return ((w * (self.xx @ w - 2 * self.xy)).sum(1) + self.yy).clamp(min=0)

    def mean_rest(self, w: Tensor) -> Tensor:
        return (self.y[:, None] - self.xx[:, -1:] @ w) / max(1, self.count)

    def spread(self) -> Tensor:
        return self.yy - self.y.square() / max(1, self.count)

    def solve(self, old: Tensor, ridge: float, inputs: Tensor | None = None, outputs: Tensor | None = None) -> Tensor:
        xx, xy = self.xx, self.xy
        if outputs is not None:
            xy = xy[:, :, outputs]
        if inputs is not None:
            xx, xy = xx[:, inputs[:, None], inputs], xy[:, inputs]
        penalty = ridge * xx.diagonal(dim1=1, dim2=2)
        penalty[:] = penalty[:, : penalty.shape[1] - self.free].mean(1, keepdim=True)
        penalty[:, penalty.shape[1] - self.free :] = 0
        step = xy - xx @ old
        factor, info = torch.linalg.cholesky_ex(xx + torch.diag_embed(penalty))
        return _usable(old + torch.cholesky_solve(step, factor), info)


class Rows:
    """The samples themselves, where there are fewer of them than inputs: the dual problem is m × m."""

    def __init__(self, free: int = 0) -> None:
        self._x: list[Tensor] = []
        self._y: list[Tensor] = []
        self.free, self.count = free, 0

    def add(self, x: Tensor, y: Tensor) -> None:
        self._x.append(x)
        self._y.append(y)
        self.count += x.shape[1]

    def merge(self, other: Rows) -> None:
        self._x += other._x
        self._y += other._y
        self.count += other.count

    @property
    def y(self) -> Tensor:
        return torch.cat(self._y, 1).double()

    def loss(self, w: Tensor) -> Tensor:
        total = torch.zeros(w.shape[0], w.shape[2], dtype=torch.float64, device=w.device)
        for x, y in zip(self._x, self._y, strict=True):
            total += (x.double() @ w - y).square().sum(1)
        return total

    def mean_rest(self, w: Tensor) -> Tensor:
        return (self.y - torch.cat(self._x, 1).double() @ w).mean(1, keepdim=True)

    def spread(self) -> Tensor:
        return (self.y - self.y.mean(1, keepdim=True)).square().sum(1)

    def solve(self, old: Tensor, ridge: float, inputs: Tensor | None = None, outputs: Tensor | None = None) -> Tensor:
        x, y = torch.cat(self._x, 1).double(), self.y
        x = x if inputs is None else x[:, :, inputs]
        y = y if outputs is None else y[:, :, outputs]
        bound = x[:, :, : x.shape[2] - self.free]  # the penalized inputs
        penalty = ridge * bound.square().sum((1, 2)) / bound.shape[2]
        rest = y - x @ old
        gram = bound @ bound.mT
        gram.diagonal(dim1=1, dim2=2).add_(penalty[:, None])
        factor, info = torch.linalg.cholesky_ex(gram)
        free = x[:, :, bound.shape[2] :]
        if self.free:  # minimize over the free inputs first: generalized least squares
            weighted = torch.cholesky_solve(free, factor)
            constant = torch.linalg.solve(free.mT @ weighted, weighted.mT @ rest)
            rest = rest - free @ constant
        step = bound.mT @ torch.cholesky_solve(rest, factor)
        return _usable(old + (torch.cat([step, constant], 1) if self.free else step), info)


def _usable(w: Tensor, info: Tensor) -> Tensor:
    return w.masked_fill((info != 0)[:, None, None], torch.nan)
