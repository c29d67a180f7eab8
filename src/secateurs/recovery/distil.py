"""Distillation: the original's class probabilities, softened, in addition to the labels (Hinton et al., 2015)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.errors import ConfigError, Setting, TrainingError, a_or_an
from secateurs.graph.faults import described
from secateurs.recovery.recipes import Recover
from secateurs.recovery.teacher import TeacherHook
from secateurs.training.batches import IGNORED
from secateurs.training.losses import CrossEntropy, heads, shares
from secateurs.training.objective import Objective
from secateurs.training.run import TrainingRun


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)) of each image and pixel, (N, *). Logits: (N, classes, *)."""
    p = F.log_softmax(teacher.float().movedim(1, -1) / temperature, dim=-1)
    q = F.log_softmax(student.float().movedim(1, -1) / temperature, dim=-1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def soft_loss(teacher: Tensor, student: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over images and pixels. Logits: (N, classes, *).

    counts: (N, *) bool, the pixels that count; by default all.
    """
    each = divergence(teacher, student, temperature)
    mean = each.mean() if counts is None else (each * counts).sum() / counts.sum().clamp(min=1)
    return temperature**2 * mean


def counting(targets: Any, logits: Tensor, ignored: int = IGNORED) -> Tensor | None:
    """The pixels that count, (N, *) bool, where targets are class indices of pixels; None for all. A pixel that the loss
    ignores, as padding is, is not taught; an image without a label is."""
    if logits.ndim == 2 or not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    if targets.shape != logits.shape[:1] + logits.shape[2:]:
        return None
    counts = targets.long() != ignored  # of uint8, -100 would be 156
    axes = tuple(range(1, counts.ndim))
    return counts | ~counts.any(axes, keepdim=True)


class Distilling(TeacherHook):
    """share · T · KL + (1 - share) · task loss, KL of the softened probabilities.

    `Distil` has T² (Hinton et al., 2015), which keeps the gradient on the scale of the task loss's if the two networks differ
    little. After a deep cut they do not, and it is several times larger: networks without batch norm then diverge at usual
    learning rates.

    What the network's outputs are is seen in the first batch: without logits of classes, the task loss alone is used. If
    teaching is required, or the batch has no labels, this raises ConfigError, which names the setting that turns teaching off.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, recipe: Recover, *, required: bool, off: Setting | None = None
    ) -> None:
        super().__init__(student, teacher)
        self.recipe, self.required = recipe, required
        self.off = off or Setting("share", 0, type(recipe))
        self.teaches: bool | None = None  # None: before the first batch

    def loss(self, engine: TrainingRun, loss: Tensor, outputs: Any, targets: Any) -> Tensor:
        if self.teaches is None:
            self.teaches = self._fits(engine, outputs, targets)
        if not self.teaches:
            self.forget()
            return loss
        logits = heads(outputs)[0]
        counts = counting(targets, logits, engine.objective.ignored)
        soft = soft_loss(heads(self.teacher_outputs(engine))[0], logits, self.recipe.temperature, counts)
        if self.recipe.mode != "distil":
            soft = soft / self.recipe.temperature
        share = self.recipe.share
        return share * soft + (1 - share) * loss if share < 1 else soft

    def _fits(self, engine: TrainingRun, outputs: Any, targets: Any) -> bool:
        labeled = self._batch is None or self._batch.labeled
        fault = self.unfit(engine.objective, outputs, targets, labeled)
        if fault is None:
            return True
        engine.report.line(
            f"{engine.report.title}: trains on the task loss alone, without the original as a teacher: {fault}"
        )
        return False

    def unfit(self, objective: Objective, outputs: Any, targets: Any, labeled: bool) -> str | None:
        """Why the original cannot teach these outputs; None if it can. Raises ConfigError if it has to."""
        own = objective.loss is not None and not isinstance(objective.loss, CrossEntropy)
        fault = unlike_logits(outputs, targets if labeled and own else None, objective.ignored)
        if fault is None and objective.step is not None and not self.required:
            fault = "whether the network's outputs are logits of classes is not known of a step of your own"
        if fault is not None and (self.required or not labeled):
            alone: tuple[object, ...] = ("Train on the task loss alone, with ", self.off)
            alone = alone if labeled else (*alone, ", on batches of inputs and targets")
            raise ConfigError(f"The original cannot teach class probabilities: {fault}.", hint=(*alone, "."))
        return fault

    def epoch_end(self, engine: TrainingRun, metrics: dict[str, Any]) -> None:
        if self.teaches:
            metrics["share"] = self.recipe.share


def unlike_logits(outputs: Any, targets: Tensor | None, ignored: int = IGNORED) -> str | None:
    """Why these outputs are not logits of classes, (N, classes, *); None if they may be.

    targets: what a loss of the user's own compares them with, if that is not known to be cross-entropy. ignored: the class
        index that it ignores.
    """
    try:
        main, _ = heads(outputs)
    except TrainingError:
        return f"the network returns {a_or_an(type(outputs).__name__)} without logits"
    if main.ndim < 2 or main.shape[1] < 2 or not main.is_floating_point():
        return f"the network's output is {described(main)}, not logits of two or more classes"
    if targets is None:
        return None
    if not isinstance(targets, Tensor):
        return f"the targets are {a_or_an(type(targets).__name__)}, not classes"
    indices = not targets.is_floating_point() and targets.shape == main.shape[:1] + main.shape[2:]
    highest = int(targets.long().where(targets.long() != ignored, 0).max()) if indices and targets.numel() else 0
    if highest >= main.shape[1]:
        return f"a target is {highest}, for {main.shape[1]} outputs"
    if indices or (targets.shape == main.shape and shares(targets)):
        return None
    return f"the loss compares an output, {described(main)}, with targets, {described(targets)}, that are not classes"
