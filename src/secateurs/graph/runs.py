"""Runs of a model under the tracer: on meta tensors or, if that fails, on real ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateurs.errors import TraceError
from secateurs.graph import figures
from secateurs.graph.attributes import weightless
from secateurs.graph.channels import named_tensors
from secateurs.graph.flow import Flow
from secateurs.graph.grouping import Grouping
from secateurs.graph.inputs import fresh, tensors, to_model_device, untracked
from secateurs.graph.labels import KnownLabels, LabelSpace
from secateurs.graph.modes import mode_reads
from secateurs.graph.reasons import OUTPUT, TARGET, Kind, Reason
from secateurs.graph.recorder import Recorder
from secateurs.graph.state import State, copied_tensor
from secateurs.graph.swapped import swapped
from secateurs.graph.tape import Tape
from secateurs.graph.targets import Arguments, arguments, unknown_targets
from secateurs.graph.tracer import Calls, Tracer

Array = np.ndarray
T = TypeVar("T")


class Runs:
    """Runs of one model on its example inputs, each of which records a tape. The model is not modified."""

    def __init__(self, model: nn.Module, example_inputs: Any, example_targets: Any = None) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.named = named_tensors(model, self.modules)
        lazy = next((n for n, p in self.named.items() if nn.parameter.is_lazy(p)), None)
        if lazy is not None:
            raise TraceError(f"{lazy} is uninitialized: run the model once on its inputs, then trace it.")
        self.state = State(self.modules, untracked(example_inputs), untracked(example_targets))
        if self.state.scripted:
            raise TraceError(
                f"{self.state.scripted[0]} is a TorchScript module, whose layers cannot be traced: replace it by the Python "
                "module that it was made from."
            )
        self.params = {n: tuple(p.shape) for n, p in self.named.items() if isinstance(p, nn.Parameter)}
        self.shapes = {n: tuple(p.shape) for n, p in self.named.items()}
        self.example_inputs = to_model_device(model, example_inputs)
        self.example_targets = to_model_device(model, example_targets)
        self.meta = True  # shapes are sufficient
        self.choices: dict[tuple[str, str, int], int] = {}  # the chosen interpretation of each ambiguous site
        self.idle: tuple[str, ...] = ()  # parameters that no run used
        self.untrained: Exception | None = None  # why the training path could not be followed to its end
        self.rehearsal: Arguments | None = None  # with which cut networks are to be tried in training mode, too

    def follow(self) -> Grouping:
        """Run the model and solve for its channels."""
        return self._either(self._follow)

    def flow(self) -> Flow:
        """Run the model and note what follows what, without its channels."""
        return self._either(self._flow)

    def _either(self, run: Callable[[], T]) -> T:
        if self.meta:
            try:
                return run()
            except Exception:  # the model may need values, which meta tensors do not have
                self.meta = False
        try:
            return run()
        except TargetsError as error:
            cause = error.args[0]
            raise TraceError(
                f"The model does not run in training mode on these inputs and targets: {type(cause).__name__}: {cause}. "
                "Pass example_targets as its forward takes them after the inputs: a tuple, or a dict of keyword arguments."
            ) from cause
        except Exception as error:
            raise TraceError(
                f"The model does not run on these example inputs: {type(error).__name__}: {error}. "
                f"Pass inputs of the shape and type that it expects, as a tensor, a tuple or a dict."
            ) from error

    def _follow(self) -> Grouping:
        space = LabelSpace()
        tape = self.run(space, {}, record=True)
        return Grouping(tape, space.solve(), self.modules)

    def _flow(self) -> Flow:
        recorder = self.run(KnownLabels(), {}, {}, record=True).recorder
        assert recorder is not None
        return recorder.flow()

    def run(
        self,
        space: LabelSpace | KnownLabels,
        cut: Mapping[str, Tensor],
        known: Mapping[tuple[str, int], Array] | None = None,
        attributes: Mapping[tuple[str, str], Any] = {},
        record: bool = False,
    ) -> Tape:
        """One pass under the tracer, with parameters replaced by those in `cut` (on meta: by their shapes). record: the
        flow of the run in eval mode, too."""
        names, replaced = self._standins(cut, self.meta)
        tracer = Tracer(space, names, self.modules, self.choices, known)
        reads: list[nn.Module] = []
        with swapped(self.state, self.modules, replaced, attributes), ExitStack() as stack:
            if isinstance(space, LabelSpace):
                self._watch(tracer)
                reads = stack.enter_context(mode_reads())
            if record:
                tracer.recorder = tracer.tape.recorder = Recorder(self.meta, names, self.modules)
            self._pass(tracer, arguments(self.example_inputs), self.meta)
            tracer.recorder = None
            if isinstance(space, LabelSpace):
                tracer.note_weights()
        if isinstance(space, LabelSpace):
            self._train(tracer, bool(reads))
        elif self.rehearsal is not None:
            tracer.again(names)
            self._training_pass(tracer, replaced, self.rehearsal, self.meta, attributes)
        return tracer.tape

    def _standins(self, cut: Mapping[str, Tensor], meta: bool) -> tuple[dict[int, str], dict[int, Tensor]]:
        """What replaces the parameters and buffers in a run: their names by id, and they themselves by the id of the
        original. A forward may write to any of them, so these are copies."""
        standins = {
            n: cut[n] if n in cut else p.to("meta") if meta else copied_tensor(p) for n, p in self.named.items()
        }
        return {id(x): n for n, x in standins.items()}, {id(p): standins[n] for n, p in self.named.items()}

    def _watch(self, tracer: Tracer) -> None:
        """Have noted what modules get whose attributes repeat widths, beside their tensors or without any. Their attributes are
        restored, and their hooks with them."""
        for path, module in self.modules.items():
            if weightless(module):
                hook = partial(tracer.note_weightless, path)
                own = module.__dict__
                own["_forward_pre_hooks"] = OrderedDict([(id(tracer), hook), *own["_forward_pre_hooks"].items()])
        tracer.tape.figures = figures.of(self.modules)
        for figure in tracer.tape.figures:
            module = self.modules[figure.module]
            module.__dict__[figure.attribute] = figure.watched()
            inside = [(p, m) for p, m in figures.steps(figure.module, module) if m._modules]
            for path, watched in [(figure.module, module), *inside]:
                hook, own = partial(tracer.note_through, path), watched.__dict__
                own["_forward_hooks"] = OrderedDict([*own["_forward_hooks"].items(), (id(tracer), hook)])

    def _pass(self, tracer: Tracer, given: Arguments, meta: bool) -> None:
        # Inputs are new tensors here, so that what the tracer stores on them is dropped with this run.
        args, named = fresh(given, meta)
        inputs = tensors((args, named))
        for x in inputs:
            tracer.enter(x)
        if tracer.recorder is not None:
            tracer.recorder.start(inputs)
        with tracer, Calls(tracer):
            out = self.model(*args, **named)
        for x in tensors(out):
            tracer.freeze(tracer.labels(x), OUTPUT)
        if tracer.recorder is not None:
            tracer.recorder.stop(out)

    # -- training ------------------------------------------------------------------------------------------------------

    def _train(self, tracer: Tracer, reads: bool) -> None:
        """Follow what only runs in training: auxiliary heads, and layers that read other channels then. What a run that
        stops half-way has seen holds all the same.

        reads: whether the model's own code reads its mode. If not, and every parameter is used, there is no such thing.
        """
        self.untrained, self.rehearsal = None, None
        sites = len(tracer.tape.sites)
        if reads or self._unused(tracer) or self.example_targets is not None:
            given = arguments(self.example_inputs, self.example_targets)
            self.untrained = self._attempt(tracer, given)
            if self.example_targets is not None:
                if self.untrained is not None:
                    raise TargetsError(self.untrained)
            elif self.untrained is not None or self._unused(tracer):
                targets = unknown_targets(self.model, self.example_inputs, partial(_meet, tracer))
                if targets and self._attempt(tracer, (given[0], {**given[1], **targets})) is None:
                    self.untrained = None
        self.untrained = self.untrained if reads else None
        self.idle = self._unused(tracer)
        known = {s.key for s in tracer.tape.sites[:sites]}
        new = [s for s in tracer.tape.sites[sites:] if s.key not in known]
        tracer.tape.sites[sites:] = new
        if not new:
            self.rehearsal = None  # nothing that the cut networks have to be tried for
        elif self.rehearsal is None:
            for site in new:
                for labels in site.labels:
                    tracer.freeze(
                        labels, Reason(Kind.CODE, f"{site.reason}, in training: it was not tried", site.where)
                    )

    def _unused(self, tracer: Tracer) -> tuple[str, ...]:
        used = {a.param for a in tracer.tape.axes}
        return tuple(n for n in self.params if n not in used and max(self.shapes[n], default=1) > 1)

    def _attempt(self, tracer: Tracer, given: Arguments) -> Exception | None:
        """Run the model in training mode: on meta tensors if it runs on these in eval mode and, if that fails, on real ones."""
        failure: Exception | None = None
        for meta in (True, False) if self.meta else (False,):
            names, replaced = self._standins({}, meta)
            tracer.again(names)
            try:
                self._training_pass(tracer, replaced, given, meta)
            except Exception as error:  # for example a forward that needs targets
                failure = error
            else:
                self.rehearsal = given if meta is self.meta else None
                return None
        return failure

    def _training_pass(
        self,
        tracer: Tracer,
        replaced: Mapping[int, Tensor],
        given: Arguments,
        meta: bool,
        attributes: Mapping[tuple[str, str], Any] = {},
    ) -> None:
        with swapped(self.state, self.modules, replaced, attributes):
            for m in self.modules.values():
                m.__dict__["training"] = not isinstance(m, _NormBase | nn.modules.dropout._DropoutNd)
            self._pass(tracer, given, meta)
            if isinstance(tracer.space, LabelSpace):
                tracer.note_weights()


class TargetsError(Exception):
    """The model does not run in training mode on the example targets."""


def _meet(tracer: Tracer, x: Tensor) -> None:
    tracer.freeze(tracer.labels(x), TARGET)
