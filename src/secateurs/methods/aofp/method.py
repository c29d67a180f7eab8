"""AOFP: the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from secateurs.methods.aofp.pruner import AOFPPruner, limits
from secateurs.methods.aofp.settings import AOFPSettings
from secateurs.methods.method import Task
from secateurs.methods.registry import register
from secateurs.recovery.distil import Distilling
from secateurs.recovery.recipes import Distil
from secateurs.recovery.teacher import TeacherHook


@register("aofp")
class AOFP(AOFPSettings):
    """Approximated oracle filter pruning (Ding et al., ICML 2019).

    While the network trains, a random half of each layer's search space is ablated for each example, on a separate path
    that ends after the next layer, and the damage measured there is attributed to the ablated filters. After φ batches the
    less damaging half is pruned if its damage is below θ, else it becomes the search space.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"search_cost": 8000, "theta_growth": 1, "halves": "batch", "lr": 1e-3, "epochs": 600}  # sec. 4.2
    }

    def feasible(self, task: Task) -> None:
        limits(task, self.min_filters).check()

    def teachers(self, task: Task) -> list[TeacherHook]:
        if self.distil == 0:
            return []
        return [Distilling(task.model, task.model, Distil(epochs=self.epochs, share=self.distil))]

    def attach(self, task: Task) -> AOFPPruner:
        return AOFPPruner(task, self)
