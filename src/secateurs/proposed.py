"""Limits that a sensitivity study proposes, and how messages name the study."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from secateurs.errors import ConfigError, Setting


@dataclass(frozen=True)
class Study:
    """The value of a setting that a study proposes: messages name the study in place of what it says of each group.

    name: the network, or the file that the command line was given. scope: which groups were measured, None if that is not
        known. drop: how much worse a group cut alone may make the network; None in a message about another drop.
    """

    name: str
    scope: str | None = None
    drop: float | None = None

    def __repr__(self) -> str:
        return f"<study of {self.name}, drop={'…' if self.drop is None else format(self.drop, 'g')}>"


class Exactly(str):
    """The name of a channel group in place of a pattern: it matches this group only, and not another one that the same layer
    makes. study: that measured the group, if one did. value: what the study proposes for it."""

    __slots__ = ("study", "value")
    study: Study | None
    value: float | None

    def __new__(cls, name: str, study: Study | None = None, value: float | None = None) -> Exactly:
        made = super().__new__(cls, name)
        made.study, made.value = study, value
        return made


@runtime_checkable
class Proposes(Protocol):
    """What can be given as `ratios` and as `max_cut`, such as the result of `sc.sensitivity`."""

    def ratios(self) -> Mapping[str, float]: ...


def study_of(which: object) -> Study | None:
    """The study that a limit is from, if it is from one."""
    return which.study if isinstance(which, Exactly) else None


def whose(which: Any, value: float) -> Any:
    """The name of a limit of this value: without the study where the user has set another value, under a name that a dict
    has kept."""
    return Exactly(which) if study_of(which) is not None and which.value != value else which


def largest_cuts(ratios: Mapping[str, float]) -> dict[str, float]:
    """What `max_cut` is where ratios say how far each group may be cut: what goes, in as few digits as what stays."""
    return _restated({name: round(1 - keep, 6) for name, keep in ratios.items()}, lambda study: study)


def from_file(proposed: Mapping[str, float], file: str) -> dict[str, float]:
    """The same, of a study that messages name by its file."""
    return _restated(proposed, lambda study: replace(study, name=file))


def _restated(proposed: Mapping[str, float], of: Callable[[Study], Study]) -> dict[str, float]:
    return {
        name if (study := study_of(name)) is None else Exactly(name, of(study), x): x for name, x in proposed.items()
    }


def check_no_file(name: str, given: Any) -> None:
    """Raise ConfigError for a path, which the command line takes, as the value of a limit."""
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        raise ConfigError(
            Setting(name, path), f" is not valid: pass what is in the file. Of a study, that is {name}="
            f"sc.Sensitivity.load({path!r}).",
        )  # fmt: skip


def looser(settings: Iterable[Setting]) -> Iterator[tuple[object, ...]]:
    """What allows more than the settings among these that a study proposes: sentences, as the parts of a message."""
    for setting in settings:
        if isinstance(study := setting.value, Study):
            other = Setting("max_cut", replace(study, drop=None))
            more = f"a drop above {study.drop:g} allows more, up to the largest share that was measured"
            if setting.name == "ratios":
                yield "Ratios fix how much is kept: with ", other, f" the budget decides, and {more}."
            else:
                yield other, f": {more}."
