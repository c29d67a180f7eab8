"""Distillation: the original's class probabilities, softened, beside the labels (Hinton et al., 2015)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.recovery.recipes import Distil
from secateurs.recovery.teacher import TeacherHook
from secateurs.training.metrics import heads
from secateurs.training.run import TrainingRun


def soft_loss(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over images (and pixels). Logits: (N, classes, *)."""
    p = F.log_softmax(teacher.float().movedim(1, -1) / temperature, dim=-1)
    q = F.log_softmax(student.float().movedim(1, -1) / temperature, dim=-1)
    return temperature**2 * F.kl_div(q, p, reduction="sum", log_target=True) / (p.numel() / p.shape[-1])


class Distilling(TeacherHook):
    """share · soft loss + (1 - share) · task loss. T² keeps the two gradients on the same scale."""

    def __init__(self, student: nn.Module, teacher: nn.Module, recipe: Distil) -> None:
        super().__init__(student, teacher)
        self.recipe = recipe

    def loss(self, engine: TrainingRun, loss: Tensor, outputs: Any, targets: Tensor) -> Tensor:
        soft = soft_loss(heads(self.teacher_outputs())[0], heads(outputs)[0], self.recipe.temperature)
        share = self.recipe.share
        return share * soft + (1 - share) * loss if share < 1 else soft

    def epoch_end(self, engine: TrainingRun, metrics: dict[str, Any]) -> None:
        metrics["mode"] = "distil"
