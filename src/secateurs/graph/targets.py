"""The arguments that a forward takes in training: targets that the caller gives, or stand-ins for unknown ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional, by name


def arguments(inputs: Any, targets: Any = None) -> Arguments:
    """Return the arguments of a forward: the example inputs, and the targets, if any, after them (a tuple, or one value) or
    by name (a dict)."""
    given: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        named = dict(inputs)
    else:
        given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    if isinstance(targets, Mapping):
        named |= targets
    elif targets is not None:
        given += targets if isinstance(targets, tuple) else (targets,)
    return given, named


def unknown_targets(model: nn.Module, inputs: Any, meet: Callable[[Tensor], None]) -> dict[str, Unknown]:
    """Return a stand-in for each argument of the model's forward that the example inputs leave out and that may be a target:
    its default is None, or it has none. meet: called with each tensor that is combined with a stand-in.
    """
    given, named = arguments(inputs)
    try:
        signature = inspect.signature(model.forward)
        bound = signature.bind_partial(*given, **named).arguments
    except (TypeError, ValueError):
        return {}
    first = next((x for x in pytree.tree_leaves((given, named)) if isinstance(x, Tensor)), torch.empty(1))
    return {
        name: Unknown.of(meet, first)
        for name, p in signature.parameters.items()
        if name not in bound and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.default in (None, p.empty)
    }


_MOST = 1000  # number of conditions after which a loop counts as endless


class Unknown(Tensor):
    """An unknown value: whatever is computed with it is unknown, too. It can stand for a tensor of the inputs' batch and
    spatial size, such as a map of classes, and for a list or a dict."""

    meet: Callable[[Tensor], None]
    extent: torch.Size
    asked: int  # how often its truth was asked for

    @staticmethod
    def of(meet: Callable[[Tensor], None], image: Tensor) -> Unknown:
        """Create an unknown value. image: (N, C, *spatial)."""
        new = torch.empty(0).as_subclass(Unknown)
        new.meet, new.extent, new.asked = meet, torch.Size((*image.shape[:1], *image.shape[2:])), 0
        return new

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = pytree.tree_leaves((args, kwargs or {}))
        one = next(x for x in leaves if isinstance(x, Unknown))
        for x in leaves:
            if isinstance(x, Tensor) and not isinstance(x, Unknown):
                one.meet(x)
        if func.__name__ == "__get__" and getattr(func.__self__, "__name__", "") in _FIXED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        return one

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        yield self

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.extent

    def size(self, dim: int | None = None) -> Any:
        return self.extent if dim is None else self.extent[dim]

    def dim(self) -> int:
        return len(self.extent)

    ndim = property(dim)

    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> bool:
        self.asked += 1
        if self.asked > _MOST:
            raise RuntimeError("the code waits for a value that nobody knows")
        return True

    def __contains__(self, item: Any) -> bool:
        return True

    def _one(self) -> int:
        return 1

    __len__ = __int__ = __index__ = _one

    def __float__(self) -> float:
        return 1.0

    def __repr__(self) -> str:  # type: ignore[override]
        return "Unknown()"

    def __format__(self, spec: str) -> str:
        return "Unknown()"


_FIXED = ("dtype", "device", "layout", "is_meta", "is_cuda", "requires_grad")
