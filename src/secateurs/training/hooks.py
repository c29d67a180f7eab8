"""Where methods plug into training: subclass `Hook`, override what you need."""

from __future__ import annotations

from typing import Any

import torch

from secateurs.training.batches import Batch
from secateurs.training.run import TrainingRun


class Hook:
    """Every method does nothing. Order: the engine calls hooks in the order they were given.

    In `after_step` and `epoch_end` gradients are gone, so these are the places to cut the network: `engine.cut(plan)`,
    or change it yourself and call `engine.rebind()`. Draw random numbers from the global generators (the engine seeds
    them, for every batch, from its seed) or from a generator that `state` saves. On several processes all must decide
    alike: decide from `engine.sum(...)`-ed figures, in `after_step`, `epoch_start`, `epoch_end`.
    """

    def start(self, engine: TrainingRun) -> None:
        """Once, before training and before a checkpoint is loaded. Add parameters, networks, gates here."""

    def epoch_start(self, engine: TrainingRun) -> None:
        """Before an epoch's first batch (not again when a run resumes in the middle of an epoch)."""

    def before_batch(self, engine: TrainingRun, batch: Batch) -> Batch | None:
        """The batch is on the device, autocast is on. May return another batch to train on."""

    def loss(self, engine: TrainingRun, loss: torch.Tensor, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        """The scalar to minimize, given the loss so far and the model's raw outputs."""
        return loss

    def after_backward(self, engine: TrainingRun) -> None:
        """After each batch's backward. The gradients are final (averaged, not yet clipped) when `engine.syncing`."""

    def after_step(self, engine: TrainingRun) -> None:
        """After the optimizers stepped and gradients were cleared."""

    def epoch_end(self, engine: TrainingRun, metrics: dict[str, Any]) -> None:
        """`metrics` is the epoch's line in the log: read it, or add JSON-able figures of your own."""

    def done(self, engine: TrainingRun) -> bool:
        """True ends the training (asked after each step)."""
        return False

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: tensors, numbers, strings, lists, dicts."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Takes `state()` back. Comes after `start` and before the engine loads weights and optimizers, so a hook that
        had cut the network by hand cuts it again here (cuts made through `engine.cut` are replayed by the engine)."""
