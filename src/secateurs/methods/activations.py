"""Criteria that look at a channel's activations where they are read: how often they are zero, and how much they vary."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateurs.errors import ConfigError
from secateurs.graph import ChannelGroup
from secateurs.graph.channels import Slot, parameter
from secateurs.methods.assess import Assessor
from secateurs.methods.method import Task
from secateurs.methods.registry import register
from secateurs.methods.watching import Watching, readers
from secateurs.recovery.calibrate import Pooled


class _Activations(Watching):
    """A criterion that looks at what consumers read."""

    def observed(self, task: Task, of: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, _Inputs]:
        """A function of the inputs of every group's consumers, over all examples; group name → its statistics."""
        assessor = Assessor(task, self.examples, labels=False)
        with ExitStack() as stack, torch.no_grad():
            found = {g.name: stack.enter_context(_Inputs(g, assessor.model, self.name, of)) for g in task.groups}
            for batch in assessor.batches:
                assessor.run(batch)
        return found


@register("apoz")
class APoZ(_Activations):
    """Average percentage of zeros of a channel's activations (Hu et al., 2016): channels with the most are cut first.

    Zeros are counted at the channel's consumers, so after non-linearity and pooling, over all positions and examples;
    several consumers are averaged. The score is the fraction that is *not* zero. Activations that are never exactly zero (SiLU,
    GELU, no non-linearity) carry no information: if that is true of all channels, ConfigError is raised; a group of which it is
    true has score 1 everywhere, which is recorded in the history, and its last channels are cut first.
    """

    def scores(self, task: Task) -> dict[str, Tensor]:
        zeros = self.observed(task, lambda x: (x == 0).float())
        found = {name: 1 - each.average(lambda p: p.mean) for name, each in zeros.items()}
        dense = [name for name, s in found.items() if bool((s == 1).all())]
        if len(dense) == len(found):
            raise ConfigError("apoz: no prunable channel is ever exactly zero: choose another criterion.")
        if dense:
            task.note(event="apoz", never_zero=dense)
        return found


@register("variance")
class Variance(_Activations):
    """Variance of a channel's activations (Polyak and Wolf, 2015): channels that vary least are cut first, as a constant in the
    next layer's bias can stand in for them.

    It is measured at the channel's consumers, so after non-linearity and pooling, over all positions and examples; several
    consumers are averaged.
    """

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {name: each.average(lambda p: p.squares / p.n) for name, each in self.observed(task).items()}


class _Inputs:
    """Pools a function of the inputs of the modules that read a group's channels."""

    def __init__(self, group: ChannelGroup, model: nn.Module, criterion: str, of: Callable[[Tensor], Tensor]) -> None:
        self.group, self.criterion, self.of = group, criterion, of
        self.pooled: dict[tuple[str, int], Pooled] = {}  # by consumer: of the indices on the consuming axis
        self.slots: list[Slot] = []
        self._handles: list[RemovableHandle] = []
        for slot, module, at in readers(group, model):
            if at is not None:
                reader = (slot.param, slot.axis)
                if all(reader != (s.param, s.axis) for s in self.slots):
                    hook = self._hook(reader, parameter(model, slot.param).shape[slot.axis], at)
                    self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                self.slots.append(slot)

    def __enter__(self) -> _Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, reader: tuple[str, int], n: int, at: int) -> Any:
        def add(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = self.of(args[0] if args else kwargs["input"]).movedim(at, 0)  # (channels, …)
            x = x.reshape(-1, n, x[0].numel())  # the groups of a grouped convolution read the same channels in turn
            count = x.shape[0] * x.shape[2]
            if count:
                variance, mean = torch.var_mean(x, (0, 2), correction=0)
                own = Pooled(count, mean.cpu().double(), variance.cpu().double() * count)
                if reader in self.pooled:
                    self.pooled[reader].add(own)
                else:
                    self.pooled[reader] = own

        return add

    def average(self, of: Callable[[Pooled], Tensor]) -> Tensor:
        """A statistic of each channel, averaged over the group's consumers: (size,)."""
        found = [
            of(self.pooled[at])[torch.from_numpy(slot.index)].mean(1)
            for slot in self.slots
            if (at := (slot.param, slot.axis)) in self.pooled
        ]
        if not found:
            raise ConfigError(
                f"{self.criterion}: no consumer of {self.group.name} is called as a module, so its activations cannot be "
                "observed; choose another criterion."
            )
        return torch.stack(found).mean(0)
