"""Run a model once and follow the labels of its channels through every op that PyTorch dispatches."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _pop_mode_temporarily

from secateurs.graph import attributes, rules, shapes
from secateurs.graph.context import Context
from secateurs.graph.dispatch import DispatchMode
from secateurs.graph.families import draws, sized_by_values
from secateurs.graph.reasons import Kind, Reason
from secateurs.graph.recorder import Recorder, written
from secateurs.graph.tape import Array, Labels
from secateurs.graph.widths import width

_NONE: Labels = {}
_POINTWISE = torch.Tag.pointwise


@cache
def _unusual(op: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in op.tags or torch.Tag.dynamic_output_shape in op.tags


class Tracer(Context, DispatchMode):
    """The dispatch mode: after each op, its rule determines the labels of the output."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        Context.__init__(self, *args, **kwargs)
        DispatchMode.__init__(self)
        self.recorder: Recorder | None = None  # while the flow is recorded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder is None:
            out = shapes.run(func, args, kwargs)
        else:
            recorder.prepare(func)
            out = shapes.run(func, args, kwargs)
            recorder.op(func, args, kwargs, out, self.call)
        labeled = live = False
        for a in args if not kwargs else (*args, *kwargs.values()):
            for x in a if isinstance(a, list | tuple) else (a,):
                if isinstance(x, Tensor):
                    found, alive = self._look(x)
                    labeled, live = labeled or bool(found), live or alive
        self.op, self.out = func, out
        drawn = False
        if self.counting and _unusual(func):
            self.tape.dynamic = self.tape.dynamic or sized_by_values(func, args, kwargs)
            if drawn := draws(func, args, kwargs):
                self.tape.random.append(f"{self.where()} ({self.op_name})")
        rule, labels = rules.find(func), None
        if labeled or (rule is not None and rule.counts_macs):
            if rule is not None:
                labels = rule.function(self, *args, **kwargs)
            elif _POINTWISE in func.tags:
                labels = rules.pointwise.pointwise(self, *args, **kwargs)
            else:
                self._unknown(*args, **kwargs)
            if drawn:  # a smaller network draws other numbers
                for own in labels if isinstance(labels, list) else [labels]:
                    self.freeze(
                        own or _NONE, Reason(Kind.CODE, "random numbers are drawn for each channel", self.where())
                    )
        if live:
            for x in written(func, args, kwargs):
                self.write(x)
        if labeled or live or labels:
            self._assign(out, labels or _NONE, live)
        return out

    def whole(self, op: Any, args: Any, kwargs: Any) -> Any:
        """Follow as one op what would be dispatched as many."""
        with _pop_mode_temporarily():
            return self.__torch_dispatch__(op, (), args, kwargs)

    def _unknown(self, *args: Any, **kwargs: Any) -> None:
        """Freeze the operands of an op without a rule."""
        for x in pytree.tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                self.freeze(self.labels(x), Reason(Kind.NO_RULE, f"op {self.op_name} has no rule"))
                if self.is_weight(x):
                    self.produce(x, 0)  # so that the layer appears in the graph, with this reason

    def _assign(self, out: Any, labels: Any, live: bool) -> None:
        if isinstance(out, Tensor):
            if id(out) not in self._names:
                own = labels[0] if isinstance(labels, list) else labels
                if any(len(v) == 1 for v in own.values()):
                    own = {a: v for a, v in own.items() if len(v) > 1 or self.space.last(v)}
                out._secateurs = (self, own, live)  # type: ignore[attr-defined]
        elif isinstance(out, list | tuple):
            each = labels if isinstance(labels, list) else [labels] + [_NONE] * (len(out) - 1)
            for x, one in zip(out, each, strict=False):
                self._assign(x, one, live)

    def note_weightless(self, path: str, module: nn.Module, args: Any) -> None:
        """Note the channels of the input of a norm without tensors. This is a forward pre-hook."""
        x = args[0] if args else None
        if isinstance(x, Tensor):
            with torch._C.DisableTorchFunction():  # plain numbers: it is not the user's code that reads them
                labels, shape = self.labels(x), tuple(x.shape)
            axes = attributes.weight_axes(module, shape, labels)
            if axes:
                if self.counting:
                    self.tape.weights[path] = {"weight": self._axes(x, axes)}
                size = tuple(shape[a] for a in axes)
                sized = tuple(width(shape[a], labels[a], self.log) if a in labels else shape[a] for a in axes)
                module.__dict__.update(attributes.figures(module, {"weight": size}, {"weight": sized}))

    def note_through(self, path: str, _: nn.Module, args: Any, out: Any) -> None:
        """Note the channels of a module's inputs and outputs. This is a forward hook."""
        for tree, found in zip((args, out), self.tape.through.setdefault(path, ([], [])), strict=True):
            for x in pytree.tree_leaves(tree):
                if isinstance(x, Tensor):
                    found += self.labels(x).values()

    def note_weights(self) -> None:
        """Note the axes of the tensors that modules computed with. This comes last, since a hook or a parametrization may
        compute them from several parameters."""
        counting, point = self.counting, self.tape.savepoint()
        self.counting = False
        for path, module in self._modules.items():
            for leaf, x in attributes.own_tensors(module).items():
                if (id(x) in self._params or id(x) not in self._names) and self.labels(x):
                    self.tape.weights.setdefault(path, {})[leaf] = self._axes(x, range(x.ndim))
            for leaf in attributes.parametrized(module):
                originals = module.parametrizations[leaf].parameters()  # type: ignore[index,union-attr]
                if any(id(p) in self._params for p in originals):
                    with self, suppress(Exception):
                        x = getattr(module, leaf)
                        self.tape.weights.setdefault(path, {})[leaf] = self._axes(x, range(x.ndim))
        self.counting = counting
        self.tape.rollback(point)

    def _axes(self, x: Tensor, axes: Iterable[int]) -> tuple[int | Array, ...]:
        labels = self.labels(x)
        return tuple(labels[a] if a in labels else x.shape[a] for a in axes)

    def named(self, tensors: Iterable[Tensor]) -> tuple[str, ...]:
        """Return the names of those tensors that are parameters or buffers."""
        names = self._names
        return tuple([names[id(x)] for x in tensors if id(x) in names])

    def given(self, tensors: Iterable[Tensor]) -> tuple[str, ...]:
        """Return the names of those tensors that are parameters or buffers, or copies of one in another layout or type."""
        found = (self._names.get(id(x)) or self._copied(x) for x in tensors)
        return tuple([name for name in found if name])

    def copied(self, args: tuple[Any, ...], out: Any) -> None:
        """Note a call that returns its operand or a copy of it. Which of these, as for `contiguous`, may depend on widths."""
        if args and isinstance(out, Tensor) and out is not args[0] and (names := self.given(args[:1])):
            out._secateurs_copy = self, names[0]  # type: ignore[attr-defined]

    def _copied(self, x: Tensor) -> str:
        tracer, name = getattr(x, "_secateurs_copy", (None, ""))
        return name if tracer is self else ""

    def label(self, x: Tensor, labels: Labels) -> None:
        """Set the labels of a tensor that does not depend on the model's input."""
        self._assign(x, labels, False)

    def enter(self, x: Tensor) -> None:
        """Mark x as an input of the model."""
        self._assign(x, _NONE, True)
