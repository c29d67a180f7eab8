"""The names of a network's parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn


class Held(NamedTuple):
    """A parameter or buffer as a module holds it. name: the first of its names, if it has several."""

    path: str
    leaf: str
    name: str
    tensor: Tensor


def held(modules: Mapping[str, nn.Module]) -> Iterator[Held]:
    """Yield the parameters and buffers of these modules by path, in order. A shared one appears once for each module that holds
    it."""
    first: dict[int, str] = {}
    for path, module in modules.items():
        for own in (module._parameters, module._buffers):
            for leaf, x in own.items():
                if x is not None:
                    yield Held(path, leaf, first.setdefault(id(x), f"{path}.{leaf}" if path else leaf), x)


def named_tensors(model: nn.Module, modules: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
    """Return parameters and buffers by name, shared ones once, in one pass over the modules."""
    return {x.name: x.tensor for x in held(modules or _modules(model, "", {}, set()))}


def _modules(module: nn.Module, path: str, found: dict[str, nn.Module], seen: set[int]) -> dict[str, nn.Module]:
    """Return what `named_modules` yields, in less time than its nested generators take."""
    if id(module) not in seen:
        seen.add(id(module))
        found[path] = module
        for name, child in module._modules.items():
            if child is not None:
                _modules(child, f"{path}.{name}" if path else name, found, seen)
    return found
