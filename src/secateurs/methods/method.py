"""The base classes of pruning methods: a method takes a task and returns the channels to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from pydantic import ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError
from torch import nn

from secateurs.artifact.history import warning
from secateurs.budget import Budget
from secateurs.errors import ConfigError, Message, Setting, a_or_an, nearest
from secateurs.graph import ChannelGroup
from secateurs.graph.channels import parameter
from secateurs.methods.limits import Bound, Bounds, described, free, held
from secateurs.methods.select import Widths
from secateurs.methods.selection import Channels, Selection
from secateurs.plans import Plan, PrunableGraph
from secateurs.presets import Presets, faults
from secateurs.surgery.compare import NotFiniteError
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
    if isinstance(budget, Mapping) and not budget.keys() <= {f.name for f in fields(Budget)}:
        raise ConfigError(
            f"budget must be a Budget, got {got}: a budget is for the whole network, Budget(macs=0.5); the shares to "
            "keep of single layers are ratios={layer: share}."
        )
    raise ConfigError(f"budget must be a Budget, got {got}; did you mean Budget({given})?")


def undefined(method: Method, function: str, returns: str) -> ConfigError:
    """The error for a class without a function that it has to define."""
    name = function.partition("(")[0]
    return ConfigError(f"{type(method).__name__} has no {name}: define {function}, which returns {returns}.")


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
    bounds: Bounds = field(default_factory=dict)  # what the user says about groups: `Limits.on(graph, scope)`
    teacher: nn.Module | None = None  # the original, where earlier rounds have cut the model; it must not be modified

    @property
    def groups(self) -> list[ChannelGroup]:
        """The groups that may be cut: prunable, in scope, and not kept whole by the user."""
        return [g for g in self._scoped if self.bound(g).least < g.size]

    @property
    def _scoped(self) -> list[ChannelGroup]:
        return [g for g in self.graph.groups if g.prunable and (self.scope == "all" or g.internal)]

    def describe(self) -> list[Message]:
        """What the user says about groups that would otherwise be cut, and the groups that a ratio names without reaching
        them: one line for each limit."""
        scoped = {g.name for g in self._scoped}
        bounds = {g.name: self.bound(g) for g in self.graph.groups}
        return described({name: bound for name, bound in bounds.items() if name in scoped or bound.missed})

    def unused(self, method: Method) -> list[Message]:
        """A line for each setting that the user chose, that is not the method's default, and has no effect on this task."""
        kind, given = type(method), method.model_fields_set - method.fields_of_preset
        values = {n: getattr(method, n) for n in given if getattr(method, n) != kind.model_fields[n].default}
        return [
            Message(f"{method.name}: ", Setting(name, values[name], kind), " has no effect: ", *why)
            for name, why in method.unused(self).items()
            if name in values
        ]

    def bound(self, group: ChannelGroup) -> Bound:
        """What the user says about a group."""
        return self.bounds.get(group.name) or free(group)

    @property
    def fixed(self) -> bool:
        """Whether ratios say how much is kept of every group that may be cut."""
        bounds = [self.bound(g) for g in self.groups]
        return bool(bounds) and all(bound.least == bound.most for bound in bounds)

    @property
    def widths(self) -> Widths:
        """The widths of those groups under the budget and the user's limits."""
        return self.widths_of(self.groups)

    def widths_of(self, groups: Sequence[ChannelGroup]) -> Widths:
        """The widths of some groups, all others being whole."""
        return Widths(self.graph, groups, self.budget, bounds=self.bounds)

    @property
    def kernels(self) -> dict[str, tuple[int, ...]]:
        """The weights of `graph.kernels` whose stripes may be cut."""
        whole = held(self.graph, self.bounds)
        return {name: shape for name, shape in self.graph.kernels.items() if name not in whole}

    def for_method(self, method: Method) -> Task:
        """The task as the method gets it. With ratios, but neither a budget nor a setting that says how much the method cuts,
        only the groups with a ratio are cut: the budget is then what they leave.

        Raises before any work what `Method.check` and `Method.feasible` do.
        """
        task, cut = self, {g.name for g in self.groups if self.bound(g).most < g.size}
        if cut and self.budget is None and not method.decides:
            whole = Message("kept whole: it has no ratio, and there is no budget")
            rest = {g.name: Bound(g.size, g.size, message=whole) for g in self.groups if g.name not in cut}
            task = replace(self, bounds={**self.bounds, **rest})
            widths = task.widths
            cost = widths.cost(widths.most)
            task = replace(task, budget=Budget(macs=max(2, cost.macs), params=max(2, cost.params)))
        method.check(task)
        method.feasible(task)
        task._check_finite()
        return task

    def _check_finite(self) -> None:
        for name in dict.fromkeys(slot.param for group in self.groups for slot in group.slots):
            if not parameter(self.model, name).isfinite().all():
                raise NotFiniteError(
                    f"{name} of the model has values that are NaN or infinite: channels cannot be compared, and a cut "
                    "cannot be verified."
                )

    def check_kept(self, plan: Plan, method: str) -> None:
        """Raise ConfigError for a method's plan that does not keep to what the user says."""
        limits, mine = self.widths_of(self.graph.groups), set(self.groups)
        for group, least, most in zip(self.graph.groups, limits.lowest, limits.most, strict=True):
            width = len(plan.groups.get(group.name, range(group.size)))
            if width < least or (width > most and group in mine):
                raise ConfigError(
                    f"{method} keeps {width} of the {group.size} channels of {group.name} (",
                    self.bound(group).message, "): a method has to keep to the limits of its task.",
                )  # fmt: skip
        if stripes := held(self.graph, self.bounds) & plan.stripes.keys():
            raise ConfigError(f"{method} cuts stripes of {min(stripes)}, which the limits of its task keep whole.")

    @property
    def objective(self) -> Objective:
        """What the network is trained on and judged by."""
        return self.engine_options.get("objective") or Objective()

    def note(self, **record: Any) -> None:
        """Add an entry to the history."""
        self.log(record)

    def warn(self, line: str) -> None:
        """Add a sentence to the result's warnings: what the user must know before the network is used."""
        self.note(**warning(line))

    def generator(self, device: str = "cpu") -> torch.Generator:
        """A new generator with the task's seed."""
        return torch.Generator(device).manual_seed(self.seed)


class Method(Presets):
    """Base class of all methods: its fields are the settings (with the paper's symbols), `select` is the algorithm.

    presets: settings under a name, for `preset` and `--preset`. "paper" is the paper's own reading where the defaults differ.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: ClassVar[str] = ""
    default_scope: ClassVar[Scope] = "internal"
    reads_labels: ClassVar[bool] = False  # True: training batches must be pairs (inputs, targets)
    # Stripes come last: such a network cannot be cut further.
    cuts: ClassVar[Literal["channels", "stripes"]] = "channels"
    # Whether to select again, with another budget, takes seconds. If not, a latency budget is held in another way.
    quick: ClassVar[bool] = True
    knob: ClassVar[str | None] = None  # the setting that says how much goes, in place of a budget

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if hasattr(cls, "initialise"):  # the former name, which would silently not be called
            raise ConfigError(
                f"{cls.__name__} defines initialise, which is called initialize now: rename the method initialize."
            )
        if "name" not in vars(cls):  # `register` gives it another one
            cls.name = cls.__name__

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            what, (first, *_) = self.name, faults(type(self), error, settings)
            wrong = Setting(first.name, first.value, type(self)) if first.name else what
            hint = f"{what}'s settings are: {', '.join(type(self).model_fields) or 'none'}."
            raise ConfigError(wrong, f": {first.text}.", hint=hint) from None
        try:
            self.model_dump(mode="json", warnings=False)
        except PydanticSerializationError:
            names = [*type(self).model_fields, *(self.model_extra or {})]
            wrong = next(name for name in names if not self._is_json(name))
            kind = a_or_an(type(getattr(self, wrong)).__name__)
            raise ConfigError(
                f"The setting {wrong!r} of {self.name} is {kind}, and settings are JSON: they are saved with the result.",
                hint="Call the function inside the class, or make the setting its name and look it up there.",
            ) from None

    def _is_json(self, name: str) -> bool:
        """Whether this setting can be saved."""
        try:
            self.model_dump(mode="json", include={name}, warnings=False)
        except PydanticSerializationError:
            return False
        return True

    def record(self) -> dict[str, Any]:
        """Its name and all settings: JSON-serializable."""
        return {"name": self.name, **self.model_dump(mode="json")}

    @property
    def decides(self) -> bool:
        """Whether its own setting says how much goes."""
        return self.knob in self.model_fields_set and getattr(self, str(self.knob)) is not None

    def check(self, task: Task) -> None:
        """Raise ConfigError before any work if the task lacks something that this method needs."""
        if task.budget is None:
            raise ConfigError(f"{self.name} needs a budget, for example ", Setting("macs", 0.5, Budget), ".")

    def feasible(self, task: Task) -> None:
        """Raise BudgetError before any work for a budget that this method cannot meet."""
        task.widths.check()

    def unused(self, task: Task) -> Mapping[str, tuple[object, ...]]:
        """The settings that have no effect on this task, by name, each with why: parts of a `Message`. A user who has set one
        of them is told."""
        return {}

    def select(self, task: Task) -> Selection | Channels:
        """Return what to keep: a Selection, or kept channels by group."""
        raise undefined(self, "select(task)", "the channels to keep, {group name: indices}, or a Selection")

    def selector(self, task: Task) -> Callable[[Task], Selection | Channels]:
        """`select`, for tasks that differ from this one in their budget only: a budget of time tries several. A method may do
        once what does not depend on the budget."""
        return self.select

    def initialize(self, task: Task, selection: Selection, small: nn.Module) -> None:
        """Change the weights of the cut network before calibration and recovery. The default keeps them."""
