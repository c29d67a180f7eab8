"""Example inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.devices import device_of
from secateurs.errors import TraceError


def check_model(model: Any) -> None:
    """Raise TraceError for anything but a model, for example its name or its class."""
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        raise TraceError(f"The model is a class: pass an instance of it, {model.__name__}(…).")
    hint = f"sc.build({model!r}) builds one from a spec" if isinstance(model, str) else "pass the network itself"
    raise TraceError(f"The model must be a torch.nn.Module, not a {type(model).__name__}: {hint}.")


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Run the model on its example inputs."""
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple | list):
        return model(*example_inputs)
    return model(example_inputs)


def map_tensors(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same structure with fn applied to every tensor in it. A mapping of another type than dict becomes a dict."""
    if isinstance(tree, Mapping):  # of any type: a BatchEncoding is a leaf to pytree
        tree = dict(tree)
    return pytree.tree_map(lambda x: fn(x) if isinstance(x, Tensor) else x, tree)


def to_model_device(model: nn.Module, example_inputs: Any) -> Any:
    """The example inputs on the model's device. Tensors that are already there are not copied."""
    device = device_of(model)
    return map_tensors(lambda x: x.to(device), example_inputs)


def tensors(tree: Any) -> list[Tensor]:
    """All tensors in an output of any type: nested containers, dataclasses, mappings, objects with attributes."""
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
