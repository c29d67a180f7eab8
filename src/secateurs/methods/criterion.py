"""The base class of methods that score channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from secateurs.data.structure import kind_of
from secateurs.errors import ConfigError, nearest
from secateurs.graph import ChannelGroup
from secateurs.graph.channels import by_name, named_tensors
from secateurs.methods.costs import power_of
from secateurs.methods.method import Method, Task, undefined
from secateurs.methods.ranking import Ranking, ranked
from secateurs.methods.select import select_within_budget
from secateurs.methods.selection import Channels, Selection


class Criterion(Method):
    """Base class of methods that score channels and keep those with the highest scores."""

    ranking: Ranking = Field(
        "global",
        description="global: compare channels across the network, relative to their group's mean score; layer: keep the same "
        "share of every group; isomorphic: keep the same share of all groups of like structure, compared among themselves",
    )
    cost: float | None = Field(
        0.0,
        ge=0,
        le=2,
        description="scores are divided by this power of what a channel costs under the budget: costly layers lose more; "
        "None: the power that measures best on training images, 0 without data",
    )

    comparable: ClassVar[bool] = False  # scores of different groups are already on one scale

    def scores(self, task: Task) -> dict[str, torch.Tensor]:
        """group name → (size,) scores, higher = more important."""
        raise undefined(self, "scores(task)", "{group name: tensor of a score for each channel}")

    def select(self, task: Task) -> Selection:
        return self._within(task, self._unchanged(task))

    def selector(self, task: Task) -> Callable[[Task], Selection | Channels]:
        """With scores that are computed, and a power of the costs that is measured, once."""
        if type(self).select is not Criterion.select:
            return self.select
        found = self._unchanged(task)
        power = self._power(task, found)
        return lambda other: self._ranked(other, found)(power)

    def _unchanged(self, task: Task) -> Mapping[str, torch.Tensor]:
        """The scores. Raises ConfigError if computing them has changed the network: another one would be cut, and no later
        check could tell."""
        before = {name: x.detach().clone() for name, x in named_tensors(task.model).items()}
        found = self.scores(task)
        for name, x in named_tensors(task.model).items():
            if name in before and not _equal(x, before[name]):
                raise ConfigError(
                    f"{self.name}.scores has changed {name} of the network: compute out of place (w.abs(), not w.abs_()), and "
                    "run copy.deepcopy(task.model) in train mode, which updates the statistics of batch norms."
                )
        return found

    def _within(self, task: Task, found: Mapping[str, torch.Tensor]) -> Selection:
        """What these scores keep within the task's budget."""
        return self._ranked(task, found)(self._power(task, found))

    def _power(self, task: Task, found: Mapping[str, torch.Tensor]) -> float:
        return power_of(self.cost, task, self._ranked(task, found))

    def _ranked(self, task: Task, found: Mapping[str, torch.Tensor]) -> Callable[[float], Selection]:
        """What these scores keep within the task's budget, by the power of the costs."""
        groups, widths = task.groups, task.widths
        values = ranked(self.ranking, groups, list(self.checked(task, found).values()), task.model, self.comparable)

        scores = {g.name: v for g, v in zip(groups, values, strict=True)}
        return lambda cost: Selection(select_within_budget(widths, scores, cost))

    def checked(self, task: Task, found: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """The scores of each group that may be cut: (size,), float64. Raises ConfigError for anything else."""
        if not isinstance(found, Mapping):
            raise ConfigError(
                f"{self.name}.scores must return {{group name: tensor of a score for each channel}}, not {kind_of(found)}."
            )
        found = by_name(found)
        names = {g.name for g in task.graph.groups}
        if unknown := [name for name in found if name not in names]:
            raise ConfigError(
                f"{self.name} returned scores for {unknown[0]!r}, which is not a group. {nearest(str(unknown[0]), names)}"
            )
        return {group.name: self._checked(found, group) for group in task.groups}

    def _checked(self, found: Mapping[str, torch.Tensor], group: ChannelGroup) -> np.ndarray:
        """The scores of a group: (size,), float64. Raises ConfigError if there are none, or they are not finite."""
        name = group.name
        if not isinstance(found.get(name), torch.Tensor) or found[name].shape != (group.size,):
            given = "no scores" if found.get(name) is None else kind_of(found[name])
            hint = (
                "Pass a tensor, torch.as_tensor(…)." if isinstance(found.get(name), np.ndarray | list | tuple) else ()
            )
            raise ConfigError(
                f"{self.name} returned {given} for {name}: it must return a tensor of {group.size} scores, one per channel.",
                hint=hint,
            )
        values: np.ndarray = found[name].detach().cpu().double().numpy()  # not every device has float64
        if not np.isfinite(values).all():
            raise ConfigError(
                f"{self.name} returned scores for {name} that are not finite: check the weights, and what scores(task) "
                "computes, for NaN and infinities."
            )
        return values


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())
