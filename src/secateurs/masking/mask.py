"""The masked network of a plan: the original shape, with zeros where channels and stripes are cut."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.graph.labels import LABEL
from secateurs.graph.tape import Labels
from secateurs.masking.holders import computes, held_by, read_as_stored
from secateurs.masking.reading import Axis, Reading
from secateurs.plans.plan import Plan, check_plan
from secateurs.plans.stripes import as_mask


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a new module of the original shape, in which the cut stripes and the consumers' weights for the cut channels are
    zero.

    A computed weight is masked where it meets the activations. If a parametrization or a hook computes it (weight norm,
    spectral norm, `torch.nn.utils.prune`), its parameters do not change. If the model's own code computes it, its parameters
    are stored with the zeros. The weight is masked whenever the returned module is called, but not if you call its `forward` or
    one of its parts.
    """
    return masked_twin(model, plan, {}, everywhere=False)


def masked_twin(model: nn.Module, plan: Plan, shared: Mapping[int, Tensor], *, everywhere: bool = True) -> nn.Module:
    """Return the masked network. It shares the parameters in `shared` (by id) with the model, except those that are masked.
    everywhere: also mask what code outside a PyTorch layer computes from the layer's weight."""
    check_plan(plan, model)
    params = named_tensors(model)
    names = {name for name, _ in plan.consumes}
    computed = names - held_by(model, names, lambda module: not computes(module))
    zeroed: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, axis in sorted(plan.consumes):
            if name not in computed:
                w = zeroed.get(name, params[name].detach())
                zeroed[name] = w * _shaped(_alive(plan, name, axis), axis, w)
        for name, places in plan.stripes.items():
            w = zeroed.get(name, params[name].detach())
            zeroed[name] = w * as_mask(places, tuple(w.shape)).to(w.device)[:, None]
    memo: dict[int, Any] = {**shared}
    for name, w in zeroed.items():
        old = params[name]
        memo[id(old)] = nn.Parameter(w, old.requires_grad) if isinstance(old, nn.Parameter) else w
    masked = copied(model, memo)
    if names and (everywhere or read_as_stored(model, plan.consumes) != names):
        _Masks(plan, frozenset(zeroed)).attach(masked)
    return masked


def masking(masked: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which the parts of a masked network are also masked when they are called by themselves."""
    hooks = [h for h in masked._forward_pre_hooks.values() if isinstance(h, _Masks)]
    return hooks[0].reading(masked) if hooks else nullcontext()


def _alive(plan: Plan, name: str, axis: int) -> np.ndarray:
    alive = np.zeros(plan.shapes[name][axis], dtype=bool)
    alive[list(plan.kept[name][axis])] = True
    return alive


def _shaped(values: np.ndarray, axis: int, w: Tensor) -> Tensor:
    """Reshape values along one axis of w so that they broadcast with it."""
    return torch.from_numpy(values).to(w.device).view([-1 if a == axis else 1 for a in range(w.ndim)])


class _Masks:
    """Hooks before and after each forward pass of a network that mask the weights that its ops read."""

    def __init__(self, plan: Plan, stored: frozenset[str]) -> None:
        self._stored = stored  # parameters with zeros
        self._labels: dict[Axis, np.ndarray] = {}
        alive = [np.ones(1, dtype=bool)]
        for name, axis in sorted(plan.consumes):
            start = sum(map(len, alive))
            alive.append(_alive(plan, name, axis))
            self._labels[name, axis] = np.arange(start, start + len(alive[-1]), dtype=LABEL)
        self._alive = np.concatenate(alive)  # by label
        self._running: list[Reading] = []

    def attach(self, masked: nn.Module) -> None:
        masked.register_forward_pre_hook(self, prepend=True)
        masked.register_forward_hook(self._leave, always_call=True)

    def reading(self, masked: nn.Module) -> Reading:
        return Reading(masked, self._labels, self._masked, self._stored)

    def _masked(self, w: Tensor, labels: Labels) -> Tensor:
        for axis, own in labels.items():
            if not (alive := self._alive[own]).all():
                w = w.masked_fill(_shaped(~alive, axis, w), 0)
        return w

    def __call__(self, masked: nn.Module, args: Any) -> None:
        self._running.append(self.reading(masked))
        self._running[-1].__enter__()

    def _leave(self, masked: nn.Module, args: Any, out: Any) -> None:
        self._running.pop().__exit__(None, None, None)
