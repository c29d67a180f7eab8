"""Record the calls of PyTorch functions in the user's code, with their sizes as written and the widths that the code reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from secateurs.graph import sizes
from secateurs.graph.context import NO_CALL, Context
from secateurs.graph.reasons import Kind, Reason
from secateurs.graph.rules import recurrent
from secateurs.graph.tape import Array, Called
from secateurs.graph.tracer import Tracer
from secateurs.graph.widths import Traced

Follow = Callable[[Called, list[Array]], None]  # receives each call, and the labels of its operands

# Calls that change no values. Whether and how often they are made does not matter.
_SILENT = frozenset({
    "__set__", "_set_grad_enabled", "clone", "contiguous", "cpu", "cuda", "data_ptr", "detach", "device", "dim", "double",
    "element_size", "float", "get_device", "half", "is_complex", "is_contiguous", "is_floating_point", "requires_grad_",
    "set_grad_enabled", "storage_offset", "to", "type", "type_as", "untyped_storage",
})  # fmt: skip
_OVERWRITES = frozenset({"__set__", "copy_"})
OVERWRITTEN = "the code overwrites a weight that has them with another tensor"
_LOOKS = frozenset(
    {"__array__", "__bool__", "__complex__", "__float__", "__index__", "__int__", "item", "numpy", "tolist"}
)


class Calls(TorchFunctionMode):
    """A mode that sees each call with its arguments as the user wrote them. `flatten(1)` or `view(n, -1)` shows that a size is
    computed; the resulting op does not."""

    def __init__(self, tracer: Tracer, follow: Follow | None = None) -> None:
        super().__init__()
        self.tracer, self.follow = tracer, follow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        t, kwargs = self.tracer, kwargs or {}
        name = sizes.name_of(func)
        if name == "__get__":
            return self._attribute(func, args)
        if name in _READS:
            return _READS[name](t, func, *args, **kwargs)
        if name in _LIKE:
            name, func, args, kwargs = _shaped_like(t, name, *args, **kwargs)
        t.call, t.reads_sizes = (func, args, kwargs), sizes.takes_sizes(func)
        op = recurrent.whole(func, args)
        if name in _OVERWRITES:
            self._overwritten(func, *args[:2])
        try:
            out = func(*args, **kwargs) if op is None else t.whole(op, args, kwargs)
        except Exception:
            t.tape.failed = operands(t, args, kwargs), t.where()
            raise
        finally:
            t.call, t.reads_sizes = NO_CALL, False
        if name in _SILENT:
            t.copied(args, out)
            return out
        sizes.read(t, func, args, kwargs, out)
        if name in _LOOKS:
            t.tape.looked = True
        elif t.counting:
            found = tuple(sizes.constants((args, kwargs))) if not sizes.takes_sizes(func) else ()
            given = t.given(sizes.among((args, kwargs), Tensor))
            outputs = tuple((tuple(x.shape), t.labels(x)) for x in sizes.among((out,), Tensor))
            called = Called(name, found, given, outputs)
            if self.follow is None:
                t.tape.calls.append(called)
            else:
                self.follow(called, operands(t, args, kwargs))
        return out

    def _attribute(self, func: Any, args: Any) -> Any:
        attribute = getattr(func, "__self__", None)
        if attribute is Tensor.shape:
            return self.tracer.size(args[0])
        out = func(*args)
        if attribute is Tensor.data and out is not args[0]:  # an alias that no op makes
            for axis, labels in self.tracer.labels(args[0]).items():
                self.tracer.relabel(out, axis, labels)
            if self.tracer.named(args):
                out._secateurs_data = self.tracer
        return out

    def _overwritten(self, func: Any, target: Tensor, value: Any = None) -> None:
        """Freeze the channels of a weight that the forward overwrites with a value computed from others, which undoes a cut or
        a mask of the weight. A weight that is only scaled or normalized keeps its channels."""
        t = self.tracer
        if (
            getattr(func, "__self__", Tensor.data) is not Tensor.data
            or not isinstance(value, Tensor)
            or t.is_live(value)
        ):
            return
        if not t.named([target]) and getattr(target, "_secateurs_data", None) is not t:
            return
        before, after = t.labels(target), t.labels(value)
        if any(before.get(a) is not after.get(a) for a in before.keys() | after.keys()):
            for own in (before, after):
                t.freeze(own, Reason(Kind.CODE, OVERWRITTEN, t.where()))


def operands(t: Context, args: Any, kwargs: Any) -> list[Array]:
    """Return the labels that a call works on: those of its activations or, if they have none, of its weights; and those that
    its widths count."""
    live: list[Array] = []
    weights: list[Array] = []
    for x in sizes.among((args, kwargs), Tensor):
        (live if t.is_live(x) else weights).extend(t.labels(x).values())
    counted = [t.leaf(leaf) for x in sizes.among((args, kwargs), Traced) for leaf in x.expression.leaves()]
    return [*(live or weights), *(labels for labels in counted if labels is not None)]


def _shaped_like(t: Context, name: str, x: Tensor, other: Tensor) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]]:
    """Rewrite `x.view_as(other)` as the equivalent `x.view(other.shape)`, which shows what its sizes count."""
    plainly = _LIKE[name]
    return plainly.__name__, plainly, (x, t.size(other, asked=False)), {}


def _size(t: Context, func: Any, x: Tensor, dim: int | None = None) -> Any:
    shape = t.size(x)
    return shape if dim is None else shape[dim]


def _numel(t: Context, func: Any, x: Tensor) -> Any:
    count = 1
    for n in t.size(x):
        count = n * count
    return count


def _escaping(t: Context, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Note that `len` and strides use widths as plain numbers."""
    shape = t.size(x)
    for n in shape[:1] if func is Tensor.__len__ else shape:
        if isinstance(n, Traced):
            t.escaped(n.expression)
    return func(x, *args, **kwargs)


_LIKE = {"view_as": Tensor.view, "reshape_as": Tensor.reshape, "expand_as": Tensor.expand}
_READS: dict[str, Callable[..., Any]] = {
    "size": _size, "numel": _numel, "nelement": _numel, "__len__": _escaping, "stride": _escaping,
}  # fmt: skip
