"""What is lost when channels are cut, one after another, and the layers that read them are solved again by least squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from secateurs.devices import exact, full_precision
from secateurs.errors import ConfigError
from secateurs.graph import ChannelGroup
from secateurs.graph.channels import Slot, named_tensors
from secateurs.methods.assess import Assessor
from secateurs.methods.method import Task
from secateurs.methods.registry import register
from secateurs.methods.watching import Watching
from secateurs.recovery.reconstruct.equations import Moments
from secateurs.recovery.reconstruct.layers import Geometry
from secateurs.recovery.reconstruct.walk import Sampler
from secateurs.recovery.reconstruct.watch import Key, Watch


@register("damage")
class Damage(Watching):
    """What a cut loses even after least-squares reconstruction (ThiNet, Luo et al., ICCV 2017; the optimal brain surgeon,
    Hassibi and Stork, 1993): the share of the variance of its consumers' outputs that they cannot explain without the
    channel, however their other weights are chosen. `Reconstruct` then chooses them so.

    The channels of a group are removed one by one, the one that does the least damage first, each measured with those before it
    gone. The score is what a channel adds to the damage. A constant is free, as a bias or a norm can hold it. Scores are
    comparable between groups; several consumers are added up.
    """

    comparable: ClassVar[bool] = True

    positions: int = Field(12, ge=1, description="positions of each layer's output that are used of each example")
    ridge: float = Field(
        1e-3, gt=0, description="penalty on changes of the weights, relative to the inputs' mean variance"
    )

    def scores(self, task: Task) -> dict[str, Tensor]:
        assessor = Assessor(task, self.examples, labels=False)
        reads = _Reads(assessor.model, task.groups, Sampler(self.positions, task.seed))
        with torch.no_grad(), full_precision():
            for batch in assessor.batches:
                reads.start(batch.rows)
                with reads:
                    assessor.run(batch)
                reads.chunk += 1
            return {g.name: greedy(self._systems(g, reads.layers)) for g in task.groups}

    def _systems(self, group: ChannelGroup, layers: Mapping[str, _Layer]) -> list[System]:
        for slot in group.slots:
            if slot.consumes and slot.param not in layers:
                raise ConfigError(
                    f"damage: {slot.param}, which reads the channels of {group.name}, is not the weight of a convolution or a "
                    "linear layer that ran, so it cannot be solved by least squares: choose another criterion, or exclude the "
                    "layer."
                )
        return [layers[slot.param].system(slot, self.ridge) for slot in group.slots if slot.consumes]


class _Layer:
    """A layer that reads channels: its weight, and the moments of its inputs."""

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self.geometry, device = geometry, exact(weight.device)
        self.weight = geometry.matrix(weight.detach()).to(device).double().mT  # (G, n, O / G)
        g, n, _ = self.weight.shape
        self.moments = Moments(g, n + 1, 0, 1, device)  # the last input is the constant 1

    def add(self, x: Tensor) -> None:
        """x: (G, samples, n)"""
        x = x.to(self.moments.xx.device)
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        self.moments.add(x, x[:, :, :0])

    def system(self, slot: Slot, ridge: float) -> System:
        xx, count = self.moments.xx, max(1, self.moments.count)
        means = xx[:, :-1, -1:] / count  # (G, n, 1)
        return System.of(xx[:, :-1, :-1] / count - means * means.mT, self.weight, self._columns(slot), ridge)

    def _columns(self, slot: Slot) -> Tensor:
        """The inputs of each group of the layer that a channel is: (G, size, b)."""
        g, n, _ = self.weight.shape
        k = self.geometry.positions
        at = torch.from_numpy(slot.index)  # (size, m)
        if self.geometry.transposed:  # counts all of the layer's inputs, those of the first group first
            per = n // k
            at = torch.stack([row[row // per == i] % per for i in range(g) for row in at]).view(g, len(at), -1)
        else:
            at = at.expand(g, *at.shape)
        return (at[..., None] * k + torch.arange(k)).flatten(2).to(self.weight.device)


class _Reads(Watch):
    """Collects the inputs of the layers that read the channels of groups, at sampled positions of their outputs."""

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], sampler: Sampler) -> None:
        super().__init__(model, {name: name for name in named_tensors(model)})
        self.layers: dict[str, _Layer] = {}
        self.chunk = 0
        self._wanted = {slot.param for g in groups for slot in g.slots if slot.consumes}
        self._sampler = sampler

    def op(self, key: Key, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        layer = self.layer(func, args)
        if layer is not None and layer.name in self._wanted and len(layer.x):
            size = layer.x.shape[2:] if layer.geometry.linear else out.shape[2:]
            at = self._sampler.at(layer.name, self.chunk, len(layer.x), size, layer.x.device)
            if layer.name not in self.layers:
                self.layers[layer.name] = _Layer(layer.weight, layer.geometry)
            self.layers[layer.name].add(layer.geometry.read(layer.x, at, size))
        return out


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
