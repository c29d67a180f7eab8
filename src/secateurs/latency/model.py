"""The latency model of a network: the times of its pieces at any widths, and a fit of what they do not explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateurs.deploy.inputs import batch_of
from secateurs.deploy.target import Target
from secateurs.graph import ChannelGraph, Cost
from secateurs.latency.pieces import Form, Piece, batched
from secateurs.latency.pieces import pieces as pieces_of
from secateurs.latency.table import DIVISORS, Table, Tables

Array = np.ndarray
BUSY, ROUGH = 0.03, 0.15  # a fit with more noise, or a larger error, is in doubt
LIKED = 1.1  # a step of widths is liked if it costs no more than this factor over the best


@dataclass(frozen=True)
class Fit:
    """The weights of time / original's time = pieces · (share of the pieces' time) + params · (share of the parameters) +
    macs · (share of the MACs) + overhead. The four add up to 1.

    seconds: the measured time of the original. errors: relative errors on cuts that were not fitted. noise: the relative
    standard error of a typical measurement.
    """

    pieces: float = 1.0
    params: float = 0.0
    macs: float = 0.0
    overhead: float = 0.0
    seconds: float = 0.0
    errors: tuple[float, ...] = ()
    noise: float = 0.0

    @property
    def doubt(self) -> str:
        """Why the fit is not reliable, as part of a sentence; empty if it is."""
        if self.noise > BUSY:
            return f"the machine was busy, and times were only known to ±{self.noise:.1%}"
        if self.error is not None and self.error > ROUGH:
            return f"it is only within {self.error:.1%} of what was measured"
        return ""

    @property
    def error(self) -> float | None:
        """The mean error; None if no cuts were held out."""
        return float(np.mean(self.errors)) if self.errors else None

    def __str__(self) -> str:
        """Describe the fit by its mean error: `within 4.0% on 20 cuts`."""
        return f"within {self.error:.1%} on {len(self.errors)} cuts" if self.errors else "not checked"

    @classmethod
    def to(cls, features: Array, ratios: Sequence[float], seconds: float) -> Fit:
        """Minimize the squares of relative errors. features: (cuts, 3), shares of pieces, parameters, MACs. ratios: (cuts,)."""
        from scipy.optimize import nnls

        target = np.array(ratios)
        rows = np.concatenate([features, np.ones((len(target), 1))], 1) / target[:, None]
        # The sum is 1, so the original's time is met. A weak prior favors the pieces where cuts do not separate the four.
        total, prior = np.full((1, 4), 1e3), 0.05 * np.eye(4)
        due = np.concatenate([np.ones(len(target)), [1e3], 0.05 * np.array([0.9, 0.0, 0.0, 0.1])])
        found, _ = nnls(np.concatenate([rows, total, prior]), due)
        pieces, params, macs, overhead = (found / found.sum()).tolist()
        return cls(pieces, params, macs, overhead, seconds)


class LatencyModel:
    """Predicts the seconds of one run of a network at any widths. Implements `secateurs.graph.channels.Clock`.

    graph: the network's, without a latency model. tables: the table of each piece, by the key of its geometry.
    curve: (shares, fractions): with these shares of its stripes, a convolution takes these fractions of its time. None if lost
        stripes save no time.
    whole: the seconds of the pieces and the cost of the original, if the graph is that of a cut network.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        pieces: Sequence[Piece],
        tables: Mapping[str, Table],
        target: Target,
        fit: Fit | None = None,
        curve: tuple[Sequence[float], Sequence[float]] | None = None,
        whole: tuple[float, Cost] | None = None,
    ) -> None:
        self.graph, self.pieces, self.tables, self.target, self.curve = graph, list(pieces), dict(tables), target, curve
        keys = list(tables)
        self._read = Tables([tables[key] for key in keys])
        self._at = np.array([keys.index(p.geometry.key) for p in self.pieces], dtype=np.int64)
        self._count = np.array([p.count for p in self.pieces], dtype=np.float64)
        self._in, self._out = _Forms([p.wide_in for p in self.pieces]), _Forms([p.wide_out for p in self.pieces])
        self._kernels = {p.kernel: i for i, p in enumerate(self.pieces) if p.kernel}
        self.sizes = graph.sizes
        self.whole, self.base = whole or (float(self.each(self.sizes).sum()), graph.cost())
        self.fit = Fit(seconds=self.whole) if fit is None else fit

    def with_fit(self, fit: Fit) -> LatencyModel:
        return LatencyModel(self.graph, self.pieces, self.tables, self.target, fit, self.curve, (self.whole, self.base))

    def with_curve(self, curve: tuple[Sequence[float], Sequence[float]]) -> LatencyModel:
        return LatencyModel(self.graph, self.pieces, self.tables, self.target, self.fit, curve, (self.whole, self.base))

    def of(self, graph: ChannelGraph, inputs: Any) -> LatencyModel:
        """Return this model for the cut network. graph: the cut network's, without a latency model, traced on these inputs."""
        found = batched(pieces_of(graph), batch_of(inputs), self.target.batch)
        known = [p for p in found if p.geometry.key in self.tables]
        return LatencyModel(graph, known, self.tables, self.target, self.fit, self.curve, (self.whole, self.base))

    def each(self, widths: Array) -> Array:
        """Return the seconds of each piece with all of its stripes: (pieces,)."""
        return np.asarray(self._read(self._at, self._in(widths), self._out(widths)) * self._count)

    def features(self, widths: Array, stripes: Mapping[str, int] | None = None) -> Array:
        """Return the shares that the fit combines: (3,). If a convolution has lost stripes, its parameters and MACs shrink by
        the same fraction as its time: a runtime that computes the dense convolution has all of them."""
        seconds, counted = self.each(widths), dict[str, int]()
        if stripes and self.curve is not None:
            filters = self._out(widths)
            for kernel, left in stripes.items():
                if (i := self._kernels.get(kernel)) is not None:
                    most = max(1.0, float(filters[i] * np.prod(self.graph.kernels[kernel][1:])))
                    share = float(np.interp(left / most, *self.curve))
                    seconds[i] *= share
                    counted[kernel] = round(share * most)
        cost = self.graph.cost(widths, counted)
        return np.array([
            seconds.sum() / self.whole, cost.params / self.base.params, cost.macs / max(1, self.base.macs)
        ])  # fmt: skip

    def __call__(self, widths: Array, stripes: Mapping[str, int] | None = None) -> float:
        f = self.fit
        share = float(self.features(widths, stripes) @ np.array([f.pieces, f.params, f.macs])) + f.overhead
        return share * f.seconds

    @property
    def doubt(self) -> str:
        """Why predictions are not reliable; empty if they are."""
        return self.fit.doubt

    # -- the staircase ------------------------------------------------------------------------------------------------

    @property
    def factors(self) -> dict[int, float]:
        """For each of `DIVISORS`, the factor by which the network is slower if widths are multiples of no larger divisor."""
        seconds = self.each(self.sizes)
        moves = self._in.moves | self._out.moves
        tables = [self.tables[p.geometry.key] for p in self.pieces]
        found = {}
        for k, d in enumerate(DIVISORS):
            off = np.array([max(t.off_in[k], t.off_out[k]) for t in tables])
            found[d] = float((seconds * off)[moves].sum() / seconds[moves].sum()) if moves.any() else 1.0
        return found

    @property
    def liked(self) -> int:
        """The smallest number of channels whose multiples are as fast on the target as any other widths."""
        factors = self.factors
        return next(d for d in DIVISORS if factors[d] <= LIKED * min(factors.values()))

    @property
    def steps(self) -> Array:
        """The step of each group's widths, (groups,): `liked`, or less for groups that would have fewer than four widths."""
        few = np.array([max(d for d in DIVISORS if d <= max(1, n // 4)) for n in self.sizes.tolist()])
        return np.minimum(self.liked, few)


class _Forms:
    """Computes the widths of pieces from those of groups."""

    def __init__(self, forms: Sequence[Form]) -> None:
        flat = [(i, g, m) for i, form in enumerate(forms) for g, m in form.multiplicities.items()]
        self._constants = np.array([f.constant for f in forms], dtype=np.float64)
        self._row, self._group = (np.array([f[k] for f in flat], dtype=np.int64) for k in (0, 1))
        self._times = np.array([m for _, _, m in flat], dtype=np.float64)
        self.moves = np.array([bool(f.multiplicities) for f in forms], dtype=bool)

    def __call__(self, widths: Array) -> Array:
        weights = self._times * np.asarray(widths)[self._group]
        found = self._constants + np.bincount(self._row, weights=weights, minlength=len(self._constants))
        return np.asarray(np.maximum(found, 1.0))
