"""The data flow of a network: the ops of one run in execution order, the values that they pass on, and the modules that ran
them.

    flow = sc.trace(model, inputs).flow
    flow.layers[-1]                        # the layer that runs last
    flow.readers(["layer1.0.conv2.weight"])  # the ops that read a parameter
    flow.after(op)                         # the normalization and the non-linearity after a layer
    flow.sums(op)                          # the additions that a layer's output flows into

A flow holds no tensors. It records a run in eval mode: code that only runs in training (an auxiliary head) is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from secateurs.graph.families import LINEAR, Family, family


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A tensor at one point of the run. An in-place op makes a new value of the same tensor."""

    index: int  # values are numbered in the order in which they appear
    shape: tuple[int, ...]
    live: bool  # depends on the model's input
    made: int = -1  # the index of the op that made it; -1 for parameters, buffers, constants, and the model's inputs
    name: str = ""  # the full name of a parameter or buffer


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One run of a module."""

    module: str  # its path: the first, if it has several
    occurrence: int  # 0 for the module's first run
    inputs: tuple[Value, ...] = field(repr=False)  # the tensors among its positional arguments
    outputs: tuple[Value, ...] = field(repr=False)  # the tensors that it returns
    output: Value | None = field(repr=False)  # … if it returns a single tensor, and not a structure


@dataclass(frozen=True, eq=False, slots=True)
class Function:
    """A call in the model's code that one or more ops belong to, such as `F.group_norm`, with values in place of tensors."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`relu` for `torch.relu`, `F.relu` and `Tensor.relu_`."""
        return getattr(self.function, "__name__", "").strip("_")


@dataclass(frozen=True, eq=False, slots=True)
class Op:
    """One op of the run, as PyTorch dispatches it."""

    index: int  # in execution order
    target: Any  # torch.ops.aten.convolution.default …; None where writes through several views meet in one tensor
    args: tuple[Any, ...] = field(repr=False)  # as the op was called, with values for tensors
    kwargs: Mapping[str, Any] = field(repr=False)
    inputs: tuple[Value, ...] = field(repr=False)  # the values among args and kwargs
    outputs: tuple[Value, ...] = field(repr=False)
    call: Call  # the innermost module that was running
    function: Function | None = field(repr=False)  # the call in the model's code that it belongs to

    @property
    def family(self) -> Family:
        """The kind of op: layer, addition, norm, non-linearity, movement …"""
        return Family.OTHER if self.target is None else family(self.target, self.args, dict(self.kwargs))

    @property
    def live(self) -> tuple[Value, ...]:
        """The activations among its inputs."""
        return tuple(v for v in self.inputs if v.live)

    @property
    def linear(self) -> bool:
        """Whether it is an affine map that keeps channels apart: an addition, a batch norm in eval mode, a movement."""
        return self.family in LINEAR


@dataclass(frozen=True, eq=False)
class After:
    """The normalization and the non-linearity right after a layer, each as the ops of one call; empty where there is none."""

    norm: tuple[Op, ...] = ()
    activation: tuple[Op, ...] = ()
    output: Value | None = None  # the layer's output after both


@dataclass(frozen=True, eq=False)
class Sum:
    """An addition that a layer's output flows into through linear maps only."""

    op: Op
    term: Value  # the summand that is the layer's output, after the ops in `through`
    others: tuple[Value, ...]  # the other summands: activations
    through: tuple[Op, ...] = ()  # the linear ops from the layer to the addition, earlier additions included


@dataclass(frozen=True, eq=False)
class Flow:
    """The data flow of a network; see the description of this module."""

    ops: tuple[Op, ...] = field(repr=False)  # in execution order
    calls: tuple[Call, ...] = field(repr=False)  # of modules, in the order in which they begin
    inputs: tuple[Value, ...] = field(repr=False)  # of the model
    outputs: tuple[Value, ...] = field(repr=False)

    # -- single steps ----------------------------------------------------------------------------------------------

    def maker(self, value: Value) -> Op | None:
        """Return the op that made a value; None for parameters, constants and the model's inputs."""
        return self.ops[value.made] if value.made >= 0 else None

    def uses(self, value: Value) -> tuple[Op, ...]:
        """Return the ops that take a value, in execution order."""
        return tuple(self._uses.get(value, ()))

    @cached_property
    def _uses(self) -> dict[Value, list[Op]]:
        found: dict[Value, list[Op]] = {}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                found.setdefault(value, []).append(op)
        return found

    def runs(self, module: str) -> tuple[Call, ...]:
        """Return the runs of a module, in order; empty if it does not run."""
        return tuple(c for c in self.calls if c.module == module)

    # -- layers and parameters -------------------------------------------------------------------------------------

    @cached_property
    def layers(self) -> tuple[Op, ...]:
        """The convolutions and matrix products of an activation with a weight, in execution order."""
        kinds = (Family.CONVOLUTION, Family.PRODUCT)
        return tuple(op for op in self.ops if op.live and self._weights[op.index] and op.family in kinds)

    def parameters(self, op: Op) -> tuple[str, ...]:
        """Return the parameters and buffers that an op's weights are computed from, in the order of its arguments."""
        return self._weights[op.index]

    @cached_property
    def _weights(self) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []  # by op: what it reads directly, or through ops without activations
        for op in self.ops:
            names: dict[str, None] = {}
            for value in op.inputs:
                if value.name:
                    names[value.name] = None
                elif not value.live and value.made >= 0:
                    names |= dict.fromkeys(found[value.made])
            found.append(tuple(names))
        return found

    def readers(self, names: Iterable[str]) -> tuple[Op, ...]:
        """Return the ops that combine an activation with one of these parameters or buffers, in execution order. For a group's
        consumers: `flow.readers(s.param for s in group.slots if s.consumes)`."""
        wanted = set(names)
        return tuple(op for op in self.ops if op.live and not wanted.isdisjoint(self._weights[op.index]))

    # -- paths -----------------------------------------------------------------------------------------------------

    def before(self, *values: Value) -> tuple[Op, ...]:
        """Return all ops that these values depend on, in execution order."""
        needed = {v.made for v in values}
        for op in reversed(self.ops):
            if op.index in needed:
                needed.update(v.made for v in op.inputs)
        return tuple(op for op in self.ops if op.index in needed)

    def behind(self, *values: Value) -> tuple[Op, ...]:
        """Return all ops that depend on one of these values, in execution order."""
        reached = set(values)
        found = []
        for op in self.ops:
            if not reached.isdisjoint(op.inputs):
                found.append(op)
                reached.update(op.outputs)
        return tuple(found)

    def between(self, first: Op, last: Op) -> tuple[Op, ...]:
        """Return the ops on any path from one op to another, without the two, in execution order; empty if `last` directly
        takes what `first` makes, or does not depend on it."""
        reached = set(self.behind(*first.outputs))
        return tuple(op for op in self.before(*last.inputs) if op in reached and op is not first)

    def depends_on(self, *values: Value) -> tuple[str, ...]:
        """Return the parameters and buffers that these values depend on."""
        names = [v.name for v in values]
        names += [v.name for op in self.before(*values) for v in op.inputs]
        return tuple(dict.fromkeys(n for n in names if n))

    def after(self, layer: Op | Value) -> After:
        """Return the normalization and the non-linearity right after a layer or a value. Each is found only if nothing else
        uses what it takes."""
        value = layer if isinstance(layer, Value) else layer.outputs[0]
        norm: tuple[Op, ...] = ()
        step, kind = self._step(value)
        if kind == "norm":
            norm, value = step, step[-1].outputs[0]
            step, kind = self._step(value)
        if kind == "activation":
            return After(norm, step, step[-1].outputs[0])
        return After(norm, (), value)

    def _step(self, value: Value) -> tuple[tuple[Op, ...], str]:
        """Return the ops of the only call in the model's code that uses a value, if the call takes no other activation; and its
        kind: `norm`, `activation`, or empty for others."""
        uses = self.uses(value)
        if not uses or value in self.outputs:
            return (), ""
        ops = tuple(op for op in _together(self.ops, uses[0]) if op.live)
        inside = {v for op in ops for v in op.outputs}
        alone = all(v is value or v in inside for op in ops for v in op.live)
        return (ops, _kind(ops)) if alone and all(op in ops for op in uses) else ((), "")

    def sums(self, layer: Op) -> tuple[Sum, ...]:
        """Return the additions that a layer's output flows into through linear maps only, in execution order. The path ends at
        a value that several ops use; this may be the result of the last addition."""
        found: list[Sum] = []
        through: list[Op] = []
        value = layer.outputs[0]
        while len(uses := self.uses(value)) == 1 and value not in self.outputs and uses[0].linear:
            op = uses[0]
            others = tuple(v for v in op.live if v is not value)
            if op.family is Family.ADDITION and others:
                found.append(Sum(op, value, others, tuple(through)))
            elif len(op.live) != 1:
                break  # the value is added to itself
            through.append(op)
            value = op.outputs[0]
        return tuple(found)

    # -- feature maps ----------------------------------------------------------------------------------------------

    @property
    def deepest(self) -> Value | None:
        """The deepest feature map, (N, C, *spatial): the last that the output depends on, before space is pooled away. None if
        the network has none."""
        maps = [
            v
            for op in self.before(*self.outputs)
            if op.family not in (Family.MOVEMENT, Family.POOLING)
            for v in op.outputs[:1]
            if v.live and len(v.shape) > 2
        ]
        wide = [v for v in maps if max(v.shape[2:]) > 1]
        found = wide or maps
        return found[-1] if found else None


def values(tree: Any) -> Iterator[Value]:
    """Yield the values in an op's arguments."""
    for leaf in tree:
        if isinstance(leaf, Value):
            yield leaf
        elif isinstance(leaf, tuple):
            yield from values(leaf)


def _together(ops: tuple[Op, ...], op: Op) -> Iterator[Op]:
    """Yield the ops of the call in the model's code that an op belongs to. They are neighbors."""
    if op.function is None:
        yield op
        return
    first = op.index
    while first > 0 and ops[first - 1].function is op.function:
        first -= 1
    for other in ops[first:]:
        if other.function is not op.function:
            return
        yield other


_NORMS = frozenset({"batch_norm", "group_norm", "layer_norm", "rms_norm", "instance_norm"})
_ACTIVATIONS = frozenset({"logsigmoid", "softsign", "tanhshrink", "rrelu"})  # functions that are several ops


def _kind(ops: tuple[Op, ...]) -> str:
    name = "" if ops[0].function is None else ops[0].function.name
    alone = ops[0].family if len(ops) == 1 else Family.OTHER
    if name in _NORMS or alone in (Family.NORM, Family.BATCH_NORM):
        return "norm"
    return "activation" if name in _ACTIVATIONS or alone is Family.ACTIVATION else ""
