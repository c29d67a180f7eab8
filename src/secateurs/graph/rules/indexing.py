"""Ops that write or repeat elements at given positions. Channels on the axis of the positions are kept whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateurs.graph.context import Context
from secateurs.graph.rules.registry import rule
from secateurs.graph.tape import Labels

aten = torch.ops.aten


@rule(
    aten.index_add, aten.index_add_, aten.index_copy, aten.index_copy_, aten.index_fill, aten.index_fill_,
    aten.index_reduce, aten.index_reduce_, aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_,
    aten.scatter_reduce, aten.scatter_reduce_,
)  # fmt: skip
def write(t: Context, x: Tensor, dim: int, index: Tensor, *rest: Any, **named: Any) -> Labels:
    """Write along one axis. Along the other axes, x, the positions and the source are aligned."""
    dim %= max(x.ndim, 1)
    operands = [o for o in (index, *rest, *named.values()) if isinstance(o, Tensor) and o.ndim == x.ndim]
    kept: Labels = {}
    for axis in range(x.ndim):
        found = [t.labels(o)[axis] for o in (x, *operands) if axis in t.labels(o)]
        if not found:
            continue
        if axis != dim and all(o.shape[axis] == x.shape[axis] for o in operands):
            t.unify(*(t.axis(o, axis) for o in (x, *operands) if o is not index))
            kept[axis] = found[0]
        else:
            for labels in found:
                t.freeze(labels, f"{t.op_name} writes to positions along channels")
    return kept


@rule(aten.index_put, aten.index_put_, aten._unsafe_index_put)
def put(t: Context, x: Tensor, indices: list[Tensor | None], value: Tensor, *_: Any) -> Labels:
    """x[indices] = value: a mask covers as many axes as it has."""
    mask = indices[0]
    if mask is not None and mask.dtype is torch.bool and mask.ndim == x.ndim and value.numel() == 1:  # elementwise
        return t.join([(t.labels(x), x), (t.labels(mask), mask)])
    covered, at = set(), 0
    for i in indices:
        width = i.ndim if i is not None and i.dtype in (torch.bool, torch.uint8) else 1
        if i is not None:
            covered |= set(range(at, at + width))
            t.freeze(t.labels(i), f"{t.op_name} reads it as positions")
        at += width
    t.freeze(t.labels(value), f"{t.op_name} writes it to positions")
    t.freeze({a: v for a, v in t.labels(x).items() if a in covered}, f"{t.op_name} writes to positions along channels")
    return {a: v for a, v in t.labels(x).items() if a not in covered}


@rule(aten.repeat_interleave.Tensor, aten.nonzero, aten.masked_select, aten.unique_dim, aten.bincount)
def positions(t: Context, *operands: Any, **_: Any) -> None:
    """The output and its shape depend on values."""
    for x in operands:
        if isinstance(x, Tensor):
            t.freeze(t.labels(x), f"{t.op_name} reads it as positions")
