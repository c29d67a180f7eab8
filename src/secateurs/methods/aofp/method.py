"""AOFP, the method."""

from __future__ import annotations

from secateurs.methods.aofp.pruner import AOFPPruner
from secateurs.methods.aofp.settings import Settings, limits
from secateurs.methods.method import Task
from secateurs.methods.registry import register


@register("aofp")
class AOFP(Settings):
    """Approximated oracle filter pruning (Ding et al., ICML 2019).

    While the network trains, a random half of each layer's search space is ablated for each example, on a separate path
    that ends after the next layer, and the damage measured there is attributed to the ablated filters. After φ batches the
    less damaging half is pruned if its damage is below θ, else it becomes the search space.
    """

    def feasible(self, task: Task) -> None:
        limits(task, self.min_filters).check()

    def attach(self, task: Task) -> AOFPPruner:
        return AOFPPruner(task, self)
