"""Save what a model's code can change, and restore it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
import random
import warnings
from argparse import Namespace
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import _lru_cache_wrapper, cached_property, partial, partialmethod
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.graph.packages import foreign, names_in

_ATOMS = frozenset({
    int, float, str, bytes, bool, complex, type(None), torch.dtype, torch.device, torch.Size, torch.layout,
    torch.memory_format, type(Ellipsis), range, slice,
})  # fmt: skip
_PLAIN = frozenset({dict, OrderedDict, set, list})
_OPENED = (SimpleNamespace, Namespace, UserDict, UserList)  # of the standard library
_ITERATORS: tuple[type, ...] = (itertools.count, itertools.cycle, type(iter([])), type(iter(())), type(iter(range(1))))
_MISSING: Any = object()


class State:
    """Everything that a model's code can reach and change, as it is now: attributes of instances and classes, and the
    containers and objects that they hold; variables of closures, default arguments, and the global variables that functions
    name; the contents of tensors and arrays, and the state of random generators. `restore` puts it back, object for object.

    The contents of the model's own parameters and buffers are not saved, since runs use other tensors in their place (see
    `replace`). Objects of the standard library and of training frameworks are not followed, except containers.
    """

    def __init__(self, modules: Mapping[str, nn.Module], *others: Any) -> None:
        self.tensors: dict[int, Tensor] = {}  # the model's parameters and buffers, by id
        self.scripted: list[str] = []  # where there are TorchScript modules
        self._held: list[tuple[Any, Any, Any]] = []  # a container, a key, and one of these tensors that is there
        self._iterators: list[tuple[Any, Any, Any]] = []
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._empty: list[Any] = []  # containers
        self._lists: list[tuple[Any, Any]] = []  # lists and bytearrays
        self._variables: list[tuple[Any, Any, Any]] = []  # of an object, a closure or a module: owner, name, value
        self._classes: list[tuple[type, dict[str, Any]]] = []
        self._contents: list[tuple[Tensor, Tensor, Tensor]] = []  # a tensor, its data, and a copy of the data
        self._caches: dict[Any, int] = {}  # of functions, with their number of misses
        self._undo: list[Callable[[], Any]] = []  # for rare types
        self._seen: dict[int, Any] = {}  # kept, so that no id is reused
        self._known: set[type] = set()
        self._globals: set[tuple[int, str]] = set()
        self._stack: list[tuple[Any, Any, Any]] = []
        for path, module in modules.items():
            self._seen[id(module)] = module
            if isinstance(module, torch.jit.ScriptModule):
                self._script(path, module)
            else:
                self._tensors_of(module)
        for path, module in modules.items():
            if not isinstance(module, torch.jit.ScriptModule):
                self._where = path
                self._module(module)
                if self._stack:
                    self._walk()
        self.has_constants = bool(self._contents)  # whether the code can reach tensors that are not the model's
        self.cached = False  # whether the code has cached anything since then, which `restore` notes
        for other in others:
            self._visit(None, None, other)
            self._walk()

    # -- what runs do with it ------------------------------------------------------------------------------------------

    def replace(self, tensors: Mapping[int, Tensor]) -> None:
        """Put these tensors in place of the model's own, by id, wherever they are held. Caches of functions are cleared, since
        their values were computed from the model's own tensors, or from plain numbers. So a run does not depend on whether the
        model has run before."""
        for function in self._caches:
            function.cache_clear()
            self._caches[function] = 0
        for own, key, value in self._held:
            _put(own, key, _mapped(value, tensors))
        for own, key, iterator in self._iterators:
            with warnings.catch_warnings(), contextlib.suppress(Exception):
                warnings.simplefilter("ignore")
                _put(own, key, copy.copy(iterator))

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Also restore the contents of these tensors of the model."""
        for x in tensors:
            self._tensor(x)

    def copies(self) -> dict[int, Tensor]:
        """Return copies of the model's parameters and buffers, by the id of the original."""
        return {i: copied_tensor(x) for i, x in self.tensors.items()}

    def restore(self) -> None:
        """Put everything back as it was."""
        for own in self._empty:
            if own:
                own.clear()
        for own, before in self._dicts:
            if not _same(own, before):
                self.cached |= self._caching(own, before)
                _refill(own, before)
        for sequence, items in self._lists:
            if len(sequence) != len(items) or not all(map(operator.is_, sequence, items)):
                self.cached |= len(sequence) != len(items)
                sequence[:] = items
        for owner, name, value in self._variables:
            _put(owner, name, value)
        for cls, namespace in self._classes:
            _restore_class(cls, namespace)
        for x, data, saved in self._contents:
            _restore_tensor(x, data, saved)
        for function, misses in self._caches.items():
            if function.cache_info().misses != misses:  # entries cannot be removed one by one
                function.cache_clear()
        for undo in self._undo:
            undo()

    def _caching(self, own: dict[Any, Any], before: dict[Any, Any]) -> bool:
        """Whether the code has put something new into a dict, or another tensor in place of one that is not the model's."""
        if (own.keys() ^ before.keys()) - {"forward"}:  # which a run sets itself
            return True
        others = [(key, x) for key, x in before.items() if isinstance(x, Tensor) and id(x) not in self.tensors]
        return any(own[key] is not x for key, x in others)

    # -- the walk ------------------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        while self._stack:
            self._visit(*self._stack.pop())

    def _visit(self, owner: Any, key: Any, value: Any) -> None:
        """Note a value that `owner` has at `key`, where it can be replaced."""
        kind = type(value)
        if kind in _ATOMS:
            return
        if id(value) in self.tensors:
            if owner is not None:
                self._held.append((owner, key, value))
            return
        if isinstance(value, tuple):
            if owner is not None and self._has_own(value):
                self._held.append((owner, key, value))
            self._stack += [(None, None, x) for x in value if type(x) not in _ATOMS]
            return
        if id(value) in self._seen and not isinstance(value, _ITERATORS):
            return
        self._seen[id(value)] = value
        if isinstance(value, dict):
            self._dict(value)
        elif isinstance(value, _ITERATORS):
            if owner is not None:
                self._iterators.append((owner, key, value))
        elif kind in (list, bytearray) or isinstance(value, list):
            self._list(value)
        elif kind is FunctionType:
            self._function(value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            if isinstance(value, torch.jit.ScriptModule):
                self._script(f"{self._where} (in {key})" if self._where else str(key), value)
            else:
                self._module(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, set | frozenset):
            self._set(value)
        elif not self._rare(value):
            self._object(value)

    def _tensors_of(self, module: nn.Module) -> None:
        """Note the parameters and buffers of a module of the model."""
        for own in (module.__dict__["_parameters"], module.__dict__["_buffers"]):
            if own:
                self._seen[id(own)] = own
                self._dicts.append((own, dict(own)))
                for name, x in own.items():
                    if x is not None:
                        self.tensors[id(x)] = x
                        self._held.append((own, name, x))

    def _module(self, module: nn.Module) -> None:
        self._dict(module.__dict__)
        if type(module) not in self._known:
            self._class(type(module))

    def _dict(self, own: dict[Any, Any]) -> None:
        self._dicts.append((own, dict(own)))
        for key, value in own.items():
            kind = type(value)
            if kind in _ATOMS:
                continue
            if kind in _PLAIN and not value:  # most of what a module has: dicts of hooks
                self._empty.append(value)
            elif kind is not tuple or not _ATOMS.issuperset(map(type, value)):
                self._stack.append((own, key, value))
        if type(own) not in _PLAIN:
            self._object(own)

    def _list(self, own: Any) -> None:
        self._lists.append((own, own[:] if type(own) in (list, bytearray) else list(own)))
        if not isinstance(own, bytearray):
            self._stack += [(own, i, x) for i, x in enumerate(own) if type(x) not in _ATOMS]
        if type(own) not in (list, bytearray):
            self._object(own)

    def _set(self, own: Any) -> None:
        if isinstance(own, set):
            self._undo.append(partial(_restore_set, own, set(own)))
        self._stack += [(None, None, x) for x in own if type(x) not in _ATOMS]

    def _tensor(self, x: Tensor) -> None:
        if x.layout is torch.strided and not x.is_meta and not x.is_quantized:
            self._contents.append((x, x.data, x.detach().clone()))
        self._dict(x.__dict__)

    def _function(self, f: FunctionType) -> None:
        if foreign(f.__module__):
            return
        for cell in f.__closure__ or ():
            with contextlib.suppress(ValueError):  # empty
                self._variable(cell, "cell_contents", cell.cell_contents)
        for default in (f.__defaults__, f.__kwdefaults__, f.__dict__):
            if default:
                self._stack.append((None, None, default))
        if not foreign(f.__globals__.get("__name__")):
            for name in names_in(f.__code__):
                if name in f.__globals__ and (id(f.__globals__), name) not in self._globals:
                    self._globals.add((id(f.__globals__), name))
                    self._variable(f.__globals__, name, f.__globals__[name])

    def _variable(self, owner: Any, name: str, value: Any) -> None:
        self._variables.append((owner, name, value))
        if type(value) not in _ATOMS:
            self._stack.append((owner, name, value))

    def _class(self, cls: type) -> None:
        for base in () if cls in self._known else cls.__mro__:
            if base not in self._known and not foreign(base.__module__):
                own = {k: v for k, v in vars(base).items() if not _dunder(k) or k == "__call__"}
                self._classes.append((base, own))
                self._stack += [(base, k, v) for k, v in own.items() if type(v) not in _ATOMS]
            self._known.add(base)

    def _rare(self, value: Any) -> bool:
        """Note a value of a type that has its own kind of state. Returns False for other types."""
        follow: tuple[Any, ...] = ()
        if isinstance(value, np.ndarray):
            if value.flags.writeable:
                self._undo.append(partial(_restore_array, value, value.copy()))
        elif isinstance(value, deque):
            self._undo.append(partial(_restore_deque, value, list(value)))
            follow = tuple(value)
        elif isinstance(value, MethodType):
            follow = (value.__self__, value.__func__)
        elif isinstance(value, partial | partialmethod):
            follow = (value.func, value.args, value.keywords)
        elif isinstance(value, staticmethod | classmethod):
            follow = (value.__func__,)
        elif isinstance(value, property):
            follow = (value.fget, value.fset)
        elif isinstance(value, cached_property):
            follow = (value.func,)
        elif isinstance(value, _lru_cache_wrapper):
            self._caches[value] = value.cache_info().misses
            follow = (value.__wrapped__,)
        elif isinstance(value, torch.Generator):
            self._undo.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._undo.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.RandomState):
            self._undo.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            generator = value.bit_generator
            self._undo.append(partial(setattr, generator, "state", copy.deepcopy(generator.state)))
        else:
            return False
        self._stack += [(None, None, x) for x in follow]
        return True

    def _object(self, value: Any) -> None:
        cls = type(value)
        if foreign(cls.__module__) and not isinstance(value, _OPENED):
            return
        self._class(cls)
        with contextlib.suppress(AttributeError):
            own = object.__getattribute__(value, "__dict__")
            if isinstance(own, dict):
                self._dict(own)
        for name in slots_of(cls):
            with contextlib.suppress(AttributeError):
                self._variable(value, name, object.__getattribute__(value, name))

    def _script(self, path: str, module: nn.Module) -> None:
        self.scripted.append(path)
        for x in (*module.parameters(), *module.buffers()):
            self._tensor(x)

    def _has_own(self, value: tuple[Any, ...]) -> bool:
        return any(id(x) in self.tensors or (isinstance(x, tuple) and self._has_own(x)) for x in value)


def copied_tensor(x: Tensor) -> Tensor:
    """Return a copy of a parameter or buffer, of the same type."""
    new = x.detach().clone()
    return nn.Parameter(new, x.requires_grad) if type(x) is nn.Parameter else new


def slots_of(cls: type) -> Iterator[str]:
    """Yield the names of a class's slots, as they are stored."""
    for base in cls.__mro__:
        for name, member in vars(base).items():
            if type(member).__name__ == "member_descriptor" and not _dunder(name):
                yield name


def _dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _put(owner: Any, key: Any, value: Any) -> None:
    if isinstance(owner, dict):
        if owner.get(key, _MISSING) is not value:
            dict.__setitem__(owner, key, value)
    elif isinstance(owner, list):
        list.__setitem__(owner, key, value)
    elif isinstance(owner, CellType):
        owner.cell_contents = value
    elif isinstance(owner, type):
        type.__setattr__(owner, key, value)
    else:
        object.__setattr__(owner, key, value)


def _mapped(value: Any, tensors: Mapping[int, Tensor]) -> Any:
    if isinstance(value, tuple):
        new = [_mapped(x, tensors) for x in value]
        return type(value)._make(new) if hasattr(value, "_make") else type(value)(new)
    return tensors.get(id(value), value)


def _same(own: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Whether both have the same objects, in the same order."""
    if len(own) != len(before):
        return False
    return all(map(operator.is_, own, before)) and all(map(operator.is_, own.values(), before.values()))


def _refill(own: dict[Any, Any], before: dict[Any, Any]) -> None:
    if type(own) in _PLAIN:
        own.clear()
        own.update(before)
    else:
        base: Any = OrderedDict if isinstance(own, OrderedDict) else dict  # whatever its type overrides
        base.clear(own)
        for key, value in before.items():
            base.__setitem__(own, key, value)


def _restore_class(cls: type, before: dict[str, Any]) -> None:
    now = vars(cls)
    for name in [n for n in now if n not in before and not _dunder(n)]:
        type.__delattr__(cls, name)
    for name, value in before.items():
        if now.get(name, _MISSING) is not value:
            type.__setattr__(cls, name, value)


def _restore_tensor(x: Tensor, data: Tensor, saved: Tensor) -> None:
    with torch.no_grad():
        if x.data_ptr() != data.data_ptr() or x.shape != data.shape or x.stride() != data.stride():
            x.data = data
        if not torch.equal(data, saved):
            data.copy_(saved)


def _restore_set(own: set[Any], before: set[Any]) -> None:
    if own != before:
        set.clear(own)
        set.update(own, before)


def _restore_deque(own: deque[Any], before: list[Any]) -> None:
    if len(own) != len(before) or not all(map(operator.is_, own, before)):
        own.clear()
        own.extend(before)


def _restore_array(own: np.ndarray, before: np.ndarray) -> None:
    own[...] = before
