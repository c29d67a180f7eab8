"""The learned importance of each stripe: the filter skeleton, and the weight norms that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateurs.errors import TrainingError
from secateurs.graph.channels import parameter
from secateurs.masking.swaps import Swaps
from secateurs.methods.stripes.blocks import Blocks

Shape = tuple[int, ...]  # (filters, *kernel)
Kernels = Mapping[str, Shape]  # of each weight


class Measure(Protocol):
    """Values for all units: stripes, or those of all filters of a block at one position."""

    pull: Tensor  # (units,): factors on α, so that all strengths decrease at one rate

    def strength(self) -> Tensor:
        """(units,): what the penalty decreases and the threshold is compared with. Differentiable."""

    def silence_(self, dead: Tensor) -> None:
        """Set these units to zero. dead: (units,) bool."""

    def limit_(self, units: Tensor, most: float) -> None:
        """Clip the strength of these units to `most`. units: (units,) bool."""

    def finish_(self) -> None:
        """Restore an ordinary network."""


class Skeleton:
    """One learnable value for each unit, initially one; each forward computes with weight · value (eq. 1).

    The network's parameters keep their names, values and identities; copies of the network use the same skeleton, as long as
    it is not merged.

    blocks: the block of each filter, if filters share values; see `Stripes`.
    prior: (units,) what each value's magnitude is multiplied by to get its strength; None: ones.
    """

    LEAST = 1e-3  # of a prior

    def __init__(
        self, model: nn.Module, kernels: Kernels, blocks: Blocks | None = None, prior: Tensor | None = None
    ) -> None:
        self.model = model
        device = parameter(model, next(iter(kernels))).device
        self.shared = {
            name: Shared(o, None if blocks is None else blocks[name], device) for name, (o, *_) in kernels.items()
        }
        self.shapes = {name: (self.shared[name].rows, *kernel) for name, (_, *kernel) in kernels.items()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.values = nn.Parameter(torch.ones(sum(self.sizes), device=device))
        self.weigh_(torch.ones(sum(self.sizes), device=device) if prior is None else prior.clamp_min(self.LEAST))
        self.merged = False
        self._fixed = {name for name in kernels if not parameter(model, name).requires_grad}  # by the user
        self._handles: list[RemovableHandle] = []
        start = 0
        for (name, shape), size in zip(self.shapes.items(), self.sizes, strict=True):
            conv = model.get_submodule(name.rpartition(".")[0])
            swap = _Swap(self, slice(start, start + size), shape, self.shared[name])
            self._handles.append(conv.register_forward_pre_hook(swap.enter))
            self._handles.append(conv.register_forward_hook(swap.leave, always_call=True))
            start += size

    def weigh_(self, prior: Tensor) -> None:
        """prior: (units,)"""
        self.prior, self.pull = prior, prior**-2

    def strength(self) -> Tensor:
        return self.values.abs() * self.prior.to(self.values.device)

    @torch.no_grad()
    def rectify_(self) -> None:
        """Set values that crossed zero to zero: beyond it, the penalty would push them back and forth."""
        self.values.clamp_(min=0)

    @torch.no_grad()
    def silence_(self, dead: Tensor) -> None:
        self.values.masked_fill_(dead.to(self.values.device), 0)

    @torch.no_grad()
    def limit_(self, units: Tensor, most: float) -> None:
        bound = most / self.prior.to(self.values.device)
        limited = self.values.clamp(-bound, bound)
        self.values.copy_(torch.where(units.to(self.values.device), limited, self.values))

    @torch.no_grad()
    def finish_(self) -> None:
        """Merge: fold the values into the weights (step 2), except for those that the user has frozen. Copies of the network
        cannot follow, and raise an error when they run."""
        self.merged = True
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for (name, shape), part in zip(self.shapes.items(), self.values.split(self.sizes), strict=True):
            w = parameter(self.model, name)
            if name not in self._fixed:
                w.mul_(self.shared[name].spread(part.view(shape))[:, None].to(w))


class Shared:
    """Which filters of a layer share rows of values."""

    def __init__(self, filters: int, blocks: np.ndarray | None, device: torch.device) -> None:
        """blocks: (filters,) the block of each filter; None: each has a row of its own."""
        self.rows = filters if blocks is None else int(blocks.max()) + 1
        self.sizes = torch.ones(filters) if blocks is None else torch.from_numpy(np.bincount(blocks)).float()
        self.sizes = self.sizes.to(device)  # (rows,) filters that share a row
        # One row is broadcast, and rows of their own need no index.
        self.row = None if blocks is None or self.rows == 1 else torch.from_numpy(blocks).to(device)

    def spread(self, values: Tensor) -> Tensor:
        """(rows, *kernel) → (filters, *kernel), or (1, *kernel) for all filters."""
        return values if self.row is None else values.index_select(0, self.row)

    def means(self, values: Tensor) -> Tensor:
        """(filters, *kernel) → (rows, *kernel)"""
        if self.row is None:
            return values.mean(0, keepdim=True) if self.rows == 1 else values
        sums = values.new_zeros(self.rows, *values.shape[1:]).index_add(0, self.row, values)
        return sums / self.sizes.view(-1, *[1] * (values.ndim - 1))


class _Swap:
    """During a convolution's forward its weight is the product."""

    def __init__(self, skeleton: Skeleton, at: slice, shape: Shape, shared: Shared) -> None:
        self.skeleton, self.at, self.shape, self.shared = skeleton, at, shape, shared
        self.swaps = Swaps()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Swap:
        return self

    def enter(self, conv: nn.Module, args: Any) -> None:
        if self.skeleton.merged:
            raise TrainingError(
                "This copy of the network was made while pff was attached to it. The values that pff learned are in the "
                "network's weights now, and not in the copy's: copy it, or start an average of it (EMA), after plan()."
            )
        w = conv._parameters["weight"]
        assert w is not None
        value = self.shared.spread(self.skeleton.values[self.at].view(self.shape))[:, None]  # (O, 1, *kernel)
        self.swaps.put(conv, "weight", w * value.to(w))

    def leave(self, conv: nn.Module, args: Any, out: Any) -> None:
        self.swaps.restore()


class Norms:
    """The units' own weights, by their norm relative to the layer's initial mean norm (group lasso).

    worth: for each layer, what these norms are multiplied by for comparison between layers; None: ones.
    """

    def __init__(
        self, model: nn.Module, kernels: Kernels, blocks: Blocks | None = None, worth: Sequence[float] | None = None
    ) -> None:
        self.model, self.kernels = model, list(kernels)
        self.shared = {
            name: Shared(o, None if blocks is None else blocks[name], parameter(model, name).device)
            for name, (o, *_) in kernels.items()
        }
        worth = [1.0] * len(self.kernels) if worth is None else worth
        self.first = [float(n.detach().mean()) / w for n, w in zip(self._norms(), worth, strict=True)]
        filters = [
            self.shared[name].sizes.repeat_interleave(math.prod(kernel)) for name, (_, *kernel) in kernels.items()
        ]
        self.pull = torch.cat([m**2 * o for m, o in zip(self.first, filters, strict=True)])

    def _norms(self) -> list[Tensor]:
        """Norms for each layer: (units,)."""
        found = []
        for name in self.kernels:
            squares = parameter(self.model, name).float().square().sum(1)  # (O, *kernel)
            squares = self.shared[name].means(squares)
            found.append((squares + 1e-12).sqrt().reshape(-1))  # has a gradient where all weights are zero
        return found

    def strength(self) -> Tensor:
        return torch.cat([n / first for n, first in zip(self._norms(), self.first, strict=True)])

    @torch.no_grad()
    def silence_(self, dead: Tensor) -> None:
        self._scale(1.0 - dead.float())

    @torch.no_grad()
    def limit_(self, units: Tensor, most: float) -> None:
        factor = (most / self.strength().clamp_min(1e-12)).clamp(max=1)
        self._scale(torch.where(units.to(factor.device), factor, torch.ones_like(factor)))

    def _scale(self, factors: Tensor) -> None:
        for name, part in zip(self.kernels, factors.split([n.numel() for n in self._norms()]), strict=True):
            w = parameter(self.model, name)
            shared = self.shared[name]
            w.mul_(shared.spread(part.view(shared.rows, *w.shape[2:]))[:, None].to(w))

    def finish_(self) -> None:
        """Nothing to remove from the network."""
