"""Find which modules hold a weight, and whether it is read as it is stored."""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterable
from functools import cache
from itertools import zip_longest
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

from secateurs.graph.channels import named_tensors
from secateurs.graph.packages import foreign, names_in

_READS = ("LOAD_ATTR", "LOAD_METHOD")
# What code can read of a tensor without reading its values.
_ABOUT = ("dtype", "device", "shape", "size", "dim", "ndim", "numel", "requires_grad")


def held_by(model: nn.Module, names: set[str], kind: Callable[[nn.Module], bool]) -> set[str]:
    """Return the parameters among `names` that only modules of one kind hold."""
    named = named_tensors(model)
    found = {id(named[name]): name for name in names}
    for module in model.modules():
        if not kind(module):
            for x in (*module._parameters.values(), *module._buffers.values()):
                found.pop(id(x), None)
    return set(found.values())


def reads_directly(module: nn.Module) -> bool:
    """Whether a module is a PyTorch layer, which reads its weights as they are stored."""
    kind = type(module)
    if "forward" in module.__dict__ or computes(module) or kind.forward is nn.Module.forward:
        return False
    own = (kind.forward, getattr(kind, "_conv_forward", None))
    return all(f is None or f.__module__.startswith("torch.nn.modules.") for f in own)


def computes(module: nn.Module) -> bool:
    """Whether a parametrization or a hook may compute weights from what a module holds before it runs."""
    return isinstance(module, ParametrizationList) or bool(module._forward_pre_hooks)


def read_as_stored(model: nn.Module, consumes: Iterable[tuple[str, int]]) -> set[str]:
    """Return the consuming parameters that are read only by PyTorch layers that sum over the consuming axes. A parameter of a
    layer that computes the weight of another layer is not among them, for example. consumes: (name, axis)."""
    by_axis: dict[int, set[str]] = {}
    for name, axis in consumes:
        by_axis.setdefault(axis, set()).add(name)
    named = _named_in_code(model)
    found: set[str] = set()
    other: set[str] = set()
    for axis, names in by_axis.items():
        direct = held_by(model, names, lambda m, a=axis: reads_directly(m) and a in _sums_over(m))  # type: ignore[misc]
        direct = {name for name in direct if name.rpartition(".")[2] not in named}
        found |= direct
        other |= names - direct
    return found - other


def _sums_over(module: nn.Module) -> tuple[int, ...]:
    """Return the axes of its weights that a layer sums over."""
    if isinstance(module, nn.Bilinear):
        return 1, 2
    return (0,) if isinstance(module, _ConvTransposeNd) else (1,)


def _named_in_code(model: nn.Module) -> set[str]:
    """Return the names that the user's modules look up in a forward pass, in themselves or in other modules."""
    return {name for kind in {type(module) for module in model.modules()} for name in _named_in(kind)}  # type: ignore[arg-type]


@cache
def _named_in(kind: type) -> frozenset[str]:
    own: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if not foreign(base.__module__):
            own.update(vars(base))
    found = set[str]()
    due: list[Any] = [own.get("forward"), own.get("__call__")]
    seen: set[Any] = set()
    while due:
        function = due.pop()
        function = function.fget if isinstance(function, property) else getattr(function, "__func__", function)
        if isinstance(function, FunctionType) and function not in seen and not foreign(function.__module__):
            seen.add(function)
            names = names_in(function.__code__)
            found.update(set(names) - _only_asked(function.__code__))
            due += [where.get(name) for name in names for where in (own, function.__globals__)]
    return frozenset(found)


def _only_asked(code: CodeType) -> set[str]:
    """Return the attributes that a function and its inner functions read only for their dtype, shape or device, as in
    `x.to(self.weight.dtype)`."""
    asked, used = set[str](), set[str]()
    steps = list(dis.get_instructions(code))
    for step, after in zip_longest(steps, steps[1:]):
        if step.opcode in dis.hasname:
            about = step.opname in _READS and after is not None and after.opname in _READS and after.argval in _ABOUT
            (asked if about else used).add(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = _only_asked(constant)
            asked |= inner
            used |= set(names_in(constant)) - inner
    return asked - used
