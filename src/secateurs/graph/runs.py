"""Runs of a model under the tracer: on meta tensors or, if that fails, on real ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateurs.errors import TraceError
from secateurs.graph import figures, reading
from secateurs.graph.attributes import values, weightless
from secateurs.graph.calls import Calls, Follow
from secateurs.graph.channels import named_tensors
from secateurs.graph.claims import tied
from secateurs.graph.faults import refused
from secateurs.graph.flow import Flow
from secateurs.graph.grouping import Grouping
from secateurs.graph.inputs import check_inputs, fresh, tensors, to_model_device, untracked
from secateurs.graph.labels import KnownLabels, LabelSpace
from secateurs.graph.modes import mode_reads
from secateurs.graph.reasons import OUTPUT
from secateurs.graph.recorder import Recorder
from secateurs.graph.state import State, copied_tensor
from secateurs.graph.swapped import swapped
from secateurs.graph.tape import Tape
from secateurs.graph.targets import Arguments, arguments
from secateurs.graph.tracer import Tracer
from secateurs.graph.training import TargetsError, Training
from secateurs.graph.widths import width

Array = np.ndarray
T = TypeVar("T")


class Runs:
    """Runs of one model on its example inputs. Each run records a tape. The model is not modified."""

    def __init__(self, model: nn.Module, example_inputs: Any, example_targets: Any = None) -> None:
        check_inputs(example_inputs)
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
        self.training = Training(model, self.example_inputs, to_model_device(model, example_targets))
        self.meta = True  # shapes are sufficient
        self.depthwise: set[str] = set()  # the weights of depthwise convolutions, from the first run on
        self.choices: dict[tuple[str, str, int], int] = {}  # the chosen interpretation of each ambiguous site

    def follow(self) -> Grouping:
        """Run the model and solve for its channels."""
        return self._either(self._follow)

    def flow(self) -> Flow:
        """Run the model and record its data flow, without its channels."""
        return self._either(self._flow)

    def _either(self, run: Callable[[], T]) -> T:
        if self.meta:
            with suppress(Exception):  # the model may need values, which meta tensors do not have
                found = run()
                # A tensor that the code has cached by its device is not found by this one: it is computed and cached again.
                if not (self.state.has_constants and self.state.cached):
                    return found
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
            raise refused(error, self.model, self.example_inputs) from error

    def _follow(self) -> Grouping:
        space = LabelSpace()
        tape = self.run(space, {}, record=True)
        for figure in tape.figures:
            figure.couple(space)
        grouping = Grouping(tape, space.solve(), self.modules)
        if not (equal := list(tied(grouping))):
            return grouping
        for one, other, why in equal:
            space.unify(one, other, why)
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
        rewrites: Mapping[tuple[str, str], Any] = {},
        record: bool = False,
        tape: Tape | None = None,
        follow: Follow | None = None,
    ) -> Tape:
        """Run the model once under the tracer, with parameters replaced by those in `cut` (on meta: by their shapes).

        known: the labels of the parameters' axes. rewrites: attributes of modules that change with the parameters. record: also
        record the flow of the run in eval mode. tape: the tape to record on. follow: see `Calls`.
        """
        names, replaced = self._standins(cut, self.meta)
        tracer = Tracer(space, names, self.modules, self.choices, known, tape, self.depthwise)
        sized = {n: tracer.sized(n, tuple(replaced[id(p)].shape)) for n, p in self.named.items()}
        rewrites = {**rewrites, **values(self.modules, self.shapes, sized)}
        if record:
            tracer.recorder = tracer.tape.recorder = Recorder(self.meta, names, self.modules)
        with closing(tracer.log):
            self._both(tracer, cut, replaced, rewrites, follow)
        return tracer.tape

    def _both(
        self,
        tracer: Tracer,
        cut: Mapping[str, Tensor],
        replaced: Mapping[int, Tensor],
        rewrites: Mapping[tuple[str, str], Any],
        follow: Follow | None,
    ) -> None:
        """Run the model in eval mode and, if needed, in training mode."""
        whole = isinstance(tracer.space, LabelSpace)
        reads: list[nn.Module] = []
        with swapped(self.state, self.modules, replaced, rewrites), ExitStack() as stack:
            self._watch(tracer, whole)
            stack.enter_context(self._reading(tracer, rewrites))
            if whole:
                reads = stack.enter_context(mode_reads())
            self._pass(tracer, arguments(self.example_inputs), self.meta, follow)
            tracer.recorder = None
            if whole:
                tracer.note_weights()

        def train(given: Arguments, meta: bool) -> None:
            names, replaced = self._standins(cut, meta)
            tracer.again(names)
            with swapped(self.state, self.modules, replaced, rewrites):
                for m in self.modules.values():
                    m.__dict__["training"] = not isinstance(m, _NormBase | nn.modules.dropout._DropoutNd)
                self._watch(tracer, whole)
                try:
                    with self._reading(tracer, rewrites):
                        self._pass(tracer, given, meta)
                finally:  # what ran before a failure is cut, too
                    if whole:
                        tracer.note_weights()

        if whole:
            self.training.follow(tracer, train, self.meta, lambda: self._unused(tracer), bool(reads))
        elif self.training.rehearsal is not None:
            train(self.training.rehearsal, self.meta)

    def _unused(self, tracer: Tracer) -> tuple[str, ...]:
        """Return the parameters that no run has used so far."""
        used = {a.param for a in tracer.tape.axes}
        return tuple(n for n in self.params if n not in used and max(self.shapes[n], default=1) > 1)

    def _standins(self, cut: Mapping[str, Tensor], meta: bool) -> tuple[dict[int, str], dict[int, Tensor]]:
        """Return the tensors that replace the parameters and buffers in a run: their names by id, and they themselves by the id
        of the original. They are copies, since a forward may write to any of them."""
        standins = {
            n: cut[n] if n in cut else p.to("meta") if meta else copied_tensor(p) for n, p in self.named.items()
        }
        return {id(x): n for n, x in standins.items()}, {id(p): standins[n] for n, p in self.named.items()}

    def _watch(self, tracer: Tracer, figured: bool) -> None:
        """Add hooks that note the inputs of modules whose attributes repeat widths: those without tensors and, if `figured`,
        those with figures. The caller restores the modules' attributes, and so their hooks."""
        for path, module in self.modules.items():
            if weightless(module):
                hook = partial(tracer.note_weightless, path)
                own = module.__dict__
                own["_forward_pre_hooks"] = OrderedDict([(id(tracer), hook), *own["_forward_pre_hooks"].items()])
        if figured and not tracer.tape.figures:
            tracer.tape.figures = figures.of(self.modules)
        watched: dict[tuple[str, str], Any] = {}
        for figure in tracer.tape.figures:
            module = self.modules[figure.module]
            before = module.__dict__[figure.attribute]
            figures.set_in(watched, figure, before, width(figure.size, figure, tracer.log))
            inside = [(p, m) for p, m in figures.steps(figure.module, module) if m._modules]
            for path, part in [(figure.module, module), *inside]:
                hook, own = partial(tracer.note_through, path), part.__dict__
                own["_forward_hooks"] = OrderedDict([*own["_forward_hooks"].items(), (id(tracer), hook)])
        for (path, attribute), value in watched.items():
            self.modules[path].__dict__[attribute] = value

    def _reading(self, tracer: Tracer, rewrites: Mapping[tuple[str, str], Any]) -> AbstractContextManager[None]:
        """Return a context that notes which of the attributes that hold widths the model's code reads."""
        names = dict.fromkeys((*rewrites, *((f.module, f.attribute) for f in tracer.tape.figures)))
        return reading.watched([(self.modules[path], attribute) for path, attribute in names], tracer)

    def _pass(self, tracer: Tracer, given: Arguments, meta: bool, follow: Follow | None = None) -> None:
        # Inputs are new tensors here, so that what the tracer stores on them is dropped with this run.
        args, named = fresh(given, meta)
        inputs = tensors((args, named))
        for x in inputs:
            tracer.enter(x)
        if tracer.recorder is not None:
            tracer.recorder.start(inputs)
        with tracer, Calls(tracer, follow):
            out = self.model(*args, **named)
        for x in tensors(out):
            tracer.freeze(tracer.labels(x), OUTPUT)
        if tracer.recorder is not None:
            tracer.recorder.stop(out)
