"""Run a model once and follow the labels of its channels through every op that PyTorch dispatches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateurs.graph import attributes, numbers, rules, shapes
from secateurs.graph.labels import CONSUMED, LABEL, PRODUCED, SHORTCUT, KnownLabels, LabelSpace
from secateurs.graph.reasons import Kind, Reason

Array = np.ndarray
Labels = dict[int, Array]  # axis → one label per index; axes of size 1 and axes without channels are left out
_NONE: Labels = {}
_POINTWISE = torch.Tag.pointwise
_TORCH = torch.__path__[0] + os.sep


@dataclass
class Axis:
    """One axis of a parameter or buffer, and the labels it was given."""

    param: str
    axis: int
    labels: Array


@dataclass
class Site:
    """A place where the code may hold a constant that only fits the uncut network."""

    where: str
    key: tuple[str, str, int]  # code line, reason, and how often the two had come together before
    labels: list[Array]
    reason: str
    options: int = 0  # how many readings there are
    out: dict[tuple[int, int], Array] = field(default_factory=dict)  # (output, axis) → the labels that left it


@dataclass
class Tape:
    """What a trace leaves behind, beside the label space."""

    axes: list[Axis] = field(default_factory=list)
    costs: list[tuple[int, tuple[Array, ...]]] = field(default_factory=list)  # coefficient, labelled factors
    kernels: dict[int, str] = field(default_factory=dict)  # which of the costs are a convolution's, and its weight
    sites: list[Site] = field(default_factory=list)
    couplings: list[tuple[Array, str]] = field(default_factory=list)  # labels that were coupled, and what did it
    numbers: list[numbers.Number] = field(default_factory=list)
    random: list[str] = field(default_factory=list)  # lines that draw random numbers


class Tracer(TorchDispatchMode):
    """The dispatch mode; also what a rule sees as `t`."""

    def __init__(
        self,
        space: LabelSpace | KnownLabels,
        params: Mapping[int, str],
        modules: Mapping[str, nn.Module],
        choices: Mapping[tuple[str, str, int], int],
        known: Mapping[tuple[str, int], Array] | None = None,
    ) -> None:
        super().__init__()
        self.space, self.tape = space, Tape()
        self.op: Any = None  # the op that a rule is called for
        self.out: Any = None  # and what it returned
        self.call: tuple[Any, tuple[Any, ...], dict[str, Any]] = (None, (), {})  # the author's call that it came from
        self.counting = True
        self._names, self._modules, self._choices, self._known = params, modules, choices, known
        self._params: dict[int, Labels] = {}
        self._visits: dict[tuple[str, str], int] = {}

    # -- dispatch ------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = shapes.run(func, args, kwargs)
        labelled = live = False
        for a in args if not kwargs else (*args, *kwargs.values()):
            for x in a if isinstance(a, list | tuple) else (a,):
                if isinstance(x, Tensor):
                    found, alive = self._look(x)
                    labelled, live = labelled or bool(found), live or alive
        self.op, self.out = func, out
        kind = numbers.kind(func)
        if kind and self.counting:
            self._note(kind, args, kwargs)
        apply = rules.find(func)
        if apply is None:
            apply = rules.pointwise.pointwise if _POINTWISE in func.tags else self._unknown
        if labelled or apply in _ALWAYS:
            sites = len(self.tape.sites)
            labels = apply(self, *args, **kwargs)
            for site in self.tape.sites[sites:]:
                each = labels if isinstance(labels, list) else [labels]
                site.out = {(i, a): own for i, one in enumerate(each) for a, own in (one or _NONE).items()}
            self._assign(out, labels or _NONE, live)
        elif live:
            self._assign(out, _NONE, live)
        return out

    def _note(self, kind: int, args: Any, kwargs: Any) -> None:
        if kind == numbers.RANDOM:
            self.tape.random.append(f"{_caller()} ({self.op_name})")
        elif found := numbers.values(args, kwargs):
            self.note_number(self.op, found, [x for x in args if isinstance(x, Tensor)])

    def note_number(self, op: Any, found: tuple[float, ...], tensors: Iterable[Tensor] = ()) -> None:
        if found and self.counting:
            labels = tuple(own for x in tensors for own in self.labels(x).values())
            self.tape.numbers.append(numbers.Number(op, found, labels, _caller()))

    def _unknown(self, *args: Any, **kwargs: Any) -> None:
        tensors = list(pytree.tree_leaves((args[1:] if args and args[0] is self else args, kwargs)))
        for x in tensors:
            if isinstance(x, Tensor):
                self.freeze(self.labels(x), Reason(Kind.NO_RULE, f"op {self.op_name} has no rule"))
                if self.is_weight(x):
                    self.produce(x, 0)  # so that the layer shows up, with this reason

    def _assign(self, out: Any, labels: Any, live: bool) -> None:
        if isinstance(out, Tensor):
            if id(out) not in self._names:
                own = labels[0] if isinstance(labels, list) else labels
                if any(len(v) == 1 for v in own.values()):
                    own = {a: v for a, v in own.items() if len(v) > 1}
                out._secateurs = (self, own, live)  # type: ignore[attr-defined]
        elif isinstance(out, list | tuple):
            each = labels if isinstance(labels, list) else [labels] + [_NONE] * (len(out) - 1)
            for x, one in zip(out, each, strict=False):
                self._assign(x, one, live)

    def enter(self, x: Tensor) -> None:
        """x is an input of the model."""
        self._assign(x, _NONE, True)

    def _look(self, x: Tensor) -> tuple[Labels, bool]:
        """Labels of a tensor, and whether the model's input went into it."""
        key = id(x)
        if key in self._names:
            own = self._params.get(key)
            return (own if own is not None else self._register(x)), False
        note = getattr(x, "_secateurs", None)
        return (note[1], note[2]) if note is not None and note[0] is self else (_NONE, False)

    def _register(self, x: Tensor) -> Labels:
        """Labels for a parameter that is seen for the first time."""
        name = self._names[id(x)]
        own: Labels = {}
        for axis, n in enumerate(x.shape):
            if self._known is not None:
                if (name, axis) in self._known:
                    own[axis] = self._known[name, axis]
            elif n > 1:
                assert isinstance(self.space, LabelSpace)
                own[axis] = self.space.fresh(n)
                self.tape.axes.append(Axis(name, axis, own[axis]))
        self._params[id(x)] = own
        return own

    # -- what rules may ask and say ------------------------------------------------------------------------------

    @property
    def op_name(self) -> str:
        return str(self.op.overloadpacket)

    def labels(self, x: Tensor) -> Labels:
        """`{axis: labels}` of the axes of x that carry channels."""
        return self._look(x)[0]

    def axis(self, x: Tensor, axis: int) -> Array:
        """One label per index of this axis; zeros where it carries no channels."""
        found = self._look(x)[0].get(axis)
        return found if found is not None else self.zeros(x.shape[axis])

    @staticmethod
    def zeros(n: int) -> Array:
        return np.zeros(n, dtype=LABEL)

    @staticmethod
    def tile(labels: Array, times: int) -> Array:
        return np.tile(labels, times)

    def is_live(self, x: Tensor) -> bool:
        """Whether x was computed from the model's input (and not from parameters alone)."""
        return self._look(x)[1]

    def is_weight(self, x: Tensor) -> bool:
        labels, live = self._look(x)
        return bool(labels) and not live

    def width(self, x: Tensor, axis: int) -> int | Array:
        """The size of an axis, as a factor for `cost`: its labels where it may shrink."""
        found = self._look(x)[0].get(axis)
        return found if found is not None else x.shape[axis]

    def unify(self, *operands: Array | Tensor | None) -> None:
        """The i-th channels of all operands (labels, or parameters of shape (C,)) are one channel."""
        present = [self.axis(o, 0) if isinstance(o, Tensor) else o for o in operands if o is not None]
        reason = Reason(Kind.CONSTANT, f"meets the model's input or a constant in {self.op_name}")
        for other in present[1:]:
            self.space.unify(present[0], other, reason)

    def couple(self, pieces: Array) -> None:
        """The k-th channels of all pieces are one channel.  pieces: (pieces, channels)"""
        if pieces.shape[0] > 1:
            self.tape.couplings.append((pieces, f"{self.op_name} ({_caller()})"))
            self.space.unify(
                np.tile(pieces[0], len(pieces) - 1),
                pieces[1:].ravel(),
                Reason(Kind.RULE, f"{self.op_name} pads a piece"),
            )

    def join(self, operands: list[tuple[Labels, Tensor]]) -> Labels:
        """Operands with these labels meet element by element, with broadcasting: unify what meets."""
        ndim = max(x.ndim for _, x in operands)
        out: Labels = {}
        for labels, x in operands:
            for axis, own in labels.items():
                at = axis + ndim - x.ndim
                if at not in out:
                    out[at] = own
                elif out[at] is not own:
                    self.unify(out[at], own)
        for at, own in out.items():
            for labels, x in operands:
                axis = at - ndim + x.ndim
                if axis < 0 or axis in labels or x.shape[axis] == 1:
                    continue
                if x.stride(axis) == 0:  # one value, expanded to as many as there are channels
                    self.assume(own, "a tensor is expanded to a size that is a constant in the code")
                else:
                    self.unify(own, self.zeros(len(own)))
        return out

    def freeze(self, labels: Array | Labels, reason: str | Reason) -> None:
        """These channels can't be cut, and this is why."""
        reason = Reason(Kind.RULE, reason) if isinstance(reason, str) else reason
        for own in labels.values() if isinstance(labels, dict) else (labels,):
            self.space.freeze(own, reason)

    def inexact(self, labels: Array, reason: str) -> None:
        """A cut changes more than what is cut: only done on request."""
        self.space.inexact(labels, Reason(Kind.INEXACT, reason))

    def shortcut(self, *tensors: Tensor) -> None:
        found = [labels for labels in map(self.labels, tensors) if labels]
        if len(found) == len(tensors):
            for labels in found:
                for own in labels.values():
                    self.space.mark(own, SHORTCUT)

    def sum_of_weights(self, v: Tensor, w: Tensor) -> None:
        """What creates or reads channels is v + w: the same is true of both."""
        if v.ndim == w.ndim:
            for axis in self.labels(v).keys() & self.labels(w).keys():
                self.space.kin(self.labels(v)[axis], self.labels(w)[axis])

    def produce(self, w: Tensor, axis: int) -> None:
        """w creates the channels on this axis."""
        if axis in self.labels(w):
            self.space.mark(self.labels(w)[axis], PRODUCED)

    def consume(self, w: Tensor, axis: int) -> None:
        """w reads the channels on this axis: zeroing it there masks them."""
        if axis in self.labels(w):
            self.space.mark(self.labels(w)[axis], CONSUMED)

    def cost(self, *factors: int | Array, kernel: Tensor | None = None) -> None:
        """This op does the product of these many multiply-accumulates. kernel: the weight, if it is a convolution."""
        if self.counting:
            if kernel is not None and id(kernel) in self._names:
                self.tape.kernels[len(self.tape.costs)] = self._names[id(kernel)]
            coefficient = 1
            for f in factors:
                coefficient *= 1 if isinstance(f, np.ndarray) else int(f)
            self.tape.costs.append((coefficient, tuple(f for f in factors if isinstance(f, np.ndarray))))

    # -- constants in the author's code --------------------------------------------------------------------------

    def assume(self, labels: Array, reason: str) -> None:
        """The code is taken to compute this figure from the shape; the check of a cut network will tell."""
        self._site([labels], reason, 1)

    def choose(self, options: int, labels: Array, reason: str) -> int | None:
        """Which of several readings of the code to take: the next one that no check has refuted, None after the last."""
        site = self._site([labels.ravel()], reason, options)
        choice = self._choices.get(site.key, 0)
        return choice if choice < options else None

    def depends_on(self, param: Tensor | None, labels: Array, reason: str) -> None:
        """An attribute that surgery rewrites if a module of ours owns `param`; else a constant in the code."""
        if param is None or not self._owned(param):
            self.assume(labels, reason)

    def depends_on_groups(self, w: Tensor) -> None:
        """The same for the groups of a convolution."""
        for own in self.labels(w).values():
            self.depends_on(w, own, "the number of groups is a constant in the code")

    def _owned(self, param: Tensor) -> bool:
        return attributes.rewritten(self._modules.get(self._names.get(id(param), "").rpartition(".")[0]))

    def _site(self, labels: list[Array], reason: str, options: int) -> Site:
        where = _caller()
        visit = self._visits.get((where, reason), 0)
        self._visits[where, reason] = visit + 1
        site = Site(where, (where, reason, visit), labels, reason, options)
        self.tape.sites.append(site)
        return site


class Calls(TorchFunctionMode):
    """Notes each call that the author's code makes into torch, with its arguments as they were written: `flatten(1)` or
    `view(n, -1)` tell that a size is computed, which the op they end in no longer does. And code that asks for the
    number of channels may do anything with it: whether it still runs on fewer has to be tried."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.size or getattr(func, "__self__", None) is Tensor.shape:
            labels = self.tracer.labels(args[0])
            if labels and (len(args) == 1 or args[1] % args[0].ndim in labels):
                for own in labels.values():
                    self.tracer.assume(own, "the code depends on the number of channels")
        else:
            self.tracer.call = (func, args, kwargs or {})
            if func in numbers.MADE:
                self.tracer.note_number(func, numbers.written(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


_ALWAYS = frozenset({
    rules.contractions.convolution, rules.contractions.mm, rules.contractions.addmm, rules.contractions.linear,
    rules.contractions.attention, rules.contractions.scaled_dot_product_attention,
})  # fmt: skip


def _caller() -> str:
    """The line of the author's code that is running: the innermost frame outside torch and this package."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_TORCH) and "secateurs/graph" not in file.replace("\\", "/"):
            return f"{file.replace(chr(92), '/').rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@contextmanager
def swapped(
    modules: Mapping[str, nn.Module], tensors: Mapping[int, Tensor], rewrites: Mapping[tuple[str, str], Any] = {}
) -> Iterator[None]:
    """All modules of a model with other tensors in the place of their own (by id) and other attributes, in eval mode
    without gradients; on exit every module is as it was, whatever its forward stored on it."""
    saved = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in modules.values()]
    try:
        for m, _, parameters, buffers in saved:
            m.__dict__["training"] = False
            for own, old in ((m._parameters, parameters), (m._buffers, buffers)):
                for name, x in old.items():
                    if x is not None and id(x) in tensors:
                        own[name] = tensors[id(x)]  # type: ignore[assignment]
        for (name, attribute), value in rewrites.items():
            modules[name].__dict__[attribute] = value
        with torch.no_grad():
            yield
    finally:
        for m, attributes_before, parameters, buffers in saved:
            for own, old in ((m._parameters, parameters), (m._buffers, buffers)):
                own.clear()
                own.update(old)  # type: ignore[arg-type]
            m.__dict__.clear()
            m.__dict__.update(attributes_before)
