"""The classic criteria: a score for each channel from the weights only."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from secateurs.errors import ConfigError, Setting
from secateurs.graph import ChannelGroup
from secateurs.graph.channels import parameter
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task
from secateurs.methods.registry import register


@register("l1")
class L1(Criterion):
    """Sum of absolute weights over a channel's filters (Li et al., ICLR 2017)."""

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: norms(g, task.model, 1) for g in task.groups}


@register("l2")
class L2(Criterion):
    """Euclidean norm over a channel's filters (He et al., IJCAI 2018)."""

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: norms(g, task.model, 2) for g in task.groups}


def norms(group: ChannelGroup, model: nn.Module, p: int) -> Tensor:
    """p-norm (1 or 2) of each channel's weights over all its layers: (size,)."""
    total = sum(powers(w.float(), p) for w in group.weights(model))
    assert isinstance(total, Tensor)
    return total if p == 1 else total.sqrt()


def powers(w: Tensor, p: int) -> Tensor:
    """Σ |w|^p of each row, in blocks that fit in the cache: three times as fast as a norm of the whole."""
    rows = max(1, (1 << 18) // max(1, w.shape[1]))
    return torch.cat([(block.abs() if p == 1 else block.square()).sum(1) for block in w.split(rows)])


@register("bn-scale")
class BNScale(Criterion):
    """|γ| of the batch norms on a channel (network slimming, Liu et al., ICCV 2017).

    In a global ranking the γ's are compared without normalization: they are on one scale by construction. A group without a
    batch norm cannot be scored: ConfigError names it.
    """

    comparable: ClassVar[bool] = True

    def scores(self, task: Task) -> dict[str, Tensor]:
        norms = {n for n, m in task.model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
        return {g.name: self._scale(g, task, norms) for g in task.groups}

    def _scale(self, group: ChannelGroup, task: Task, norms: set[str]) -> Tensor:
        found = [
            parameter(task.model, s.param).detach().float().cpu()[torch.from_numpy(s.index)].abs().mean(1)
            for s in group.slots
            if s.module in norms and s.param.endswith("weight")
        ]
        if not found:
            raise ConfigError(
                f"bn-scale: no batch norm with a scale follows {group.name}. Keep it whole with ",
                Setting("exclude", (group.name,)), ", or choose another criterion.",
            )  # fmt: skip
        return torch.stack(found).mean(0)


@register("random")
class Random(Criterion):
    """Uniform random scores: the baseline that every other method must exceed."""

    comparable: ClassVar[bool] = True

    def scores(self, task: Task) -> dict[str, Tensor]:
        generator = task.generator()
        return {g.name: torch.rand(g.size, generator=generator) for g in task.groups}


@register("index")
class Index(Criterion):
    """Keep each group's first channels: sets widths without choosing filters, as in a uniformly thinner network."""

    comparable: ClassVar[bool] = True

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: 1 - torch.arange(g.size) / g.size for g in task.groups}
