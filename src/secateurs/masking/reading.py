"""Change the weights that a network's ops read, but not the stored ones.

A weight may be computed from a parameter: by a parametrization, a hook of weight norm, or the model's own code. A channel is
then masked (or gated) in the weight that meets the activations. Zeroing the parameter would give another result if the
computation is not zero at zero, or divides by a norm. So the axes are followed from the parameter through the computation, by
the same rules as in a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateurs.graph.channels import named_tensors
from secateurs.graph.labels import CONSUMED, LABEL, KnownLabels
from secateurs.graph.reasons import Reason
from secateurs.graph.tape import Labels
from secateurs.graph.tracer import Tracer

Array = np.ndarray
Axis = tuple[str, int]  # a parameter and one of its axes
_ONE_OPERAND = frozenset({Tensor.to, Tensor.type_as})  # their other arguments only name a dtype or a device


class Reading(TorchFunctionMode):
    """Context for one forward pass of a model.

    axes: labels for the axes to follow, from 1. change: returns the weight to read, given the labels on its axes. It is
    applied when a weight meets activations, or is consumed in the computation of another weight.
    raw: parameters that need no change when they are read directly.
    """

    def __init__(
        self,
        model: nn.Module,
        axes: Mapping[Axis, Array],
        change: Callable[[Tensor, Labels], Tensor],
        raw: Collection[str] = (),
    ) -> None:
        super().__init__()
        self._change = change
        named = named_tensors(model)
        # Tensors that do not depend on the model's input, and their labels, by id. Tensors are kept so that no id is reused.
        self._still: dict[int, tuple[Tensor, Labels]] = {id(x): (x, {}) for x in named.values()}
        for (name, axis), labels in axes.items():
            self._still[id(named[name])][1][axis] = labels
        self._raw = {id(named[name]) for name in raw}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors(args[:1] if func in _ONE_OPERAND else args, kwargs))
        labeled = any(self._labels(x) for x in given)
        if not all(id(x) in self._still for x in given):
            versions = [(x, _version(x)) for x in given if id(x) in self._still]
            if labeled:
                args, kwargs = _mapped(args, kwargs, lambda x: self._read(x, self._labels(x)))
            out = func(*args, **kwargs)
            for x, before in versions:
                if before is None or _version(x) != before:
                    self._written(x)
            return out
        found: list[Labels] = []
        if labeled:
            found, consumed = self._follow(func, args, kwargs)
            if consumed:
                args, kwargs = _mapped(args, kwargs, lambda x: self._read(x, _only(self._labels(x), consumed)))
        out = func(*args, **kwargs)
        for i, x in enumerate(_tensors((out,), {})):
            if id(x) not in self._still:
                self._still[id(x)] = x, found[i] if i < len(found) else {}
        return out

    def _written(self, x: Tensor) -> None:
        """Note that x, and tensors that share its memory, now depend on the model's input."""
        place = _place(x)
        for key in [k for k, (own, _) in self._still.items() if _place(own) == place]:
            del self._still[key]

    def _labels(self, x: Tensor) -> Labels:
        found = self._still.get(id(x))
        return {} if found is None else found[1]

    def _read(self, x: Tensor, labels: Labels) -> Tensor:
        return self._change(x, labels) if labels and id(x) not in self._raw else x

    def _follow(self, func: Any, args: Any, kwargs: Any) -> tuple[list[Labels], set[int]]:
        """Return the labels of a call's outputs, and the labels that it consumes, by running it on meta tensors."""
        space = _Consumed()
        tracer = Tracer(space, {}, {}, {}, {})
        tracer.counting = False

        def shape_of(x: Tensor) -> Tensor:
            meta = x.detach().to("meta")
            tracer.label(meta, self._labels(x))
            return meta

        try:
            with torch.no_grad():
                args, kwargs = _mapped(args, kwargs, shape_of)
                with tracer:
                    out = func(*args, **kwargs)
        except Exception:  # the call needs values: assume that its output has the labels of its first labeled operand
            first = next(x for x in _tensors(args, kwargs) if self._labels(x))
            return [self._labels(first)], set()
        return [tracer.labels(x) for x in _tensors((out,), {})], space.labels


class _Consumed(KnownLabels):
    """A label space that only notes which labels are consumed."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: set[int] = set()

    def mark(self, labels: Array, flag: int) -> None:
        if flag == CONSUMED:
            self.labels.update(labels.tolist())

    def unify(self, a: Array, b: Array, reason: Reason) -> None: ...


def _only(labels: Labels, wanted: set[int]) -> Labels:
    """Keep only the wanted labels: the others become 0, and axes without any are left out."""
    kept = {a: np.where(np.isin(own, list(wanted)), own, 0).astype(LABEL) for a, own in labels.items()}
    return {a: own for a, own in kept.items() if own.any()}


def _version(x: Tensor) -> int | None:
    """Return a number that grows with every write to the tensor's memory; None if it is not known."""
    return None if x.is_inference() else x._version


def _place(x: Tensor) -> int:
    """Return an id of the tensor's memory. A sparse tensor shares none with others."""
    return int(x.untyped_storage()._cdata) if x.layout is torch.strided else id(x)


def _tensors(args: Any, kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for x in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            for one in x:
                if isinstance(one, Tensor):
                    yield one


def _mapped(
    args: Any, kwargs: Mapping[str, Any], fn: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def mapped(x: Any) -> Any:
        if isinstance(x, Tensor):
            return fn(x)
        if type(x) in (list, tuple):
            return type(x)([fn(one) if isinstance(one, Tensor) else one for one in x])
        return x

    return tuple([mapped(x) for x in args]), {k: mapped(x) for k, x in kwargs.items()}
