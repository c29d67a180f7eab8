"""Channels removed from least-squares problems one after another, the one that does the least damage first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class System:
    """A layer's least squares toward its own outputs, from fewer and fewer of its inputs. All float64.

    inverse: (G, n, n), of the covariance of the inputs that are left, plus the ridge; zero for those that are gone.
    left: (G, n, O), the weights of the inputs that are left, solved; zero for those that are gone.
    free: (size,), what cutting each channel costs by the penalty on its own weights alone. This is not damage.
    columns: (G, size, b), the inputs that each channel is. variance: of the outputs, in total.
    """

    inverse: Tensor
    left: Tensor
    free: Tensor
    columns: Tensor
    variance: float

    @classmethod
    def of(cls, covariance: Tensor, weight: Tensor, columns: Tensor, ridge: float) -> System:
        variance = float((weight * (covariance @ weight)).sum())
        penalty = ridge * covariance.diagonal(dim1=1, dim2=2).mean(1)  # (G,)
        penalty = penalty.clamp(min=torch.finfo(torch.float32).tiny)
        bounded = covariance.clone()
        bounded.diagonal(dim1=1, dim2=2).add_(penalty[:, None])
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(bounded))
        squares = weight.square().sum(2)  # (G, n)
        free = (squares[_rows(columns), columns].sum(2) * penalty[:, None]).sum(0)
        return cls(inverse, weight.clone(), free, columns, variance)

    def damage(self, channels: Tensor) -> Tensor:
        """What cutting each of these channels adds, as a share of the outputs' variance: (len(channels),)."""
        if not self.variance > 0:
            return torch.zeros(len(channels), dtype=torch.float64)
        at = self.columns[:, channels]  # (G, c, b)
        blocks = self.inverse[_rows(at)[..., None], at[..., :, None], at[..., None, :]]  # (G, c, b, b)
        w = self.left[_rows(at), at]  # (G, c, b, O)
        solved = torch.cholesky_solve(w, torch.linalg.cholesky(blocks))
        total = (w * solved).sum((2, 3)).sum(0) - self.free[channels]
        return total.clamp(min=0).cpu() / self.variance

    def cut(self, channel: int) -> None:
        """Cut a channel and solve for the others."""
        at = self.columns[:, channel]  # (G, b)
        group = torch.arange(len(at), device=at.device)[:, None]
        rows = self.inverse[group, at]  # (G, b, n)
        factor = torch.linalg.cholesky(rows.gather(2, at[:, None].expand(-1, at.shape[1], -1)))
        self.left -= rows.mT @ torch.cholesky_solve(self.left[group, at], factor)
        half = torch.linalg.solve_triangular(factor, rows, upper=False)
        self.inverse.baddbmm_(half.mT, half, alpha=-1)
        self.left[group, at] = 0
        self.inverse[group, at] = 0
        self.inverse.mT[group, at] = 0


def greedy(systems: Sequence[System]) -> Tensor:
    """What each channel adds to the damage of all systems, when those that add least go first: (size,). Never less than what
    was added before it, so that sorting the scores gives the order."""
    size = systems[0].columns.shape[1]
    scores = torch.zeros(size, dtype=torch.float64)
    left, most = torch.arange(size), torch.zeros((), dtype=torch.float64)
    while len(left):
        added = torch.stack([system.damage(left) for system in systems]).sum(0)
        at = int(added.argmin())
        channel = int(left[at])
        most = torch.maximum(added[at], most.nextafter(torch.ones_like(most)))
        scores[channel] = most
        left = torch.cat([left[:at], left[at + 1 :]])
        if len(left):
            for system in systems:
                system.cut(channel)
    return scores


def _rows(columns: Tensor) -> Tensor:
    """The first index for columns (G, …) of tensors (G, n, …)."""
    return torch.arange(len(columns), device=columns.device).view(-1, *[1] * (columns.ndim - 1))
