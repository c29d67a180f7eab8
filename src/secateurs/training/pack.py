"""Nested state ⇄ JSON plus a flat dict of tensors, so that nothing is pickled."""

from __future__ import annotations

from typing import Any

import torch

PLAIN = (str, int, float, bool, type(None))


def pack(tree: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Tensors are pulled out of dicts, lists and tuples; what is left is JSON-able.

    Keeps what JSON alone would lose: tuples, integer keys, a tensor's strides (channels-last state must come back
    channels-last, or the arithmetic could differ in the last bit). Raises TypeError naming the path of anything else.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _pack(tree, "", tensors, set()), tensors


def _pack(node: Any, path: str, tensors: dict[str, torch.Tensor], seen: set[int]) -> Any:
    if isinstance(node, torch.Tensor):
        value = node.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:  # safetensors refuses tensors that share memory
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        tensors[path] = value
        packed: dict[str, Any] = {"$tensor": path}
        if not node.is_contiguous() and node.numel() and _dense(node):
            packed["stride"] = list(node.stride())
        return packed
    if isinstance(node, PLAIN):
        return node
    if isinstance(node, dict):
        if all(isinstance(k, str) and not k.startswith("$") for k in node):
            return {k: _pack(v, f"{path}/{k}", tensors, seen) for k, v in node.items()}
        if all(isinstance(k, (str, int)) for k in node):
            return {"$items": [[k, _pack(v, f"{path}/{k}", tensors, seen)] for k, v in node.items()]}
    if isinstance(node, (list, tuple)):
        items = [_pack(v, f"{path}/{i}", tensors, seen) for i, v in enumerate(node)]
        return items if isinstance(node, list) else {"$tuple": items}
    raise TypeError(
        f"state at '{path or '/'}' is a {type(node).__name__}: only tensors, numbers, strings, lists, dicts"
    )


def _dense(tensor: torch.Tensor) -> bool:
    """Whether the strides are a permutation of contiguous ones (no gaps, no overlaps)."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def unpack(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `pack`."""
    if isinstance(node, list):
        return [unpack(v, tensors) for v in node]
    if not isinstance(node, dict):
        return node
    if "$tensor" in node:
        value = tensors[node["$tensor"]]
        if "stride" in node:
            return torch.empty_strided(value.shape, node["stride"], dtype=value.dtype).copy_(value)
        return value
    if "$items" in node:
        return {k: unpack(v, tensors) for k, v in node["$items"]}
    if "$tuple" in node:
        return tuple(unpack(v, tensors) for v in node["$tuple"])
    return {k: unpack(v, tensors) for k, v in node.items()}
