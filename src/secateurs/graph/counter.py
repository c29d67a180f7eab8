"""Counts the multiply-accumulates of a run: `FlopCounterMode`, with the ops that it does not know."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from secateurs.graph.rules.registry import present

Shape = tuple[int, ...]


def attention(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    """q: (N, heads, queries, D), k: (N, heads or fewer, keys, D), v: (N, heads or fewer, keys, V): two products."""
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def recurrent_layer(x: Shape, w_ih: Shape, w_hh: Shape, *_: Any, **__: Any) -> int:
    """x: (steps, N, features): each step multiplies by both weights."""
    return 2 * math.prod(x[:-1]) * (math.prod(w_ih) + math.prod(w_hh))


def recurrent(x: Shape, weights: list[Shape], *_: Any, **__: Any) -> int:
    """x: (steps, N, features), or (steps of all sequences, features). Every matrix of every layer is used at each step."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)


def recurrent_with_state(x: Shape, state: Any, weights: list[Shape], *_: Any, **__: Any) -> int:
    return recurrent(x, weights)


def bilinear(x: Shape, w: Shape, *_: Any, **__: Any) -> int:
    """x: (N, I), w: (O, I, J)."""
    return 2 * x[0] * math.prod(w)


FORMULAS = {
    **dict.fromkeys(
        present(
            "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ), attention),
    **dict.fromkeys(present("_trilinear"), bilinear),
    **dict.fromkeys(present("mkldnn_rnn_layer"), recurrent_layer),
    **dict.fromkeys(present("_cudnn_rnn", "miopen_rnn"), recurrent),
    **dict.fromkeys(present("_lstm_mps"), recurrent_with_state),
}  # fmt: skip


def deformable(x: Shape, w: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """w: (O, C / groups, *kernel), out_shape: (N, O, *spatial)."""
    return 2 * math.prod(out_shape) * math.prod(w[1:])


def _torchvision() -> dict[Any, Any]:
    """Return the formulas of torchvision's ops, which exist only once it has been imported."""
    found = getattr(torch.ops.torchvision, "deform_conv2d", None)
    return {} if found is None else {found: deformable}


def formulas() -> Mapping[Any, Callable[..., int]]:
    """Return a formula for each op (overload packet): `formula(*args, **kwargs, out_val=outputs)` gives the floating-point
    operations of a call, two for each multiply-accumulate."""
    return cast("Mapping[Any, Callable[..., int]]", MacCounter().flop_registry)


class _Everything(nullcontext[None]):
    """Stands in for the module tracker: everything counts as one module. The tracker hooks into gradients, which fails for
    parameters that are expanded or reshaped without gradients."""

    parents = frozenset({"Global"})


class MacCounter(FlopCounterMode):
    """`with MacCounter() as counter: model(x)`, then `counter.macs`."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping={**FORMULAS, **_torchvision()})
        self.mod_tracker: Any = _Everything()

    @property
    def macs(self) -> int:
        return int(self.get_total_flops()) // 2
