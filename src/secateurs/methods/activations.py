"""Criteria that run the network on examples: how often a channel is zero, and the gradients with respect to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateurs.errors import ConfigError
from secateurs.graph import ChannelGroup
from secateurs.graph.channels import Slot, parameter
from secateurs.masking.gates import Gates, input_axis
from secateurs.methods.assess import Assessor, require_data
from secateurs.methods.method import Criterion, Task
from secateurs.methods.registry import register
from secateurs.training.batches import Batch


class Watching(Criterion):
    """A criterion that runs the network, in eval mode and float32, on training examples."""

    examples: int = Field(1024, ge=1, description="training examples that the network is run on")

    def check(self, task: Task) -> None:
        super().check(task)
        require_data(task, self.name, "runs the network on examples")


@register("apoz")
class APoZ(Watching):
    """Average percentage of zeros of a channel's activations (Hu et al., 2016): channels with the most are cut first.

    Zeros are counted at the channel's consumers, so after non-linearity and pooling, over all positions and examples;
    several consumers are averaged. The score is the fraction that is *not* zero. Activations that are never exactly zero (SiLU,
    GELU, no non-linearity) carry no information: if that is true of all channels, ConfigError is raised; a group of which it is
    true has score 1 everywhere, which is recorded in the history, and its last channels are cut first.
    """

    def scores(self, task: Task) -> dict[str, Tensor]:
        assessor = Assessor(task, self.examples, labels=False)
        with ExitStack() as stack, torch.no_grad():
            counts = {g.name: stack.enter_context(_Zeros(g, assessor.model)) for g in task.groups}
            for batch in assessor.batches:
                assessor.run(batch)
            found = {name: 1 - zeros.share() for name, zeros in counts.items()}
        dense = [name for name, s in found.items() if bool((s == 1).all())]
        if len(dense) == len(found):
            raise ConfigError("apoz: no prunable channel is ever exactly zero: choose another criterion.")
        if dense:
            task.note(event="apoz", never_zero=dense)
        return found


class _Zeros:
    """Counts the zeros of a group's channels in the inputs of the modules that consume them."""

    def __init__(self, group: ChannelGroup, model: nn.Module) -> None:
        self.group = group
        self.zeros: dict[tuple[str, int], Tensor] = {}  # by consumer: (indices on the consuming axis,)
        self.seen: dict[tuple[str, int], int] = {}
        self.slots: list[Slot] = []
        self._handles: list[RemovableHandle] = []
        for slot, module, at in readers(group, model):
            if at is not None:
                reader = (slot.param, slot.axis)
                if all(reader != (s.param, s.axis) for s in self.slots):
                    hook = self._hook(reader, parameter(model, slot.param).shape[slot.axis], at)
                    self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                self.slots.append(slot)

    def __enter__(self) -> _Zeros:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, reader: tuple[str, int], n: int, at: int) -> Any:
        def count(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["input"]
            zero = (x == 0).movedim(at, 0)  # (channels, …)
            zero = zero.reshape(
                -1, n, zero[0].numel()
            )  # the groups of a grouped convolution read the same channels in turn
            self.zeros[reader] = self.zeros.get(reader, 0) + zero.sum((0, 2))
            self.seen[reader] = self.seen.get(reader, 0) + zero.shape[0] * zero.shape[2]

        return count

    def share(self) -> Tensor:
        """The fraction of zeros of each channel: (size,)."""
        found = [
            (self.zeros[at].cpu().double() / self.seen[at])[torch.from_numpy(slot.index)].mean(1)
            for slot in self.slots
            if (at := (slot.param, slot.axis)) in self.zeros
        ]
        if not found:
            raise ConfigError(
                f"apoz: no consumer of {self.group.name} is called as a module, so its activations cannot be "
                "observed; choose another criterion."
            )
        return torch.stack(found).mean(0)


@register("taylor")
class Taylor(Watching):
    """First-order estimate of the change in loss from cutting a channel: |Σ activation · gradient| (Molchanov et al., 2017).

    The sum over positions is the gradient of the loss with respect to a gate on the channel. It is computed per example, its
    absolute value is averaged over examples, and scores are divided by their group's ℓ2 norm, so that they are comparable
    between groups. If a channel is consumed by code rather than by a module, gradients of whole batches are used instead of
    per-example gradients.
    """

    comparable: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = True

    def scores(self, task: Task) -> dict[str, Tensor]:
        assessor = Assessor(task, self.examples)
        groups = task.groups
        sums = [torch.zeros(g.size, dtype=torch.float64) for g in groups]
        single: list[bool] | None = None
        for batch in assessor.batches:
            if single is None:
                single = self._single(assessor, groups, batch)
            for each in (True, False):
                mine = [i for i in range(len(groups)) if single[i] == each]
                if mine:
                    grads = _gradients(assessor, [groups[i] for i in mine], batch, each)
                    for i, g in zip(mine, grads, strict=True):
                        sums[i] += g.abs().sum(0)
        if single is not None and not all(single):
            task.note(event="taylor", by_batch=[g.name for g, s in zip(groups, single, strict=True) if not s])
        return {g.name: s / s.norm().clamp(min=1e-300) for g, s in zip(groups, sums, strict=True)}

    def _single(self, assessor: Assessor, groups: list[ChannelGroup], batch: Batch) -> list[bool]:
        """The groups for which per-example gradients are available: those that sum to the whole batch's."""
        able = [all(at is not None for _, _, at in readers(g, assessor.model)) for g in groups]
        some = [g for g, a in zip(groups, able, strict=True) if a]
        if some:
            whole = iter(_gradients(assessor, some, batch, False))
            each = iter(_gradients(assessor, some, batch, True))
            for i, a in enumerate(able):
                if a:
                    w, e = next(whole)[0], next(each).sum(0)
                    able[i] = bool((w - e).norm() <= 1e-2 * w.norm() + 1e-12)
        return able


def _gradients(assessor: Assessor, groups: list[ChannelGroup], batch: Batch, each: bool) -> list[Tensor]:
    """The gradient of the batch's summed loss with respect to gates on the groups, in float64: (N, size) per example,
    or (1, size) for the whole batch."""
    n = batch.rows
    with Gates(assessor.model, groups) as gates:
        flat = torch.ones(
            (n, gates.channels) if each else (gates.channels,), device=assessor.device, requires_grad=True
        )
        gates.flat(flat)
        (grad,) = torch.autograd.grad(assessor.run(batch)[0], flat)
    return list(grad.cpu().double().reshape(-1, gates.channels).split([g.size for g in groups], dim=1))


def readers(group: ChannelGroup, model: nn.Module) -> Iterator[tuple[Slot, nn.Module, int | None]]:
    """For each consumer of the group: the module that owns the weights, and the axis of its input on which the
    channels are (None for an unknown layer type)."""
    for slot in group.slots:
        if slot.consumes:
            path, _, leaf = slot.param.rpartition(".")
            module = model.get_submodule(path)
            yield slot, module, input_axis(module, leaf, slot.axis)
