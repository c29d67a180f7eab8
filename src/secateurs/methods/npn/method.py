"""NPN, the method."""

from __future__ import annotations

from secateurs.methods.method import Task
from secateurs.methods.npn.pruner import NPNPruner
from secateurs.methods.npn.settings import Settings
from secateurs.methods.registry import register


@register("npn")
class NPN(Settings):
    """A pruner network gates the main network's channels (Verma et al., WACV 2020).

    The pruner gets the same images and outputs a gate in [0, 1] for every channel by a scaled sigmoid; λ‖gates‖₁ closes
    them. The pruner alone (the main network frozen) and both are trained in turns. Then the channels whose gates are open
    are fixed, and the network alone is trained with them.
    """

    def attach(self, task: Task) -> NPNPruner:
        return NPNPruner(task, self)
