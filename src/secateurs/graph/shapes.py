"""Output shapes without computation, for the ops that dominate a CNN.

A trace needs shapes, not values, so it runs on meta tensors. For some ops PyTorch's own meta kernel is slower than the
real kernel on a small input (it runs Python decompositions); these few are computed here. Any other op, and any
op on real tensors, runs unchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Shape = Callable[..., Any]


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    fast = _FAST.get(func)
    if fast is not None:
        first = args[0][0] if isinstance(args[0], list | tuple) else args[0]
        if isinstance(first, Tensor) and first.is_meta:
            out = fast(*args, **kwargs)
            if out is not None:
                return out
    return func(*args, **kwargs)


def empty(x: Tensor, shape: Any, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or x.dtype, device="meta")


def convolution(
    x: Tensor, w: Tensor, bias: Any, stride: Any, pad: Any, dilation: Any, transposed: bool, out_pad: Any, groups: int
) -> Tensor | None:
    spatial = x.ndim - 2
    if transposed or w.ndim != x.ndim or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        return None  # rare or invalid: left to PyTorch
    sizes = []
    for i in range(spatial):
        s, p, d = (v[i] if len(v) > 1 else v[0] for v in (stride, pad, dilation))
        sizes.append((x.shape[2 + i] + 2 * p - d * (w.shape[2 + i] - 1) - 1) // s + 1)
    if min(sizes, default=1) < 1 or (bias is not None and bias.shape[0] != w.shape[0]):
        return None
    return empty(x, (x.shape[0], w.shape[0], *sizes))


def batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float) -> Any:
    c = x.shape[1]
    if any(p is not None and p.shape[0] != c for p in (weight, bias, mean, var)):
        return None
    nothing = empty(x, (0,))
    return empty(x, x.shape), nothing, nothing


def batch_norm_either(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    """In training, which is how an instance norm runs it, also return the statistics of each channel."""
    found = batch_norm(x, weight, bias, mean, var, momentum, eps)
    return (found[0], *(empty(x, (x.shape[1],)) for _ in range(2))) if training and found else found


def layer_norm(x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    first = x.ndim - len(shape)
    if first < 0 or any(tuple(p) != tuple(shape) for p in (x.shape[first:], *_present(weight, bias))):
        return None
    statistics = (*x.shape[:first], *[1] * len(shape))
    return empty(x, x.shape), empty(x, statistics), empty(x, statistics)


def group_norm(x: Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float) -> Any:
    if x.numel() != n * c * hw or c % groups or any(tuple(p) != (c,) for p in _present(weight, bias)):
        return None
    return empty(x, x.shape), empty(x, (n, groups)), empty(x, (n, groups))


def _present(*params: Tensor | None) -> Iterator[torch.Size]:
    """Return the shapes of those parameters that are not None."""
    return (p.shape for p in params if p is not None)


def addmm(bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> Tensor | None:
    fits = a.shape[1] == b.shape[0] and bias.shape == b.shape[1:]
    return empty(a, (a.shape[0], b.shape[1])) if fits else None


def broadcast(a: Tensor, b: Any) -> tuple[int, ...] | None:
    """Return the output shape of an elementwise op on two tensors of one type, or a tensor and a number; None for others."""
    if not isinstance(a, Tensor):
        return None
    if not isinstance(b, Tensor):
        return tuple(a.shape) if a.is_floating_point() and isinstance(b, int | float) else None
    if a.shape == b.shape and a.dtype == b.dtype:
        return tuple(a.shape)
    if a.dtype != b.dtype:
        return None
    sizes = []
    for n, m in itertools.zip_longest(reversed(a.shape), reversed(b.shape), fillvalue=1):
        if n != m and 1 not in (n, m):
            return None
        sizes.append(m if n == 1 else n)
    return tuple(reversed(sizes))


def binary(a: Tensor, b: Any, *_: Any, **__: Any) -> Tensor | None:
    shape = broadcast(a, b)
    if shape is None:
        return None
    like = next((x for x in (a, b) if isinstance(x, Tensor) and x.shape == shape), None)
    return empty(a, shape) if like is None else same(like)


def binary_(a: Tensor, b: Any, *_: Any, **__: Any) -> Tensor | None:
    return a if broadcast(a, b) == a.shape else None


def quotient(a: Tensor, b: Any, **_: Any) -> Tensor | None:
    return binary(a, b) if isinstance(a, Tensor) and a.is_floating_point() else None


def clamped(x: Tensor, *bounds: Any) -> Tensor | None:
    return same(x) if x.is_floating_point() and not any(isinstance(b, Tensor) for b in bounds) else None


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    dim %= first.ndim
    rest = first.shape[:dim], first.shape[dim + 1 :]
    for x in tensors:
        if x.ndim != first.ndim or x.dtype != first.dtype or (x.shape[:dim], x.shape[dim + 1 :]) != rest:
            return None
    return empty(first, (*rest[0], sum(x.shape[dim] for x in tensors), *rest[1]))


def mm(a: Tensor, b: Tensor) -> Tensor | None:
    """(*batch, m, k) @ (*batch, k, n), with the same batch."""
    fits = a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2] and a.dtype == b.dtype
    return empty(a, (*a.shape[:-1], b.shape[-1])) if fits else None


def same(x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Do what `torch.empty_like` does, in a fiftieth of its time. Strides are kept if no element is skipped or repeated."""
    if not x.is_contiguous() and sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) == x.numel() - 1:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return empty(x, x.shape)


def floating(x: Tensor, *_: Any, **__: Any) -> Tensor | None:
    """Return the output of a function that converts integers to another type; None for integers."""
    return same(x) if x.is_floating_point() else None


def softmax(x: Tensor, dim: int, half: bool) -> Tensor | None:
    return None if half else same(x)


def inplace(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def pool(x: Tensor, kernel: Any, stride: Any = (), pad: Any = (0,), *rest: Any) -> Tensor | None:
    """Average pooling over two axes, floor mode."""
    if x.ndim != 4 or (rest and rest[0]):
        return None
    sizes = []
    for i in range(2):
        k, s, p = (v[i] if len(v) > 1 else v[0] for v in (kernel, stride or kernel, pad))
        sizes.append((x.shape[2 + i] + 2 * p - k) // s + 1)
    return empty(x, (*x.shape[:2], *sizes)) if min(sizes) > 0 else None


def max_pool(
    x: Tensor, kernel: Any, stride: Any = (), pad: Any = (0,), dilation: Any = (1,), ceil: bool = False
) -> Any:
    if ceil or any(d != 1 for d in dilation):
        return None
    out = pool(x, kernel, stride, pad)
    return None if out is None else (out, empty(out, out.shape, torch.int64))


def mean(x: Tensor, dims: Any, keepdim: bool = False, *, dtype: Any = None) -> Tensor | None:
    if not dims or dtype is not None:
        return None
    axes = {d % x.ndim for d in dims}
    return empty(x, [1 if a in axes else n for a, n in enumerate(x.shape) if keepdim or a not in axes])


def vector_norm(
    x: Tensor, order: Any = 2, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor | None:
    return mean(x, [dims] if isinstance(dims, int) else dims, keepdim, dtype=dtype) if x.is_floating_point() else None


def resized(x: Tensor, size: Any, *_: Any) -> Tensor | None:
    return empty(x, (*x.shape[:2], *size)) if size is not None and x.ndim == 2 + len(size) else None


def grid_sampler(x: Tensor, grid: Tensor, *_: Any) -> Tensor | None:
    if x.ndim != 4 or grid.ndim != 4 or grid.shape[0] != x.shape[0] or grid.shape[3] != 2 or x.dtype != grid.dtype:
        return None
    return empty(x, (*x.shape[:2], *grid.shape[1:3]))


def recurrent(
    x: Tensor, state: Any, params: Any, biases: bool, layers: int, dropout: float, train: bool, both: bool, *_: Any
) -> Any:
    """x: (*, I); states: (layers · directions, N, channels). params: of each layer and direction (gates · cells, inputs),
    (gates · cells, outputs), biases, and in a projected LSTM (outputs, cells)."""
    outputs, cells = _widths(state)
    each = 2 + 2 * biases + (outputs != cells)
    directions = 1 + both
    if len(params) != each * layers * directions or any(s.shape[0] != layers * directions for s in _states(state)):
        return None
    rows = params[0].shape[0]
    for i in range(0, len(params), each):
        inputs = x.shape[-1] if i < each * directions else outputs * directions
        if not _fits(params[i : i + each], rows, inputs, outputs, cells):
            return None
    return empty(x, (*x.shape[:-1], outputs * directions)), *(empty(s, s.shape) for s in _states(state))


def recurrent_packed(x: Tensor, sizes: Tensor, state: Any, params: Any, *rest: Any) -> Any:
    return recurrent(x, state, params, *rest)


def recurrent_cell(x: Tensor, state: Any, *params: Any) -> Any:
    """x: (N, I); states: (N, cells)."""
    outputs, cells = _widths(state)
    present = [p for p in params if p is not None]
    if outputs != cells or not _fits(present, params[0].shape[0], x.shape[-1], outputs, cells):
        return None
    found = tuple(empty(s, s.shape) for s in _states(state))
    return found[0] if isinstance(state, Tensor) else found


def _states(state: Any) -> Any:
    return (state,) if isinstance(state, Tensor) else state


def _widths(state: Any) -> tuple[int, int]:
    """Return the numbers of a recurrent layer's outputs and cells."""
    states = _states(state)
    return states[0].shape[-1], states[-1].shape[-1]


def _fits(params: Any, rows: int, inputs: int, outputs: int, cells: int) -> bool:
    due = [(rows, inputs), (rows, outputs), *[(rows,)] * (len(params) - 2)]
    if outputs != cells:
        due[-1] = (outputs, cells)
    return rows % cells == 0 and [tuple(p.shape) for p in params] == due


_FAST: dict[Any, Shape] = {
    aten.convolution.default: convolution,
    aten._native_batch_norm_legit_no_training.default: batch_norm,
    aten.native_batch_norm.default: batch_norm_either,
    aten.native_layer_norm.default: layer_norm,
    aten.native_group_norm.default: group_norm,
    aten.addmm.default: addmm,
    **dict.fromkeys([aten.mm.default, aten.bmm.default], mm),
    **dict.fromkeys([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor], binary),
    **dict.fromkeys([aten.add_.Tensor, aten.sub_.Tensor, aten.mul_.Tensor], binary_),
    **dict.fromkeys([aten.div.Tensor, aten._prelu_kernel.default], quotient),
    **dict.fromkeys([aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default], clamped),
    **dict.fromkeys(
        [
            aten.relu.default,
            aten.roll.default,
            aten.neg.default,
            aten.abs.default,
            aten.dropout.default,
        ],
        same,
    ),
    **dict.fromkeys(
        [
            aten.sigmoid.default,
            aten.silu.default,
            aten.gelu.default,
            aten.tanh.default,
            aten.exp.default,
            aten.sqrt.default,
            aten.rsqrt.default,
            aten.erf.default,
            aten.softplus.default,
            aten.elu.default,
            aten.leaky_relu.default,
            aten.mish.default,
            aten.pow.Tensor_Scalar,
            aten.rsub.Scalar,
            aten.mul.Scalar,
            aten.add.Scalar,
            aten.sub.Scalar,
        ],
        floating,
    ),
    **dict.fromkeys([aten._softmax.default, aten._log_softmax.default], softmax),
    **dict.fromkeys(
        [
            aten.upsample_bilinear2d.default,
            aten.upsample_bicubic2d.default,
            aten.upsample_nearest2d.default,
            aten.upsample_nearest1d.default,
            aten.upsample_nearest3d.default,
            aten.upsample_trilinear3d.default,
        ],
        resized,
    ),
    aten.linalg_vector_norm.default: vector_norm,
    aten.cat.default: cat,
    aten.avg_pool2d.default: pool,
    aten.max_pool2d_with_indices.default: max_pool,
    aten.mean.dim: mean,
    aten.grid_sampler_2d.default: grid_sampler,
    aten.hardswish_.default: inplace,
    aten.hardtanh_.default: inplace,
    aten.silu_.default: inplace,
    aten.relu_.default: inplace,
    aten.hardswish.default: same,
    aten.hardtanh.default: same,
    aten.hardsigmoid.default: same,
    aten.hardsigmoid_.default: inplace,
    **dict.fromkeys([aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input], recurrent),
    **dict.fromkeys([aten.lstm.data, aten.gru.data, aten.rnn_tanh.data, aten.rnn_relu.data], recurrent_packed),
    aten.lstm_cell.default: recurrent_cell,
    aten.gru_cell.default: recurrent_cell,
    aten.rnn_tanh_cell.default: recurrent_cell,
    aten.rnn_relu_cell.default: recurrent_cell,
}
