"""Elementwise ops and per-channel normalizations: channels that are combined elementwise are kept or cut together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateurs.graph.context import Context
from secateurs.graph.reasons import GROUPS, SHAPE
from secateurs.graph.rules.registry import rule
from secateurs.graph.sizes import written
from secateurs.graph.tape import Labels

aten = torch.ops.aten


# Elementwise ops that some PyTorch release since 2.6 does not tag as pointwise: the tag was extended over time. Ops that every
# release tags are handled by `pointwise` without being listed.
@rule(
    aten._conj, aten._conj_physical, aten._neg_view, aten._to_copy, aten.abs_, aten.alias, aten.bernoulli,
    aten.bernoulli_, aten.celu_, aten.clone, aten.complex, aten.contiguous, aten.copy_, aten.detach, aten.detach_,
    aten.dropout, aten.elu_, aten.empty_like, aten.eq_, aten.fill, aten.fill_, aten.floor_divide, aten.floor_divide_,
    aten.full_like, aten.ge_, aten.gelu_, aten.gt_, aten.hardsigmoid_, aten.hardswish, aten.hardswish_,
    aten.hardtanh_, aten.isnan, aten.ldexp, aten.le_, aten.leaky_relu, aten.leaky_relu_, aten.lift, aten.lift_fresh,
    aten.log_sigmoid_forward, aten.lt_, aten.masked_fill, aten.masked_fill_, aten.mish_, aten.nan_to_num,
    aten.native_dropout, aten.ne_, aten.normal_, aten.ones_like, aten.polar, aten.rand_like, aten.randint_like,
    aten.randn_like, aten.relu6, aten.rrelu, aten.rrelu_with_noise, aten.rrelu_with_noise_, aten.selu_,
    aten.threshold_, aten.to, aten.uniform_, aten.zero_, aten.zeros_like,
)  # fmt: skip
def pointwise(t: Context, *args: Any, **kwargs: Any) -> Labels:
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    if len(tensors) == 1:
        return t.labels(tensors[0])
    return t.join([(t.labels(x), x) for x in tensors])


@rule(aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub)
def add(t: Context, x: Any, y: Any, **_: Any) -> Labels:
    """The channels of a sum of two activations are on a shortcut; the sum of two weights is a weight."""
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        if t.is_live(x) and t.is_live(y):
            t.shortcut(x, y)
        elif t.is_weight(x) and t.is_weight(y):
            t.sum_of_weights(x, y)
    return pointwise(t, x, y)


@rule(aten.new_empty, aten.new_empty_strided, aten.new_full, aten.new_ones, aten.new_zeros)
def new(t: Context, x: Tensor, size: list[int], *_: Any, **__: Any) -> Labels:
    """A buffer to be filled. If its size is written in the code, what it holds follows from the size. Otherwise it holds x's
    channels if it is as wide as x."""
    if written(t.call, len(size)) is not None:
        return {}
    return {a: v for a, v in t.labels(x).items() if a < len(size) and size[a] == x.shape[a]}


@rule(aten.prelu, aten._prelu_kernel)
def prelu(t: Context, x: Tensor, w: Tensor) -> Labels:
    """w: (C,) for prelu, already (1, C, 1, …) for its kernel."""
    if w.ndim == 1 and x.ndim > 1 and w.shape[0] > 1:
        t.unify(t.axis(x, 1), w)
        return t.labels(x)
    return pointwise(t, x, w)


@rule(
    aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training,
    aten._batch_norm_with_update, aten._batch_norm_no_update, aten.cudnn_batch_norm, aten.miopen_batch_norm,
)  # fmt: skip
def batch_norm(
    t: Context, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Any = None, var: Any = None, *_: Any
) -> Labels:
    """A per-channel affine map: its parameters are on x's channel axis."""  # x: (N, C, *)  weight: (C,)
    t.unify(t.axis(x, 1), weight, bias, *(s for s in (mean, var) if isinstance(s, Tensor)))
    for axis, labels in t.labels(x).items():
        if axis != 1:  # weight standardization by a batch norm over the weight
            t.inexact(labels, f"{t.op_name} computes its statistics over channels")
    return t.labels(x)


@rule(aten._weight_norm_interface, aten._weight_norm)
def weight_norm(t: Context, v: Tensor, g: Tensor, dim: int = 0) -> Labels:
    """w = g · v / ‖v‖, where the norm is over all axes of v except `dim`."""
    for axis, labels in t.labels(v).items():
        if axis != dim:
            t.inexact(labels, "weight norm takes a norm over channels")
    return t.join([(t.labels(v), v), (t.labels(g), g)])


@rule(aten.native_layer_norm)
def layer_norm(
    t: Context, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Labels:
    """Statistics over the last axes, an affine map on them."""
    first = x.ndim - len(shape)
    for axis, labels in t.labels(x).items():
        if axis >= first:
            t.inexact(labels, "layer norm computes its statistics over channels")
            t.depends_on(weight, labels, SHAPE)
    affine = [(t.labels(p), p) for p in (weight, bias) if p is not None]
    return t.join([(t.labels(x), x), *affine])


@rule(aten.native_group_norm)
def group_norm(
    t: Context, x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, hw: int, groups: int, eps: float
) -> Labels:
    """Statistics over each of `groups` equal runs of channels; exact with one channel per group."""  # x: (N, C, *)
    labels = t.axis(x, 1)
    t.unify(labels, weight, bias)
    if groups < c:
        t.couple(labels.reshape(groups, -1))
        t.inexact(labels, "group norm computes its statistics over channels")
    t.depends_on(weight, labels, GROUPS)
    return t.labels(x)
