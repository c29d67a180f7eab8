"""The masked twin of a cut network, made without the library's own: the channels that go read as zero.

Wherever a layer reads a channel that goes, a hook on the layer puts zeros in its place, so that what is masked is what is read,
whatever the weight is computed from. Raw parameters that nothing hooks are zeroed where the plan says that they consume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils import _pytree as pytree

from fuzzing.frames import Chain, Slotted
from fuzzing.parts import Block
from secateurs.graph.channels import named_tensors

Place = tuple[str, int]  # a tensor's name, and an axis of it


def seeded() -> None:
    torch.manual_seed(11)


def leaves(out: Any) -> list[Tensor]:
    """All tensors in an output, in whatever of `frames` it comes."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(out):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Slotted):
            found += leaves([leaf.logits, leaf.features])
        elif hasattr(leaf, "__dict__"):
            found += leaves(list(vars(leaf).values()))
    return found


def doubled(model: nn.Module) -> nn.Module:
    """In double precision, complex numbers too. In place."""
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for x in own.values():
                if x is not None and (x.is_floating_point() or x.is_complex()):
                    x.data = x.data.to(torch.complex128 if x.is_complex() else torch.float64)
    return model


def as_double(inputs: Any) -> Any:
    return pytree.tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


def fresh(inputs: Any) -> Any:
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)


def run(model: nn.Module, inputs: Any, targets: Any = None) -> Any:
    """The outputs, with the random numbers of one seed."""
    inputs = fresh(inputs)
    with torch.random.fork_rng():
        seeded()
        if isinstance(inputs, dict):
            return model(**inputs)
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        return model(*inputs) if targets is None else model(*inputs, targets)


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, as a share of the range of each output."""
    if [x.shape for x in found] != [x.shape for x in wanted]:
        return float("inf")
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        if b.numel() == 0:
            continue
        if not (b.is_floating_point() or b.is_complex()):
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        scale = float(b.abs().max()) or 1.0
        far = float((a - b).abs().max()) / scale
        worst = max(worst, far if far == far else float("inf"))
    return worst


class Masked:
    """A network with hooks for what the plan cuts."""

    def __init__(self, model: Chain, plan: Any) -> None:
        self.model = model
        self.fired: set[str] = set()
        tensors = named_tensors(model)
        modules = dict(model.named_modules())
        handled: dict[Place, str] = {}  # what is masked by a hook on this module
        owners: dict[int, list[str]] = {}
        for path, module in modules.items():
            for own in (module._parameters, module._buffers):
                for leaf, x in own.items():
                    if x is not None:
                        owners.setdefault(id(x), []).append(f"{path}.{leaf}" if path else leaf)
        hooked: set[tuple[str, int]] = set()
        for path, module in modules.items():
            if isinstance(module, Block):
                for name, axis, at, input_axis in module.watched():
                    full = f"{path}.{name}"
                    param = next((n for n in owners.get(id(tensors.get(full)), [full]) if n in plan.kept), full)
                    if axis in plan.kept.get(param, {}):
                        dead = _dead(tensors[param], axis, plan.kept[param][axis])
                        self._hook(f"{path}.{at}", modules[f"{path}.{at}"], dead, input_axis)
                        handled[param, axis] = f"{path}.{at}"
                        hooked.add((full, axis))
        for param, axes in plan.kept.items():
            for name in owners[id(tensors[param])]:
                path, module = layer_of(name, modules)
                axis, reads = _reads(module, name)
                if (
                    axis in axes
                    and (name, axis) not in hooked
                    and not isinstance(modules.get(path.rpartition(".")[0]), nn.MultiheadAttention)
                ):
                    dead = _dead(tensors[param], axis, axes[axis])
                    if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
                        per = tensors[param].shape[1]
                        dead = [g * per + i for g in range(module.groups) for i in dead]
                    self._hook(path, module, dead, reads)
                    handled[param, axis] = path
        self.places = handled
        self.raw = {place for place in plan.consumes if place not in handled}
        for place in self.raw:
            self._zero(*place, plan)
        self.plan = plan

    def _hook(self, path: str, module: nn.Module, dead: list[int], axis: int) -> None:
        def silence(_: nn.Module, args: Any) -> Any:
            self.fired.add(path)
            x = args[0].clone()
            return (x.index_fill(axis % x.ndim, torch.tensor(dead), 0), *args[1:])

        module.register_forward_pre_hook(silence)

    def _zero(self, param: str, axis: int, plan: Any) -> None:
        w = named_tensors(self.model)[param]
        w.data = w.data.index_fill(axis, torch.tensor(_dead(w, axis, plan.kept[param][axis])), 0)

    def _buffers(self) -> list[dict[str, Tensor | None]]:
        return [module._buffers for module in self.model.modules()]

    def outputs(self, inputs: Any, targets: Any = None) -> list[Tensor]:
        before = [(own, {k: None if x is None else x.clone() for k, x in own.items()}) for own in self._buffers()]
        out = leaves(run(self.model, inputs, targets))
        silent = [
            place for place, path in self.places.items() if path not in self.fired and place in self.plan.consumes
        ]
        if silent:  # layers that are not called: their parameters are read by functions
            for place in silent:
                self._zero(*place, self.plan)
                del self.places[place]
            for own, old in before:  # a forward may have written to them
                own.update(old)
            out = leaves(run(self.model, inputs, targets))
        return out


def _dead(w: Tensor, axis: int, kept: Any) -> list[int]:
    return sorted(set(range(w.shape[axis])) - set(kept))


def layer_of(name: str, modules: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    """The layer that a tensor belongs to, through parametrizations."""
    path = name.rpartition(".")[0]
    if ".parametrizations." in f".{path}.":
        path = f".{path}.".partition(".parametrizations.")[0][1:]
    return path, modules[path]


def _reads(module: nn.Module, name: str) -> tuple[int, int]:
    """(axis of the tensor that stands for what the layer reads, axis of what it reads); -1 if it has none."""
    leaf = name.rpartition(".")[2]
    weight = (
        "weight" in name.split(".")[-2:] or ".parametrizations.weight." in name or leaf in ("weight_orig", "weight_v")
    )
    if isinstance(module, _ConvNd) and weight:
        return (0 if isinstance(module, _ConvTransposeNd) else 1), 1
    if isinstance(module, nn.Linear) and weight:
        return 1, -1
    if isinstance(module, nn.RNNBase) and leaf in ("weight_ih_l0", "weight_ih_l0_reverse"):
        return 1, -1
    if isinstance(module, nn.RNNCellBase) and leaf == "weight_ih":
        return 1, -1
    return -1, 0


Step = Callable[[nn.Module], list[Tensor]]


def train_step(model: nn.Module, inputs: Any, targets: Any) -> list[Tensor]:
    """One forward in training mode, a loss over all outputs, one backward. Returns the outputs."""
    found = leaves(run(model.train(), inputs, targets))
    losses = [(x.abs() if x.is_complex() else x).square().mean() for x in found if x.requires_grad]
    if losses:
        torch.stack([loss.to(losses[0].dtype) for loss in losses]).sum().backward()
    return [x.detach() for x in found]
