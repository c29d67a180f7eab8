"""The base classes of pruning methods: a method takes a task and returns the channels to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from pydantic import ConfigDict, ValidationError
from torch import nn

from secateurs.budget import Budget
from secateurs.errors import ConfigError, Setting, complaint, nearest
from secateurs.graph import ChannelGroup
from secateurs.methods.select import Widths, select_within_budget
from secateurs.methods.selection import Channels, Selection
from secateurs.plans import PrunableGraph
from secateurs.presets import Presets
from secateurs.training.objective import Objective

Scope = Literal["internal", "all"]


def check_scope(scope: Any) -> None:
    """Raise ConfigError for an invalid scope. None means the method's default."""
    if scope is not None and scope not in get_args(Scope):
        raise ConfigError(Setting("scope", scope), f" is not a valid scope. {nearest(str(scope), get_args(Scope))}")


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
    """Discard a record."""


@dataclass(frozen=True)
class Task:
    """What a method is given."""

    model: nn.Module
    graph: PrunableGraph
    budget: Budget | None
    scope: Scope = "internal"
    data: Any = None  # a `secateurs.data.Data`, or None
    seed: int = 0
    example_inputs: Any = None
    engine_options: Mapping[str, Any] = field(default_factory=dict)  # device, objective, progress … of training
    resume: bool = False
    log: Callable[[dict[str, Any]], None] = _unlogged  # called with each entry of the history

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups that may be cut: prunable and in scope."""
        return [g for g in self.graph.groups if g.prunable and (self.scope == "all" or g.internal)]

    @property
    def widths(self) -> Widths:
        """The widths of those groups under the budget."""
        return Widths(self.graph, self.groups, self.budget)

    @property
    def objective(self) -> Objective:
        """What the network is trained on and judged by."""
        return self.engine_options.get("objective") or Objective()

    def note(self, **record: Any) -> None:
        """Add an entry to the history."""
        self.log(record)

    def generator(self, device: str = "cpu") -> torch.Generator:
        """A new generator with the task's seed."""
        return torch.Generator(device).manual_seed(self.seed)


class Method(Presets):
    """Base class of all methods: its fields are the settings (with the paper's symbols), `select` is the algorithm.

    presets: settings under a name, for `preset` and `--preset`. "paper" is the paper's own reading where the defaults differ.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = ""
    default_scope: ClassVar[Scope] = "internal"
    reads_labels: ClassVar[bool] = False  # True: training batches must be pairs (inputs, targets)
    cuts: ClassVar[Literal["channels", "stripes"]] = (
        "channels"  # stripes come last: such a network cannot be cut further
    )

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            setting = Setting(".".join(map(str, first["loc"])), first.get("input"), type(self))
            known = ", ".join(type(self).model_fields) or "none"
            hint = f"{self.name or type(self).__name__}'s settings are: {known}."
            raise ConfigError(setting, f": {complaint(first)}.", hint=hint) from None

    def check(self, task: Task) -> None:
        """Raise ConfigError before any work if the task lacks something that this method needs."""
        if task.budget is None:
            raise ConfigError(f"{self.name} needs a budget, for example ", Setting("macs", 0.5, Budget), ".")

    def feasible(self, task: Task) -> None:
        """Raise BudgetError before any work for a budget that this method cannot meet."""
        task.widths.check()

    def select(self, task: Task) -> Selection | Channels:
        """Return what to keep: a Selection, or kept channels by group."""
        raise NotImplementedError

    def initialise(self, task: Task, selection: Selection, small: nn.Module) -> None:
        """Change the weights of the cut network before calibration and recovery. The default keeps them."""


class Criterion(Method):
    """Base class of methods that score channels and keep those with the highest scores.

    ranking: "global" compares channels across groups, after dividing a group's scores by their mean (layers differ in
        scale); "layer" keeps the same fraction of every group.
    """

    ranking: Literal["global", "layer"] = "global"

    comparable: ClassVar[bool] = False  # scores of different groups are already on one scale

    def scores(self, task: Task) -> dict[str, torch.Tensor]:
        """group name → (size,) scores, higher = more important."""
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
                raise ConfigError(
                    f"{self.name} returned scores for {name} that are not finite: check the weights for NaN and infinities"
                )
        return Selection(select_within_budget(task.widths, {name: self._ranked(v) for name, v in scores.items()}))

    def _ranked(self, values: np.ndarray) -> np.ndarray:
        """Scores scaled for comparison across groups."""
        if self.ranking == "layer":
            order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
            return (order + 1) / len(values)
        mean = np.abs(values).mean()
        return values if self.comparable or mean == 0 else values / mean
