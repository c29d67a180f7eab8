"""What a method costs, in training passes: forward and backward through the uncut network, 3 · MACs for each image.

All that runs is counted, as costs are everywhere, in short searches with the method's own settings: AOFP's second path and
NPN's pruner, too. Of two searches, one twice as long as the other, the difference is what training costs, and the rest is
what the method does once, before and after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import secateurs as sc
from secateurs.graph.counter import MacCounter
from secateurs.methods import Method, TrainingMethod
from secateurs.training import Phase

STEPS = 3  # steps per epoch of the short searches
EPOCHS = 2


@dataclass(frozen=True)
class SearchCost:
    """epoch: of one epoch of the method's own training, in training passes over the same images. once: of everything else, in
    training passes of one image."""

    epoch: float
    once: float


def search_cost(
    model: nn.Module, inputs: Tensor, method: Method, budget: sc.Budget, train: Any, seed: int
) -> SearchCost:
    """Measured by running it. inputs: one image, (1, C, H, W). train: the batches that the search will read."""
    image = 3 * sc.count(model, inputs).macs

    def run(chosen: Method, data: Any) -> float:
        with MacCounter() as counter:
            sc.prune(model, inputs, chosen, budget, sc.Data(data), seed=seed, progress=False)
        return counter.macs / image

    if not isinstance(method, TrainingMethod):
        return SearchCost(0.0, run(method, train))
    batches = [batch for batch, _ in zip(train, range(STEPS), strict=False)]
    rows = sum(len(targets) for _, targets in batches)
    short, long = (
        run(type(method)(**{**method.model_dump(), "epochs": epochs}), batches) for epochs in (EPOCHS, 2 * EPOCHS)
    )
    epoch = (long - short) / (EPOCHS * rows)
    return SearchCost(epoch, max(0.0, short - EPOCHS * rows * epoch))


def recovery_cost(phase: Phase, macs: float, images: int) -> float:
    """Of one epoch of recovery, or of a reconstruction, in training passes over these images through the uncut network.

    macs: the share that the cut network has. A teacher runs forward only, which is a third of a pass.
    """
    if isinstance(phase, sc.Reconstruct):  # one forward pass of each network
        return min(phase.images, images) / images * (1 + macs) / 3
    taught = not isinstance(phase, sc.Recover) or phase.share > 0
    return macs + taught / 3
