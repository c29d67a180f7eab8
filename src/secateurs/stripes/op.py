"""The stripe convolution as one op, so that tools that inspect a network's ops, such as FLOP counters, recognize it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from secateurs.stripes.kernels import convolved, padded
from secateurs.stripes.layout import Layout, dense

# Explicit: PyTorch before 2.7 cannot infer it from `list[int]` and `Tensor | None`.
_SCHEMA = "(Tensor x, Tensor weight, Tensor? bias, Tensor kept, SymInt[] stride, SymInt[] padding, SymInt[] dilation) -> Tensor"


@torch.library.custom_op("secateurs::stripe_conv", mutates_args=(), schema=_SCHEMA)
def stripe_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Compute a stripe convolution.

    x: (N, C, *in); weight: (S, C); kept: (O, *kernel); padding: before and after, for each axis.
    """
    layout = _layout(kept, stride, padding, dilation)
    if x.dtype != weight.dtype:  # under autocast
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return convolved(x, dense(kept, weight), bias, layout)


def _layout(kept: Tensor, stride: Any, padding: Any, dilation: Any) -> Layout:
    return Layout(kept, tuple(stride), tuple(padding), tuple(dilation))


@stripe_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Any, kept: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    axes = kept.ndim - 1
    size = _layout(kept, stride, padding, dilation).out_size(*x.shape[-axes:])
    return x.new_empty(*x.shape[: -axes - 1], len(kept), *size)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, kept, stride, padding, dilation = inputs
    ctx.save_for_backward(x, weight, kept)
    ctx.layout, ctx.bias = _layout(kept, stride, padding, dilation), bias is not None


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, weight, kept = ctx.saved_tensors
    if single := grad.ndim == kept.ndim:  # (C, *in) is one image
        x, grad = x[None], grad[None]
    layout: Layout = ctx.layout
    none = [0] * len(layout.stride)
    gx, gw, gb = torch.ops.aten.convolution_backward(
        grad, padded(x, layout.padding), dense(kept, weight), [len(kept)], list(layout.stride), none,
        list(layout.dilation), False, none, 1, [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.bias],
    )  # fmt: skip
    gx = None if gx is None else padded(gx, tuple(-p for p in layout.padding))
    gx = gx[0] if single and gx is not None else gx
    gw = None if gw is None else gw.movedim(1, -1)[kept]
    return gx, gw, gb, None, None, None, None


stripe_conv.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.secateurs.stripe_conv)
def _flops(x: Any, weight: Any, bias: Any, kept: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Return twice the multiply-accumulates of the kept stripes: (S, C) at each output position."""
    return int(2 * weight[0] * weight[1] * math.prod(out_shape) // kept[0])
