"""Sizes as they are written in the user's code: `x.view(n, c // 2, -1)`, `x[:, :c]`, `F.conv2d(…, groups=c)`.

An op shows the sizes; a call shows how they were written. The call gives the claims that a cut must not break: a size that is
computed from widths must count the channels of its axis at any widths, and a constant keeps them whole.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from secateurs.graph.context import Call, Context
from secateurs.graph.reasons import EXPANDED, GROUPS, SHAPE
from secateurs.graph.widths import Expression, Traced, Width, plain

T = TypeVar("T")
SIZE = "a size is a constant in the code"
SPLIT = "split sizes are constants in the code"
Sizes = dict[int, int]  # axis of the output → its size, as written
Reader = Callable[[Context, Any, tuple[Any, ...], dict[str, Any], Any], list[Any]]

# Calls that take the shape of their output, by the position of its first number.
_VIEWS = {"view": 1, "reshape": 1, "_unsafe_view": 1, "view_copy": 1}
_EXPANDS = {"expand": 1, "broadcast_to": 1, "expand_copy": 1}
_MAKES = {
    "zeros": 0, "ones": 0, "empty": 0, "full": 0, "new_zeros": 1, "new_ones": 1, "new_empty": 1, "new_full": 1,
    "rand": 0, "randn": 0,
}  # fmt: skip
_SPLITS = ("split", "split_with_sizes", "unsafe_split")
_SHAPED = {**_VIEWS, **_EXPANDS, **_MAKES}
_FILLS = _SHAPED.keys() - _VIEWS.keys() - {"rand", "randn"}  # calls whose output has one value along an axis


def name_of(func: Any) -> str:
    """Return the name of a PyTorch function: `view` for a method, a function and an op."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        packet = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
        return packet._qualified_op_name.removeprefix("aten::")  # the user's own keep their namespace
    name: str = getattr(func, "__name__", "")
    return name


def written(call: Call, ndim: int) -> Sizes | None:
    """Return the sizes of the output's axes as written in the call. None if the call has no shape."""
    func, args, kwargs = call
    name = name_of(func)
    if name == "unflatten":
        sizes: Any = kwargs.get("sizes", args[-1])
        dim: int = kwargs["dim"] if "dim" in kwargs else args[1]
        return {dim % (ndim - len(sizes) + 1) + i: n for i, n in enumerate(sizes)}
    if name not in _SHAPED:
        return None
    sizes = next((kwargs[k] for k in ("shape", "size", "sizes") if k in kwargs), args[_SHAPED[name] :])
    if len(sizes) and isinstance(sizes[0], list | tuple):
        sizes = sizes[0]
    if not all(isinstance(n, int | Tensor) for n in sizes):
        return None  # view(dtype)
    return {ndim - len(sizes) + i: n for i, n in enumerate(sizes) if isinstance(n, int)}


def sections(call: Call) -> Sequence[int] | None:
    """Return the sizes of the pieces of a split, if the call has one for each."""
    func, args, kwargs = call
    if name_of(func) not in _SPLITS:
        return None
    sizes = _split_sizes(args, kwargs)
    return None if isinstance(sizes, int) else sizes


def _split_sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | Sequence[int]:
    given = next((kwargs[k] for k in ("split_size_or_sections", "split_size", "split_sizes") if k in kwargs), None)
    found: int | Sequence[int] = args[1] if given is None else given
    return found


def read(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Record what a call requires of widths. A width that is not one of its sizes is a number that it computes with."""
    reader = _READERS.get(name_of(func))
    others = [args, kwargs] if reader is None else reader(t, func, args, kwargs, out)
    for x in among(others, Traced):
        t.uses(x)


def takes_sizes(func: Any) -> bool:
    """Whether the sizes in calls of a function are read here."""
    return name_of(func) in _READERS


def constants(args: Any) -> Iterator[Any]:
    """Yield the numbers, strings and bools among the arguments of a call."""
    for a in args.values() if isinstance(args, dict) else args:
        if isinstance(a, int | float | str):
            yield a
        elif type(a) in (list, tuple, dict):
            yield from constants(a)


def among(args: Any, kind: type[T]) -> Iterator[T]:
    """Yield the arguments of a call that are of this type: its tensors, or widths and what was computed from them."""
    for a in args.values() if isinstance(args, dict) else args:
        if isinstance(a, kind):
            yield a
        elif isinstance(a, list | tuple | dict):
            yield from among(a, kind)


def _shaped(reason: str) -> Reader:
    def reader(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
        sizes = written((func, args, kwargs), out.ndim)
        if sizes is None:
            return []
        name = name_of(func)
        for axis, n in sizes.items():
            labels = t.labels(out).get(axis)
            if n >= 0 and not (labels is None and name in _FILLS and _fill(t, out, axis, n, reason)):
                t.claim(n, out.shape[axis] if labels is None else labels, reason)
        rest = args[2:] if name == "new_full" else args[1:] if name == "full" else ()
        return [rest, {k: v for k, v in kwargs.items() if k not in ("size", "shape", "sizes")}]

    return reader


def _fill(t: Context, out: Tensor, axis: int, n: int, reason: str, each: int = 1) -> bool:
    """Label an axis that holds the same values, `each` of them, for every channel of another tensor, or for every channel that
    a module's number counts: it has these channels. Returns whether it was such an axis."""
    labels = t.counted(n)
    if labels is None or len(labels) * each != out.shape[axis] or len(labels) < 2:
        return False
    t.freeze(t.labels(out).get(axis, labels[:0]), "repeated for each channel")
    t.fill(out, axis, labels.repeat(each))
    t.claim(n, labels, reason)
    return True


def _repeat(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    x, times = args[0], kwargs.get("repeats", kwargs.get("dims", args[1:]))
    times = times[0] if len(times) == 1 and isinstance(times[0], list | tuple) else times
    for i, n in enumerate(times):
        axis = out.ndim - len(times) + i
        before = axis - out.ndim + x.ndim
        each = x.shape[before] if before >= 0 else 1
        if not ((each == 1 or not t.is_live(x)) and _fill(t, out, axis, n, SIZE, each)):
            t.claim(n, plain(n), SIZE)
    return []


def _broadcast(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    """Label an axis with one value for as many channels as another of the tensors has: it has these channels."""
    for axis, labels in {a: own for x in out for a, own in t.labels(x).items()}.items():
        for x in out:
            if axis not in t.labels(x) and x.stride(axis) == 0:
                t.fill(x, axis, labels)
    return []


def _spatial(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    """Only the spatial axes of the shape that it is given count."""
    return [x[-(out.ndim - 2) :] if isinstance(x, list | tuple) else x for x in (*args, *kwargs.values())]


def _split(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    x = args[0] if args else kwargs["tensor"]
    sizes = _split_sizes(args, kwargs)
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0) % x.ndim
    lengths = [piece.shape[dim] for piece in out]
    given = [sizes] * (len(out) - 1) if isinstance(sizes, int) else sizes
    _pieces(t, x, dim, given, [0, *itertools.accumulate(lengths)])
    if isinstance(sizes, int) and len(out) == 1:  # a split that leaves the tensor whole
        t.claim(sizes, t.labels(x).get(dim, lengths[0]), SPLIT, least=True)
    return []


def _pieces(t: Context, x: Tensor, dim: int, sizes: Sequence[int], ends: Sequence[int]) -> None:
    labels = t.labels(x).get(dim)
    for n, (i, j) in zip(sizes, itertools.pairwise(ends), strict=False):
        if labels is None:
            t.claim(n, j - i, SPLIT)
        else:
            t.claim(n, labels[i:j], SPLIT)


def _narrow(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    x, dim, start, length = [*args, *(kwargs[k] for k in ("dim", "start", "length") if k in kwargs)]
    if not isinstance(start, int):
        return []
    n, i = plain(length), plain(start)
    dim = plain(dim) % x.ndim
    i = i + x.shape[dim] if i < 0 else i
    if (i, n) != (0, x.shape[dim]) or isinstance(length, Width):
        _pieces(t, x, dim, [*([start] if i else []), length], [*([0] if i else []), i, i + n])
    else:
        t.claim(length, t.labels(x).get(dim, n), SPLIT)
    return []


def _index(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    x, index = args[0], args[1]
    items = index if isinstance(index, tuple) else (index,)
    taken = sum(_axes(i) for i in items)
    axis = 0
    for item in items:
        if item is Ellipsis:
            axis += x.ndim - taken
        elif isinstance(item, slice):
            _slice(t, x, axis, item)
        elif isinstance(item, Width):
            t.claim(item, plain(item), SPLIT)
        axis += _axes(item)
    return [args[2:]]


def _axes(item: Any) -> int:
    """Return how many axes an item of an index takes."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype == torch.bool else 1


def _slice(t: Context, x: Tensor, axis: int, item: slice) -> None:
    n, labels = x.shape[axis], t.labels(x).get(axis)
    if isinstance(item.step, Width):
        t.claim(item.step, plain(item.step), SPLIT)
    interleaved = isinstance(item.step, int) and item.step > 1
    for bound in (item.start, item.stop):
        if not isinstance(bound, int):
            continue
        at = plain(bound)
        computed = isinstance(bound, Width)
        if labels is None:
            t.claim(bound, at, SPLIT, least=at >= n)
        elif at >= n:  # the slice goes to the end
            if computed:
                t.claim(bound, labels, SPLIT, least=True)
        elif computed:
            t.claim(bound if at >= 0 else -bound, labels[:at] if at >= 0 else labels[at:], SPLIT)
        elif at and not (interleaved and 0 < at < item.step):
            t.claim(bound, labels, SPLIT)


def _pad(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    amounts = kwargs.get("pad", args[1] if len(args) > 1 else ())
    for n in amounts:  # the padding stays, whatever is cut next to it
        t.claim(n, plain(n), "the padding is computed from the number of channels")
    return [args[2:], {k: v for k, v in kwargs.items() if k != "pad"}]


def _convolution(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    x = args[0] if args else kwargs["input"]
    groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
    n, axis = plain(groups), x.ndim - out.ndim + 1
    labels = t.labels(x).get(axis)
    if n > 1 and n == x.shape[axis] and labels is not None:  # depthwise: as many groups as channels
        t.claim(groups, labels, GROUPS)
    else:
        t.claim(groups, n, GROUPS)
    return [args[2:6], args[7:], {k: v for k, v in kwargs.items() if k != "groups"}]


def _layer_norm(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    x = args[0] if args else kwargs["input"]
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    for i, n in enumerate(shape):
        t.claim(n, t.labels(x).get(x.ndim - len(shape) + i, plain(n)), SHAPE)
    return [args[2:]]


def _group_norm(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    x = args[0] if args else kwargs["input"]
    groups = kwargs.get("num_groups", args[1] if len(args) > 1 else 1)
    n, labels = plain(groups), t.labels(x).get(1)
    t.claim(groups, labels if labels is not None and n == len(labels) else n, GROUPS)
    return [args[2:]]


def _attention(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    """PyTorch's function computes its sizes from the width that it is given."""
    query = args[0] if args else kwargs["query"]
    n = kwargs.get("embed_dim_to_check", args[3] if len(args) > 3 else query.shape[-1])
    t.claim(n, t.labels(query).get(query.ndim - 1, plain(n)), SIZE)
    return [args[4:]]


def _squeeze(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    """Note a condition on the width, since a single channel would be squeezed, too."""
    x, dims = args[0], kwargs.get("dim", args[1] if len(args) > 1 else range(args[0].ndim))
    axes = {d % x.ndim for d in ((dims,) if isinstance(dims, int) else dims)}
    for axis, labels in t.labels(x).items():
        if axis in axes:
            t.compared(Expression(operator.eq, (Expression.of(labels), 1)), False)
    return []


def _scaled(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    """The scores are scaled by the width of the queries, unless the call has a scale."""
    query = args[0] if args else kwargs["query"]
    own = t.labels(query).get(query.ndim - 1)
    if own is not None and kwargs.get("scale") is None:
        t.computes(Expression.of(own))
    return [args, kwargs]


def _none(t: Context, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Any]:
    return []


_READERS: dict[str, Reader] = {
    **dict.fromkeys([*_VIEWS, "unflatten", *_MAKES], _shaped(SIZE)),
    **dict.fromkeys(_EXPANDS, _shaped(EXPANDED)),
    **dict.fromkeys(["repeat", "tile"], _repeat),
    **dict.fromkeys(["affine_grid", "max_unpool1d", "max_unpool2d", "max_unpool3d"], _spatial),
    "broadcast_tensors": _broadcast,
    **dict.fromkeys(_SPLITS, _split),
    **dict.fromkeys(["__getitem__", "__setitem__"], _index),
    **dict.fromkeys([f"conv{'_transpose' * t}{d}d" for d in (1, 2, 3) for t in (False, True)], _convolution),
    **dict.fromkeys(["layer_norm", "rms_norm"], _layer_norm),
    "narrow": _narrow,
    "pad": _pad,
    "squeeze": _squeeze,
    "scaled_dot_product_attention": _scaled,
    "group_norm": _group_norm,
    "multi_head_attention_forward": _attention,
    "resize_": _none,
}  # fmt: skip
