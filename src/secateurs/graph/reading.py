"""Note reads of attributes that hold widths. `x.view(n, self.channels)` and `self.channels // 2` show what a width is used for.
`range(self.channels)`, `layers[self.channels]` and `math.log2(self.channels)` do not: there, Python takes any int as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch import nn

from secateurs.graph.context import Context
from secateurs.graph.frames import caller, of_the_user
from secateurs.graph.tape import Seen
from secateurs.graph.widths import Traced

_LOCK = Lock()
_MISSING: Any = object()


@contextmanager
def watched(attributes: Iterable[tuple[nn.Module, str]], tracer: Context) -> Iterator[None]:
    """Context in which the tracer notes when the user's code reads one of these attributes that holds a width."""
    found = [(module, name) for module, name in attributes if list(_widths(module.__dict__.get(name)))]
    kinds = dict.fromkeys((type(module), name) for module, name in found)
    with _LOCK:
        for kind, name in kinds:
            _attribute(kind, name).listeners.append(tracer)
    try:
        yield
    finally:
        with _LOCK:
            for kind, name in kinds:
                _attribute(kind, name).leave(kind, tracer)


class _Attribute:
    """An attribute of modules of one class: a descriptor in the class, which Python looks up before the module's own dict."""

    def __init__(self, name: str, before: Any) -> None:
        self._name, self._before = name, before
        self.listeners: list[Context] = []  # including those of other threads

    def __get__(self, module: nn.Module | None, kind: type | None = None) -> Any:
        own = {} if module is None else module.__dict__
        value = own[self._name] if self._name in own else self._inherited(module, kind or type(module))
        if value is _MISSING:
            raise AttributeError(self._name)  # `nn.Module.__getattr__` says more
        if of_the_user(1):
            for width in _widths(value):
                for tracer in self.listeners:
                    if tracer.log is width.log:
                        tracer.tape.hidden.append(Seen(width.expression, caller()))
        return value

    def _inherited(self, module: nn.Module | None, kind: type) -> Any:
        """Return what the class or one of its bases had under this name before our descriptors were added."""
        for base in kind.__mro__:
            found = vars(base).get(self._name, _MISSING)
            found = found._before if isinstance(found, _Attribute) else found
            if found is not _MISSING:
                return found.__get__(module, kind) if hasattr(type(found), "__get__") else found
        return _MISSING

    def __set__(self, module: nn.Module, value: Any) -> None:
        module.__dict__[self._name] = value

    def __delete__(self, module: nn.Module) -> None:
        if self._name not in module.__dict__:
            raise AttributeError(self._name)
        del module.__dict__[self._name]

    def leave(self, kind: type, tracer: Context) -> None:
        self.listeners = [t for t in self.listeners if t is not tracer]
        if not self.listeners and self._before is _MISSING:
            type.__delattr__(kind, self._name)
        elif not self.listeners:
            type.__setattr__(kind, self._name, self._before)


def _attribute(kind: type, name: str) -> _Attribute:
    """Return the descriptor of a class. It is added if the class has none."""
    found = vars(kind).get(name, _MISSING)
    if not isinstance(found, _Attribute):
        found = _Attribute(name, found)
        type.__setattr__(kind, name, found)
    return found


def _widths(value: Any) -> Iterator[Traced]:
    for x in value if isinstance(value, tuple | list) else (value,):
        if isinstance(x, Traced):
            yield x
