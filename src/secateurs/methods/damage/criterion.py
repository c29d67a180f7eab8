"""The criterion: examples are run once, and each group is solved by itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from secateurs.devices import full_precision
from secateurs.errors import ConfigError
from secateurs.graph import ChannelGroup
from secateurs.methods.assess import Assessor
from secateurs.methods.damage.inputs import Reads
from secateurs.methods.damage.removal import System, greedy
from secateurs.methods.method import Task
from secateurs.methods.registry import register
from secateurs.methods.watching import Watching
from secateurs.recovery.reconstruct.walk import Sampler


@register("damage")
class Damage(Watching):
    """What a cut loses even after least-squares reconstruction (ThiNet, Luo et al., ICCV 2017): the share of the
    variance of its consumers' outputs that they cannot explain without the channel, however their other weights are chosen.
    `Reconstruct` then chooses them so.

    The channels of a group are removed one by one, the one that does the least damage first, each measured with those before it
    gone. The score is what a channel adds to the damage. A constant is free, as a bias or a norm can hold it. Scores are
    comparable between groups; several consumers are added up. Of layers that read more than 8,192 values at a time (a flattened
    map), the contributions of whole channels are scaled instead of weights.
    """

    comparable: ClassVar[bool] = True

    positions: int = Field(12, ge=1, description="positions of each layer's output that are used of each example")
    ridge: float = Field(
        1e-3, gt=0, description="penalty on changes of the weights, relative to the inputs' mean variance"
    )

    def scores(self, task: Task) -> dict[str, Tensor]:
        assessor = Assessor(task, self.examples, labels=False)
        reads = Reads(assessor.model, task.groups, Sampler(self.positions, task.seed))
        with torch.no_grad(), full_precision():
            for batch in assessor.batches:
                reads.start(batch.rows)
                with reads:
                    assessor.run(batch)
                reads.chunk += 1
            return {g.name: greedy(self._systems(g, reads)) for g in task.groups}

    def _systems(self, group: ChannelGroup, reads: Reads) -> list[System]:
        for slot in group.slots:
            if slot.consumes and slot.param not in reads:
                raise ConfigError(
                    f"damage: {slot.param}, which reads the channels of {group.name}, is not the weight of a convolution or a "
                    "linear layer that ran, so it cannot be solved by least squares: choose another criterion, or exclude the "
                    "layer."
                )
        return [reads.system(slot, self.ridge) for slot in group.slots if slot.consumes]
