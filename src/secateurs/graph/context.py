"""The context of a rule: read the labels of tensors, and declare what happens to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.graph import attributes
from secateurs.graph.figures import Figure
from secateurs.graph.frames import caller, of_the_user, running
from secateurs.graph.labels import CONSUMED, LABEL, PRODUCED, SHORTCUT, KnownLabels, LabelSpace
from secateurs.graph.reasons import EXPANDED, GROUPS, Kind, Reason
from secateurs.graph.tape import Array, Axis, Claim, Labels, Place, Seen, Tape
from secateurs.graph.widths import Expression, Leaf, Log, Traced, Width, plain, width

_NONE: Labels = {}
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]  # function, arguments
NO_CALL: Call = None, (), {}
_CALL = nn.Module._call_impl.__code__


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
        tape: Tape | None = None,
        depthwise: set[str] | None = None,
    ) -> None:
        self.space, self.tape = space, tape or Tape()
        self.log = Log(self)  # of the widths that the code is given
        self.op: Any = None  # the op that a rule is called for
        self.out: Any = None  # and its output
        self.call = NO_CALL  # the call in the user's code that it came from
        self.reads_sizes = False  # whether the sizes that the op depends on are read from that call
        self.counting = True  # False in training mode, where only shapes have to fit
        self._names, self._modules, self._choices, self._known = params, modules, choices, known
        self._depthwise = set() if depthwise is None else depthwise  # see `was_depthwise`
        self._params: dict[int, Labels] = {}
        self._visits: dict[tuple[str, str], int] = {}
        self._paths = {id(m): path for path, m in modules.items()}
        # By id: tensors that depended only on parameters until the code wrote a value that depends on the model's input to them
        # or to a view of them. They are kept so that no id is reused.
        self._filled: dict[int, Tensor] = {}
        self._fillers: list[Array] = []  # labels that stand for others, see `fill`

    def _look(self, x: Tensor) -> tuple[Labels, bool]:
        """Return the labels of a tensor, and whether it depends on the model's input."""
        key = id(x)
        if key in self._names:
            own = self._params.get(key)
            return (own if own is not None else self._register(x)), key in self._filled
        note = getattr(x, "_secateurs", None)
        labels, live = (note[1], note[2]) if note is not None and note[0] is self else (_NONE, False)
        return labels, live or bool(self._filled and (key in self._filled or id(x._base) in self._filled))

    def write(self, x: Tensor) -> None:
        """Note that the code wrote a value that depends on the model's input to x. So x and its views depend on it, too."""
        for one in (x, x._base):
            if one is not None and not self.is_live(one):
                self._filled[id(one)] = one

    def _register(self, x: Tensor) -> Labels:
        """Create labels for a parameter at its first use."""
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
        """Prepare for another run, in training mode, with these tensors as parameters and buffers. They keep their labels."""
        known = {self._names[key]: own for key, own in self._params.items()}
        self._names, self._params = names, {key: known[n] for key, n in names.items() if n in known}
        self._visits, self._filled = {}, {}
        self.counting = False

    # -- the interface of rules ------------------------------------------------------------------------------

    @property
    def op_name(self) -> str:
        return str(self.op.overloadpacket)

    @property
    def checking(self) -> bool:
        """Whether this is a run of a cut network, whose labels are known."""
        return self._known is not None

    def labels(self, x: Tensor) -> Labels:
        """Return `{axis: labels}` for the axes of x that carry channels."""
        return self._look(x)[0]

    def axis(self, x: Tensor, axis: int) -> Array:
        """Return one label per index of this axis; zeros if it carries no channels."""
        found = self._look(x)[0].get(axis)
        return found if found is not None else self.zeros(x.shape[axis])

    @staticmethod
    def zeros(n: int) -> Array:
        return np.zeros(n, dtype=LABEL)

    @staticmethod
    def tile(labels: Array, times: int) -> Array:
        return np.tile(labels, times)

    def was_depthwise(self, w: Tensor, now: bool) -> bool:
        """Whether the convolution with this weight is depthwise, or was before a cut, which may leave one group or one channel
        per group. now: whether it looks depthwise now, which decides for a computed weight."""
        name = self._names.get(id(w))
        if name is None:
            return now
        if self._known is None and now:
            self._depthwise.add(name)
        return name in self._depthwise

    def is_live(self, x: Tensor) -> bool:
        """Whether x was computed from the model's input (and not from parameters only)."""
        return self._look(x)[1]

    def is_weight(self, x: Tensor) -> bool:
        labels, live = self._look(x)
        return bool(labels) and not live

    def width(self, x: Tensor, axis: int) -> int | Array:
        """Return the size of an axis as a factor for `cost`: its labels if it can shrink."""
        found = self._look(x)[0].get(axis)
        return found if found is not None else x.shape[axis]

    def unify(self, *operands: Array | Tensor | None) -> None:
        """Declare that the i-th channels of all operands (labels, or parameters of shape (C,)) are one channel."""
        present = [self.axis(o, 0) if isinstance(o, Tensor) else o for o in operands if o is not None]
        reason = Reason(Kind.CONSTANT, f"combined elementwise with the model's input or a constant in {self.op_name}")
        for other in present[1:]:
            self.space.unify(present[0], other, reason)

    def couple(self, pieces: Array) -> None:
        """Declare that the k-th channels of all pieces are one channel. pieces: (pieces, channels)."""
        if pieces.shape[0] > 1:
            self.tape.couplings.append((pieces, f"{self.op_name} ({self.where()})"))
            self.space.unify(
                np.tile(pieces[0], len(pieces) - 1),
                pieces[1:].ravel(),
                Reason(Kind.RULE, f"{self.op_name} pads a piece"),
            )

    def join(self, operands: list[tuple[Labels, Tensor]]) -> Labels:
        """Unify the labels of operands that are combined elementwise, with broadcasting. Returns the labels of the result."""
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
                    self.assume(own, EXPANDED)
                else:
                    self.unify(own, self.zeros(len(own)))
        return out

    def freeze(self, labels: Array | Labels, reason: str | Reason) -> None:
        """Mark these channels as not prunable, for this reason."""
        reason = Reason(Kind.RULE, reason) if isinstance(reason, str) else reason
        for own in labels.values() if isinstance(labels, dict) else (labels,):
            self.space.freeze(own, reason)

    def inexact(self, labels: Array, reason: str) -> None:
        """Mark these channels as inexact: a cut changes other channels, too, and needs `allow_inexact`. Ignored in training."""
        if self.counting:
            self.space.inexact(labels, Reason(Kind.INEXACT, reason))

    def shortcut(self, *tensors: Tensor) -> None:
        found = [labels for labels in map(self.labels, tensors) if labels]
        if len(found) == len(tensors):
            for labels in found:
                for own in labels.values():
                    self.space.mark(own, SHORTCUT)

    def sum_of_weights(self, v: Tensor, w: Tensor) -> None:
        """Mark v and w alike, since their sum produces or consumes channels."""
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
            if self._fillers and np.isin(own := self.labels(w)[axis], np.concatenate(self._fillers)).any():
                self.freeze(own, f"{self.op_name} sums over it with values that are the same for each, in no weight")
            self.space.mark(self.labels(w)[axis], CONSUMED)

    def cost(self, *factors: int | Array, kernel: Tensor | None = None, vanishing: int | Array = 0) -> None:
        """Add the product of these factors to the multiply-accumulates. kernel: the weight, if the op is a convolution.
        vanishing: the factor that the op sums over. If it is 1, the op multiplies elementwise, and the product counts as 0."""
        if self.counting:
            if isinstance(vanishing, np.ndarray):
                self.tape.vanishing[len(self.tape.costs)] = vanishing
            if kernel is not None and id(kernel) in self._names:
                self.tape.kernels[len(self.tape.costs)] = self._names[id(kernel)]
            coefficient = 1
            for f in factors:
                coefficient *= 1 if isinstance(f, np.ndarray) else int(f)
            self.tape.costs.append((coefficient, tuple(f for f in factors if isinstance(f, np.ndarray))))

    # -- sizes in the user's code ------------------------------------------------------------------------------

    def claim(self, size: int, counts: Array | int, reason: str, least: bool = False) -> None:
        """Require that a size, as written in the code, equals what it counts at any widths: labels, or a number that no cut
        changes. If the size is a constant, its channels are kept whole for this reason. least: it may also be greater."""
        if self._known is None:
            computed = isinstance(size, Width) and size.log is self.log
            if isinstance(size, Width) and computed and isinstance(counts, int):
                self._computed(size.expression)
            if computed or not isinstance(counts, int):
                claimed = size.expression if computed else plain(size)  # type: ignore[attr-defined]
                figure = claimed.leaf if computed else None
                if isinstance(figure, Figure) and not isinstance(counts, int) and len(counts) == figure.size:
                    figure.passed.append(counts)
                self.tape.claims.append(Claim(claimed, counts, self._told(reason), self.where(), least))

    def assume(self, labels: Array, reason: str) -> None:
        """Assume that the code computes a number from the shape; a trial of a cut network will verify it."""
        if self._known is None:
            self.tape.claims.append(Claim(None, labels, self._told(reason), self.where()))

    def choose(self, options: int, labels: Array, reason: str) -> int | None:
        """Choose one of several interpretations of the code: the next that no trial has refuted; None after the last."""
        key = self._key()
        self.tape.places.append(Place(key, labels.ravel(), options))
        self.assume(labels.ravel(), reason)
        choice = self._choices.get(key, 0)
        return choice if choice < options else None

    def depends_on(self, param: Tensor | None, labels: Array, reason: str) -> None:
        """Declare that the op depends on the number of these channels: by a size in the call, or by an attribute that surgery
        rewrites if a known module owns `param`. Otherwise the number is a constant in the code."""
        if not self.reads_sizes and (param is None or not self._owned(param)):
            self.assume(labels, reason)

    def depends_on_groups(self, w: Tensor) -> None:
        """Declare that the op depends on the `groups` of the convolution with this weight."""
        for own in self.labels(w).values():
            self.depends_on(w, own, GROUPS)

    def _owned(self, param: Tensor) -> bool:
        return attributes.rewritten(self._modules.get(self._names.get(id(param), "").rpartition(".")[0]))

    def _key(self) -> tuple[str, str, int]:
        at = self.op_name, self._path()
        visit = self._visits.get(at, 0)
        self._visits[at] = visit + 1
        return *at, visit

    def _path(self) -> str:
        """Return the path of the module whose forward is running."""
        return self._paths.get(id(running(_CALL, self._paths)), "")

    def _told(self, reason: str) -> str:
        """Return the reason. If the constant is in the code of one of PyTorch's layers, the reason names the layer."""
        layer = running(_CALL, self._paths, within=True) if reason.endswith("in the code") and caller() else None
        return reason if layer is None else f"{reason} of layer {self._paths[id(layer)]}, {type(layer).__name__}"

    def where(self) -> str:
        """Return the line of the user's code that is running; the layer if there is none, as in nn.Sequential."""
        if line := caller():
            return line
        path = self._path()
        return f"in layer {path}" if path else ""

    # -- widths in the user's code -----------------------------------------------------------------------------

    def size(self, x: Tensor, asked: bool = True) -> torch.Size:
        """Return the shape of x, with `Width`s as the numbers of channels. asked: whether the user's code gets it."""
        shape, labels = x.shape, self.labels(x)
        if not labels:
            return shape
        where = self.where() if asked else ""
        sizes: list[int] = []
        for axis, n in enumerate(shape):
            if axis in labels:
                counted = width(n, labels[axis], self.log)
                if asked:
                    self.tape.reads.append(Seen(counted.expression, where))
                sizes.append(counted)
            else:
                sizes.append(n)
        return torch.Size(sizes)

    def sized(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a parameter that may not have run yet, with `Width`s as the numbers of channels."""
        known = self._known
        return tuple(
            width(n, (name, a, n), self.log) if (n > 1 if known is None else (name, a) in known) else n
            for a, n in enumerate(shape)
        )

    def counted(self, n: int) -> Array | None:
        """Return the labels that a size counts, if it is a single width. For a number that a module keeps, they may be new."""
        leaf = n.expression.leaf if isinstance(n, Width) and n.log is self.log else None
        found = self.leaf(leaf) if leaf is not None else None
        if found is None and isinstance(leaf, Figure) and isinstance(self.space, LabelSpace):
            found = self.space.fresh(leaf.size)
        if found is None and isinstance(leaf, tuple) and self._known is None:  # of a layer that is about to run
            path, _, name = leaf[0].rpartition(".")
            weight = self._modules[path]._parameters.get(name) if path in self._modules else None
            found = self.labels(weight).get(leaf[1]) if weight is not None else None
        return found

    def leaf(self, leaf: Leaf) -> Array | None:
        """Return the labels that a leaf counts, if they are known."""
        if isinstance(leaf, Figure):
            return leaf.passed[0] if leaf.passed else None
        if not isinstance(leaf, tuple):
            return leaf
        name, axis, _ = leaf
        if self._known is not None:
            return self._known.get((name, axis))
        return next((a.labels for a in self.tape.axes if a.param == name and a.axis == axis), None)

    def escaping(self, labels: Array) -> bool:
        """Whether the code uses a width of these channels as a plain number."""
        leaves = (leaf for seen in self.tape.escapes for leaf in seen.expression.leaves())
        counted = (self.leaf(leaf) for leaf in leaves)
        return any(own is not None and bool(np.isin(labels, own[own > 0]).any()) for own in counted)

    def relabel(self, x: Tensor, axis: int, labels: Array) -> None:
        """Give an axis of a new tensor these labels."""
        own, live = self._look(x)
        x._secateurs = (self, {**own, axis: labels}, live)  # type: ignore[attr-defined]

    def fill(self, x: Tensor, axis: int, labels: Array) -> None:
        """Label an axis of a tensor that has the same values for each channel. It is not a weight to mask channels in."""
        if isinstance(self.space, LabelSpace):
            own = self.space.fresh(len(labels))
            self.space.unify(own, labels, Reason(Kind.CONSTANT, "a constant beside channels"))
            self._fillers.append(own)
            labels = own
        self.relabel(x, axis, labels)

    def uses(self, number: Traced) -> None:
        """Note that the code computes with a number that it made from widths."""
        if number.log is self.log and self.counting:
            self._computed(number.expression)
            self.computes(number.expression)

    def computes(self, expression: Expression) -> None:
        """Note that the code, or an op itself, computes with this expression of widths."""
        if self.counting:
            self.tape.uses.append(Seen(expression, self.where()))

    @staticmethod
    def _computed(expression: Expression) -> None:
        """Note that a number that a module keeps is used for more than sizes. It is not rewritten, as in the masked network."""
        for leaf in expression.leaves():
            if isinstance(leaf, Figure):
                leaf.computed = True

    def compared(self, condition: Expression, outcome: bool) -> None:
        if all(isinstance(leaf, Figure) for leaf in condition.leaves()) and of_the_user(3):
            self._computed(condition)
        self.tape.conditions.append(Seen(condition, self.where(), outcome))

    def escaped(self, expression: Expression) -> None:
        self._computed(expression)
        self.tape.escapes.append(Seen(expression, self.where()))
