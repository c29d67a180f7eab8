"""Criteria that look at the loss's gradient: with respect to gates on channels, or to all weights of a group."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from secateurs.graph import ChannelGroup
from secateurs.graph.channels import parameter
from secateurs.masking.gates import Gates
from secateurs.methods.assess import Assessor
from secateurs.methods.group_norms import weights
from secateurs.methods.method import Task
from secateurs.methods.registry import register
from secateurs.methods.watching import Watching, readers
from secateurs.report import listing
from secateurs.training.batches import Batch

log = logging.getLogger("secateurs")


class _GateGradients(Watching):
    """A criterion of the gradients of each example's loss with respect to gates on the channels: Σ activation · gradient.

    If a channel is consumed by code rather than by a module, gradients of whole batches are used instead of per-example
    gradients.
    """

    comparable: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = True

    @abstractmethod
    def of(self, gradients: Tensor) -> Tensor:
        """What is summed over the examples, elementwise."""

    def sums(self, task: Task) -> dict[str, Tensor]:
        """The sums over all examples: group name → (size,), float64."""
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
                        sums[i] += self.of(g).sum(0)
        if single is not None and not all(single):
            task.note(event=self.name, by_batch=[g.name for g, s in zip(groups, single, strict=True) if not s])
        found = {g.name: s for g, s in zip(groups, sums, strict=True)}
        _tell_unread(self.name, found)
        return found

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


@register("taylor")
class Taylor(_GateGradients):
    """First-order estimate of the change in loss from cutting a channel (Molchanov et al., ICLR 2017): |Σ activation ·
    gradient|.

    The sum over positions is the gradient of the loss with respect to a gate on the channel. It is computed per example, its
    absolute value is averaged over examples, and scores are divided by their group's ℓ2 norm, so that they are comparable
    between groups. If a channel is consumed by code rather than by a module, gradients of whole batches are used instead of
    per-example gradients.
    """

    def of(self, gradients: Tensor) -> Tensor:
        return gradients.abs()

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {name: s / s.norm().clamp(min=1e-300) for name, s in self.sums(task).items()}


@register("fisher")
class Fisher(_GateGradients):
    """Second-order estimate of the change in loss from cutting a channel (Theis et al., 2018; Group Fisher, Liu et al., ICML
    2021): the mean square of Σ activation · gradient over examples, the Fisher information of a gate on it.

    Scores are comparable between groups. `cost=1` divides them by what a channel costs, as Group Fisher does.
    If a channel is consumed by code rather than by a module, gradients of whole batches are used instead of per-example
    gradients.
    """

    def of(self, gradients: Tensor) -> Tensor:
        return gradients.square()

    def scores(self, task: Task) -> dict[str, Tensor]:
        return self.sums(task)


@register("group-taylor")
class GroupTaylor(Watching):
    """First-order estimate of the change in loss, weight by weight (Molchanov et al., CVPR 2019): Σ |weight · gradient| over
    all layers of a group, those that make the channels, those that read them, and norms, as `group-l2` counts them.

    The gradient is that of the summed loss of all examples, so scores do not depend on the size of batches. The paper squares
    the products of each minibatch, and averages them over minibatches. Biases do not count.
    """

    reads_labels: ClassVar[bool] = True

    def scores(self, task: Task) -> dict[str, Tensor]:
        assessor = Assessor(task, self.examples)
        slots = {g.name: list(weights(g, assessor.model)) for g in task.groups}
        names = list(dict.fromkeys(s.param for found in slots.values() for s in found))
        tensors = [parameter(assessor.model, name).requires_grad_() for name in names]
        totals = [torch.zeros_like(w, dtype=torch.float64, device="cpu") for w in tensors]
        for batch in assessor.batches:
            loss = assessor.run(batch)[0]
            for total, grad in zip(totals, torch.autograd.grad(loss, tensors, allow_unused=True), strict=True):
                if grad is not None:
                    total += grad.cpu()
        products = {
            name: (w.detach().cpu() * total).abs() for name, w, total in zip(names, tensors, totals, strict=True)
        }
        scores = {
            name: torch.stack([slot.taken(products[slot.param]).sum(1) for slot in found]).sum(0)
            for name, found in slots.items()
        }
        _tell_unread(self.name, scores)
        return scores


def _tell_unread(method: str, scores: Mapping[str, Tensor]) -> None:
    """Warn of groups that the loss does not depend on: in a network of several outputs it may read but one."""
    if unread := [name for name, s in scores.items() if not s.any()]:
        log.warning(
            "%s: the loss does not depend on the channels of %s, so these may be cut first. If an output that the loss does "
            "not read matters, add it to the loss, or exclude them (exclude=…).", method, listing(unread),
        )  # fmt: skip


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
