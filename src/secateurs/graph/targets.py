"""The arguments that a forward takes in training: targets that the caller gives, or a stand-in for those that nobody knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional, by name


def arguments(inputs: Any, targets: Any = None) -> Arguments:
    """The arguments of a forward: the example inputs, and the targets, if any, after them (a tuple, or one value) or by
    name (a dict)."""
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
    """A stand-in for each argument of the model's forward that the example inputs leave out and that may be a target: it
    has no default, or None. `meet` is called with each tensor that is combined with one. Empty if there is none.
    """
    given, named = arguments(inputs)
    try:
        signature = inspect.signature(model.forward)
        bound = signature.bind_partial(*given, **named).arguments
    except (TypeError, ValueError):
        return {}
    first = next((x for x in pytree.tree_leaves((given, named)) if isinstance(x, Tensor)), None)
    shape = () if first is None else (first.shape[0], *first.shape[2:]) if first.ndim > 2 else tuple(first.shape[:1])
    return {
        name: Unknown(meet, shape)
        for name, p in signature.parameters.items()
        if name not in bound and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.default in (None, p.empty)
    }


class Unknown:
    """A value that nobody knows: whatever is computed with it is unknown, too. It has the batch and the spatial size of the
    inputs, as a map of classes would."""

    def __init__(self, meet: Callable[[Tensor], None], shape: tuple[int, ...]) -> None:
        self._meet, self._shape = meet, shape

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = pytree.tree_leaves((args, kwargs or {}))
        one = next(x for x in leaves if isinstance(x, Unknown))
        for x in leaves:
            if isinstance(x, Tensor):
                one._meet(x)
        return one

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def size(self, axis: int | None = None) -> Any:
        return self._shape if axis is None else self._shape[axis]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def _with(self, *others: Any, **named: Any) -> Any:
        return type(self).__torch_function__(None, (), (self, *others), named)

    __call__ = __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _with
    __rtruediv__ = __pow__ = __neg__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __and__ = __or__ = _with
    __invert__ = __matmul__ = __rmatmul__ = __mod__ = __floordiv__ = _with

    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        yield self

    def __len__(self) -> int:
        return 1

    def __float__(self) -> float:
        return 1.0
