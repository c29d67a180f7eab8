"""Keep what was measured of a cut in the run's folder. Measurements differ from day to day, but a resumed run must make the
same cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from secateurs.errors import ArtifactError
from secateurs.files import dump_json, read_json, shown, write_whole
from secateurs.latency.fits import FitRecord
from secateurs.latency.model import Fit
from secateurs.latency.stopwatch import Measured

FILE = "latency.json"
ADVICE = "Remove it to measure again."
Positive = Annotated[float, Field(gt=0, lt=1e6)]


class Note(BaseModel):
    """The measurements of a cut. share: the fraction of the predicted time that a method that trains was given; None for other
    methods. limit: the fraction that the cut was selected with; None if it is the own cut of a method that trains. measured:
    ratio, noise and seconds of the cut; None while the method trains. fit: the latency model's, which the fractions refer to.
    """

    format: Literal["secateurs-latency-cut"] = "secateurs-latency-cut"
    version: Literal[2] = 2
    settings: dict[str, Any]
    share: Positive | None = None
    limit: Positive | None = None
    measured: tuple[Positive, Annotated[float, Field(ge=0, lt=1e6)], Positive, Positive] | None = None
    goal: Positive
    tries: Annotated[int, Field(ge=0)]
    fit: FitRecord

    @property
    def found(self) -> Measured | None:
        return None if self.measured is None else Measured(*self.measured)


def read(file: Path, settings: Mapping[str, Any]) -> Note | None:
    """Read a note. Returns None if there is none, or if its settings differ. Raises ArtifactError for a damaged file."""
    found = _kept(file)
    return found if found is not None and found.settings == _plain(settings) else None


def fit_in(file: Path | None, budget: Mapping[str, Any]) -> Fit | None:
    """Return the fit that the run of a note uses. None if it has measured nothing under this budget, which names the target.
    Raises ArtifactError for a damaged file."""
    found = None if file is None else _kept(file)
    return found.fit.fit if found is not None and found.settings.get("budget") == _plain(budget) else None


def _kept(file: Path) -> Note | None:
    return read_json(file, Note, limit=1 << 16, advice=ADVICE) if file.exists() else None


def _plain(settings: Mapping[str, Any]) -> Any:
    """Return the settings as JSON restores them."""
    return json.loads(json.dumps(settings))


def write(file: Path, note: Note) -> None:
    """Write a note. Raises ArtifactError if it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, dump_json(note.model_dump(mode="json"), 1))
    except OSError as error:
        raise ArtifactError(f"{shown(file)} cannot be written: {error.strerror or error}.") from error
