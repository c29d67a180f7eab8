"""Convert nested state to and from JSON plus a flat dict of tensors, without pickle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from secateurs.errors import a_or_an

PLAIN = (str, int, float, bool, type(None))
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON cannot represent them


def pack(tree: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Extract tensors from dicts, lists and tuples. The rest is JSON-serializable.

    Preserves what plain JSON would lose: tuples, integer keys, floats that are not finite, and a tensor's strides (if
    channels-last state were not restored as channels-last, the last bit of results could differ). Raises TypeError with the
    path of an unsupported value.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _pack(tree, "", tensors, set()), tensors


def _pack(node: Any, path: str, tensors: dict[str, torch.Tensor], seen: set[int]) -> Any:
    if isinstance(node, torch.Tensor):
        value = node.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:  # safetensors does not support tensors that share memory
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        tensors[path] = value
        packed: dict[str, Any] = {"$tensor": path}
        if not node.is_contiguous() and node.numel() and _permuted(node.stride(), node.shape):
            packed["stride"] = list(node.stride())
        return packed
    if isinstance(node, float) and not math.isfinite(node):
        return {"$float": str(float(node))}
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
        f"state at '{path or '/'}' is {a_or_an(type(node).__name__)}: only tensors, numbers, strings, lists, dicts"
    )


def _permuted(strides: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether the strides are a permutation of contiguous ones (no gaps, no overlaps)."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def unpack(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Invert `pack`. Raises ValueError with the path of a value that `pack` does not write, and for tensors that are not in
    the tree."""
    used: set[str] = set()
    tree = _unpack(node, "", tensors, used)
    if unknown := sorted(tensors.keys() - used):
        raise ValueError(f"the tensor '{unknown[0]}' is not in the tree")
    return tree


def _unpack(node: Any, path: str, tensors: dict[str, torch.Tensor], used: set[str]) -> Any:
    if isinstance(node, list):
        return [_unpack(v, f"{path}/{i}", tensors, used) for i, v in enumerate(node)]
    if not isinstance(node, dict):
        return node
    match next((key for key in node if key.startswith("$")), None):
        case None:
            return {k: _unpack(v, f"{path}/{k}", tensors, used) for k, v in node.items()}
        case "$tensor":
            return _tensor(node, path, tensors, used)
        case "$items" if isinstance(pairs := node["$items"], list) and _are_pairs(pairs):
            return {k: _unpack(v, f"{path}/{k}", tensors, used) for k, v in pairs}
        case "$tuple" if isinstance(items := node["$tuple"], list):
            return tuple(_unpack(v, f"{path}/{i}", tensors, used) for i, v in enumerate(items))
        case "$float" if isinstance(name := node["$float"], str) and name in NOT_FINITE:
            return NOT_FINITE[name]
        case key:
            raise ValueError(f"'{path or '/'}' holds a '{key}' that is not valid")


def _are_pairs(items: list[Any]) -> bool:
    whole = all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], (str, int)) for item in items)
    return whole and len({item[0] for item in items}) == len(items)


def _tensor(node: dict[str, Any], path: str, tensors: dict[str, torch.Tensor], used: set[str]) -> torch.Tensor:
    name, stride = node["$tensor"], node.get("stride")
    if not isinstance(name, str) or name not in tensors:
        raise ValueError(f"the tensor at '{path or '/'}' is missing")
    used.add(name)
    value = tensors[name]
    if stride is None:
        return value
    found = isinstance(stride, list) and len(stride) == value.ndim and all(type(n) is int and n >= 0 for n in stride)
    if not found or not _permuted(stride, value.shape):
        raise ValueError(f"the tensor at '{path or '/'}', of shape {tuple(value.shape)}, cannot have stride={stride}")
    return torch.empty_strided(value.shape, stride, dtype=value.dtype).copy_(value)
