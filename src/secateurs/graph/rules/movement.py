"""Ops that move elements without changing them: run the same op on the labels.

There is no hand-written index arithmetic: each labeled axis is numbered 1…n, the numbers are broadcast to the shape of
the activation (stride 0 along axes where they don't vary, so this costs no memory), the op runs on them, and each number
in the output is replaced by its label. A 0 in the output is padding.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.graph.context import Context
from secateurs.graph.figures import Figure
from secateurs.graph.rules.registry import rule
from secateurs.graph.sizes import SIZE, SPLIT, sections, written
from secateurs.graph.tape import Labels
from secateurs.graph.widths import Width

aten = torch.ops.aten
ATTENTION = torch.nn.functional.multi_head_attention_forward  # computes its sizes from a width that it is given
PICKED = "selects single channels by index, a constant in the code"


def numbers(x: Tensor, axis: int) -> Tensor:
    """Return 1…n along one axis of x's shape, with stride 0 along the others."""
    n = x.shape[axis]
    return torch.arange(1, n + 1).view([n if a == axis else 1 for a in range(x.ndim)]).expand(x.shape)


def varying(moved: Tensor) -> list[int]:
    """Return the axes along which a moved numbering is not constant."""
    axes = [a for a in range(moved.ndim) if moved.shape[a] > 1 and moved.stride(a) != 0]
    if len(axes) <= 1:
        return axes
    return [a for a in axes if not bool((moved == moved.narrow(a, 0, 1)).all())]


def gather(labels: np.ndarray, moved: Tensor, axes: list[int]) -> np.ndarray:
    """Replace the numbers by labels, over `axes` only."""
    for a in range(moved.ndim):
        if a not in axes:
            moved = moved.narrow(a, 0, 1)
    at = moved.reshape([moved.shape[a] for a in axes]).numpy()
    return np.concatenate([labels[:1] * 0, labels])[at]


def move(t: Context, x: Tensor, run: Any, computed: int | None = None) -> list[Labels]:
    """Return the labels of each output of a movement op. run: applies the op to a numbering of x. computed: an output axis
    whose size is known to follow from the others."""
    result: list[Labels] = []
    for axis, labels in t.labels(x).items():
        moved = run(numbers(x, axis))
        outputs = moved if isinstance(moved, list | tuple) else [moved]
        result = result or [{} for _ in outputs]
        for out, piece in zip(result, outputs, strict=True):
            axes = varying(piece)
            if not axes and piece.numel():
                t.freeze(labels, f"{t.op_name} {PICKED}")
            elif axes:
                found = gather(labels, piece, axes)
                settle(t, out, *split(t, *drop_constant(found, axes), computed))
    return result


def settle(t: Context, out: Labels, axis: int | None, labels: np.ndarray) -> None:
    """Set the labels of an output axis. If several axes of channels are flattened into it, it keeps the labels of the first
    that a layer produces. The others, such as the heads of a table of positions, are frozen."""
    if axis in out:
        if t.space.produced(labels) and not t.space.produced(out[axis]):
            out[axis], labels = labels, out[axis]
        t.freeze(labels, f"{t.op_name} flattens several axes of channels into one")
    elif axis is not None:
        out[axis] = labels


def drop_constant(labels: np.ndarray, axes: list[int]) -> tuple[np.ndarray, list[int]]:
    """Remove the axes along which the labels repeat (the H·W of a flattened map), as long as one is left."""
    for i in reversed(range(len(axes))):
        first = labels.take([0], axis=i)
        if labels.ndim > 1 and (labels == first).all():
            labels, axes = first.squeeze(i), [a for j, a in enumerate(axes) if j != i]
    return labels, axes


def split(t: Context, labels: np.ndarray, axes: list[int], computed: int | None) -> tuple[int | None, np.ndarray]:
    """One axis of channels became several. One of them can shrink; along the others the pieces must stay equal."""
    if len(axes) == 1:
        return axes[0], labels
    free = len(axes) - 1  # (groups, channels // groups)
    if free > 1 and axes == list(range(1, t.out.ndim)):
        free = 0  # a vector becomes a map: (N, C, H, W)
    sizes = written(t.call, t.out.ndim)
    shrinks = [i for i, a in enumerate(axes) if sizes and isinstance(sizes[a], Width)]
    if len(shrinks) == 1:
        free = shrinks[0]
    elif computed in axes and not shrinks:
        free = axes.index(computed)
    elif not shrinks and ((sizes and not t.escaping(labels)) or t.call[0] is ATTENTION):
        t.claim(labels.size, labels.ravel(), SPLIT)
    else:  # several numbers that a module keeps, or sizes that may be computed in a way that cannot be followed
        known = [i for i, a in enumerate(axes) if i in shrinks or a == computed] if shrinks else range(len(axes))
        options = sorted(known, key=lambda i: (i != free, -i))
        choice = t.choose(len(options), labels, SPLIT)
        if choice is None:
            t.freeze(labels.ravel(), SPLIT)
            return None, labels
        free = options[choice]
    pieces = np.moveaxis(labels, free, -1).reshape(-1, labels.shape[free])
    t.couple(pieces)
    return axes[free], pieces[0]


@rule(
    aten.expand, aten.flip, aten.movedim, aten.numpy_T, aten.permute, aten.repeat, aten.rot90, aten.squeeze, aten.t,
    aten.transpose, aten.unsqueeze, aten.unfold, aten.diagonal, aten.repeat_interleave.self_int,
)  # fmt: skip
def rearrange(t: Context, x: Tensor, *args: Any, **kwargs: Any) -> Labels | None:
    """Axes are permuted, added, removed or repeated."""
    labels = t.labels(x)
    moved = move(t, x, lambda numbering: t.op(numbering, *args, **kwargs)) if labels else []
    return moved[0] if moved else None


@rule(aten.squeeze_, aten.t_, aten.transpose_, aten.unsqueeze_)
def rearrange_(t: Context, x: Tensor, *args: Any) -> Labels:
    """Axes are permuted, added or removed in place: x already has its new shape."""
    labels, op = t.labels(x), t.op.overloadpacket
    if op is aten.unsqueeze_:
        return {a + (a >= args[0] % x.ndim): v for a, v in labels.items()}
    if op is not aten.squeeze_:
        i, j = (d % x.ndim for d in args or (0, x.ndim - 1))
        return {{i: j, j: i}.get(a, a): v for a, v in labels.items()}
    dims = () if not args else args[0] if isinstance(args[0], list | tuple) else args
    gone = {d % (x.ndim + len(dims)) for d in dims}
    squeezed = {a - sum(d < a for d in gone): v for a, v in labels.items() if a not in gone}
    # Whether an axis was squeezed shows in where the labels fit.
    fits = [c for c in (labels, squeezed) if all(a < x.ndim and x.shape[a] == len(v) for a, v in c.items())]
    if (args and len(fits) == 1) or (len(fits) == 2 and labels.keys() == squeezed.keys()):
        return fits[0]
    t.freeze(labels, f"{t.op_name} changes axes in a way that cannot be followed")
    return {}


@rule(aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.unflatten, aten._reshape_alias)
def view(t: Context, x: Tensor, *args: Any, **_: Any) -> Labels | None:
    labels, shape = t.labels(x), tuple(t.out.shape)
    if not labels:
        return None
    computed = computed_axis(t)
    out = move(t, x, lambda numbering: numbering.reshape(shape), computed)[0]
    if t.call[0] is ATTENTION:
        for own in out.values():
            t.claim(len(own), own, SIZE)
    return out


def computed_axis(t: Context) -> int | None:
    """Return the axis with size -1 in the user's code. Its size follows from the others."""
    sizes = written(t.call, t.out.ndim) or {}
    return next((a for a, n in sizes.items() if n == -1 and not isinstance(n, Width)), None)


@rule(aten.as_strided, aten.as_strided_)
def as_strided(t: Context, x: Tensor, size: Any, *_: Any) -> Labels | None:
    """Followed only if it is the identity (a change of memory format)."""
    if tuple(size) == tuple(x.shape):
        return t.labels(x)
    t.freeze(t.labels(x), f"{t.op_name} addresses memory")
    return None


@rule(aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.native_channel_shuffle)
def shuffle(t: Context, x: Tensor, factor: int) -> Labels:
    labels = t.labels(x)
    kept = {a: v for a, v in labels.items() if a < x.ndim - 3}
    if x.ndim - 3 not in labels:
        t.freeze(labels, f"{t.op_name} moves positions")
        return kept
    c = x.ndim - 3
    name = t.op.overloadpacket
    if name is aten.pixel_shuffle:  # (N, C·r², H, W) → (N, C, H·r, W·r): the r² channels that fill a patch are coupled
        patches = labels[c].reshape(-1, factor**2)
        t.couple(patches.T)
        return {**kept, c: patches[:, 0].copy()}
    if name is aten.pixel_unshuffle:
        return {**kept, c: np.repeat(labels[c], factor**2)}
    t.couple(labels[c].reshape(factor, -1))
    return {**kept, c: labels[c].reshape(factor, -1).T.ravel()}


@rule(aten.roll)
def roll(t: Context, x: Tensor, shifts: Any, dims: Any = ()) -> Labels:
    dims = {d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)}
    for axis, labels in t.labels(x).items():
        if axis in dims or not dims:
            t.freeze(labels, "aten.roll shifts channels by a constant in the code")
    return t.labels(x)


@rule(aten.constant_pad_nd)
def pad(t: Context, x: Tensor, amounts: list[int], value: float = 0) -> Labels:
    """Only the padding of a labeled axis adds elements to it; labels combined with these are frozen."""
    out = {}
    for axis, labels in t.labels(x).items():
        k = 2 * (x.ndim - 1 - axis)
        before, after = amounts[k : k + 2] if k < len(amounts) else (0, 0)
        if before < 0 or after < 0:
            t.freeze(labels, "negative padding crops channels by a constant in the code")
        numbering = torch.nn.functional.pad(torch.arange(1, len(labels) + 1), (before, after))
        out[axis] = gather(labels, numbering, [0])
    return out


@rule(aten.slice, aten.narrow)
def slice_(
    t: Context, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Labels:
    if t.op.overloadpacket is aten.narrow:
        start, end = start or 0, (start or 0) + (end or 0)
    labels = dict(t.labels(x))
    dim %= x.ndim
    if dim not in labels:
        return labels
    n = x.shape[dim]
    begin, stop, step = slice(start, end, step).indices(n)
    if (begin, stop, step) == (0, n, 1):
        return labels
    if step > 1:
        pieces_stay_even(t, labels[dim], step, interleaved=True)
    else:
        pieces_stay_even(t, labels[dim], int(np.gcd.reduce([begin, stop - begin, n - stop])))
    labels[dim] = labels[dim][begin:stop:step]
    return labels


def pieces_stay_even(t: Context, labels: np.ndarray, unit: int, interleaved: bool = False) -> None:
    """Keep the proportions of pieces, since the code may have `x[:, : c // 2]`."""
    if len(labels) % unit:
        t.freeze(labels, SPLIT)
        return
    if not t.reads_sizes and t.call[0] not in (torch.chunk, Tensor.chunk):
        t.assume(labels, SPLIT)
    t.couple(labels.reshape(-1, unit).T if interleaved else labels.reshape(-1, unit))


@rule(aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.unsafe_split, aten.unsafe_chunk,
      aten.split_copy, aten.split_with_sizes_copy)  # fmt: skip
def split_(t: Context, x: Tensor, sizes: Any, dim: int = 0) -> list[Labels]:
    labels = t.labels(x)
    dim %= x.ndim
    lengths = [piece.shape[dim] for piece in t.out]
    ends = np.cumsum([0, *lengths])
    pieces = [{a: v[i:j] if a == dim else v for a, v in labels.items()} for i, j in itertools.pairwise(ends)]
    if dim in labels and len(lengths) > 1 and not pieces_apart(t, [piece[dim] for piece in pieces]):
        pieces_stay_even(t, labels[dim], int(np.gcd.reduce(lengths)))
    return pieces


def pieces_apart(t: Context, pieces: list[np.ndarray]) -> bool:
    """Whether each piece can be cut by itself, since its size in the code is a number that the module keeps and that follows
    the cut. Pieces with the same number stay equal. Pieces of a constant size stay whole."""
    if t.checking:  # the labels of the pieces decide
        return True
    kept: dict[Figure, list[np.ndarray]] = {}
    for n, piece in zip(sections(t.call) or (), pieces, strict=False):
        if isinstance(n, Width):
            figure = n.expression.leaf
            if not isinstance(figure, Figure):
                return False
            kept.setdefault(figure, []).append(piece)
    for alike in kept.values():
        t.couple(np.stack(alike))
    return bool(kept)


@rule(aten.gather, aten.take_along_dim)
def gather_(t: Context, x: Tensor, dim: int, index: Tensor, **_: Any) -> Labels:
    """Pick elements along one axis. Along the other axes, x and the positions are aligned."""
    kept = _without(t, x, {dim % x.ndim, *(a for a in range(x.ndim) if x.shape[a] != index.shape[a])})
    for axis, labels in t.labels(index).items():
        if axis in kept:
            t.unify(kept[axis], labels)
        else:
            t.freeze(labels, f"{t.op_name} reads it as positions")
    return kept


@rule(aten.select, aten.unbind, aten.index, aten.index_select, aten.embedding)
def pick(t: Context, x: Tensor, *args: Any, **_: Any) -> Any:
    """Pick elements by position. On an axis of channels, the position is a constant in the code, so the channels are frozen."""
    if t.op.overloadpacket in (aten.select, aten.unbind):
        dim = (args[0] if args else 0) % x.ndim
        one = _without(t, x, {dim})
        kept = {a - (a > dim): v for a, v in one.items()}
        return [kept] * len(t.out) if isinstance(t.out, tuple | list) else kept
    if t.op.overloadpacket is aten.index:
        indexed = {a for a, i in enumerate(args[0]) if i is not None}
        for i in args[0]:
            if i is not None:
                t.freeze(t.labels(i), f"{t.op_name} reads it as positions")
        kept = _without(t, x, indexed)
        whole = [a for a in range(x.ndim) if a not in indexed]
        contiguous = sorted(indexed) == list(range(min(indexed), max(indexed) + 1))
        width = t.out.ndim - len(whole)
        at = min(indexed) if contiguous else 0
        place = {a: (i if i < at else i + width) for i, a in enumerate(whole)}
        return {place[a]: v for a, v in kept.items()}
    if t.op.overloadpacket is aten.embedding:  # x: (V, D), indices: (*,)
        t.freeze(t.labels(args[0]), f"{t.op_name} reads it as positions")
        kept = _without(t, x, {0})
        return {t.out.ndim - 1: kept[1]} if 1 in kept else {}
    dim = args[0] % x.ndim
    t.freeze(t.labels(args[1]), f"{t.op_name} reads it as positions")
    return _without(t, x, {dim})


def _without(t: Context, x: Tensor, dims: set[int]) -> Labels:
    for axis, labels in t.labels(x).items():
        if axis in dims:
            t.freeze(labels, f"{t.op_name} {PICKED}")
    return {a: v for a, v in t.labels(x).items() if a not in dims}


@rule(aten.cat, aten.concat, aten.stack)
def cat(t: Context, tensors: list[Tensor], dim: int = 0) -> Labels:
    """Concatenate the labels along `dim`. Along any other axis, they are unified."""
    stacked = t.op.overloadpacket is aten.stack
    ndim = t.out.ndim
    dim %= ndim
    parts = [x for x in tensors if x.numel() or x.ndim == ndim]
    shifted = [{a + (stacked and a >= dim): v for a, v in t.labels(x).items()} for x in parts]
    out: Labels = {}
    for axis in sorted({a for labels in shifted for a in labels}):
        present = [labels.get(axis, t.zeros(t.out.shape[axis])) for labels in shifted]
        if axis != dim:
            t.unify(*present)
            out[axis] = present[0]
    if not stacked and any(dim in labels for labels in shifted):
        out[dim] = np.concatenate(
            [labels.get(dim, t.zeros(x.shape[dim])) for labels, x in zip(shifted, parts, strict=True)]
        )
    return out


@rule(aten.glu)
def glu(t: Context, x: Tensor, dim: int = -1) -> Labels:
    """The first half, gated by the second."""
    labels = dict(t.labels(x))
    dim %= x.ndim
    if dim in labels:
        t.couple(labels[dim].reshape(2, -1))
        labels[dim] = labels[dim].reshape(2, -1)[0]
    return labels


@rule(aten.view_as_real, aten.view_as_complex)
def real_view(t: Context, x: Tensor) -> Labels:
    """View complex numbers as pairs on a last axis, or pairs as complex numbers."""
    labels = t.labels(x)
    if t.op.overloadpacket is aten.view_as_complex:
        t.freeze(labels.get(x.ndim - 1, t.zeros(0)), f"{t.op_name} {PICKED}")
    return {a: v for a, v in labels.items() if a < t.out.ndim}


@rule(aten.col2im)
def col2im(t: Context, x: Tensor, size: Any, kernel: list[int], *_: Any) -> Labels:
    """(N, C·k·k, L) → (N, C, H, W): the k·k positions of a channel are coupled."""
    labels = t.labels(x)
    c = x.ndim - 2
    t.freeze(labels.get(x.ndim - 1, t.zeros(0)), f"{t.op_name} slides over channels")
    if c not in labels:
        return {}
    patches = labels[c].reshape(-1, kernel[0] * kernel[1])  # (C, k·k)
    t.couple(patches.T)
    return {c: patches[:, 0].copy()}


@rule(aten.im2col)
def im2col(t: Context, x: Tensor, kernel: list[int], *_: Any) -> Labels:
    """(N, C, H, W) → (N, C·k·k, L)."""
    labels = t.labels(x)
    t.freeze({a: v for a, v in labels.items() if a > 1}, f"{t.op_name} slides over channels")
    return {1: np.repeat(labels[1], kernel[0] * kernel[1])} if 1 in labels else {}
