"""Example inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Run the model on its example inputs."""
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple | list):
        return model(*example_inputs)
    return model(example_inputs)


def map_tensors(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same structure with fn applied to every tensor in it."""
    return pytree.tree_map(lambda x: fn(x) if isinstance(x, Tensor) else x, tree)


def tensors(tree: Any) -> list[Tensor]:
    """All tensors in an output, whatever it is: nested containers, dataclasses, mappings, objects with attributes."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf):
            found += tensors([getattr(leaf, f.name) for f in fields(leaf)])
        elif isinstance(leaf, Mapping):
            found += tensors(list(leaf.values()))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module | type) and not callable(leaf):
            found += tensors([v for v in vars(leaf).values() if isinstance(v, Tensor | list | tuple | dict)])
    return found
