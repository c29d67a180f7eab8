"""What criteria share that run the network on examples."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from torch import nn

from secateurs.graph import ChannelGroup
from secateurs.graph.channels import Slot
from secateurs.masking.gates import input_axis
from secateurs.methods.assess import require_data
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task


class Watching(Criterion):
    """A criterion that runs the network, in eval mode and float32, on training examples."""

    examples: int = Field(1024, ge=1, description="training examples that the network is run on")

    def check(self, task: Task) -> None:
        super().check(task)
        require_data(task, self.name, "runs the network on examples")


def readers(group: ChannelGroup, model: nn.Module) -> Iterator[tuple[Slot, nn.Module, int | None]]:
    """For each consumer of the group: the module that owns the weights, and the axis of its input on which the
    channels are (None for an unknown layer type)."""
    for slot in group.slots:
        if slot.consumes:
            path, _, leaf = slot.param.rpartition(".")
            module = model.get_submodule(path)
            yield slot, module, input_axis(module, leaf, slot.axis)
