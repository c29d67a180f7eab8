"""Hooks into training: subclass `Hook` and override what you need."""

from __future__ import annotations

from typing import Any

import torch

from secateurs.training.batches import Batch
from secateurs.training.run import TrainingRun


class Hook:
    """Base class of hooks; every method does nothing. The engine calls hooks in the order in which they were passed.

    In `after_step` and `epoch_end`, gradients are cleared, so cut the network there: call `engine.cut(plan)`,
    or change the network yourself and call `engine.rebind()`. Draw random numbers from the global generators (the engine
    seeds them for every batch) or from a generator that `state` saves. All processes must make the same
    decisions: base them on values reduced with `engine.sum(...)`, in `after_step`, `epoch_start` or `epoch_end`.
    """

    captures = True  # whether the network can be compiled with this hook attached

    def start(self, engine: TrainingRun) -> None:
        """Called once, before training and before a checkpoint is loaded. Add parameters, networks and gates here."""

    def epoch_start(self, engine: TrainingRun) -> None:
        """Called before an epoch's first batch (not again if a run resumes in the middle of an epoch)."""

    def before_batch(self, engine: TrainingRun, batch: Batch) -> Batch | None:
        """Called with the batch on the device and autocast enabled. May return another batch to train on."""

    def loss(self, engine: TrainingRun, loss: torch.Tensor, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """Return the scalar to minimize, given the loss so far and the model's raw outputs."""
        return loss

    def penalty(self, engine: TrainingRun) -> torch.Tensor | float:
        """Return a term to add to the loss that is minimized; the reported loss excludes it."""
        return 0.0

    def after_backward(self, engine: TrainingRun) -> None:
        """Called after each batch's backward pass. If `engine.syncing`, gradients are final (averaged, but not yet clipped)."""

    def after_step(self, engine: TrainingRun) -> None:
        """Called after the optimizers have stepped and gradients have been cleared."""

    def epoch_end(self, engine: TrainingRun, metrics: dict[str, Any]) -> None:
        """Called at the end of an epoch. `metrics` is its line in the log: read it, or add JSON-serializable values."""

    def done(self, engine: TrainingRun) -> bool:
        """Return True to end training (called before the first step and after each)."""
        return False

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: tensors, numbers, strings, lists, dicts."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Load the result of `state()`. Called after `start`, before the engine loads weights and optimizers. A hook that
        has cut the network itself must cut it again here. The engine replays cuts made with `engine.cut`."""
