"""What a network does only in training: auxiliary heads, and layers that read other channels then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from secateurs.graph.context import Context
from secateurs.graph.reasons import TARGET, Kind, Reason
from secateurs.graph.tape import Array, Tape
from secateurs.graph.targets import Arguments, arguments, unknown_targets

# Runs the model in training mode with these arguments, on meta tensors or on real ones.
Run = Callable[[Arguments, bool], None]


class TargetsError(Exception):
    """The model does not run in training mode on the example targets."""


class Training:
    """Follows a model's training path, and holds what is known about it afterward."""

    def __init__(self, model: nn.Module, example_inputs: Any, example_targets: Any) -> None:
        self._model, self._inputs, self._targets = model, example_inputs, example_targets
        self.failure: Exception | None = None  # why the training path could not be followed to its end
        self.unused: tuple[str, ...] = ()  # parameters that no run used
        self.rehearsal: Arguments | None = None  # arguments with which cut networks must run in training mode, too

    def follow(self, tracer: Context, run: Run, meta: bool, unused: Callable[[], tuple[str, ...]], reads: bool) -> None:
        """Follow the training path after the run in eval mode. What a run saw before it failed still counts.

        meta: whether the run in eval mode was on meta tensors. unused: returns the parameters that no run has used yet. reads:
        whether the model's own code reads its mode. If not, and every parameter is used, training runs the same code.
        """
        self.failure, self.rehearsal, self.unused = None, None, unused()
        if not (reads or self.unused or self._targets is not None):
            return
        tape = tracer.tape
        before, eval_state = _doubts(tape), (tape.looked, tape.dynamic, tape.failed)
        given = arguments(self._inputs, self._targets)
        self.failure = self._attempt(run, given, meta)
        if self._targets is not None:
            if self.failure is not None:
                raise TargetsError(self.failure)
        elif self.failure is not None or unused():
            targets = unknown_targets(self._model, self._inputs, partial(_meet, tracer))
            if targets and self._attempt(run, (given[0], {**given[1], **targets}), meta) is None:
                self.failure = None
        self.failure = self.failure if reads else None
        self.unused = unused()
        tape.looked, tape.dynamic, tape.failed = eval_state
        self._judge(tracer, before)

    def _attempt(self, run: Run, given: Arguments, meta: bool) -> Exception | None:
        """Run the model in training mode, on meta tensors if it runs on them in eval mode and, if that fails, on real tensors.
        Returns the error of the last run, if it failed."""
        failure: Exception | None = None
        for on_meta in (True, False) if meta else (False,):
            try:
                run(given, on_meta)
            except Exception as error:  # for example a forward that needs targets
                failure = error
            else:
                self.rehearsal = given if on_meta is meta else None
                return None
        return failure

    def _judge(self, tracer: Context, before: set[str]) -> None:
        """Code that only runs in training may depend on widths in a way that only a trial of a cut network can check. If no cut
        network can be tried, keep these channels."""
        new = [(where, labels) for where, labels in _doubtful(tracer) if where not in before]
        if not new:
            self.rehearsal = None
        elif self.rehearsal is None:
            for where, labels in new:
                detail = "code that only runs in training, where no cut network could be tried, depends on their number"
                tracer.freeze(labels, Reason(Kind.CODE, detail, where))


def _doubts(tape: Tape) -> set[str]:
    """Return the lines of code that depend on widths."""
    seen = (*tape.escapes, *tape.uses, *tape.conditions)
    return {claim.where for claim in tape.claims} | {event.where for event in seen}


def _doubtful(tracer: Context) -> Iterator[tuple[str, Array]]:
    """Yield the lines of code that a cut network must be tried for, and the labels whose number they depend on."""
    tape = tracer.tape
    for claim in tape.claims:
        if claim.size is None and not isinstance(claim.counts, int):
            yield claim.where, claim.counts
    for seen in (*tape.escapes, *tape.conditions):
        for leaf in seen.expression.leaves():
            if (labels := tracer.leaf(leaf)) is not None:
                yield seen.where, labels


def _meet(tracer: Context, x: Tensor) -> None:
    tracer.freeze(tracer.labels(x), TARGET)
