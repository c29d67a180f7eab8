"""Files of a data set that can't be read: named and counted once, and refused unless they are to be left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from secateurs.errors import DataError

log = logging.getLogger("secateurs")

ADVICE = "Repair or remove what can't be read, or pass skip_unreadable=True to leave it out."
_NAMED = 3  # of those that can't be read


@dataclass(frozen=True)
class Unreadable:
    """One of them. path: as it can be printed."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path} ({self.why})"


def report_unreadable(found: Sequence[Unreadable], total: int, *, skip: bool) -> None:
    """Raise DataError if any of `total` files can't be read; with `skip`, one warning."""
    if not found:
        return
    names = ", ".join(map(str, found[:_NAMED])) + (", …" if len(found) > _NAMED else "")
    text = f"{len(found):,} of {total:,} {'file' if total == 1 else 'files'} can't be read: {names}."
    if not skip:
        raise DataError(f"{text} {ADVICE}")
    log.warning("%s The rest is used.", text)


def unreadable_error(found: Unreadable) -> DataError:
    """The error about one that was found in passing."""
    return DataError(f"{found.path} can't be read: {found.why}. {ADVICE}")
