"""Oracle pruning on a whole network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from secateurs.errors import ConfigError, Setting
from secateurs.masking.gates import Gates
from secateurs.methods.assess import Assessor, reporter, require_data
from secateurs.methods.method import Method, Task
from secateurs.methods.oracle.ablation import Ablation
from secateurs.methods.registry import register
from secateurs.methods.select import select_within_budget
from secateurs.methods.selection import Selection

Array = np.ndarray


@register("oracle")
class Oracle(Method):
    """Ablate each filter in turn, measure the loss without it, cut the filter of least increase, and measure again (Molchanov
    et al., ICLR 2017; eq. 5 of Ding et al., ICML 2019).

    T(F) = Σ loss(without F) - loss, over some training examples. T of all groups is on one scale, the loss, and compared
    without normalization. With c channels, of which q are cut, this takes c·q·γ/g evaluations of the network: it is the
    reference that other criteria approximate, and expensive on large networks.
    """

    reads_labels: ClassVar[bool] = True

    examples: int = Field(256, ge=1, description="γ: training examples on which the loss is measured")
    rescore: bool = Field(
        True, description="measure again after each cut; False is the degraded oracle, which measures once"
    )
    granularity: int | None = Field(
        None, ge=1, description="g: channels cut between two measurements (1 in the paper); None: 1/32 of all"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="precision of the evaluations")

    quick: ClassVar[bool] = False

    def check(self, task: Task) -> None:
        super().check(task)
        require_data(task, self.name, "measures the loss on examples")

    def unused(self, task: Task) -> Mapping[str, tuple[object, ...]]:
        once = (Setting("rescore", False, type(self)), " measures once, and cuts all at a time")
        return {} if self.rescore else {"granularity": once}

    def select(self, task: Task) -> Selection:
        task.widths.check()
        if not task.widths.shrinking(task.widths.sizes).any():
            return Selection({g.name: np.arange(g.size) for g in task.groups})
        return Selection(select_within_budget(task.widths, _Greedy(self, task).ranks()))


class _Greedy:
    """Greedy cutting with masks."""

    def __init__(self, config: Oracle, task: Task) -> None:
        self.config, self.task, self.widths = config, task, task.widths
        self.groups = task.groups
        self.assessor = Assessor(task, config.examples, precision=config.precision)
        self.alive = [np.ones(g.size, dtype=bool) for g in self.groups]
        self.damage = [np.full(g.size, np.inf) for g in self.groups]  # T per example, as last measured
        self.cuts: list[tuple[int, int]] = []  # (group, channel) in the order in which they were cut
        self.evaluated = 0  # examples × ablations

    def ranks(self) -> dict[str, Array]:
        """group name → (size,): ranks: the cut channels in the order of the cuts, then the others by their damage."""
        step = self.config.granularity or max(1, int(self.widths.sizes.sum()) // 32)
        with reporter(self.task, self.config.name) as report:
            report.start(None, 0)
            while self.shrinking().any():
                if self.config.rescore or not self.cuts:
                    for i in range(len(self.groups)):
                        report.show(len(self.cuts), f"measuring {self.groups[i].name}")
                        self.measure(i)
                self.cut(step if self.config.rescore else None)
        self.task.note(event="oracle", examples=self.assessor.examples, evaluated=self.evaluated, cut=len(self.cuts))
        flat = np.concatenate(self.damage)
        ranks = np.split(flat.argsort(kind="stable").argsort() + 0.0, np.cumsum(self.widths.sizes)[:-1])
        for place, (i, channel) in enumerate(self.cuts):
            ranks[i][channel] = place - len(self.cuts)
        return {g.name: r for g, r in zip(self.groups, ranks, strict=True)}

    def shrinking(self) -> Array:
        return self.widths.shrinking(np.array([a.sum() for a in self.alive]))

    def measure(self, i: int) -> None:
        """Measure T of the group's channels (eq. 5), with all earlier cuts made."""
        group, channels = self.groups[i], np.flatnonzero(self.alive[i])
        if len(channels) <= self.widths.least[i]:
            return  # none of them can be cut
        masks = torch.ones(1 + len(channels), group.size)
        masks[1 + torch.arange(len(channels)), torch.from_numpy(channels)] = 0
        with Ablation(self.assessor, group) as ablation:
            loss = ablation(masks)[:, 0].numpy() / self.assessor.examples
        self.evaluated += len(masks) * self.assessor.examples
        if not np.isfinite(loss).all():
            raise ConfigError(
                f"oracle: the loss without channels of {group.name} is not finite: check the weights for NaN and infinities"
            )
        self.damage[i][channels] = loss[1:] - loss[0]

    def cut(self, most: int | None) -> None:
        """Cut the channels of least damage: at most this many, as far as groups allow, and no more than the budget requires."""
        left = [(self.damage[i][c], i, c) for i, alive in enumerate(self.alive) for c in np.flatnonzero(alive)]
        begun = len(self.cuts)
        for _, i, channel in sorted(left):
            shrinking = self.shrinking()
            if not shrinking.any() or len(self.cuts) - begun == most:
                break
            if shrinking[i]:
                self.alive[i][channel] = False
                self.cuts.append((i, int(channel)))
        masks = {g.name: torch.from_numpy(a).float() for g, a in zip(self.groups, self.alive, strict=True)}
        Gates(self.assessor.model, self.groups).fold_(masks)
        went = self.cuts[begun:]
        counts = np.array([a.sum() for a in self.alive])
        self.task.note(
            event="cut",
            channels={self.groups[i].name: sorted(c for k, c in went if k == i) for i, _ in went},
            damage=float(max(self.damage[i][c] for i, c in went)),
            macs=self.widths.cost(counts).macs,
            params=self.widths.cost(counts).params,
        )
