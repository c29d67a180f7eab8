"""Convolutions and matrix products: they consume the labels of the axis that they sum over and keep the others."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from secateurs.graph.context import Context
from secateurs.graph.reasons import GROUPS
from secateurs.graph.rules.registry import rule
from secateurs.graph.tape import Labels

aten = torch.ops.aten


@rule(aten.convolution, counts_macs=True)
def convolution(
    t: Context,
    x: Tensor,  # (N, C, *spatial)
    w: Tensor,  # (O, C / groups, *kernel), transposed: (C, O / groups, *kernel)
    bias: Tensor | None,  # (O,)
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Labels:
    t.freeze({a: v for a, v in t.labels(w).items() if a > 1}, "a kernel position")
    reads, out = t.axis(x, 1), None
    if is_depthwise(t, w, groups, transposed):
        out = depthwise(t, reads, w, groups, transposed)
    elif groups == 1:
        i, o = (0, 1) if transposed else (1, 0)
        t.unify(reads, t.axis(w, i))
        t.consume(w, i)
        out = t.axis(w, o)
        t.produce(w, o)
    else:
        out = grouped(t, reads, w, groups, transposed)
    if bias is not None:
        t.unify(out, bias)
    kept = spatial(t, x)
    if 0 in t.labels(x):
        kept[0] = t.labels(x)[0]
    extent = x if transposed else t.out
    t.cost(*(kept.get(a, extent.shape[a]) if a in kept else extent.shape[a] for a in (0, *range(2, extent.ndim))),
           math.prod(w.shape[2:]), t.width(w, 0) if transposed else out, t.width(w, 1),
           kernel=w if groups == 1 and not transposed else None)  # fmt: skip
    return {1: out, **kept}


def is_depthwise(t: Context, w: Tensor, groups: int, transposed: bool) -> bool:
    """Whether each group has one channel, in the network as it was before any cut."""
    one_each = w.shape[0] == groups if transposed else w.shape[1] == 1 and 1 not in t.labels(w)
    return t.was_depthwise(w, groups > 1 and one_each)


def depthwise(t: Context, reads: Any, w: Tensor, groups: int, transposed: bool) -> Any:
    """Every input channel has its own filters, which are kept or cut with it."""
    # w: (C·m, 1, *kernel), transposed: (C, m, *kernel)
    if transposed and w.shape[1] > 1:
        t.freeze(reads, "a transposed depthwise convolution with a multiplier")
        t.freeze(t.labels(w), "a transposed depthwise convolution with a multiplier")
        return t.zeros(groups * w.shape[1])
    if 0 not in t.labels(w) and w.stride(0) == 0 and not transposed:  # one fixed filter for all channels: a blur
        t.assume(reads, GROUPS)
        return reads.repeat(w.shape[0] // groups)
    owned = t.axis(w, 0)
    t.unify(reads.repeat(len(owned) // groups), owned)
    t.produce(w, 0)
    t.depends_on_groups(w)
    return owned


def grouped(t: Context, reads: Any, w: Tensor, groups: int, transposed: bool) -> Any:
    """Groups must stay equal in size: the k-th input channels of all groups are one channel, and so are the k-th filters."""
    if transposed:  # w: (C, O / groups, *kernel)
        t.couple(t.axis(w, 0).reshape(groups, -1))
        t.unify(reads, t.axis(w, 0))
        t.consume(w, 0)
        t.produce(w, 1)
        out = t.tile(t.axis(w, 1), groups)
    else:  # w: (O, C / groups, *kernel)
        t.couple(t.axis(w, 0).reshape(groups, -1))
        t.unify(reads, t.tile(t.axis(w, 1), groups))
        t.consume(w, 1)
        t.produce(w, 0)
        out = t.axis(w, 0)
    t.depends_on_groups(w)
    return out


def spatial(t: Context, x: Tensor) -> dict[int, Any]:
    """Channels on an axis that the kernel slides over (ECA): each output mixes neighbors."""
    kept = {}
    for a, labels in t.labels(x).items():
        if a < 2:
            continue
        if t.out.shape[a] == x.shape[a]:
            t.inexact(labels, f"{t.op_name} slides over channels: neighbors change with the cut")
            kept[a] = labels
        else:
            t.freeze(labels, f"{t.op_name} slides over channels")
    return kept


def product(t: Context, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Labels:
    """(*batch, m, k) @ (*batch, k, n): sums over k."""
    la, lb = t.labels(a), t.labels(b)
    last = a.ndim - 1
    k, n, m = last, last, last - 1
    if t.is_weight(a) or t.is_weight(b):
        t.unify(t.axis(a, k), t.axis(b, m))
        reader, reads, writes = (b, m, n) if t.is_weight(b) else (a, k, m)
        t.consume(reader, reads)
        t.produce(reader, writes)
        if t.is_weight(a) and t.is_weight(b):  # a factorized weight: one factor produces what the other consumes
            t.produce(a, k)
    else:  # attention scores and the like: no weight to mask a channel in
        reason = f"{t.op_name} sums over it in a product of two activations"
        t.freeze(t.axis(a, k), reason)
        t.freeze(t.axis(b, m), reason)
    out: Labels = {}
    for axis in range(a.ndim - 2):
        if axis in la or axis in lb:
            t.unify(t.axis(a, axis), t.axis(b, axis))
            out[axis] = t.axis(a, axis)
    if m in la:
        out[m] = la[m]
    if n in lb:
        out[n] = lb[n]
    if bias is not None and n in out:
        t.join([(out, t.out), (t.labels(bias), bias)])
    summed = t.width(a, k)
    elementwise_at_one = t.call[0] is torch.einsum  # without an axis to sum over, it multiplies elementwise
    t.cost(*(t.width(a, i) for i in range(k)), summed, t.width(b, n), vanishing=summed if elementwise_at_one else 0)
    return out


@rule(aten.mm, aten.bmm, counts_macs=True)
def mm(t: Context, a: Tensor, b: Tensor) -> Labels:
    return product(t, a, b)


@rule(aten.addmm, aten.baddbmm, counts_macs=True)
def addmm(t: Context, bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> Labels:
    return product(t, a, b, bias)


@rule(aten.linear, counts_macs=True)
def linear(t: Context, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Labels:
    """x: (*, I), w: (O, I)."""
    last = x.ndim - 1
    t.unify(t.axis(x, last), t.axis(w, 1))
    t.consume(w, 1)
    t.produce(w, 0)
    if bias is not None:
        t.unify(t.axis(w, 0), bias)
    t.cost(*(t.width(x, i) for i in range(last)), t.width(w, 0), t.width(w, 1))
    return {**{a: v for a, v in t.labels(x).items() if a != last}, last: t.axis(w, 0)}


@rule(aten.mv)
def mv(t: Context, a: Tensor, v: Tensor) -> Labels:
    """a: (m, k), v: (k,). Spectral norm and the like: a statistic over k."""
    t.unify(t.axis(a, 1), v)
    t.inexact(t.axis(a, 1), "aten.mv sums over it")
    return {0: t.axis(a, 0)}


@rule(aten.dot, aten.vdot)
def dot(t: Context, a: Tensor, b: Tensor) -> None:
    t.unify(t.axis(a, 0), b)
    t.inexact(t.axis(a, 0), f"{t.op_name} sums over it")


@rule(aten._trilinear, counts_macs=True)
def bilinear(
    t: Context, x: Tensor, w: Tensor, y: Tensor, expand_x: Any, expand_w: Any, expand_y: Any, summed: Any, *_: Any
) -> Labels:
    """x: (N, I), w: (O, I, J), y: (N, J) → (N, O): a bilinear layer."""
    if (list(expand_x), list(expand_w), list(expand_y), list(summed)) != ([1, 3], [0], [1, 2], [2, 3]):
        for operand in (x, w, y):
            t.freeze(t.labels(operand), f"{t.op_name} sums over axes in a way that is not followed")
        return {}
    for operand, axis in ((x, 1), (y, 2)):
        t.unify(t.axis(operand, 1), t.axis(w, axis))
        t.consume(w, axis)
    t.produce(w, 0)
    if 0 in t.labels(x) or 0 in t.labels(y):
        t.unify(t.axis(x, 0), t.axis(y, 0))
    t.cost(t.width(x, 0), *(t.width(w, a) for a in range(3)))
    return {**{a: v for a, v in t.labels(x).items() if a == 0}, 1: t.axis(w, 0)}
