"""Feature maps of a network by name: list them, find the op that made each, and capture them in a forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from secateurs.errors import ConfigError, nearest
from secateurs.graph.channels import named_tensors
from secateurs.graph.families import Family
from secateurs.graph.flow import Flow, Value
from secateurs.graph.trace import flow

OUTPUT = ":output"  # the network's output


@dataclass(frozen=True)
class FeatureMap:
    """A tensor passed between modules. It may have several names: a stage's output is its last block's."""

    name: str  # a module, for its output; or "module:input", for the input of that convolution
    names: tuple[str, ...]
    shape: tuple[int, ...]  # (N, C, *)
    family: Family | None  # of the op that made it: an addition, a non-linearity …

    @property
    def area(self) -> int:
        """Pixels."""
        return int(torch.Size(self.shape[2:]).numel())

    @property
    def activated(self) -> bool:
        """Whether it is the output of a non-linearity."""
        return self.family is Family.ACTIVATION


def feature_maps(model: nn.Module, example_inputs: Any) -> list[FeatureMap]:
    """All (N, C, *) outputs of modules and inputs of convolutions, in the order in which they occur in one
    run in eval mode. Modules that run more than once are left out: their name is ambiguous. The model is not
    modified.
    """
    found = flow(model, example_inputs)
    convs = {name for name, module in model.named_modules() if isinstance(module, _ConvNd)}
    runs = Counter(call.module for call in found.calls)
    names: dict[Value, list[str]] = {}
    for call in found.calls:
        if runs[call.module] == 1:
            seen = [(f"{call.module}:input", v) for v in call.inputs[:1] if call.module in convs]
            seen += [(call.module, call.output)] if call.output is not None else []
            for name, value in seen:
                if len(value.shape) >= 2 and value not in found.inputs:
                    names.setdefault(value, []).append(name)
    maps = []
    for value in sorted(names, key=lambda v: v.index):
        shortest = min(names[value], key=lambda n: (n.endswith(":input"), n.count("."), len(n)))
        maker = found.maker(value)
        maps.append(FeatureMap(shortest, tuple(names[value]), value.shape, None if maker is None else maker.family))
    return maps


def check_names(model: nn.Module, nodes: Iterable[str]) -> None:
    """Raise ConfigError, with similar names, for a node that does not name a module."""
    modules = dict(model.named_modules())
    for node in nodes:
        name, colon, end = node.partition(":")
        if node == OUTPUT or (name in modules and name and (not colon or end == "input")):
            continue
        if colon and end != "input":
            raise ConfigError(f"Node {node!r} is not valid: write the name of a module, MODULE:input, or {OUTPUT}.")
        raise ConfigError(
            f"Node {node!r}: the network has no module {name!r}. {nearest(name, [n for n in modules if n])}"
        )


class Capture:
    """Captures feature maps of a running network: `with Capture(model, nodes) as seen: model(x); seen.take()`.

    Maps are only captured and stored between `watch()` and `take()`.
    """

    def __init__(self, model: nn.Module, nodes: Iterable[str]) -> None:
        self.nodes = tuple(nodes)
        self._maps: list[Any] = []  # in the order of the nodes: a compiler would compile again for other keys of a dict
        self._watching = False
        self._handles: list[RemovableHandle] = []
        for i, node in enumerate(self.nodes):
            name, _, end = node.partition(":")
            module = model.get_submodule(name)
            if end == "input":
                self._handles.append(module.register_forward_pre_hook(lambda _, args, i=i: self._see(i, args[0])))
            else:
                self._handles.append(module.register_forward_hook(lambda _, __, out, i=i: self._see(i, out)))

    def _see(self, i: int, x: Any) -> None:
        if self._watching:
            self._maps[i] = x

    def watch(self) -> None:
        self._maps, self._watching = [None] * len(self.nodes), True

    def take(self) -> list[Any]:
        """Return the maps of the run since `watch`, in the order of the nodes, and release them. Of the network's output,
        whatever it returned."""
        maps, self._maps, self._watching = self._maps, [], False
        if missing := [node for node, x in zip(self.nodes, maps, strict=True) if x is None]:
            raise KeyError(f"{missing[0]} did not run")
        return maps

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._maps.clear()

    def __enter__(self) -> Capture:
        self.watch()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def by_name(maps: Iterable[FeatureMap]) -> Mapping[str, FeatureMap]:
    """The maps by each of their names."""
    return {name: m for m in maps for name in m.names}


def made_of(model: nn.Module, nodes: Iterable[str], example_inputs: Any) -> list[nn.Parameter]:
    """The parameters that these feature maps depend on, in the model's order."""
    found = flow(model, example_inputs)
    needed = set(found.depends_on(*(v for node in nodes for v in _values(found, node))))
    named = named_tensors(model)
    return [x for name, x in named.items() if name in needed and isinstance(x, nn.Parameter)]


def _values(found: Flow, node: str) -> tuple[Value, ...]:
    if node == OUTPUT:
        return found.outputs  # of several heads, all
    name, _, end = node.partition(":")
    runs = found.runs(name)[:1]
    return tuple(v for call in runs for v in (call.inputs[:1] if end else call.outputs))
