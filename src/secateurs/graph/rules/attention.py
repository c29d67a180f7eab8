"""Attention as one op. On meta tensors it runs as matrix products instead, with the same labels and the same cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateurs.graph.context import Context
from secateurs.graph.rules.registry import present, rule
from secateurs.graph.tape import Labels


def scaled_dot_product_attention(t: Context, q: Tensor, k: Tensor, v: Tensor, *others: Any, **named: Any) -> Any:
    """q: (N, heads, queries, D), k: (N, heads, keys, D), v: (N, heads, keys, V) → (N, heads, queries, V). k and v may have
    fewer heads, each for several of q's."""
    last = v.ndim - 1
    reason = f"{t.op_name} sums over it in a product of two activations"
    for x in (q, k, *(x for x in (*others, *named.values()) if isinstance(x, Tensor))):
        t.freeze(t.labels(x), reason)
    t.freeze({a: own for a, own in t.labels(v).items() if a != last}, reason)
    scores = (*(t.width(q, a) for a in range(last)), k.shape[-2])
    t.cost(*scores, t.width(q, last))
    t.cost(*scores, t.width(v, last))
    out: Labels = {last: t.labels(v)[last]} if last in t.labels(v) else {}
    return [out] if isinstance(t.out, tuple | list) else out


rule(
    *present(
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    ), counts_macs=True)(scaled_dot_product_attention)  # fmt: skip
