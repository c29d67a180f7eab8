"""The tensors in what a model takes and returns, wherever they are kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_MOST = 100_000  # containers to open: far more than any output has, so that the walk of an object graph ends
_ATOMS = (
    int, float, str, bytes, bool, complex, type(None), type, torch.dtype, torch.device, torch.Size, torch.Generator,
    nn.Module, ModuleType, FunctionType, BuiltinFunctionType, MethodType, np.ndarray,
)  # fmt: skip


def tensors(tree: Any) -> list[Tensor]:
    """Return all tensors in a structure of any type, in a fixed order: containers, mappings, iterators, dataclasses, and
    objects with attributes or slots, nested to any depth. A container that appears again is not opened twice, so cycles end.

    An iterator is consumed; `materialized` replaces the iterators of a structure.
    """
    return [tree] if isinstance(tree, Tensor) else _found(tree, Tensor)


def values(tree: Any) -> list[Tensor]:
    """Return all tensors in a structure (see `tensors`), and NumPy's arrays of numbers as tensors. Every tensor is dense."""
    found = []
    for x in _found(tree, (Tensor, np.ndarray)):
        if isinstance(x, Tensor):
            found.append(x if x.layout is torch.strided else x.to_dense())
        elif x.dtype.kind in "fiubc":
            found.append(torch.from_numpy(np.ascontiguousarray(x)))
    return found


def _found(tree: Any, kinds: Any) -> list[Any]:
    found: list[Any] = []
    opened: dict[int, Any] = {}  # by id; kept, so that no id is reused
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, kinds):
            found.append(node)
        elif not isinstance(node, _ATOMS) and id(node) not in opened and len(opened) < _MOST:
            opened[id(node)] = node
            stack += reversed(_children(node))
    return found


def materialized(tree: Any) -> Any:
    """Replace each iterator in a structure by a tuple, so that lazy values are computed. Structures without iterators are
    returned as they are."""
    if isinstance(tree, Iterator):
        return tuple(materialized(x) for x in tree)
    if type(tree) in (tuple, list):
        new = [materialized(x) for x in tree]
        return type(tree)(new) if any(a is not b for a, b in zip(new, tree, strict=True)) else tree
    if type(tree) is dict:
        new = [materialized(x) for x in tree.values()]
        return (
            dict(zip(tree, new, strict=True)) if any(a is not tree[k] for k, a in zip(tree, new, strict=True)) else tree
        )
    return tree


def _children(node: Any) -> list[Any]:
    if isinstance(node, list | tuple | deque):
        return list(node)
    if isinstance(node, Mapping):  # of any type: a BatchEncoding is a leaf to pytree
        return list(node.values())
    if isinstance(node, Set | Iterator):
        return list(node)
    if is_dataclass(node):
        named = [f.name for f in fields(node)]
        return [getattr(node, name, None) for name in named] + _attributes(node, set(named))
    if type(node) in pytree.SUPPORTED_NODES:  # registered by the user
        return pytree.tree_leaves(node, is_leaf=lambda x: x is not node)
    return _attributes(node)


def _attributes(node: Any, without: Set[str] = frozenset()) -> list[Any]:
    """Return the values of an object's attributes and slots."""
    slots = [_mangled(s, t) for t in type(node).__mro__ for s in _listed(t.__dict__.get("__slots__", ()))]
    found = [getattr(node, s, None) for s in slots if s not in ("__dict__", "__weakref__") and s not in without]
    own = getattr(node, "__dict__", {})
    return found + [x for name, x in own.items() if name not in without]


def _listed(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _mangled(name: str, owner: type) -> str:
    """Return the actual name of a class's slot: Python mangles a private `__x`."""
    private = name.startswith("__") and not name.endswith("__")
    return f"_{owner.__name__.lstrip('_')}{name}" if private else name
