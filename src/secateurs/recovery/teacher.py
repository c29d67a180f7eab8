"""The original network as the teacher: runs on the same inputs as the network that trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.devices import channels_last_
from secateurs.errors import ConfigError
from secateurs.graph.copies import copied
from secateurs.training.batches import Batch
from secateurs.training.hooks import Hook
from secateurs.training.objective import Objective
from secateurs.training.run import TrainingRun


class TeacherHook(Hook):
    """Base class of hooks with a teacher, which runs in eval mode, without gradients, in the training precision (bf16 if the
    hardware is fast at it, unless the recipe sets another), as a copy of the given network.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self.student = student
        self.teacher = copied(teacher).eval().requires_grad_(False)
        self._given: tuple[Any, Any] | None = None
        self._batch: Batch | None = None
        self._open = False
        # Hooked to the network itself: at this point mixup has been applied to the inputs.
        self._handles = [student.register_forward_pre_hook(self._see, with_kwargs=True)]

    def start(self, engine: TrainingRun) -> None:
        self.teacher.to(engine.device)
        if engine.runtime.channels_last:
            channels_last_(self.teacher)

    def before_batch(self, engine: TrainingRun, batch: Batch) -> None:
        self.listen(batch)

    def listen(self, batch: Batch) -> None:
        """Keep what the student is called with for this batch."""
        self._open, self._batch = True, batch

    def _see(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._open and module is self.student:
            self._given = args, kwargs

    def __deepcopy__(self, memo: dict[int, Any]) -> TeacherHook:
        return self  # a copy of the student, such as the average of its weights, needs no teacher of its own

    def teacher_outputs(self, engine: TrainingRun) -> Any:
        """The teacher's outputs for the student's last batch: what the user's `forward` makes of them, if it trains."""
        return self.outputs(engine.objective, engine.beside(self.teacher))

    def outputs(self, objective: Objective, called: nn.Module) -> Any:
        """The same. called: the teacher, as it is to be called. Raises ConfigError if the student itself did not run."""
        if self._given is None:
            raise ConfigError(
                "The original cannot teach: the step calls parts of the model, not the model itself, whose inputs the original "
                "needs."
            )
        (args, kwargs), self._given, self._open = self._given, None, False
        batch = self._batch
        with torch.no_grad():
            if batch is not None and batch.whole and objective.step is None:
                return objective.outputs(self.teacher, batch)
            return called(*args, **kwargs)

    def forget(self) -> None:
        """Drop the last batch, which is not needed."""
        self._given, self._open = None, False

    def close(self) -> None:
        """Remove the hooks from the student."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._given = None
