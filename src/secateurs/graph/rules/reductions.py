"""Reductions, pooling and resizing: over space they keep channels; over channels their value changes with a cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateurs.graph.context import Context
from secateurs.graph.reasons import Kind, Reason
from secateurs.graph.rules.registry import present, rule
from secateurs.graph.tape import Labels

aten = torch.ops.aten


@rule(
    aten.all, aten.amax, aten.amin, aten.aminmax, aten.any, aten.argmax, aten.argmin, aten.count_nonzero,
    aten.linalg_vector_norm, aten.logsumexp, aten.max.default, aten.max.dim, aten.mean, aten.median, aten.min.default,
    aten.min.dim, aten.mode, aten.nanmedian, aten.nansum, aten.norm, aten.prod, aten.std, aten.std_mean, aten.sum,
    aten.topk, aten.var, aten.var_mean,
)  # fmt: skip
def reduction(t: Context, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    labels = t.labels(x)
    if not labels:
        return {}
    axes = reduced_axes(t, x, args, kwargs)
    out = t.out[0] if isinstance(t.out, tuple | list) else t.out
    keepdim = out.ndim == x.ndim
    kept: Labels = {}
    for axis, values in labels.items():
        if axis in axes:
            t.inexact(values, f"{t.op_name} over channels changes with the cut")
        else:
            kept[axis if keepdim else axis - sum(a < axis for a in axes)] = values
    return [kept] * len(t.out) if isinstance(t.out, tuple | list) else kept


def reduced_axes(t: Context, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
    """Return the axes that an op reduces, from its schema's `dim` argument; all axes if it has none."""
    schema = t.op._schema.arguments[1:]
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    given |= {**dict(zip((a.name for a in schema), args, strict=False)), **kwargs}
    dim = given.get("dim")
    if dim is None or dim == []:
        return set(range(x.ndim))
    return {d % x.ndim for d in (dim if isinstance(dim, list | tuple) else [dim])}


@rule(
    aten._fft_c2c, aten._fft_c2r, aten._fft_r2c, aten.cummax, aten.cummin, aten.cumprod, aten.cumsum, aten.kthvalue,
    aten.logcumsumexp, aten.sort, aten.argsort, aten.tril, aten.triu,
)  # fmt: skip
def along(t: Context, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The output depends on the order along some axes. These are frozen, and the others are kept."""
    out = t.out[0] if isinstance(t.out, tuple | list) else t.out
    triangle = t.op.overloadpacket in (aten.tril, aten.triu)
    axes = {x.ndim - 2, x.ndim - 1} if triangle else reduced_axes(t, x, args, kwargs)
    kept: Labels = {}
    for axis, values in t.labels(x).items():
        if axis in axes:
            t.freeze(values, f"{t.op_name} depends on the order of channels")
        else:
            kept[axis if out.ndim == x.ndim else axis - sum(a < axis for a in axes)] = values
    return [kept] * len(t.out) if isinstance(t.out, tuple | list) else kept


@rule(aten.renorm, aten.renorm_)
def renorm(t: Context, x: Tensor, p: Any, dim: int, *_: Any) -> Labels:
    """Each piece along `dim` is scaled so that its norm, over all other axes, is not too large."""
    for axis, labels in t.labels(x).items():
        if axis != dim % x.ndim:
            t.inexact(labels, f"{t.op_name} takes a norm over channels")
    return t.labels(x)


@rule(aten._softmax, aten._log_softmax, aten.softmax, aten.log_softmax, aten._safe_softmax)
def softmax(t: Context, x: Tensor, dim: int, *_: Any, **__: Any) -> Labels:
    labels = t.labels(x)
    if dim % x.ndim in labels:
        t.inexact(labels[dim % x.ndim], f"{t.op_name} over channels changes with the cut")
    return labels


def resampling(spatial: int) -> Any:
    """Return a rule for pooling, resizing, sampling or border padding over `spatial` axes: space changes, channels stay."""

    def resample(t: Context, x: Tensor, *args: Any, **kwargs: Any) -> Any:  # x: (N, C, *spatial) or (C, *spatial)
        first = x.ndim - spatial
        labels = t.labels(x)
        t.freeze({a: v for a, v in labels.items() if a >= first}, f"{t.op_name} resamples an axis of channels")
        for other in args:
            if isinstance(other, Tensor):
                t.freeze(t.labels(other), f"{t.op_name} reads it as positions")
        kept = {a: v for a, v in labels.items() if a < first}
        return [kept] * len(t.out) if isinstance(t.out, tuple | list) else kept

    return resample


rule(
    aten.adaptive_avg_pool1d, aten.avg_pool1d, aten.upsample_linear1d, aten.upsample_nearest1d,
    aten._upsample_nearest_exact1d, aten.reflection_pad1d, aten.replication_pad1d,
)(resampling(1))  # fmt: skip
rule(
    aten._adaptive_avg_pool2d, aten._upsample_bicubic2d_aa, aten._upsample_bilinear2d_aa,
    aten._upsample_nearest_exact2d, aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d, aten.avg_pool2d,
    aten.grid_sampler_2d, aten.max_pool2d_with_indices,
    aten.mkldnn_max_pool2d, aten.upsample_bicubic2d, aten.upsample_bilinear2d, aten.upsample_nearest2d,
    aten.reflection_pad2d, aten.replication_pad2d, *present("_upsample_lanczos2d_aa"),
)(resampling(2))  # fmt: skip
rule(
    aten._adaptive_avg_pool3d, aten._upsample_nearest_exact3d, aten.adaptive_avg_pool3d, aten.adaptive_max_pool3d,
    aten.avg_pool3d, aten.grid_sampler_3d, aten.max_pool3d_with_indices, aten.upsample_nearest3d,
    aten.upsample_trilinear3d, aten.reflection_pad3d, aten.replication_pad3d,
)(resampling(3))  # fmt: skip


@rule(aten.fractional_max_pool2d, aten.fractional_max_pool3d)
def fractional_pool(t: Context, x: Tensor, *_: Any) -> list[Labels]:
    """Every channel is pooled at random positions of its own."""
    t.freeze(t.labels(x), Reason(Kind.CODE, "random numbers are drawn for each channel", t.where()))
    return [t.labels(x)] * 2


@rule(aten.max_unpool2d, aten.max_unpool3d)
def unpool(t: Context, x: Tensor, indices: Tensor, *_: Any) -> Labels:
    """Each channel's values are scattered to its own positions."""
    first = x.ndim - (2 if t.op.overloadpacket is aten.max_unpool2d else 3)
    t.freeze({a: v for a, v in t.labels(x).items() if a >= first}, f"{t.op_name} resamples an axis of channels")
    kept = {a: v for a, v in t.labels(x).items() if a < first}
    for axis, labels in t.labels(indices).items():
        t.unify(t.axis(x, axis), labels)
    return kept
