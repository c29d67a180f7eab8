"""Build channel groups and a cost model from the solved labels. This is vectorized, in time linear in the number of labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import nn

from secateurs.graph.channels import ChannelGroup, Slot
from secateurs.graph.cost import CostModel
from secateurs.graph.figures import Figure
from secateurs.graph.labels import CONSUMED, LABEL, PRODUCED, SHORTCUT, Classes
from secateurs.graph.owners import Owners, holders
from secateurs.graph.reasons import Kind, Reason
from secateurs.graph.tape import Tape
from secateurs.graph.widths import Expression, Leaf

Array = np.ndarray
Affine = tuple[int, dict[int, int]]  # a constant, and for each group how often its width is added


class Grouping:
    """Channels with the same signature (the multiset of their parameter axes) form a group."""

    def __init__(self, tape: Tape, classes: Classes, modules: Mapping[str, nn.Module]) -> None:
        self.tape, self.classes = tape, classes
        self.owners = Owners(modules, tape)
        self._holders = holders(modules)
        axes = tape.axes
        lengths = [len(a.labels) for a in axes]
        self.labels = np.concatenate([a.labels for a in axes]) if axes else np.zeros(0, LABEL)
        self.owner = np.repeat(np.arange(len(axes), dtype=LABEL), lengths)  # axis of each label
        n = len(classes.root)
        # A class's signature: the sum of one random number for each of its axes, with multiplicity, and for
        # the reason that keeps it whole. Sums wrap around; two signatures collide with probability 2⁻⁶⁴.
        draws = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, size=len(axes) + 2, dtype=np.int64)
        signature = np.zeros(n, dtype=np.int64)
        np.add.at(signature, classes.root[self.labels], draws[2:][self.owner])
        # A class is identified by its smallest label, which is also the first in `labels`.
        is_root = classes.root == np.arange(n, dtype=LABEL)
        roots = np.flatnonzero(is_root)[1:]
        frozen, inexact = classes.frozen[roots].astype(np.int64), classes.inexact[roots].astype(np.int64)
        signature = signature[roots] + draws[0] * (frozen + 1) + draws[1] * (inexact + 1)
        _, first, of_class = np.unique(signature, return_index=True, return_inverse=True)
        of_class = of_class.reshape(-1)
        rank = np.cumsum(is_root, dtype=LABEL) - 2  # of a root among the roots
        self.class_of = rank[classes.root[self.labels]]  # class of each label
        # What no layer produces (kernel positions, the channels of an input image) is a constant, -1, not a group. The
        # others are numbered by the position of their first label, so that they are in the network's order.
        created = np.zeros(len(first), dtype=bool)
        created[of_class[self.class_of[(classes.flags[self.labels] & PRODUCED) > 0]]] = True
        self.groups = int(created.sum())
        number = np.full(len(first), -1, dtype=LABEL)
        number[np.flatnonzero(created)[np.argsort(first[created], kind="stable")]] = np.arange(self.groups)
        group_of_class = number[of_class]
        self.group = group_of_class[self.class_of]  # group of each label
        of_root = np.full(n, -1, dtype=LABEL)
        of_root[classes.root[self.labels]] = self.group
        self.of_label = of_root[classes.root]  # the group of any label, in a parameter or not
        self.channel = self._number_channels(group_of_class)[self.class_of]  # channel of each label within its group
        self.sizes = np.bincount(group_of_class[group_of_class >= 0], minlength=self.groups)
        self._order = np.argsort(self.group, kind="stable")  # positions in `labels`, by group
        self._starts = np.searchsorted(self.group[self._order], np.arange(self.groups + 1))
        self._axes = {(a.param, a.axis): a.labels for a in axes}
        self._affine: dict[int, tuple[Array, Affine]] = {}  # by the id of labels, which are kept
        self._counted: dict[int, tuple[Figure, Array | int]] = {}  # what a figure counts, by its id

    @staticmethod
    def _number_channels(group: Array) -> Array:
        """Number the classes within each group, in the order of their smallest label."""
        order = np.argsort(group, kind="stable")  # by group, then by smallest label
        g = group[order]
        starts = np.flatnonzero(np.r_[True, g[1:] != g[:-1]]) if len(g) else np.zeros(0, LABEL)
        channel = np.empty(len(group), dtype=LABEL)
        channel[order] = np.arange(len(g)) - np.repeat(starts, np.diff(np.r_[starts, len(g)]))
        return channel

    def build(
        self, allow_inexact: bool, refuted: Mapping[int, Reason], pairs: Mapping[int, Reason]
    ) -> list[ChannelGroup]:
        """Build the groups. refuted: groups whose cut failed the check, and why. pairs: groups that need two channels, and
        why."""
        # Labels are in the order of (owner, position): sort stably by channel, then by (group, owner).
        inside = np.flatnonzero(self.group >= 0)
        key = self.group[inside].astype(np.int64) * max(len(self.tape.axes), 1) + self.owner[inside]
        order = np.argsort(key * (int(self.channel.max(initial=0)) + 1) + self.channel[inside], kind="stable")
        key, order = key[order], inside[order]
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.zeros(0, np.int64)
        offset = np.cumsum([0, *(len(a.labels) for a in self.tape.axes)])
        slots: list[list[Slot]] = [[] for _ in range(self.groups)]
        for i, j in zip(starts, [*starts[1:], len(key)], strict=False):
            at = order[i:j]
            g, axis = self.group[at[0]], self.tape.axes[self.owner[at[0]]]
            flags = int(self.classes.flags[self.labels[at[0]]])
            index = (at - offset[self.owner[at[0]]]).reshape(self.sizes[g], -1)
            roles = bool(flags & PRODUCED), bool(flags & CONSUMED)
            slots[g].append(Slot(axis.param, axis.axis, index, *roles, self._holders.get(axis.param, ())))
        first = np.full(self.groups + 1, -1)
        first[self.group[::-1]] = self.labels[::-1]
        names: dict[str, int] = {}
        built = []
        for g in range(self.groups):
            label = first[g]
            owner = next(s.module for s in slots[g] if s.produces)
            names[owner] = names.get(owner, 0) + 1
            inexact = self.classes.inexact[label]
            reason = refuted.get(g) or self._reason(g, slots[g], int(label), allow_inexact)
            pair = pairs.get(g) if reason is None else None
            built.append(
                ChannelGroup(
                    name=owner if names[owner] == 1 else f"{owner}#{names[owner]}",
                    size=int(self.sizes[g]),
                    slots=tuple(slots[g]),
                    exact=bool(inexact < 0),
                    internal=not self.classes.flags[label] & SHORTCUT,
                    reason=reason,
                    least=1 if pair is None else 2,
                    least_reason=pair,
                )
            )
        return built

    def _reason(self, g: int, slots: list[Slot], label: int, allow_inexact: bool) -> Reason | None:
        frozen, inexact = self.classes.frozen[label], self.classes.inexact[label]
        if frozen >= 0:
            return self.classes.reasons[frozen]
        if self.sizes[g] == 1:
            return self._single(max(s.index.shape[1] for s in slots if s.produces), label)
        if not any(s.consumes for s in slots):
            if inexact < 0:
                return Reason(Kind.UNREAD, "no layer reads it")
            over = self.classes.reasons[inexact]  # a reduction; layers may read its result
            return Reason(Kind.UNREAD, f"no layer reads its channels one by one: {over.detail}", over.place)
        if inexact >= 0 and not allow_inexact:
            return self.classes.reasons[inexact]
        return None

    def _single(self, coupled: int, label: int) -> Reason:
        if coupled == 1:
            return Reason(Kind.SINGLE, "it is a single channel")
        root = self.classes.root
        by = [what for pieces, what in self.tape.couplings if (root[pieces] == root[label]).any()]
        how = ", ".join(dict.fromkeys(by)) or "by the code"
        return Reason(Kind.SINGLE, f"its {coupled} channels are all coupled to each other: {how}")

    def affine(self, labels: Array) -> Affine:
        """Return the number of these labels as an affine function of the widths."""
        found = self._affine.get(id(labels))
        if found is None:
            group = self.of_label[labels]
            counts = np.bincount(group[group >= 0], minlength=self.groups)
            form = int((group < 0).sum()), {int(g): counts[g] / self.sizes[g] for g in np.flatnonzero(counts)}
            found = self._affine[id(labels)] = labels, form
        return found[1]

    def leaf(self, leaf: Leaf) -> Array | int:
        """Return the labels that a leaf of an expression counts; only their number, if a parameter did not run, for example."""
        if isinstance(leaf, Figure):
            if id(leaf) not in self._counted:
                counted = self.owners.counted(leaf, self.classes.root)
                self._counted[id(leaf)] = leaf, leaf.size if counted is None else counted
            return self._counted[id(leaf)][1]
        return self._axes.get(leaf[:2], leaf[2]) if isinstance(leaf, tuple) else leaf

    def groups_at(self, labels: Array) -> frozenset[int]:
        """Return the groups that these labels belong to."""
        return frozenset(self.affine(labels)[1])

    def groups_of(self, expression: Expression) -> frozenset[int]:
        """Return the groups whose widths an expression is made from."""
        found = [self.leaf(leaf) for leaf in expression.leaves()]
        return frozenset().union(*(self.groups_at(labels) for labels in found if not isinstance(labels, int)))

    def count(self, copies: Mapping[int, Array]) -> Callable[[Array], int]:
        """Return a function that counts labels. copies: for each group, how many copies of each channel there are, 0 if it is
        cut."""
        root = self.classes.root
        number = np.ones(len(root), dtype=np.int64)
        for g, each in copies.items():
            at = self._order[self._starts[g] : self._starts[g + 1]]
            number[root[self.labels[at]]] = each[self.channel[at]]
        return lambda labels: int(number[root[labels]].sum())

    def cost_model(self, params: Mapping[str, tuple[int, ...]]) -> CostModel:
        """Return the cost model: MACs from the recorded ops, parameters from their axes. params: the shape of every parameter
        of the model."""
        model = CostModel(self.groups)
        by_param: dict[str, dict[int, Array]] = {}
        for axis in self.tape.axes:
            by_param.setdefault(axis.param, {})[axis.axis] = axis.labels

        def form(labels: Array, zero_at_one: bool = False) -> int:
            return model.form(*self.affine(labels), zero_at_one)

        def stripes(kernel: str) -> int:
            """Return the form that counts filters times positions."""
            positions = int(np.prod(params[kernel][2:]))
            constant, widths = self.affine(by_param[kernel][0]) if 0 in by_param.get(kernel, {}) else (1, {})
            return model.stripes(kernel, positions * constant, {g: positions * m for g, m in widths.items()})

        kernels = {i: name for i, name in self.tape.kernels.items() if name in params}
        for i, (coefficient, factors) in enumerate(self.tape.costs):
            if i in kernels:
                own = by_param.get(kernels[i], {}).get(0)
                rest = tuple(form(f) for f in factors if f is not own)
                positions = int(np.prod(params[kernels[i]][2:]))
                model.add("macs", coefficient // positions, (stripes(kernels[i]), *rest))
            else:
                vanishing = self.tape.vanishing.get(i)
                model.add("macs", coefficient, tuple(form(f, f is vanishing) for f in factors))
        striped = set(kernels.values())
        for name, shape in params.items():
            axes = by_param.get(name)
            if axes is None:
                model.add("params", int(np.prod(shape)), ())
            elif name in striped:
                model.add(
                    "params",
                    shape[1] if 1 not in axes else 1,
                    (stripes(name), *(form(axes[a]) for a in axes if a == 1)),
                )
            else:
                model.add("params", 1, tuple(form(labels) for labels in axes.values()))
        return model.freeze()
