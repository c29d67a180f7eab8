"""The context of a rule: read the labels of tensors, and declare what happens to them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.graph import attributes, numbers
from secateurs.graph.labels import CONSUMED, LABEL, PRODUCED, SHORTCUT, KnownLabels, LabelSpace
from secateurs.graph.reasons import Kind, Reason
from secateurs.graph.tape import Array, Axis, Labels, Site, Tape

_NONE: Labels = {}
NO_CALL: tuple[Any, tuple[Any, ...], dict[str, Any]] = None, (), {}  # function, arguments
_TORCH = torch.__path__[0] + os.sep


class Context:
    """The running trace, as a rule sees it (`t`).

    Labels are integers, one per index of an axis; 0 means no channel. Shapes: a labels array is (n,) for an axis of size n.
    `op` is the op that the rule is called for and `out` its output.
    """

    def __init__(
        self,
        space: LabelSpace | KnownLabels,
        params: Mapping[int, str],
        modules: Mapping[str, nn.Module],
        choices: Mapping[tuple[str, str, int], int],
        known: Mapping[tuple[str, int], Array] | None = None,
    ) -> None:
        self.space, self.tape = space, Tape()
        self.op: Any = None  # the op that a rule is called for
        self.out: Any = None  # and its output
        self.call = NO_CALL  # the call in the user's code that it came from
        self.counting = True
        self._names, self._modules, self._choices, self._known = params, modules, choices, known
        self._params: dict[int, Labels] = {}
        self._visits: dict[tuple[str, str], int] = {}

    def _look(self, x: Tensor) -> tuple[Labels, bool]:
        """Labels of a tensor, and whether it depends on the model's input."""
        key = id(x)
        if key in self._names:
            own = self._params.get(key)
            return (own if own is not None else self._register(x)), False
        note = getattr(x, "_secateurs", None)
        return (note[1], note[2]) if note is not None and note[0] is self else (_NONE, False)

    def _register(self, x: Tensor) -> Labels:
        """New labels for a parameter at its first use."""
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

    def again(self, names: Mapping[int, str]) -> None:
        """The model runs again, in training, with these tensors for its parameters and buffers, which keep their labels."""
        known = {self._names[key]: own for key, own in self._params.items()}
        self._names, self._params = names, {key: known[n] for key, n in names.items() if n in known}
        self._visits = {}
        self.counting = False

    # -- the interface of rules ------------------------------------------------------------------------------

    @property
    def op_name(self) -> str:
        return str(self.op.overloadpacket)

    def labels(self, x: Tensor) -> Labels:
        """`{axis: labels}` for the axes of x that carry channels."""
        return self._look(x)[0]

    def axis(self, x: Tensor, axis: int) -> Array:
        """One label per index of this axis; zeros if it carries no channels."""
        found = self._look(x)[0].get(axis)
        return found if found is not None else self.zeros(x.shape[axis])

    @staticmethod
    def zeros(n: int) -> Array:
        return np.zeros(n, dtype=LABEL)

    @staticmethod
    def tile(labels: Array, times: int) -> Array:
        return np.tile(labels, times)

    def is_live(self, x: Tensor) -> bool:
        """Whether x was computed from the model's input (and not from parameters only)."""
        return self._look(x)[1]

    def is_weight(self, x: Tensor) -> bool:
        labels, live = self._look(x)
        return bool(labels) and not live

    def width(self, x: Tensor, axis: int) -> int | Array:
        """The size of an axis, as a factor for `cost`: its labels if it can shrink."""
        found = self._look(x)[0].get(axis)
        return found if found is not None else x.shape[axis]

    def unify(self, *operands: Array | Tensor | None) -> None:
        """The i-th channels of all operands (labels, or parameters of shape (C,)) are one channel."""
        present = [self.axis(o, 0) if isinstance(o, Tensor) else o for o in operands if o is not None]
        reason = Reason(Kind.CONSTANT, f"combined elementwise with the model's input or a constant in {self.op_name}")
        for other in present[1:]:
            self.space.unify(present[0], other, reason)

    def couple(self, pieces: Array) -> None:
        """The k-th channels of all pieces are one channel.  pieces: (pieces, channels)"""
        if pieces.shape[0] > 1:
            self.tape.couplings.append((pieces, f"{self.op_name} ({caller()})"))
            self.space.unify(
                np.tile(pieces[0], len(pieces) - 1),
                pieces[1:].ravel(),
                Reason(Kind.RULE, f"{self.op_name} pads a piece"),
            )

    def join(self, operands: list[tuple[Labels, Tensor]]) -> Labels:
        """Operands with these labels are combined element by element, with broadcasting: unify the corresponding labels."""
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
                if x.stride(axis) == 0:  # one value, expanded to the number of channels
                    self.assume(own, "a tensor is expanded to a size that is a constant in the code")
                else:
                    self.unify(own, self.zeros(len(own)))
        return out

    def freeze(self, labels: Array | Labels, reason: str | Reason) -> None:
        """Mark these channels as not prunable, for this reason."""
        reason = Reason(Kind.RULE, reason) if isinstance(reason, str) else reason
        for own in labels.values() if isinstance(labels, dict) else (labels,):
            self.space.freeze(own, reason)

    def inexact(self, labels: Array, reason: str) -> None:
        """Mark these channels as inexact: a cut changes more than the cut channels, and is only made on request."""
        self.space.inexact(labels, Reason(Kind.INEXACT, reason))

    def shortcut(self, *tensors: Tensor) -> None:
        found = [labels for labels in map(self.labels, tensors) if labels]
        if len(found) == len(tensors):
            for labels in found:
                for own in labels.values():
                    self.space.mark(own, SHORTCUT)

    def sum_of_weights(self, v: Tensor, w: Tensor) -> None:
        """v + w produces or consumes channels: mark both operands alike."""
        if v.ndim == w.ndim:
            for axis in self.labels(v).keys() & self.labels(w).keys():
                self.space.share_marks(self.labels(v)[axis], self.labels(w)[axis])

    def produce(self, w: Tensor, axis: int) -> None:
        """Mark w as the producer of the channels on this axis."""
        if axis in self.labels(w):
            self.space.mark(self.labels(w)[axis], PRODUCED)

    def consume(self, w: Tensor, axis: int) -> None:
        """Mark w as a consumer of the channels on this axis: zeroing it there masks them."""
        if axis in self.labels(w):
            self.space.mark(self.labels(w)[axis], CONSUMED)

    def cost(self, *factors: int | Array, kernel: Tensor | None = None) -> None:
        """Add the product of these factors to the multiply-accumulates. kernel: the weight, if the op is a convolution."""
        if self.counting:
            if kernel is not None and id(kernel) in self._names:
                self.tape.kernels[len(self.tape.costs)] = self._names[id(kernel)]
            coefficient = 1
            for f in factors:
                coefficient *= 1 if isinstance(f, np.ndarray) else int(f)
            self.tape.costs.append((coefficient, tuple(f for f in factors if isinstance(f, np.ndarray))))

    # -- constants in the user's code --------------------------------------------------------------------------

    def assume(self, labels: Array, reason: str) -> None:
        """Assume that the code computes this number from the shape; the check of a cut network will verify it."""
        self._site([labels], reason, 1)

    def choose(self, options: int, labels: Array, reason: str) -> int | None:
        """Choose one of several interpretations of the code: the next one that no check has refuted, None after the last."""
        site = self._site([labels.ravel()], reason, options)
        choice = self._choices.get(site.key, 0)
        return choice if choice < options else None

    def depends_on(self, param: Tensor | None, labels: Array, reason: str) -> None:
        """Depend on an attribute that surgery rewrites if a known module owns `param`; else it is a constant in the code."""
        if param is None or not self._owned(param):
            self.assume(labels, reason)

    def depends_on_groups(self, w: Tensor) -> None:
        """The same for the `groups` of a convolution."""
        for own in self.labels(w).values():
            self.depends_on(w, own, "the number of groups is a constant in the code")

    def _owned(self, param: Tensor) -> bool:
        return attributes.rewritten(self._modules.get(self._names.get(id(param), "").rpartition(".")[0]))

    def _site(self, labels: list[Array], reason: str, options: int) -> Site:
        where = caller()
        visit = self._visits.get((where, reason), 0)
        self._visits[where, reason] = visit + 1
        site = Site(where, (where, reason, visit), labels, reason, options)
        self.tape.sites.append(site)
        return site

    def note_number(self, op: Any, found: tuple[float, ...], tensors: Iterable[Tensor] = ()) -> None:
        if found and self.counting:
            labels = tuple(own for x in tensors for own in self.labels(x).values())
            self.tape.numbers.append(numbers.Number(op, found, labels, caller()))


def caller() -> str:
    """The line of the user's code that is running: the innermost frame outside torch and this package."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_TORCH) and "secateurs/graph" not in file.replace("\\", "/"):
            return f"{file.replace(chr(92), '/').rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
