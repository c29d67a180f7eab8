"""`trace`: from a model and example inputs to its channel graph, checked on a cut copy where the code is ambiguous."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateurs.channels import numbers
from secateurs.channels.attributes import rewrites
from secateurs.channels.graph import ChannelGraph, named_tensors
from secateurs.channels.grouping import Grouping
from secateurs.channels.inputs import beside, call, check_model, map_tensors, tensors
from secateurs.channels.labels import CONSUMED, KnownLabels, LabelSpace
from secateurs.channels.tracer import Calls, Site, Tape, Tracer, swapped
from secateurs.errors import TraceError

Array = np.ndarray
G = TypeVar("G", bound=ChannelGraph)
_CHECKS = 64  # cut networks that are tried at most
_RETRIES = 4  # readings of an ambiguous split that are tried before its channels are frozen


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    allow_inexact: bool = False,
    kind: type[G] = ChannelGraph,  # type: ignore[assignment]
) -> G:
    """Find the channels of a network: run it once in eval mode and follow every channel through every op.

    example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments, as the model takes them.
    allow_inexact: let channels be prunable although a normalisation takes its statistics over them (layer norm over
        channels, group norm), so that a cut changes more than what is cut.

    The run needs shapes, not values: it happens on meta tensors, and on the real ones where a model needs values (its
    control flow depends on data, say). The model is left as it was. An op without a rule does not stop the trace: it
    freezes the channels it touches, and the group says so.

    Raises TraceError if the model cannot be run on these inputs.
    """
    check_model(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("A TorchScript module hides its layers: trace the Python model that it was made from.")
    if hasattr(model, "_orig_mod") or isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise TraceError(f"{type(model).__name__} wraps the model: trace what it wraps (._orig_mod or .module).")
    return _Trace(model, example_inputs).graph(allow_inexact, kind)


@dataclass(frozen=True)
class _Fault:
    """Why a group cannot be cut, and the ambiguous places that another reading might mend."""

    reason: str
    sites: Sequence[Site] = ()


class _Trace:
    """The steps of one trace, on meta tensors or, failing that, on the real ones."""

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.named = named_tensors(model, self.modules)
        lazy = next((n for n, p in self.named.items() if nn.parameter.is_lazy(p)), None)
        if lazy is not None:
            raise TraceError(f"{lazy} has no shape yet: run the model once on its inputs, then trace it.")
        self.params = {n: tuple(p.shape) for n, p in self.named.items() if isinstance(p, nn.Parameter)}
        self.shapes = {n: tuple(p.shape) for n, p in self.named.items()}
        self.example_inputs = beside(model, example_inputs)
        self.meta = True
        self.choices: dict[tuple[str, str, int], int] = {}
        self.checks = 0
        self.changed: list[int] = []  # numbers of the tape that the last check found to follow a width

    def graph(self, allow_inexact: bool, kind: type[G]) -> G:
        for attempt in range(_RETRIES + 1):
            grouping = self.follow()
            broken = self.broken(grouping)
            doubtful = [*(s for fault in broken.values() for s in fault.sites), *self._frozen_sites(grouping)]
            again = {s.key: s for s in doubtful if self.choices.get(s.key, 0) + 1 < s.options}.values()
            if not again or attempt == _RETRIES:
                break
            for site in again:
                self.choices[site.key] = self.choices.get(site.key, 0) + 1
        refuted = {g: fault.reason for g, fault in broken.items()}
        params = self.params
        seen = {a.param: self.shapes[a.param] for a in grouping.tape.axes}
        groups = grouping.build(allow_inexact, refuted)
        return kind(groups, lambda: grouping.cost_model(params), seen, self.modules, grouping.tape.random)

    # -- one run ------------------------------------------------------------------------------------------------

    def follow(self) -> Grouping:
        """Run the model and solve for its channels."""
        if self.meta:
            try:
                return self._follow()
            except Exception:  # whatever a model does with values that meta tensors don't have
                self.meta = False
        try:
            return self._follow()
        except Exception as error:
            raise TraceError(
                f"The model does not run on these example inputs: {type(error).__name__}: {error}. "
                f"Pass inputs of the shape and type that it takes, as a tensor, a tuple or a dict."
            ) from error

    def _follow(self) -> Grouping:
        space = LabelSpace()
        tape = self._run(space, {})
        return Grouping(tape, space.solve())

    def _run(
        self,
        space: LabelSpace | KnownLabels,
        cut: Mapping[str, Tensor],
        known: Mapping[tuple[str, int], Array] | None = None,
        attributes: Mapping[tuple[str, str], Any] = {},
    ) -> Tape:
        """One pass under the tracer, with parameters replaced by those in `cut` (on meta: by their shapes)."""
        standins = {n: cut[n] if n in cut else p.to("meta") if self.meta else p for n, p in self.named.items()}
        names = {id(x): n for n, x in standins.items()}
        inputs = map_tensors(lambda x: x.to("meta"), self.example_inputs) if self.meta else self.example_inputs
        replaced = {id(p): standins[n] for n, p in self.named.items()}
        tracer = Tracer(space, names, self.modules, self.choices, known)
        with swapped(self.modules, replaced, attributes):
            self._pass(tracer, inputs)
            if isinstance(space, LabelSpace):
                idle = self.params.keys() - {a.param for a in tracer.tape.axes}
                if any(max(self.shapes[n], default=1) > 1 for n in idle):
                    self._training_pass(tracer, space, inputs)
        return tracer.tape

    def _pass(self, tracer: Tracer, inputs: Any) -> None:
        # Inputs are tensors of their own here, so that what the tracer notes on them goes with this run.
        inputs = map_tensors(lambda x: x.detach(), inputs)
        for x in tensors(inputs):
            tracer.enter(x)
        with tracer, Calls(tracer):
            out = call(self.model, inputs)
        for x in tensors(out):
            tracer.freeze(tracer.labels(x), "reaches the model's output")

    def _training_pass(self, tracer: Tracer, space: LabelSpace, inputs: Any) -> None:
        """Some parameters only work in training (auxiliary heads): what they read must be cut on them too."""
        point, axes = space.point(), len(tracer.tape.axes)
        tracer.counting = False
        for m in self.modules.values():
            m.__dict__["training"] = not isinstance(m, _NormBase | nn.modules.dropout._DropoutNd)
        try:
            self._pass(tracer, inputs)
        except Exception:  # a forward that wants targets, say: it is none of an inference graph's business
            space.back(point)
            del tracer.tape.axes[axes:]

    # -- the check on a cut network --------------------------------------------------------------------------------

    def broken(self, grouping: Grouping) -> dict[int, _Fault]:
        """Groups that cannot be cut although the labels allow it.

        Code that goes through ambiguous places, or computes with numbers, is tried with all groups cut that it may
        concern. Without any of the two nothing is tried: labels then say all there is to say.
        """
        touching: dict[int, list[Site]] = {}
        for site in grouping.tape.sites:
            for labels in site.labels:
                for g in self._groups(grouping, labels):
                    touching.setdefault(g, []).append(site)
        free = [g for g in touching if self._may_be_cut(grouping, g)]
        if grouping.tape.numbers:  # whose width a number may be made from is anyone's guess
            free += [g for g in range(grouping.groups) if g not in touching and self._may_be_cut(grouping, g)]
        # Mostly a number is put to use on the very channels that it counts: one look, and another to see if it is so.
        faults: dict[int, _Fault] = {}
        rest = free
        while rest and not self._holds(grouping, rest):
            numbered = [n for i, n in enumerate(grouping.tape.numbers) if i in self.changed]
            counted = {g: n for n in numbered for labels in n.labels for g in self._groups(grouping, labels)}
            found = {g: _Fault(f"{numbers.REASON} ({n.where})") for g, n in counted.items() if g in rest}
            if not found:
                return self._failing(grouping, free, touching)
            faults |= found
            rest = [g for g in rest if g not in faults]
        return self._cleared(grouping, faults, rest)

    def _cleared(self, grouping: Grouping, faults: dict[int, _Fault], rest: list[int]) -> dict[int, _Fault]:
        """Without the groups that a number was applied to, but does not follow: `weight / weight.shape[1]` has two."""
        for g in list(faults) if len(faults) > 1 else ():
            if self._holds(grouping, [*rest, g]):
                rest = [*rest, g]
                del faults[g]
        return faults

    def _frozen_sites(self, grouping: Grouping) -> list[Site]:
        """Places with several readings, where the one that was taken left nothing to cut."""
        frozen = grouping.classes.frozen
        return [s for s in grouping.tape.sites if s.options > 1 and all((frozen[v] >= 0).all() for v in s.labels)]

    def _groups(self, grouping: Grouping, labels: Array) -> Iterable[int]:
        found = np.unique(grouping.of_label[labels[labels > 0]])
        return found[found >= 0].tolist()

    def _may_be_cut(self, grouping: Grouping, g: int) -> bool:
        label = grouping.labels[np.argmax(grouping.group == g)]
        return grouping.sizes[g] > 1 and grouping.classes.frozen[label] < 0

    def _failing(
        self, grouping: Grouping, groups: Sequence[int], touching: Mapping[int, list[Site]]
    ) -> dict[int, _Fault]:
        """One by one, as far as need be."""
        # Groups that go through the same lines of code stand or fall together more often than not.
        kinds: dict[frozenset[str], list[int]] = {}
        for g in groups:
            kinds.setdefault(frozenset(s.where for s in touching.get(g, ())), []).append(g)
        bad: dict[int, _Fault] = {}
        for lines, alike in kinds.items():
            if lines and len(alike) > 2 and not any(self._holds(grouping, [g]) for g in (alike[0], alike[-1])):
                bad |= {g: self._fault(grouping, touching.get(g, ())) for g in alike}  # at all its uses, then
            else:
                bad |= self._bisect(grouping, alike, touching)
        rest = [g for g in groups if g not in bad]
        if rest and not self._holds(grouping, rest):
            bad |= {g: self._fault(grouping, touching.get(g, ())) for g in rest}
        return bad

    def _bisect(self, grouping: Grouping, groups: list[int], touching: Mapping[int, list[Site]]) -> dict[int, _Fault]:
        if not groups or self._holds(grouping, groups):
            return {}
        if len(groups) == 1:
            return {groups[0]: self._fault(grouping, touching.get(groups[0], ()))}
        half = len(groups) // 2
        return self._bisect(grouping, groups[:half], touching) | self._bisect(grouping, groups[half:], touching)

    def _fault(self, grouping: Grouping, sites: Sequence[Site]) -> _Fault:
        """What the last check failed for."""
        if self.changed and grouping.tape.numbers:
            at = min(self.changed[0], len(grouping.tape.numbers) - 1)
            return _Fault(f"{numbers.REASON} ({grouping.tape.numbers[at].where})")
        if sites:
            return _Fault(f"{sites[0].reason} ({sites[0].where})", sites)
        return _Fault("a network with fewer of these channels does not run, or computes something else")

    def _holds(self, grouping: Grouping, groups: list[int]) -> bool:
        """Cut about half of these groups at random, and trace the cut network with the labels it inherits."""
        self.changed = []
        if self.checks >= _CHECKS:
            return False  # so much is ambiguous that the rest stays whole
        draw = np.random.default_rng(len(groups))
        dead = np.zeros(len(grouping.classes.root), dtype=bool)
        for g in groups:
            size = int(grouping.sizes[g])
            gone = draw.permutation(size)[: max(1, min(size // 2, size - 1))]
            at = grouping.group == g
            dead[grouping.labels[at][np.isin(grouping.channel[at], gone)]] = True
        known: dict[tuple[str, int], Array] = {}
        kept: dict[str, dict[int, Array]] = {}
        for axis in grouping.tape.axes:
            alive = ~dead[axis.labels]
            known[axis.param, axis.axis] = grouping.classes.root[axis.labels[alive]]
            if not alive.all():
                kept.setdefault(axis.param, {})[axis.axis] = np.flatnonzero(alive)
        cut = {n: self._sliced(self.named[n], axes) for n, axes in kept.items()}
        new = {n: tuple(x.shape) for n, x in cut.items()}
        self.checks += 1
        try:
            tape = self._run(KnownLabels(), cut, known, rewrites(self.modules, self.shapes, new))
        except Exception:  # a Mismatch, or whatever the author's code raises on shapes it was not written for
            return False
        # What leaves each ambiguous place must be what left it before, minus the channels cut.
        found = {site.key: site.out for site in tape.sites}
        for site in grouping.tape.sites:
            for at, before in site.out.items():
                alive = grouping.classes.root[before[~dead[before]]]
                after = found.get(site.key, {}).get(at)  # with coupled channels already one, a split may not show
                several = bool((alive != alive[:1]).any())  # of a single channel there is no telling where it lies
                if several and after is not None and not np.array_equal(alive, after):
                    return False
        self.changed = numbers.changed(grouping.tape.numbers, tape.numbers)
        if self.changed and not self.meta:  # a number may be read from an activation, too: look at the masked network
            whole = {(a.param, a.axis): grouping.classes.root[a.labels] for a in grouping.tape.axes}
            twin = self._run(KnownLabels(), self._masked(grouping, dead), whole)
            self.changed = numbers.changed(twin.numbers, tape.numbers, tolerance=1e-4)
        return not self.changed

    def _sliced(self, x: Tensor, axes: Mapping[int, Array]) -> Tensor:
        if self.meta:
            return torch.empty(
                [len(axes.get(a, range(n))) for a, n in enumerate(x.shape)], dtype=x.dtype, device="meta"
            )
        for a, index in axes.items():
            x = x.index_select(a, torch.from_numpy(index).to(x.device))
        return x

    def _masked(self, grouping: Grouping, dead: Array) -> dict[str, Tensor]:
        """The parameters that read dead channels, with zeros there."""
        masked: dict[str, Tensor] = {}
        for axis in grouping.tape.axes:
            gone = dead[axis.labels] & (grouping.classes.flags[axis.labels] & CONSUMED > 0)
            if gone.any():
                w = masked.setdefault(axis.param, self.named[axis.param].detach().clone())
                w.index_fill_(axis.axis, torch.from_numpy(np.flatnonzero(gone)).to(w.device), 0)
        return masked
