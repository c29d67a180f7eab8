"""What a pruning method is: it looks at a task and answers which channels stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from secateurs.budget import Budget
from secateurs.errors import ConfigError, nearest
from secateurs.graph import ChannelGroup
from secateurs.methods.select import Widths, select_within_budget
from secateurs.methods.selection import Channels, Selection
from secateurs.plans import PrunableGraph

Scope = Literal["internal", "all"]


def check_scope(scope: Any) -> None:
    """Raise ConfigError for a scope that is none. None is the method's own."""
    if scope is not None and scope not in get_args(Scope):
        raise ConfigError(f"There is no scope {scope!r}. {nearest(str(scope), get_args(Scope))}")


def check_budget(budget: Any) -> None:
    """Raise ConfigError for anything else in the place of a budget."""
    if budget is None or isinstance(budget, Budget):
        return
    given = "macs=0.5"
    if isinstance(budget, Mapping) and budget.keys() <= {f.name for f in fields(Budget)}:
        given = ", ".join(f"{k}={v!r}" for k, v in budget.items())
    elif isinstance(budget, int | float) and not isinstance(budget, bool):
        given = f"macs={budget!r}"
    got = f"{type(budget).__name__} {budget!r:.60}"
    raise ConfigError(f"budget must be a Budget, got {got}; did you mean Budget({given})?")


def _unlogged(record: dict[str, Any]) -> None:
    """Nobody keeps a record."""


@dataclass(frozen=True)
class Task:
    """All that a method may look at."""

    model: nn.Module
    graph: PrunableGraph
    budget: Budget | None
    scope: Scope = "internal"
    data: Any = None  # a `secateurs.data.Data`, or None
    seed: int = 0
    example_inputs: Any = None
    engine_options: Mapping[str, Any] = field(default_factory=dict)  # device, checkpoints, progress … of training
    resume: bool = False
    log: Callable[[dict[str, Any]], None] = _unlogged  # takes each entry of the run's record

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups that may be cut: prunable, and in scope."""
        return [g for g in self.graph.groups if g.prunable and (self.scope == "all" or g.internal)]

    @property
    def widths(self) -> Widths:
        """The budget's view of those groups."""
        return Widths(self.graph, self.groups, self.budget)

    def note(self, **record: Any) -> None:
        """Put something on the run's record."""
        self.log(record)

    def generator(self, device: str = "cpu") -> torch.Generator:
        """A fresh generator with the task's seed."""
        return torch.Generator(device).manual_seed(self.seed)


class Method(BaseModel):
    """Base of all methods: fields are its settings (they cite the paper's symbol), `select` its work."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = ""
    default_scope: ClassVar[Scope] = "internal"
    cuts: ClassVar[Literal["channels", "stripes"]] = "channels"  # stripes come last: such a network is cut no further

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"])
            known = ", ".join(type(self).model_fields) or "none"
            raise ConfigError(
                f"{type(self).__name__}: {where}={first.get('input')!r}: {first['msg']}. Its settings are: {known}."
            ) from None

    def check(self, task: Task) -> None:
        """Raise before any work if the task lacks something this method needs."""
        if task.budget is None:
            raise ConfigError(f"{self.name} needs a budget: budget=sc.Budget(macs=0.5), say.")

    def feasible(self, task: Task) -> None:
        """Raise BudgetError before any work for a budget that this method cannot meet."""
        task.widths.check()

    def select(self, task: Task) -> Selection | Channels:
        """What stays: a Selection, or kept channels by group."""
        raise NotImplementedError

    def initialise(self, task: Task, selection: Selection, small: nn.Module) -> None:
        """Change the weights of the cut network before recovery. Most methods keep what they have."""


class Criterion(Method):
    """A method that scores channels and keeps the highest.

    ranking: "global" compares channels across groups, after dividing a group's scores by their mean (layers differ in
        scale, and a channel should not pay for its layer's); "layer" keeps the same share of every group.
    """

    ranking: Literal["global", "layer"] = "global"

    comparable: ClassVar[bool] = False  # scores of different groups are on one scale as they are

    def scores(self, task: Task) -> dict[str, torch.Tensor]:
        """group name → (size,) scores, higher = more worth keeping."""
        raise NotImplementedError

    def select(self, task: Task) -> Selection:
        found = self.scores(task)
        scores: dict[str, np.ndarray] = {}
        for group in task.groups:
            name = group.name
            if not isinstance(found.get(name), torch.Tensor) or found[name].shape != (group.size,):
                given = "nothing" if name not in found else getattr(found[name], "shape", type(found[name]).__name__)
                raise ConfigError(
                    f"{self.name} must give a tensor of {group.size} scores for {name}, one for each channel, not {given}."
                )
            scores[name] = values = found[name].detach().double().cpu().numpy()
            if not np.isfinite(values).all():
                raise ConfigError(f"{self.name} gives scores for {name} that are not finite: is the network trained?")
        return Selection(select_within_budget(task.widths, {name: self._ranked(v) for name, v in scores.items()}))

    def _ranked(self, values: np.ndarray) -> np.ndarray:
        """Scores as they are compared across groups."""
        if self.ranking == "layer":
            order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
            return (order + 1) / len(values)
        mean = np.abs(values).mean()
        return values if self.comparable or mean == 0 else values / mean
