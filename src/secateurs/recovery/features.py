"""Feature maps of a network by name: list them, find the op that made each, and capture them in a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from secateurs.errors import ConfigError, nearest
from secateurs.graph.inputs import call, map_tensors, tensors, to_model_device
from secateurs.graph.modes import evaluating
from secateurs.training.metrics import heads

OUTPUT = ":output"  # the network's output
_ACTIVATIONS = (
    *("Relu", "Hardtanh", "LeakyRelu", "Silu", "Gelu", "Hardswish", "Elu", "Mish", "Prelu", "PreluKernel", "Sigmoid"),
    *("Tanh", "Hardsigmoid", "Softplus", "Threshold", "Clamp", "ClampMin", "ClampMax", "LogSigmoid", "Softshrink"),
)


@dataclass(frozen=True)
class FeatureMap:
    """A tensor passed between modules. It may have several names: a stage's output is its last block's."""

    name: str  # a module, for its output; or "module:input", for the input of that convolution
    names: tuple[str, ...]
    shape: tuple[int, ...]  # (N, C, *)
    op: str  # the op that made it: Relu, Add, Cat, NativeBatchNorm, Convolution …

    @property
    def area(self) -> int:
        """Pixels."""
        return int(torch.Size(self.shape[2:]).numel())

    @property
    def activated(self) -> bool:
        """Whether it is the output of a non-linearity."""
        return self.op in _ACTIVATIONS


def feature_maps(model: nn.Module, example_inputs: Any) -> list[FeatureMap]:
    """All (N, C, *) outputs of modules and inputs of convolutions, in the order in which they occur in one
    run in eval mode. Modules that run more than once are left out: their name is ambiguous. The model is not
    modified.
    """
    found: dict[
        tuple[int, int], tuple[list[str], Tensor, str]
    ] = {}  # by tensor, in its version before the next in-place op
    runs: dict[str, int] = {}

    given: set[int] = set()  # the inputs themselves are not feature maps

    def see(name: str, x: Any) -> None:
        runs[name] = runs.get(name, 0) + 1
        if isinstance(x, Tensor) and x.ndim >= 2 and id(x) not in given:
            names, _, _ = found.setdefault(
                (id(x), x._version), ([], x, _made_by(x))
            )  # kept, so that its id is not reused
            names.append(name)

    handles = []
    for name, module in model.named_modules():
        if not name:
            continue
        if isinstance(module, _ConvNd):
            before = lambda _, args, name=name: see(f"{name}:input", args[0] if args else None)  # noqa: E731
            handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(lambda _, __, out, name=name: see(name, out)))
    try:
        with torch.enable_grad():  # grad_fn tells the op that made a tensor
            _run(model, example_inputs, given)
    finally:
        for handle in handles:
            handle.remove()
    maps = []
    for names, x, op in found.values():
        names = [n for n in names if runs[n] == 1]
        if names:
            shortest = min(names, key=lambda n: (n.endswith(":input"), n.count("."), len(n)))
            maps.append(FeatureMap(shortest, tuple(names), tuple(x.shape), op))
    return maps


def _made_by(x: Tensor) -> str:
    made = x.grad_fn
    return "" if made is None else made.name().partition("Backward")[0]


def _run(model: nn.Module, inputs: Any, given: set[int] | None = None) -> Any:
    """Run the model on these inputs, on any devices, in eval mode; restores the modes. During the run, the inputs' ids
    are in `given`."""

    def there(x: Tensor) -> Tensor:
        x = x.detach()
        return x.requires_grad_().clone() if x.is_floating_point() else x  # not a leaf, since in-place ops may follow

    placed = map_tensors(there, to_model_device(model, inputs))
    if given is not None:
        given.update(id(x) for x in tensors(placed))
    with evaluating(model):
        return call(model, placed)


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
        self._maps: dict[str, Tensor] = {}
        self._watching = False
        self._handles: list[RemovableHandle] = []
        for node in self.nodes:
            name, _, end = node.partition(":")
            module = model.get_submodule(name)
            if end == "input":
                self._handles.append(
                    module.register_forward_pre_hook(lambda _, args, node=node: self._see(node, args[0]))
                )
            else:
                self._handles.append(module.register_forward_hook(lambda _, __, out, node=node: self._see(node, out)))

    def _see(self, node: str, x: Any) -> None:
        if self._watching:
            self._maps[node] = heads(x)[0] if node == OUTPUT else x

    def watch(self) -> None:
        self._maps, self._watching = {}, True

    def take(self) -> list[Tensor]:
        """Return the maps of the run since `watch`, in the order of the nodes, and release them."""
        maps, self._maps, self._watching = self._maps, {}, False
        return [maps[node] for node in self.nodes]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._maps = {}

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
    params = [p for p in model.parameters() if p.is_floating_point()]
    trainable = [p.requires_grad for p in params]
    for p in params:
        p.requires_grad_(True)
    try:
        with Capture(model, nodes) as seen, torch.enable_grad():
            _run(model, example_inputs)
            total = torch.stack([x.float().sum() for x in seen.take()]).sum()
            grads = torch.autograd.grad(total, params, allow_unused=True)
    finally:
        for p, was in zip(params, trainable, strict=True):
            p.requires_grad_(was)
    return [p for p, g in zip(params, grads, strict=True) if g is not None]
