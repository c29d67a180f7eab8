"""Affinity propagation (Frey and Dueck, Science 2007), for all layers of a network at once.

Every filter of a layer is a point, and points send each other two kinds of message until a few of them, the
*exemplars*, represent all: the responsibility ``r(i, k)``, how well ``k`` would represent ``i`` compared with its rivals, and
the availability ``a(i, k)``, how many others support ``k``. The number of exemplars is not set beforehand:
the preference ``s(k, k)`` determines it, and EPruner sets it to ``beta`` times the median similarity of filter ``k``.

    affinities = Affinities(filters)        # similarities and medians, computed once …
    affinities.exemplars(0.7)               # … and reused for every beta of a budget search

**Agreement with scikit-learn and the paper.** By default the exemplars are those of scikit-learn's ``AffinityPropagation`` with
``affinity="precomputed", random_state=0``: the same damping, stopping rule (exemplars unchanged for 15 iterations),
tie-breaking noise, refinement of each exemplar to the medoid of its cluster, and result when all
points are alike; only if scikit-learn finds no exemplar do we return the medoid of all points. With
``convergence=None`` the algorithm is the EPruner paper's: all 200 iterations, then equation 10, no refinement. Only its
equation 5, a self-responsibility without availabilities, is not: it has the form of equation 4, as in Frey and Dueck's
algorithm and in EPruner's released code.

**Ties.** Two symmetric filters would swap roles forever. scikit-learn breaks the symmetry with noise in
the last bit of every similarity, drawn from a seeded generator: we draw the same numbers. They are only significant in
float64, so everything here is float64, whatever the filters' dtype. Even so, which one of several *exact copies* (dead
filters, all zero) represents them depends on the order of summation, and may differ from scikit-learn's choice.

**Performance.** Most messages cannot affect the result, and which ones is known before the first is sent:

- A point that prefers itself to every other is an exemplar from the first iteration to the last. Its availability to
  others is always exactly zero, and its responsibilities for others are always negative: it leaves the problem, and remains
  as a fixed offer ``o(i)`` to each remaining point ``i`` (the most similar of those that left).
- Availabilities of others are never positive, and the own one is never negative. So a candidate ``k`` that is less similar
  to ``i`` than ``i``'s own preference, or than the offer, is never ``i``'s best, and ``r(i, k)`` is never positive: it
  leaves too.

What is left is a short list of neighbors for each point: a tenth or a hundredth of the matrix at the preferences
that pruning uses. Nothing is approximated: the messages on these lists are those of the full matrix. The lists of
layers of any sizes are stored in one array, so an iteration over a whole network is two dozen
in-place operations on buffers allocated once, and layers that have converged are dropped from it. Similarities are
computed on the filters' device; messages always on the CPU, where sums have a fixed order and a call costs little.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from secateurs.errors import ConfigError
from secateurs.methods.epruner.messages import Clustering, Layer, one_thread, solve

__all__ = [
    "Affinities",
    "Clustering",
    "exemplars",
    "medians",
    "residual",
    "similarity",
]

Measure = Literal["distance", "residual"]

CLOSE = 1e-6  # pairs closer than this fraction of their squared norms lose half their digits to cancellation
BRIEF = 1 << 28  # multiplications that one thread finishes before a second one would have started
STACK = 1 << 16  # elements of the small layers whose similarities are computed together, within the cache


def similarity(points: Tensor) -> Tensor:
    """Negative squared Euclidean distances ``(B, n, d) -> (B, n, n)``, float64, symmetric, zero on the diagonal.

    One matrix product of centered points; the few pairs for which that product cancels are computed directly, so that
    near-duplicates are as exact as other pairs, and exact copies have distance exactly zero.
    """
    x = points.detach().to(torch.float64)
    x = x - x.mean(1, keepdim=True)
    norms = x.square().sum(-1)
    scale = norms.unsqueeze(-1) + norms.unsqueeze(-2)  # (B, n, n)
    out = torch.baddbmm(scale, x, x.mT, beta=-1.0, alpha=2.0)
    close = out.ge(scale.mul_(-CLOSE)).triu_(1).nonzero()
    for part in close.split(max(1, (1 << 22) // max(1, x.shape[-1]))) if len(close) else ():
        b, i, j = part.unbind(1)
        out[b, i, j] = (x[b, i] - x[b, j]).square_().sum(-1).neg_()
    out.triu_(1)
    return out + out.mT


def residual(points: Tensor) -> Tensor:
    """What is left of each point when another one, scaled as fits best, stands in for it: ``(B, n, d) -> (B, n, n)``, float64.

    ``s(i, k)`` is the negative squared norm of ``x_i - a x_k``, where ``a >= 0`` minimizes it; zero on the diagonal. Unlike a
    distance, it is not symmetric: a point of small norm is represented by almost any other, and represents none.
    """
    x = points.detach().to(torch.float64)
    dot = x @ x.mT
    norms = dot.diagonal(dim1=-2, dim2=-1).clone()  # (B, n)
    shared = dot.clamp_min_(0).square_() / norms.unsqueeze(-2).clamp_min(torch.finfo(torch.float64).tiny)
    out = (shared - norms.unsqueeze(-1)).clamp_max_(0)
    out.diagonal(dim1=-2, dim2=-1).zero_()
    return out


MEASURES: dict[Measure, Callable[[Tensor], Tensor]] = {"distance": similarity, "residual": residual}


def medians(similarities: Tensor, *, diagonal: bool = True) -> Tensor:
    """The median similarity of each point, ``(B, n, n) -> (B, n)``; for an even count, the mean of the middle two.

    ``diagonal=True`` counts a point's zero distance to itself, as EPruner's released code does.
    """
    n = similarities.shape[-1]
    if not diagonal and n > 1:
        off = ~torch.eye(n, dtype=torch.bool, device=similarities.device)
        similarities = similarities[:, off].view(-1, n, n - 1)
    count = similarities.shape[-1]
    # NumPy's vectorized sort is ten times as fast as torch's selection functions
    ordered = torch.from_numpy(np.sort(similarities.detach().cpu().numpy(), axis=-1)).to(similarities.device)
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2


def exemplars(
    similarities: Tensor,
    preferences: Tensor,
    *,
    iterations: int = 200,
    damping: float = 0.5,
    convergence: int | None = 15,
) -> list[Tensor]:
    """The exemplars of each problem of a batch, ``(B, n, n), (B, n) -> B index vectors``, ascending, never empty."""
    layers = [Layer(_checked(similar, index)) for index, similar in enumerate(similarities)]
    found = solve(layers, list(preferences), iterations=iterations, damping=damping, convergence=convergence)
    return [clustering.exemplars for clustering in found]


def _checked(similarities: Tensor, index: int) -> Tensor:
    if similarities.dim() != 2 or similarities.shape[0] != similarities.shape[1] or not len(similarities):
        raise ConfigError(f"problem {index}: similarities must be (n, n) with n > 0, not {tuple(similarities.shape)}")
    if not torch.isfinite(similarities.sum()):
        raise ConfigError(
            f"problem {index} has similarities that are not finite: check the weights for NaN and infinite values"
        )
    return similarities


class Affinities:
    """The similarities of many layers and their medians, computed once and reused for many values of beta.

    points:   for each layer a ``(filters, …)`` tensor, flattened to one point per filter.
    diagonal: whether a filter's median includes the zero distance to itself, as in EPruner's released code.
    measure:  the similarity: "distance", the negative squared distance (EPruner's), or "residual" (see `residual`), whose
              preferences are β times the layer's median, one for all of its filters.

    Stores ``n x n`` doubles per layer. Sizes may differ between layers.
    """

    def __init__(self, points: Sequence[Tensor], *, diagonal: bool = True, measure: Measure = "distance") -> None:
        flat = []
        for index, layer in enumerate(points):
            if layer.dim() < 1 or not len(layer):
                raise ConfigError(f"layer {index} has no filters to cluster: its shape is {tuple(layer.shape)}")
            layer = layer.detach()
            layer = layer.cpu() if layer.device.type == "mps" else layer  # MPS does not support float64
            flat.append(layer.reshape(len(layer), -1) if layer.numel() else layer.new_zeros(len(layer), 1))
        self._layers: list[Layer] = []
        self.medians: list[Tensor] = []  # (n,) per layer
        made: dict[int, tuple[Layer, Tensor]] = {}
        for group in _alike_shapes(flat):
            n, d = flat[group[0]].shape
            with one_thread() if len(group) * n * n * d < BRIEF else contextlib.nullcontext():
                stacked = MEASURES[measure](torch.stack([flat[index] for index in group])).cpu()
            middle = medians(stacked, diagonal=diagonal)
            if measure == "residual":
                middle = middle.median(1, keepdim=True).values.expand_as(middle)
            with one_thread():
                for index, similar, median in zip(group, stacked, middle, strict=True):
                    made[index] = Layer(_checked(similar, index)), median
        for index in range(len(flat)):
            layer_, median = made[index]
            self._layers.append(layer_)
            self.medians.append(median)

    def __len__(self) -> int:
        return len(self._layers)

    def of(self, layers: Sequence[int]) -> Affinities:
        """Those of some of the layers."""
        part = copy.copy(self)
        part._layers, part.medians = [self._layers[i] for i in layers], [self.medians[i] for i in layers]
        return part

    def similar(self, layer: int) -> np.ndarray:
        """How well filter k of a layer represents filter i, ``(n, n)``: similarities to i in row i, zero for itself."""
        return self._layers[layer].similar.clone().fill_diagonal_(0).numpy()

    @property
    def sizes(self) -> list[int]:
        """The number of filters of each layer."""
        return [len(layer) for layer in self._layers]

    def clusterings(
        self,
        beta: float | Sequence[float],
        *,
        iterations: int = 200,
        damping: float = 0.5,
        convergence: int | None = 15,
    ) -> list[Clustering]:
        """Each layer's exemplars, and the exemplar of each filter. `beta`: one for all layers, or one per layer."""
        betas = list(beta) if isinstance(beta, Sequence) else [beta] * len(self)
        if len(betas) != len(self):
            raise ConfigError(f"{len(betas)} values of beta for {len(self)} layers: pass one value, or one per layer")
        own = [b * median for b, median in zip(betas, self.medians, strict=True)]
        return solve(self._layers, own, iterations=iterations, damping=damping, convergence=convergence)

    def exemplars(
        self,
        beta: float | Sequence[float],
        *,
        iterations: int = 200,
        damping: float = 0.5,
        convergence: int | None = 15,
    ) -> list[Tensor]:
        """The kept filters of each layer, ascending, at least one. A larger beta keeps fewer."""
        found = self.clusterings(beta, iterations=iterations, damping=damping, convergence=convergence)
        return [clustering.exemplars for clustering in found]


def _alike_shapes(points: Sequence[Tensor]) -> Iterator[list[int]]:
    """Groups of layers that can be stacked; layers of one width are adjacent, since they share noise."""

    def shape(index: int) -> tuple[int, int, str, str]:
        x = points[index]
        return len(x), x.shape[1], str(x.dtype), str(x.device)

    group: list[int] = []
    for index in sorted(range(len(points)), key=shape):
        if group and (shape(group[0]) != shape(index) or (len(group) + 1) * points[index].numel() > STACK):
            yield group
            group = []
        group.append(index)
    if group:
        yield group
