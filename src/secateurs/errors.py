"""Every failure that Secateurs foresees. A message says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class SecateursError(Exception):
    """Base of all errors raised on purpose. Their messages can always be printed."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class TraceError(SecateursError):
    """The model could not be run or read."""


class PlanError(SecateursError):
    """A selection or a plan is not valid, or belongs to another network."""


class VerificationError(SecateursError):
    """The sliced network differs from the masked one."""


class BudgetError(SecateursError):
    """A budget that is malformed or that cannot be met."""


class ConfigError(SecateursError):
    """A setting (method, recipe, option) has a value that makes no sense."""


class SpecError(SecateursError):
    """A model or data spec that names nothing we can find."""


class DataError(SecateursError):
    """Data that cannot be read, or does not fit the model."""


class TrainingError(SecateursError):
    """Training cannot go on (a loss that is not finite, say)."""


class ArtifactError(SecateursError):
    """A saved folder is missing something, is damaged, or comes from a newer version."""


def printable(text: str) -> str:
    """Text that may hold the name of a file: bytes of it that are not UTF-8 are escaped, which printing would fail at."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the names that look like it, or all of them if few."""
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
    """A path, or a name out of a file, as it can be printed and stored: bytes that are not UTF-8 and characters that
    are not printable (line breaks, a terminal's control sequences) are escaped."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that no file name holds
        text = os.fspath(path).encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
