"""The exceptions that Secateurs raises. A message says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

E = TypeVar("E", bound="SecateursError")


@dataclass(frozen=True)
class Setting:
    """A setting that a message names. Whoever shows the message chooses how it is spelled: `scope='all'` in Python,
    `--scope all` on the command line.

    value: left out where the message names the setting only. of: the class that it is a field of, if it is one.
    """

    name: str
    value: Any = ...
    of: type | None = None


Spelling = Callable[[Setting], str]


def python(setting: Setting) -> str:
    """How Python spells a setting."""
    text = f"{setting.name}={'…' if setting.value is ... else repr(setting.value)}"
    return text if setting.of is None else f"{setting.of.__name__}({text})"


class Message(str):
    """Text that names settings, as Python spells them; `text` spells them in another way.

    parts: text, `Setting`s, other messages and errors, which are joined.
    """

    parts: tuple[object, ...]

    def __new__(cls, *parts: object) -> Message:
        made = super().__new__(cls, printable(_joined(parts, python)))
        made.parts = parts
        return made

    def text(self, spelling: Spelling = python) -> str:
        return printable(_joined(self.parts, spelling))


class SecateursError(Exception):
    """Base class of all exceptions raised by Secateurs. Messages are always printable.

    message: the parts of a `Message`. hint: what to do about it, one or more such parts; it follows the message as a
        sentence of its own.
    """

    def __init__(self, *message: object, hint: object = ()) -> None:
        super().__init__(*message)
        self.hint: tuple[object, ...] = hint if isinstance(hint, tuple) else (hint,)

    def text(self, spelling: Spelling = python) -> str:
        """Message and hint, with the settings in them spelled so."""
        texts = (_joined(parts, spelling) for parts in (self.args, self.hint))
        return printable(" ".join(text for text in texts if text))

    def __str__(self) -> str:
        return self.text()

    def within(self: E, *where: object) -> E:
        """The same error with these parts in front of its message."""
        return self._changed((*where, *self.args), self.hint)

    def advised(self: E, *hint: object) -> E:
        """The same error with another hint; without any if none is given."""
        return self._changed(self.args, hint)

    def renamed(self: E, rename: Callable[[Setting], Setting | str]) -> E:
        """The same error with its settings put in terms of the caller's, or as text."""
        message, hint = (
            tuple(rename(part) if isinstance(part, Setting) else part for part in parts)
            for parts in (self.args, self.hint)
        )
        return self._changed(message, hint)

    def _changed(self: E, message: tuple[object, ...], hint: tuple[object, ...]) -> E:
        changed = type(self).__new__(type(self), *message)
        changed.__dict__.update(self.__dict__, hint=hint)
        return changed


def as_setting(name: str) -> Callable[[Setting], Setting]:
    """For `SecateursError.renamed`: every setting is the caller's of this name."""
    return lambda setting: replace(setting, name=name, of=None)


def _joined(parts: Iterable[object], spelling: Spelling) -> str:
    return "".join(
        spelling(part) if isinstance(part, Setting)
        else part.text(spelling) if isinstance(part, Message | SecateursError)
        else str(part)
        for part in parts
    )  # fmt: skip


class TraceError(SecateursError):
    """The model cannot be run or traced."""


class PlanError(SecateursError):
    """A selection or a plan is not valid, or is for a different network."""


class VerificationError(SecateursError):
    """The sliced network's outputs differ from the masked network's."""


class BudgetError(SecateursError):
    """A budget is not valid or cannot be met.

    lowest: the lowest fractions of MACs and parameters that could be met, by name, where that is what is wrong.
    """

    def __init__(self, *message: object, hint: object = (), lowest: Mapping[str, float] | None = None) -> None:
        super().__init__(*message, hint=hint)
        self.lowest: dict[str, float] = dict(lowest or {})


class ConfigError(SecateursError):
    """A setting (of a method, recipe or option) has an invalid value."""


class SpecError(SecateursError):
    """A model or data spec is not valid, or what it names is not found."""


class DataError(SecateursError):
    """The data cannot be read, or does not fit the model."""


class TrainingError(SecateursError):
    """Training cannot continue, for example because the loss is not finite."""


class NonFiniteLossError(TrainingError):
    """The loss is NaN or infinite.

    value: what it was. epoch: counted from 1. batch: counted from 0, in that epoch. checkpoint: the last good one, None if
        there is none.
    """

    def __init__(
        self,
        *message: object,
        hint: object = (),
        value: float = float("nan"),
        epoch: int = 0,
        batch: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(*message, hint=hint)
        self.value, self.epoch, self.batch, self.checkpoint = value, epoch, batch, checkpoint


class ArtifactError(SecateursError):
    """A saved artifact is incomplete, damaged, or from a newer version."""


class ExportError(SecateursError):
    """A network cannot be exported to a format, or the file does not agree with it."""


def printable(text: str) -> str:
    """Text that may contain a file name: bytes that are not UTF-8 are escaped, since printing them would fail."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that does not represent a byte
        return text.encode("utf-8", "backslashreplace").decode()


def complaint(fault: Mapping[str, Any]) -> str:
    """What pydantic says about a value (one of `ValidationError.errors()`), as it follows the name of the field."""
    cause = fault.get("ctx", {}).get("error")
    if fault["type"] == "extra_forbidden":
        return "there is no such setting"
    ours = fault["type"] == "value_error" and cause is not None  # a validator of ours
    message = str(cause) if ours else fault["msg"].replace("Input should be", "must be", 1)
    return f"{message[:1].lower()}{message[1:]}"


def a_or_an(name: str) -> str:
    """A name, for example of a type, with its article: `an OrderedDict`, `an LSTM`, `a UNet`."""
    spelled = re.match(r"[FHLMNRSX](?=[A-Z0-9])", name)  # letter by letter, and its name begins with a vowel
    vowel = re.match(r"[AEIOaeio]|[Uu]n(?!i|et)|[Uu]p|nd", name)
    return f"{'an' if spelled or vowel else 'a'} {name}"


def with_point(text: str) -> str | None:
    """`0,5` as `0.5`, also after a name (`layer1=0,5`); None for text that is not a number with a decimal comma."""
    return text.replace(",", ".") if re.fullmatch(r"(.*=)?0,\d+", text) else None


def fraction(percent: str) -> str | None:
    """What to write for a percentage: `50%` as `0.5`; None for what is no percentage."""
    try:
        return f"{float(percent[:-1]) / 100:g}" if percent.endswith("%") else None
    except ValueError:
        return None


def one_of(names: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join([", ".join(names[:-1]), *names[-1:]] if len(names) > 1 else names)


def nearest(name: str, known: Iterable[str]) -> str:
    """The last sentence of an error message about an unknown name: similar names, or all names if there are few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {one_of(close)}?"
    if not names:
        return "There is none."
    if len(names) <= 20:
        return f"Known: {', '.join(names)}."
    return f"{len(names)} names are known."


def shown(path: str | os.PathLike[str]) -> str:
    """A path, or a name read from a file, in printable form: bytes that are not UTF-8 and characters that
    are not printable (line breaks, a terminal's control sequences) are escaped."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that cannot be in a file name
        text = os.fspath(path).encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
