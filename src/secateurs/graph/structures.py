"""Structures of tensors: what a model takes, and what a batch is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class Done:
    """A value that is not looked into any further."""

    def __init__(self, value: Any) -> None:
        self.value = value


def mapped(value: Any, of_leaf: Callable[[Any], Any], of_sequence: Callable[[Any], Any] = lambda x: x) -> Any:
    """Return the same structure with a function applied to its leaves: tensors, and whatever is not a mapping, tuple, list,
    dataclass or a type that PyTorch's pytree knows.

    of_sequence: called before a tuple or list is looked into. If it returns a `Done`, its value replaces the sequence.
    """

    def inner(x: Any) -> Any:
        return mapped(x, of_leaf, of_sequence)

    if isinstance(value, Tensor):
        return of_leaf(value)
    if isinstance(value, Mapping):
        return {name: inner(x) for name, x in value.items()} if type(value) is dict else _refilled(value, inner)
    if isinstance(value, tuple | list):
        found = of_sequence(value)
        if isinstance(found, Done):
            return found.value
        items = [inner(x) for x in value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items) if type(value) in (tuple, list) else items
    if type(value) in pytree.SUPPORTED_NODES:  # a deque, and what the user registered
        return pytree.tree_map(inner, value, is_leaf=lambda x: x is not value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: inner(getattr(value, f.name)) for f in fields(value) if f.init})
    return of_leaf(value)


def _refilled(value: Any, inner: Callable[[Any], Any]) -> Any:
    """Return a mapping of the same type, such as a BatchEncoding; a dict if it cannot be copied and filled."""
    items = {name: inner(x) for name, x in value.items()}
    try:
        made = copy.copy(value)
        for name, x in items.items():
            made[name] = x
    except Exception:  # of another library's type
        return items
    return made


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return the same structure with the function applied to every tensor. Other values are kept."""
    return mapped(value, lambda x: function(x) if isinstance(x, Tensor) else x)
