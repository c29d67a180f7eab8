"""Copies of modules."""

from __future__ import annotations

import copy
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.errors import SecateursError, TraceError, a_or_an

_CODE = (ModuleType, FunctionType, type)  # what deepcopy does not copy
_ATOMS = (int, float, str, bytes, bool, complex, type(None), type, torch.dtype, torch.device, torch.Size)


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of the module, as `copy.deepcopy` does, but in a fraction of its time if modules hold only
    the usual attributes. memo: replacements in the copy by the id of the original object."""
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    if any(getattr(type(module), name, None) is not getattr(nn.Module, name, None) for name in _OWN_COPY):
        return copy.deepcopy(module, memo)
    new = module.__class__.__new__(module.__class__)
    memo[id(module)] = new
    for key, value in module.__dict__.items():
        own: Any
        if key == "_compiled_call_impl":  # `module.compile()`: it would run the original. The class has its default.
            continue
        kind = type(value)
        if kind in _ATOMS or (kind is tuple and all(type(x) in _ATOMS for x in value)) or isinstance(value, _ATOMS):
            own = value
        elif kind is set and not value:
            own = set()
        elif key == "_modules":
            own = {k: m if m is None else copied(m, memo) for k, m in value.items()}
        elif kind is dict and key in ("_parameters", "_buffers"):
            own = {k: x if x is None else memo[id(x)] if id(x) in memo else _tensor(x, memo) for k, x in value.items()}
        elif kind in _PLAIN and not value:
            own = kind()
        elif isinstance(value, Tensor):
            own = _tensor(value, memo)
        else:
            _detach(value, memo)
            try:
                own = copy.deepcopy(value, memo)
            except SecateursError:
                raise
            except Exception as error:  # a ScriptFunction, an open file, a lock …
                raise TraceError(
                    f"The model cannot be copied: attribute {key!r} of {a_or_an(type(module).__name__)} cannot "
                    f"({type(error).__name__}: {error}). Remove it before the cut."
                ) from error
        new.__dict__[key] = own
    return new


def _tensor(x: Tensor, memo: dict[int, Any]) -> Any:
    if not x.is_leaf:
        _detach(x, memo)
    return copy.deepcopy(x, memo)


def _detach(value: Any, memo: dict[int, Any]) -> None:
    """Add copies of tensors that were computed in a forward pass to the memo, since deepcopy refuses them. A weight-norm hook
    leaves such a tensor, and so do modules that cache what they computed."""
    stack, seen = [value], set[int]()
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            if not value.is_leaf and id(value) not in memo:
                memo[id(value)] = value.detach().clone()
        elif id(value) not in seen and not isinstance(value, _CODE):
            seen.add(id(value))
            parts = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
            )
            stack += [x for x in (*parts, *getattr(value, "__dict__", {}).values()) if not isinstance(x, _ATOMS)]


_OWN_COPY = ("__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__")  # a type that defines one knows best
_PLAIN = (dict, type(nn.Module()._forward_hooks))
