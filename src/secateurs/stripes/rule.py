"""The rule by which a trace follows channels through stripe convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateurs.graph import register_rule
from secateurs.stripes import op as op  # registers the operator


@register_rule(torch.ops.secateurs.stripe_conv)
def stripe_convolution(
    t: Any,
    x: Tensor,  # (N, C, *in)
    weight: Tensor,  # (S, C)
    bias: Tensor | None,  # (O,)
    kept: Tensor,  # (O, *kernel)
    *_: Any,
) -> Any:
    """A network whose stripes are already cut: a layer's input channels can be cut, its output channels cannot."""
    t.unify(t.axis(x, 1), t.axis(weight, 1))
    t.consume(weight, 1)
    t.freeze(t.axis(weight, 0), "a stripe")
    t.freeze({a: v for a, v in t.labels(kept).items() if a}, "a kernel position")
    out = t.axis(kept, 0)
    t.freeze(out, "its filters have different stripes: cut channels before stripes")
    t.produce(kept, 0)
    if bias is not None:
        t.unify(out, bias)
    t.cost(*(t.out.shape[a] for a in range(t.out.ndim) if a != 1), t.width(weight, 0), t.width(weight, 1))
    return {1: out}
