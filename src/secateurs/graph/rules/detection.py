"""torchvision's ops. They are registered by name, since they exist only once torchvision has been imported."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateurs.graph.context import Context
from secateurs.graph.rules.contractions import convolution
from secateurs.graph.rules.registry import rule
from secateurs.graph.tape import Labels


@rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(t: Context, x: Tensor, boxes: Tensor, *_: Any) -> Any:
    """x: (N, C, H, W), boxes: (K, 5) → (K, C, height, width)."""
    t.freeze({a: v for a, v in t.labels(x).items() if a != 1}, f"{t.op_name} resamples an axis of channels")
    t.freeze(t.labels(boxes), f"{t.op_name} reads it as positions")
    out: Labels = {1: t.labels(x)[1]} if 1 in t.labels(x) else {}
    return [out, out] if isinstance(t.out, tuple | list) else out


@rule("torchvision::deform_conv2d", counts_macs=True)
def deformable(
    t: Context, x: Tensor, w: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *rest: Any
) -> Labels:  # x: (N, C, H, W), w: (O, C / groups, KH, KW), offset: (N, 2 · offset groups · KH · KW, H', W')
    *_, groups, offset_groups, _use_mask = rest
    for positions in (offset, mask):
        t.freeze(t.labels(positions), f"{t.op_name} reads it as positions")
    if offset_groups > 1:
        t.couple(t.axis(x, 1).reshape(offset_groups, -1))
    return convolution(t, x, w, bias, None, None, None, False, None, groups)
