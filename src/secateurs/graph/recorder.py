"""Records the flow of a network while it runs under the tracer."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.graph.flow import Call, Flow, Function, Op, Value, values
from secateurs.graph.inputs import tensors

_CALL, _FRAME = nn.Module._call_impl.__code__, sys._getframe
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
Place = tuple[int, tuple[int, ...], tuple[int, ...]]  # a view of a storage: offset, shape, strides


class Recorder:
    """Notes what happens in one run. A run on meta tensors only collects the events, which takes hardly any time; they are
    read when the flow is first requested. A run on real tensors reads each event at once, so that no activation is kept.

    meta: whether the run is on meta tensors. names: of parameters and buffers, by id. modules: by path.
    """

    def __init__(self, meta: bool, names: Mapping[int, str], modules: Mapping[str, nn.Module]) -> None:
        self._meta, self._names, self._modules = meta, names, modules
        self._events: list[tuple[Any, ...]] = []  # the method that reads an event, and its arguments
        self._open = True
        self._sources: dict[int, tuple[Tensor, Value]] = {}  # parameters and constants; kept, so that no id is reused
        self._count = 0
        self._ops: list[tuple[Any, Any, Any, list[Value], int, Function | None]] = []
        self._calls: list[list[Any]] = [["", 0, (), (), None]]  # module, occurrence, inputs, outputs, output
        self._stack = [0]  # the calls that are running
        self._occurred: dict[str, int] = {}
        self._writes: dict[int, list[tuple[Place, Value]]] = {}  # by storage
        self._function: tuple[Any, Function | None] = None, None  # the call in the model's code that ran last
        self._inputs: list[Value] = []
        self._outputs: tuple[Value, ...] = ()

    # -- what the tracer reports ---------------------------------------------------------------------------------------

    def start(self, inputs: Iterable[Tensor]) -> None:
        """Start to record a run on these inputs. To follow which modules run, this sets their `forward`, or their hooks if
        there are any, since hooks may change a module's inputs and outputs. The caller restores these attributes. (Hooks would
        work for all modules, but cost seven times as much.)"""
        self._inputs = [self._new(x, live=True) for x in inputs]
        everywhere = any(getattr(torch.nn.modules.module, f"_global{kind}") for kind in _HOOKS)
        for path, module in self._modules.items():
            own = module.__dict__
            pre, post = own["_forward_pre_hooks"], own["_forward_hooks"]
            if path and (everywhere or any(own[kind] for kind in _HOOKS)):
                own["_forward_pre_hooks"] = OrderedDict([(id(self), self._entered), *pre.items()])
                own["_forward_hooks"] = OrderedDict([*post.items(), (id(self), self._left)])
            elif path:
                own["forward"] = self._watched(module, module.forward)

    def prepare(self, op: Any) -> None:
        """Prepare for an op. If it changes the shape of a tensor, the events before it are read now, with the old shape."""
        if _reshapes(op):
            self._read()

    def op(self, op: Any, args: Any, kwargs: Any, out: Any, call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> None:
        """Record an op that ran, in this call in the model's code."""
        self._events.append((self._op, op, args, kwargs, out, call))
        if not self._meta:
            self._read()

    def stop(self, out: Any) -> None:
        """Record what the model returned, and stop."""
        self._events = [*self._events, (self._returned, out)]  # later events, of a run in training mode, are dropped
        self._open = False
        if not self._meta:
            self._read()

    def _watched(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        events, enter, leave, read = self._events, self._enter, self._leave, None if self._meta else self._read

        def watched(*args: Any, **kwargs: Any) -> Any:
            if _FRAME(1).f_code is not _CALL:  # `module.forward(x)` in the model's code: no hook sees it
                return forward(*args, **kwargs)
            events.append((enter, module, args))
            if read is not None:
                read()
            out = forward(*args, **kwargs)
            events.append((leave, module, out))
            return out

        return watched

    def _entered(self, module: nn.Module, args: Any) -> None:
        if self._open:
            self._events.append((self._enter, module, args))
            if not self._meta:
                self._read()

    def _left(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._open:
            self._events.append((self._leave, module, out))
            if not self._meta:
                self._read()

    def _read(self) -> None:
        for read, *args in self._events:
            read(*args)
        self._events.clear()

    # -- events --------------------------------------------------------------------------------------------------------

    def _op(self, op: Any, args: Any, kwargs: Any, out: Any, call: Any) -> None:
        noted, named = self._noted(args), {k: self._noted(v) for k, v in kwargs.items()}
        live = any(v.live for v in values((*noted, *named.values())))
        index = len(self._ops)
        outputs: list[Value] = []
        self._ops.append((op, noted, named, outputs, self._stack[-1], self._called(call)))
        for x in out if isinstance(out, list | tuple) else (out,):
            if isinstance(x, Tensor):
                outputs.append(self._new(x, live, index))
        for x in written(op, args, kwargs):
            self._written(x, live, index, outputs)

    def _called(self, call: Any) -> Function | None:
        if self._function[0] is not call:  # its first op
            function, args, kwargs = call
            noted = self._noted(args), {k: self._noted(v) for k, v in kwargs.items()}
            self._function = call, None if function is None else Function(function, *noted)
        return self._function[1]

    def _enter(self, module: nn.Module, args: Any) -> None:
        path = self._paths[id(module)]
        occurrence = self._occurred.get(path, 0)
        self._occurred[path] = occurrence + 1
        self._stack.append(len(self._calls))
        self._calls.append([path, occurrence, self._several(args), (), None])

    def _leave(self, module: nn.Module, out: Any) -> None:
        path = self._paths[id(module)]
        while len(self._stack) > 1:  # also removes calls left by an exception that the model's code caught
            call = self._calls[self._stack.pop()]
            if call[0] == path:
                call[3] = self._several(out)
                call[4] = call[3][0] if isinstance(out, Tensor) else None
                return

    @cached_property
    def _paths(self) -> dict[int, str]:
        return {id(m): path for path, m in self._modules.items()}

    def _returned(self, out: Any) -> None:
        self._outputs = self._several(out)
        self._sources, self._writes = {}, {}  # they hold tensors

    # -- values --------------------------------------------------------------------------------------------------------

    def _noted(self, tree: Any) -> Any:
        """Return arguments with values in place of tensors."""
        if isinstance(tree, Tensor):
            return self._value(tree)
        if isinstance(tree, list | tuple) and tree and type(tree[0]) is not int:
            return tuple([self._noted(x) for x in tree])
        return tree

    def _new(self, x: Tensor, live: bool, made: int = -1, name: str = "") -> Value:
        value = Value(self._count, tuple(x.shape), live, made, name)
        self._count += 1
        if made >= 0 or live:
            if id(x) in self._sources:
                self._sources[id(x)] = x, value  # a buffer or constant that is written to
            else:
                x._secateurs_value = self, value  # type: ignore[attr-defined]
        return value

    def _value(self, x: Tensor) -> Value:
        """Return the value that a tensor has now."""
        source = self._sources.get(id(x))
        if source is not None:
            return source[1]
        note = getattr(x, "_secateurs_value", None)
        if note is None or note[0] is not self:
            value = self._new(x, live=False, name=self._names.get(id(x), ""))
            self._sources[id(x)] = x, value
            return value
        return self._merged(x, note[1]) if self._writes else note[1]

    # -- writes in place, through views ----------------------------------------------------------------------------------

    def _written(self, x: Tensor, live: bool, index: int, outputs: list[Value]) -> None:
        """Give x, and whatever shares its memory, a new value from now on."""
        value = self._value(x)
        if value.made != index:  # the op does not return it
            value = self._new(x, live or value.live, index)
            outputs.append(value)
        self._writes.setdefault(x.untyped_storage()._cdata, []).append((_place(x), value))

    def _merged(self, x: Tensor, own: Value) -> Value:
        """Return the value of x after later writes to its memory through other tensors."""
        writes = self._writes.get(x.untyped_storage()._cdata)
        if writes is None or writes[-1][1].index <= own.index:
            return own
        place = _place(x)
        later = [(p, v) for p, v in writes if v.index > own.index and not _disjoint(p, place)]
        if not later:
            return own
        if later[-1][0] == place:  # written as a whole: views and aliases of one tensor
            value = later[-1][1]
            x._secateurs_value = self, value  # type: ignore[attr-defined]
            return value
        parts = (own, *(v for _, v in later))
        outputs: list[Value] = []
        self._ops.append((None, parts, {}, outputs, self._stack[-1], None))
        outputs.append(self._new(x, any(v.live for v in parts), len(self._ops) - 1))
        return outputs[0]

    def _several(self, tree: Any) -> tuple[Value, ...]:
        if isinstance(tree, Tensor):
            return (self._value(tree),)
        return tuple(map(self._value, tensors(tree)))

    # -- the result ----------------------------------------------------------------------------------------------------

    def flow(self) -> Flow:
        """Return the flow of the run."""
        self._read()
        calls = [Call(*call) for call in self._calls]
        ops = [
            Op(i, op, args, kwargs, tuple(values((*args, *kwargs.values()))), tuple(outputs), calls[call], function)
            for i, (op, args, kwargs, outputs, call, function) in enumerate(self._ops)
        ]
        return Flow(tuple(ops), tuple(calls[1:]), tuple(self._inputs), self._outputs)


@cache
def _reshapes(op: Any) -> bool:
    """Whether an op changes the shape of its operand in place."""
    return torch.Tag.inplace_view in op.tags


def written(op: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors among its arguments that an op writes to."""
    found: list[Tensor] = []
    for i, name in _writes_of(op):
        x = args[i] if i < len(args) else kwargs.get(name)
        found += [one for one in (x if isinstance(x, list | tuple) else (x,)) if isinstance(one, Tensor)]
    return found


@cache
def _writes_of(op: Any) -> tuple[tuple[int, str], ...]:
    """Return the positions and names of the arguments that an op writes to."""
    return tuple(
        (i, a.name) for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write
    )


def _place(x: Tensor) -> Place:
    return int(x.storage_offset()), tuple(x.shape), x.stride()


def _disjoint(a: Place, b: Place) -> bool:
    """Whether two views of one storage share no element, such as pieces of one tensor along an axis; False if in doubt."""
    (offset, shape, strides), (other, lengths, steps) = sorted((a, b))
    if strides != steps:
        return False
    for k, stride in enumerate(strides):
        if stride and all(n == m for i, (n, m) in enumerate(zip(shape, lengths, strict=True)) if i != k):
            moved, rest = divmod(other - offset, stride)
            box = [moved + n if i == k else n for i, n in enumerate(lengths)]
            if not rest and moved >= shape[k] and _nested(box, strides):
                return True
    return False


def _nested(shape: list[int], strides: tuple[int, ...]) -> bool:
    """Whether every position in the box has its own address."""
    reach = 0
    for stride, n in sorted(zip(strides, shape, strict=True)):
        if n > 1:
            if stride <= reach:
                return False
            reach += (n - 1) * stride
    return True
