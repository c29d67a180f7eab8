"""One layer's problem: from the inputs that the cut network gives it to the outputs that the original had."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.devices import exact
from secateurs.recovery.reconstruct.equations import Equations, Moments, Rows
from secateurs.recovery.reconstruct.layers import Geometry
from secateurs.stripes.layout import dense

HELD = 8  # one sample in so many is held out: it decides whether the solution is used


@dataclass
class Solution:
    """A layer's new weights, and how far its outputs were and are from the original's on the images held out: the share of
    their variance that is not explained. `weight` is None where the old ones stay."""

    before: float
    after: float
    weight: Tensor | None = None
    constant: Tensor | None = None  # (O,), what is added to the output


class Problem:
    """Collects samples, then solves.

    weight, bias: the layer's own. kept: (O, *kernel), of a stripe convolution. samples: how many are expected.
    floats: a norm follows that can add any constant, which is then the one that fits best, with the old weights, too.
    """

    def __init__(
        self, geometry: Geometry, weight: Tensor, bias: Tensor | None, kept: Tensor | None, samples: int, floats: bool
    ) -> None:
        self.geometry, self.like = geometry, weight
        self.kept = None if kept is None else kept.flatten(1)
        self.device = exact(weight.device)
        matrix = geometry.matrix(weight if kept is None else dense(kept, weight)).to(self.device).double()
        self.old = matrix.mT  # (G, n, O / G)
        self.floats, self.free = floats, int(floats or bias is not None)
        if self.free:
            row = torch.zeros_like(self.old[:, :1]) if bias is None else bias.to(self.old).view(len(self.old), 1, -1)
            self.old = torch.cat([self.old, row], 1)
        g, n, o = self.old.shape

        def equations() -> Equations:
            return Rows(self.free) if n > samples else Moments(g, n, o, self.free, self.device)

        self.fit, self.held = equations(), equations()

    def add(self, x: Tensor, y: Tensor, images: int) -> None:
        """The layer's inputs at sampled positions (G, images · P, n), and the outputs wanted there (images · P, O)."""
        x, y = x.to(self.device), y.to(self.device).view(len(y), self.geometry.groups, -1).transpose(0, 1)
        if self.free:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        fit = x.shape[1] // images * (images - images // HELD)
        self.fit.add(x[:, :fit], y[:, :fit])
        if fit < x.shape[1]:
            self.held.add(x[:, fit:], y[:, fit:])

    def solve(self, ridge: float) -> Solution:
        """The old weights stay if the new ones are no better on the samples held out, or not finite."""
        if self.floats:
            self.old[:, -1:] += self.fit.mean_rest(self.old)
        judge = self.held if self.held.count else self.fit
        spread = float(judge.spread().sum())

        def missed(w: Tensor) -> float:
            return float(judge.loss(w).sum()) / spread if spread > 0 else math.nan

        before, after = missed(self.old), missed(self._solved(ridge))
        if not after < before:
            return Solution(before, before)
        if self.held.count:
            self.fit.merge(self.held)
        w = self._solved(ridge)
        constant = w[:, -1].flatten() if self.free else None
        matrix = (w[:, :-1] if self.free else w).mT.to(self.like)
        if not bool(w.isfinite().all() and matrix.isfinite().all()):
            return Solution(before, before)
        return Solution(before, after, self._weight(matrix), None if constant is None else constant.to(self.like))

    def _solved(self, ridge: float) -> Tensor:
        if self.kept is None:
            return self.fit.solve(self.old, ridge)
        w = torch.zeros_like(self.old)
        w[:, w.shape[1] - self.free :] = self.old[:, w.shape[1] - self.free :]  # of filters without positions
        channels = (w.shape[1] - self.free) // self.geometry.positions
        constant = torch.arange(w.shape[1] - self.free, w.shape[1], device=self.device)
        patterns, which = self.kept.to(self.device).unique(dim=0, return_inverse=True)
        for i, pattern in enumerate(patterns):  # filters that keep the same positions
            outputs = (which == i).nonzero()[:, 0]
            read = torch.arange(channels, device=self.device)[:, None] * len(pattern) + pattern.nonzero()[:, 0]
            inputs = torch.cat([read.flatten(), constant])
            if pattern.any():
                old = self.old[:, inputs[:, None], outputs]
                w[:, inputs[:, None], outputs] = self.fit.solve(old, ridge, inputs, outputs)
        return w

    def _weight(self, matrix: Tensor) -> Tensor:
        if self.kept is None:
            return self.geometry.weight(matrix, self.like)
        kept = self.kept.to(matrix.device)
        full = matrix.view(len(kept), -1, kept.shape[1])  # (O, C, positions)
        return full.transpose(1, 2)[kept]
