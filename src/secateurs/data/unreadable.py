"""Files of a data set that cannot be read: counted and named once, and an error unless they are to be skipped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from secateurs.errors import DataError, Setting

log = logging.getLogger("secateurs")

ADVICE = ("Repair or remove these files, or pass ", Setting("skip_unreadable", True), " to skip them.")
_NAMED = 3  # number of unreadable files to name


@dataclass(frozen=True)
class Unreadable:
    """An unreadable file. path: in printable form."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path} ({self.why})"


def report_unreadable(found: Sequence[Unreadable], total: int, *, skip: bool) -> None:
    """Raise DataError if any of `total` files cannot be read; with `skip`, log one warning."""
    if not found:
        return
    names = ", ".join(map(str, found[:_NAMED])) + (", …" if len(found) > _NAMED else "")
    text = f"{len(found):,} of {total:,} {'file' if total == 1 else 'files'} cannot be read: {names}."
    if not skip:
        raise DataError(text, hint=ADVICE)
    log.warning("%s They are skipped.", text)


class Skipped:
    """Unreadable files found while reading: an error unless they are to be skipped, and reported once."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self._paths: set[str] = set()

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, found: Unreadable) -> None:
        """Raises DataError if files are not to be skipped."""
        if not self.skip:
            raise DataError(f"{found.path} cannot be read: {found.why}.", hint=ADVICE)
        if not self._paths:
            log.warning(
                "%s cannot be read and is skipped; further unreadable images are skipped without a warning", found
            )
        self._paths.add(found.path)
