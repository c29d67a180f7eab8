"""PFF, the method."""

from __future__ import annotations

from secateurs.methods.method import Task
from secateurs.methods.pff.pruner import PFFPruner
from secateurs.methods.pff.settings import Settings
from secateurs.methods.registry import register


@register("pff")
class PFF(Settings):
    """Pruning filters in filters (Meng et al., NeurIPS 2020): a filter consists of stripes, one for each position of its
    kernel, and each stripe is multiplied by a learnable value; these values form the filter skeleton (eq. 1). α‖skeleton‖₁
    decreases the values while the network trains. At the end they are folded into the weights; stripes whose value is
    below δ are cut, and with them the channels of filters that have no stripe left.

    With a budget, stripes are ranked by value times initial norm, and by what they cost; those that the budget leaves no room
    for are faded out during training, so that the cut changes nothing. Preset "paper": the paper's settings.

    Cutting stripes affects no other layer, so stripes can be cut from every convolution with a kernel larger than 1×1 and one
    group, on a shortcut or not; `scope` applies to channels only.
    """

    def attach(self, task: Task) -> PFFPruner:
        return PFFPruner(task, self)
