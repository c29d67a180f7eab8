"""What is compared: methods, budgets and recoveries, from objects or from text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from secateurs.budget import COUNTS, Budget, stated
from secateurs.deploy.target import Target
from secateurs.errors import ConfigError
from secateurs.grammar import typed, value, word, written
from secateurs.methods import Method, resolve
from secateurs.methods.method import check_budget
from secateurs.methods.text import made, read
from secateurs.recovery import Recover
from secateurs.recovery import phases as checked_phases
from secateurs.recovery import text as recovery_text
from secateurs.seeds import checked
from secateurs.studies.comparison.peers import FAMILY, TorchPruning, peer
from secateurs.training import Phase, Recipe


@dataclass(frozen=True)
class Contestant:
    """A configured method, with its name in the table.

    search: the share of the compute that its own training gets; None: see `search_share`. own: use a peer's own cut and
        fine-tuning on the labels, not ours.
    """

    label: str
    method: Method
    search: float | None = None
    own: bool = False

    @classmethod
    def of(cls, given: str | Method) -> Contestant:
        """Make one from a configured method, or from text: its name and settings, `aofp theta=0.02`. `preset=paper` selects a
        preset, and `search=0.1` is the share of the compute for the search. Raises ConfigError if it is not valid."""
        if isinstance(given, Method):
            chosen = resolve(given)
            words = written(chosen.model_dump(mode="json", exclude_unset=True))
            return cls(" ".join([chosen.name, *words]), chosen)
        if not isinstance(given, str):
            resolve(given)  # whose errors say what to pass instead
        term = read(given, several="methods")
        settings = dict(term.settings)
        share = None if (text := settings.pop("search", None)) is None else value(text)
        if share is not None and (not isinstance(share, float) or not 0 < share < 1):
            raise ConfigError(f"{given!r}: search={text} must be a share of the compute above 0 and below 1.")
        if term.name.partition(":")[0] == FAMILY:
            method, own = peer(term.name, typed(TorchPruning, settings))
            return cls(str(term), method, share, own)
        return cls(str(term), made(replace(term, settings=settings)), share)

    def record(self) -> dict[str, Any]:
        """What its figures depend on, as JSON."""
        return {**self.method.record(), "search": self.search, "own": self.own}


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    contestant: Contestant
    budget: Budget
    seed: int

    @property
    def label(self) -> str:
        """`l2, macs=0.5, seed 0`."""
        return f"{self.kind}, seed {self.seed}"

    @property
    def kind(self) -> str:
        """`l2, macs=0.5`: what all seeds share."""
        return f"{self.contestant.label}, {budget_text(self.budget)}"

    @property
    def limits(self) -> dict[str, float]:
        """The figures of its budget: macs, params, latency, ms."""
        record = self.budget.record()
        return {name: record[name] for name in (*COUNTS, "latency", "ms") if record.get(name) is not None}

    def record(self) -> dict[str, Any]:
        """What its figures depend on, apart from what all cells share, as JSON."""
        record = {"method": self.contestant.record(), "budget": self.budget.record(), "seed": self.seed}
        return dict(json.loads(json.dumps(record, default=str)))


def contestants(methods: Any) -> list[Contestant]:
    """Return the methods of a comparison. Raises ConfigError for none, for one that is not valid, and for one that is given
    twice."""
    found = [Contestant.of(given) for given in _several(methods, "methods", (str, Method), "'l2'")]
    _distinct([one.label for one in found], "method")
    return found


def budgets(given: Any) -> list[Budget]:
    """Return the budgets of a comparison: a number stands for MACs. Raises BudgetError for those that are not valid."""
    found = []
    for one in _several(given, "budgets", (int, float, Budget), "0.5"):
        number = isinstance(one, int | float) and not isinstance(one, bool)
        budget = Budget(macs=one) if number else one
        check_budget(budget)
        if budget is None:
            raise ConfigError("None is not a budget: pass, for example, budgets=[0.5, sc.Budget(params=0.3)].")
        found.append(budget)
    _distinct([budget_text(one) for one in found], "budget")
    return found


def seeds(given: Any) -> list[int]:
    """Return the seeds of a comparison, from a number of them or the seeds. Raises ConfigError for anything else."""
    try:
        found = list(range(checked(given))) if isinstance(given, Real) else [checked(seed) for seed in given]
    except (ConfigError, TypeError):  # or not iterable
        found = []
    if not found:
        raise ConfigError(f"seeds={given!r} must be a number of seeds, 1 or more, or a list of seeds.")
    _distinct([str(seed) for seed in found], "seed")
    return found


def recoveries(given: Phase | Sequence[Phase] | str | None) -> list[Phase]:
    """Return the phases of recovery, from recipes or text, `reconstruct + finetune lr=0.05`. The remaining compute of a cell
    sets their lengths. Raises ConfigError if they are not valid."""
    if isinstance(given, str):
        return recipes(given)
    phases = [phase for _, phase in checked_phases(given)]
    for phase in phases:
        # a recipe of no given length has the default one
        if isinstance(phase, Recipe) and (phase.steps, phase.epochs) != (None, type(phase)().epochs):
            raise _long(type(phase).__name__)
    return phases


def recipes(text: str) -> list[Phase]:
    """Return the phases that a text names, without lengths; `none` names no phase."""
    found = []
    for kind, settings in recovery_text.read(text):
        if issubclass(kind, Recipe) and settings.keys() & {"epochs", "steps"}:
            raise _long(kind.mode)
        found.append(kind(**settings))
    return found


def _long(phase: str) -> ConfigError:
    return ConfigError(
        f"recover: {phase} has its length set, and in a comparison the compute that a cell has left decides it: leave its "
        "epochs and steps out."
    )


def budget_text(budget: Budget) -> str:
    """`macs=0.5`: what differs from the defaults."""
    found = stated(budget.record())
    if isinstance(target := budget.target, Target):
        found["target"] = f"{target}, batch {target.batch}" if target.batch else str(target)
    return " ".join(f"{name}={item if isinstance(item, str) else word(item)}" for name, item in found.items())


USUAL = (Recover(),)


def _several(given: Any, what: str, one: tuple[type, ...], such_as: str) -> list[Any]:
    found = [given] if isinstance(given, one) and not isinstance(given, bool) else given
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise ConfigError(f"{what}={given!r:.100} must be a list that is not empty, such as [{such_as}].")
    return list(found)


def _distinct(labels: Sequence[str], what: str) -> None:
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ConfigError(f"The {what} {twice[0]} is given twice: give each of them once.")
