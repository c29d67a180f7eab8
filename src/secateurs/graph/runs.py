"""Runs of a model under the tracer: on meta tensors or, if that fails, on real ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateurs.errors import TraceError
from secateurs.graph.attributes import weightless
from secateurs.graph.channels import named_tensors
from secateurs.graph.flow import Flow
from secateurs.graph.grouping import Grouping
from secateurs.graph.inputs import call, map_tensors, tensors, to_model_device
from secateurs.graph.labels import KnownLabels, LabelSpace
from secateurs.graph.reasons import OUTPUT
from secateurs.graph.recorder import Recorder
from secateurs.graph.swapped import swapped
from secateurs.graph.tape import Tape
from secateurs.graph.tracer import Calls, Tracer

Array = np.ndarray
T = TypeVar("T")


class Runs:
    """Runs of one model on its example inputs, each of which records a tape. The model is not modified."""

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.named = named_tensors(model, self.modules)
        lazy = next((n for n, p in self.named.items() if nn.parameter.is_lazy(p)), None)
        if lazy is not None:
            raise TraceError(f"{lazy} is uninitialized: run the model once on its inputs, then trace it.")
        self.params = {n: tuple(p.shape) for n, p in self.named.items() if isinstance(p, nn.Parameter)}
        self.shapes = {n: tuple(p.shape) for n, p in self.named.items()}
        self.example_inputs = to_model_device(model, example_inputs)
        self.meta = True  # shapes are sufficient
        self.choices: dict[tuple[str, str, int], int] = {}  # the chosen interpretation of each ambiguous site

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
        except Exception as error:
            raise TraceError(
                f"The model does not run on these example inputs: {type(error).__name__}: {error}. "
                f"Pass inputs of the shape and type that it expects, as a tensor, a tuple or a dict."
            ) from error

    def _follow(self) -> Grouping:
        space = LabelSpace()
        tape = self.run(space, {}, record=True)
        return Grouping(tape, space.solve())

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
        standins = {n: cut[n] if n in cut else self._standin(p) for n, p in self.named.items()}
        names = {id(x): n for n, x in standins.items()}
        inputs = map_tensors(lambda x: x.to("meta"), self.example_inputs) if self.meta else self.example_inputs
        replaced = {id(p): standins[n] for n, p in self.named.items()}
        tracer = Tracer(space, names, self.modules, self.choices, known)
        with swapped(self.modules, replaced, attributes):
            if isinstance(space, LabelSpace):
                self._watch_weightless(tracer)
            if record:
                tracer.recorder = tracer.tape.recorder = Recorder(self.meta, names, self.modules)
            self._pass(tracer, inputs)
            tracer.recorder = None
            if isinstance(space, LabelSpace):
                idle = self.params.keys() - {a.param for a in tracer.tape.axes}
                if any(max(self.shapes[n], default=1) > 1 for n in idle):
                    self._training_pass(tracer, space, inputs)
        return tracer.tape

    def _watch_weightless(self, tracer: Tracer) -> None:
        """Have the channels of modules without tensors noted. Their hooks are restored with their other attributes."""
        for path, module in self.modules.items():
            if weightless(module):
                hook = partial(tracer.note_weightless, path)
                own = module.__dict__
                own["_forward_pre_hooks"] = OrderedDict([(id(tracer), hook), *own["_forward_pre_hooks"].items()])

    def _standin(self, tensor: Tensor) -> Tensor:
        """What replaces a parameter or buffer in a run. Forward passes may write to buffers, so those are copies."""
        if self.meta:
            return tensor.to("meta")
        return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()

    def _pass(self, tracer: Tracer, inputs: Any) -> None:
        # Inputs are new tensors here, so that what the tracer stores on them is dropped with this run.
        inputs = map_tensors(lambda x: x.detach(), inputs)
        for x in tensors(inputs):
            tracer.enter(x)
        if tracer.recorder is not None:
            tracer.recorder.start(tensors(inputs))
        with tracer, Calls(tracer):
            out = call(self.model, inputs)
        for x in tensors(out):
            tracer.freeze(tracer.labels(x), OUTPUT)
        if tracer.recorder is not None:
            tracer.recorder.stop(out)

    def _training_pass(self, tracer: Tracer, space: LabelSpace, inputs: Any) -> None:
        """Some parameters are only used in training (auxiliary heads): the channels that they consume are cut on them, too."""
        point, axes = space.savepoint(), len(tracer.tape.axes)
        tracer.counting = False
        for m in self.modules.values():
            m.__dict__["training"] = not isinstance(m, _NormBase | nn.modules.dropout._DropoutNd)
        try:
            self._pass(tracer, inputs)
        except Exception:  # for example a forward that needs targets, which an inference graph does not cover
            space.rollback(point)
            del tracer.tape.axes[axes:]
