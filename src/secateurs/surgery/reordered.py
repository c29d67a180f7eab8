"""Run a network in another order of computation, so that only rounding differs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateurs.graph.dispatch import DispatchMode

aten = torch.ops.aten
_SUMMED = {  # the positions of a product's two factors among its arguments, and the axis of each that it sums over
    aten.mm.default: (0, 1, 1, 0),
    aten.addmm.default: (1, 2, 1, 0),
    aten.bmm.default: (0, 1, 2, 1),
    aten.baddbmm.default: (1, 2, 2, 1),
}
_TRANSPOSED, _GROUPS = 6, 8  # arguments of a convolution


class Reordered(DispatchMode):
    """Context in which convolutions and matrix products sum over their channels in a random order, so that only rounding
    differs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._draw = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, found = list(args), _SUMMED.get(func)
        if func is aten.convolution.default and args[_GROUPS] == 1:
            found = 0, 1, 1, 0 if args[_TRANSPOSED] else 1
        if found is not None:
            a, b, axis, other = found
            args[a], args[b] = self._permuted(args[a], args[b], axis, other)
        return func(*args, **(kwargs or {}))

    def _permuted(self, a: Tensor, b: Tensor, axis: int, other: int) -> tuple[Tensor, Tensor]:
        order = torch.randperm(a.shape[axis], generator=self._draw).to(a.device)
        return a.index_select(axis, order), b.index_select(other, order)
