"""Split a network into the pieces that a runtime computes one after another, with widths as linear forms of groups' widths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from secateurs.graph import ChannelGraph
from secateurs.graph.families import Family, argument
from secateurs.graph.flow import Op, Value
from secateurs.latency.geometry import DEPTHWISE, Geometry


@dataclass(frozen=True)
class Form:
    """A width as a linear form, `constant + Σ multiplicities[g] · width[g]`. full: its value for the whole network."""

    constant: float
    multiplicities: Mapping[int, float] = field(default_factory=dict)
    full: float = 0.0

    def times(self, factor: float) -> Form:
        pairs = {g: m * factor for g, m in self.multiplicities.items()}
        return Form(self.constant * factor, pairs, self.full * factor)

    def plus(self, other: Form) -> Form:
        pairs = dict(self.multiplicities)
        for g, m in other.multiplicities.items():
            pairs[g] = pairs.get(g, 0) + m
        return Form(self.constant + other.constant, pairs, self.full + other.full)


@dataclass(frozen=True)
class Piece:
    """A piece that the network runs `count` times. kernel: the weight whose stripes it computes."""

    geometry: Geometry
    wide_in: Form
    wide_out: Form
    kernel: str = ""
    count: int = 1


def pieces(graph: ChannelGraph) -> list[Piece]:
    """Return the pieces of a network, in execution order. Other ops (movements, attention, recurrent layers …) are part of the
    overhead that the model fits."""
    found = _Walk(graph).found
    merged: dict[Any, Piece] = {}
    for piece in found:  # equal pieces are merged
        key = (piece.geometry, piece.kernel, _key(piece.wide_in), _key(piece.wide_out))
        merged[key] = replace(merged[key], count=merged[key].count + 1) if key in merged else piece
    return list(merged.values())


def batched(found: Sequence[Piece], size: int | None, batch: int | None) -> list[Piece]:
    """Return the pieces at another batch size. size: the batch size of the examples. Pieces that do not grow with it, such as a
    position embedding, stay as they are."""
    if not size or batch in (None, size):
        return list(found)

    def rows(n: int) -> int:
        return n if n % size else n * batch // size

    return [replace(p, geometry=replace(p.geometry, batch=rows(p.geometry.batch))) for p in found]


def _key(form: Form) -> tuple[Any, ...]:
    return form.constant, tuple(sorted(form.multiplicities.items()))


class _Walk:
    """Walks through a run op by op. Ops that are fused into a layer are not separate pieces."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph, self.flow = graph, graph.flow
        self.forms = _Axes(graph)
        self.wide: dict[Value, Form] = {}  # the channels of an activation
        self.taken: set[int] = set()  # ops that are fused into an earlier layer
        self.found: list[Piece] = []
        for value in self.flow.inputs:
            self.wide[value] = _constant(value)
        layers = {op.index for op in self.flow.layers}
        for op in self.flow.ops:
            if op.live and op.outputs:
                self._layer(op) if op.index in layers else self._other(op)

    # -- layers -------------------------------------------------------------------------------------------------------

    def _layer(self, op: Op) -> None:
        x, out = op.live[0], op.outputs[0]
        name, shape = self._weight(op)
        if not name or len(shape) < 2 or not x.shape:
            self._pass(op)
            return
        if op.family is Family.CONVOLUTION and len(x.shape) == len(shape):
            geometry, wide_in, wide_out = self._convolution(op, x, name, shape)
        elif len(shape) == 2:
            rows = 1
            for n in x.shape[:-1]:
                rows *= n
            out_axis = 0 if x.shape[-1] == shape[1] else 1
            geometry = Geometry("linear", rows)
            wide_in, wide_out = self.forms(name, 1 - out_axis), self.forms(name, out_axis)
        else:
            self._pass(op)
            return
        self.wide[out] = wide_out
        end, more = self._epilogue(op, wide_out)
        self.wide[end] = wide_out
        kernel = name if name in self.graph.kernels else ""
        self.found.append(Piece(replace(geometry, **more), wide_in, wide_out, kernel))

    def _weight(self, op: Op) -> tuple[str, tuple[int, ...]]:
        """Return the name and shape of the layer's weight: the largest parameter, if it is computed from several."""
        shapes = {n: self.graph.shapes.get(n, ()) for n in self.flow.parameters(op)}
        named = [v.name for v in op.inputs if v.name and len(v.shape) > 1]
        name = named[0] if named else max(shapes, key=lambda n: (len(shapes[n]) > 1, sum(shapes[n])), default="")
        return name, shapes.get(name, ())

    def _convolution(self, op: Op, x: Value, name: str, shape: tuple[int, ...]) -> tuple[Geometry, Form, Form]:
        axes = len(shape) - 2

        def setting(which: str, default: int) -> tuple[int, ...]:
            given = argument(op.target, op.args, dict(op.kwargs), which, [default] * axes)
            values = [int(n) for n in given] if isinstance(given, list | tuple) else [int(given)]
            return tuple(values * axes if len(values) == 1 else values)

        groups = int(argument(op.target, op.args, dict(op.kwargs), "groups", 1))
        transposed = bool(argument(op.target, op.args, dict(op.kwargs), "transposed", False))
        depthwise = groups > 1 and shape[1] == 1
        geometry = Geometry(
            "convolution", x.shape[0], tuple(x.shape[2:]), tuple(shape[2:]), setting("stride", 1), setting("padding", 0),
            setting("dilation", 1), DEPTHWISE if depthwise else groups, transposed,
        )  # fmt: skip
        first, second = self.forms(name, 0), self.forms(name, 1)  # (O, I / groups), or (I, O / groups) if transposed
        if depthwise:
            return geometry, first, first
        wide_in, wide_out = (first, second.times(groups)) if transposed else (second.times(groups), first)
        return geometry, wide_in, wide_out

    def _epilogue(self, op: Op, wide: Form) -> tuple[Value, dict[str, Any]]:
        """Return the last value of the ops fused into a layer, and what those ops are."""
        more: dict[str, Any] = {}
        after = self.flow.after(op)
        value = op.outputs[0]
        if after.norm:
            more["norm"] = True
            value = self._take(after.norm, wide)
        if not after.activation:
            sums = self.flow.sums(op)
            if sums and {o.index for o in sums[0].through} <= {o.index for o in after.norm}:
                add = sums[0].op
                known = all(v in self.wide for v in sums[0].others)  # otherwise, a later layer takes the addition
                if known and add.index not in self.taken and add.outputs[0].shape == value.shape:
                    more["added"] = True
                    value = self._take((add,), wide)
                    after = self.flow.after(value)
                    after = replace(after, norm=()) if not after.norm else replace(after, norm=(), activation=())
        if after.activation:
            more["activation"] = _name(after.activation[0])
            value = self._take(after.activation, wide)
        return value, more

    def _take(self, ops: tuple[Op, ...], wide: Form) -> Value:
        for op in ops:
            self.taken.add(op.index)
            for value in op.outputs:
                self.wide[value] = wide
        return ops[-1].outputs[0]

    # -- other ops ----------------------------------------------------------------------------------------------------

    def _other(self, op: Op) -> None:
        if op.index in self.taken:
            return
        self._pass(op)
        out, family = op.outputs[0], op.family
        if len(out.shape) < 2 or family in (Family.MOVEMENT, Family.IDENTITY, Family.PRODUCT, Family.CONVOLUTION):
            return
        wide = self.wide[out]
        space, batch = tuple(out.shape[2:]), out.shape[0]
        if family in (Family.BATCH_NORM, Family.NORM):
            after = self.flow.after(out)
            activation = ""
            if after.activation and not after.norm:
                activation = _name(after.activation[0])
                self._take(after.activation, wide)
            geometry = Geometry("norm", batch, space, norm=True, activation=activation)
        elif family is Family.POOLING:
            x = op.live[0]
            geometry = _pooling(op, batch, tuple(x.shape[2:]))
        elif family is Family.CONCATENATION:
            geometry = Geometry("concatenation", batch, space, inputs=2)
        else:
            activation = _name(op) if family is Family.ACTIVATION else ""
            geometry = Geometry("pointwise", batch, space, activation=activation, inputs=min(2, len(op.live)))
        self.found.append(Piece(geometry, wide, wide))

    def _pass(self, op: Op) -> None:
        """Propagate the channels through an op."""
        for out in op.outputs:
            known = [v for v in op.live if v in self.wide]
            joined = op.family is Family.CONCATENATION and len(out.shape) > 1 and known == list(op.live)
            if joined and sum(v.shape[1] for v in known) == out.shape[1]:
                total = Form(0.0)
                for v in known:
                    total = total.plus(self.wide[v])
                self.wide[out] = total
                continue
            x = max(known, key=lambda v: len(self.wide[v].multiplicities), default=None)
            if x is None or len(out.shape) < 2:
                self.wide[out] = _constant(out)
            else:
                full = self.wide[x].full
                self.wide[out] = self.wide[x].times(out.shape[1] / full) if full else _constant(out)


def _constant(value: Value) -> Form:
    n = float(value.shape[1] if len(value.shape) > 1 else 1)
    return Form(n, {}, n)


def _name(op: Op) -> str:
    return "" if op.target is None else str(op.target.overloadpacket).rpartition(".")[2].strip("_")


def _pooling(op: Op, batch: int, space: tuple[int, ...]) -> Geometry:
    name, out = _name(op), op.outputs[0]
    mode = "max" if "max" in name else "mean"
    target = tuple(out.shape[2:])
    if len(target) != len(space) or all(n == 1 for n in target) or not space:
        return Geometry("pooling", batch, space, mode="global")
    kernel = argument(op.target, op.args, dict(op.kwargs), "kernel_size")
    stride = argument(op.target, op.args, dict(op.kwargs), "stride") or kernel
    padding = argument(op.target, op.args, dict(op.kwargs), "padding", 0)

    def of(given: Any, default: int) -> tuple[int, ...]:
        values = (
            [int(n) for n in given] if isinstance(given, list | tuple) else [default if given is None else int(given)]
        )
        return tuple((values * len(space))[: len(space)])

    if kernel is None:  # adaptive
        sizes = tuple(max(1, a // b) for a, b in zip(space, target, strict=True))
        return Geometry("pooling", batch, space, sizes, sizes, (0,) * len(space), mode=mode)
    return Geometry("pooling", batch, space, of(kernel, 1), of(stride, 1), of(padding, 0), mode=mode)


class _Axes:
    """Returns the width of an axis of a parameter as a form."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.cut: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
        for i, group in enumerate(graph.groups):
            for slot in group.slots:
                pairs = self.cut[slot.param, slot.axis]
                pairs[i] = pairs.get(i, 0) + slot.index.shape[1]

    def __call__(self, param: str, axis: int) -> Form:
        full, pairs = self.graph.shapes[param][axis], self.cut.get((param, axis), {})
        return Form(full - sum(m * self.graph.groups[i].size for i, m in pairs.items()), pairs, float(full))
