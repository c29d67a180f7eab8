"""Output shapes without computation, for the ops that dominate a CNN.

A trace needs shapes, not values, so it runs on meta tensors. For some ops PyTorch's own meta kernel is slower than the
real kernel on a small input (it runs Python decompositions); these few are computed here. Any other op, and any
op on real tensors, runs unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
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
    return None if training else batch_norm(x, weight, bias, mean, var, momentum, eps)


def addmm(bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> Tensor | None:
    fits = a.shape[1] == b.shape[0] and bias.shape == b.shape[1:]
    return empty(a, (a.shape[0], b.shape[1])) if fits else None


def binary(a: Tensor, b: Any, **_: Any) -> Tensor | None:
    """Elementwise over two tensors of the same shape, or with broadcasting along axes of size 1."""
    if not isinstance(b, Tensor) or a.dtype != b.dtype or a.ndim != b.ndim:
        return None
    if any(n != m and m != 1 for n, m in zip(a.shape, b.shape, strict=True)):
        return None
    return empty(a, a.shape)


def binary_(a: Tensor, b: Any, **_: Any) -> Tensor | None:
    return None if binary(a, b) is None else a


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    dim %= first.ndim
    rest = first.shape[:dim], first.shape[dim + 1 :]
    for x in tensors:
        if x.ndim != first.ndim or x.dtype != first.dtype or (x.shape[:dim], x.shape[dim + 1 :]) != rest:
            return None
    return empty(first, (*rest[0], sum(x.shape[dim] for x in tensors), *rest[1]))


def same(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return empty(x, x.shape)


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
    """The numbers of a recurrent layer's outputs and cells."""
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
    aten.addmm.default: addmm,
    aten.add.Tensor: binary,
    aten.mul.Tensor: binary,
    aten.add_.Tensor: binary_,
    aten.mul_.Tensor: binary_,
    aten.sigmoid.default: same,
    aten.silu.default: same,
    aten.gelu.default: same,
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
