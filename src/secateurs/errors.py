"""The exceptions that Secateurs raises. A message says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class SecateursError(Exception):
    """Base class of all exceptions raised by Secateurs. Messages are always printable."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class TraceError(SecateursError):
    """The model cannot be run or traced."""


class PlanError(SecateursError):
    """A selection or a plan is not valid, or is for a different network."""


class VerificationError(SecateursError):
    """The sliced network's outputs differ from the masked network's."""


class BudgetError(SecateursError):
    """A budget is not valid or cannot be met."""


class ConfigError(SecateursError):
    """A setting (of a method, recipe or option) has an invalid value."""


class SpecError(SecateursError):
    """A model or data spec is not valid, or what it names is not found."""


class DataError(SecateursError):
    """The data cannot be read, or does not fit the model."""


class TrainingError(SecateursError):
    """Training cannot continue, for example because the loss is not finite."""


class ArtifactError(SecateursError):
    """A saved artifact is incomplete, damaged, or from a newer version."""


def printable(text: str) -> str:
    """Text that may contain a file name: bytes that are not UTF-8 are escaped, since printing them would fail."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that does not represent a byte
        return text.encode("utf-8", "backslashreplace").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """The last sentence of an error message about an unknown name: similar names, or all names if there are few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
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
