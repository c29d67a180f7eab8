"""What a page shows of a run: the card of its artifact, its plan, its measured times."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from secateurs import artifact
from secateurs.artifact import TIMINGS, Card, Figures, Timings, read_timings
from secateurs.artifact.fields import plain
from secateurs.artifact.history import records
from secateurs.errors import ArtifactError
from secateurs.files import shown
from secateurs.plans import Plan
from secateurs.plans.widths import Width

Shape = TypeVar("Shape", bound=BaseModel)
UNSAVED = {"plan.json": "", "model.safetensors": ""}


@dataclass
class Run:
    """A run to show.

    name: what the page calls it. command: what repeats it. label: its method as it is told from those of other runs, see
    `secateurs.calls.label`; by default the method's name. notes: what could not be shown, in sentences; panels add to them.
    """

    name: str
    plan: Plan
    card: Card
    timings: Timings | None = None
    command: str = ""
    label: str = ""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.label = self.label or self.card.method.name

    @classmethod
    def read(cls, folder: str | Path, name: str | None = None) -> Run:
        """A saved artifact. name: by default the last two parts of its path.

        Raises ArtifactError or PlanError for a folder that is not an artifact, or is damaged.
        """
        plan, card = artifact.read(folder)
        run = cls(name or names([folder])[0], plan, card)
        try:
            run.timings = read_timings(folder)
        except ArtifactError as error:
            run.tell(f"The measured times are not shown. {error}")
        if run.timings is not None and run.timings.model != card.files.model:
            run.timings = None
            run.tell(
                f"The measured times are not shown: {TIMINGS} is of another network than the one in the folder. Measure again."
            )
        return run

    @classmethod
    def of(cls, name: str, plan: Plan, card: Mapping[str, Any], timings: Mapping[str, Any] | None = None) -> Run:
        """A result that need not be saved. card: see `Result.card`. timings: see `Bench.record`."""
        body = {"format": "secateurs", "version": artifact.card.VERSION, "files": UNSAVED, **plain(card)}
        return cls(
            name, plan, Card.model_validate(body), None if timings is None else Timings.model_validate(plain(timings))
        )

    @property
    def methods(self) -> str:
        """'l1, then pff preset=paper': the earlier cuts, and the label."""
        return "".join(f"{cut.method}, then " for cut in self.card.earlier) + self.label

    @property
    def networks(self) -> list[tuple[str, Figures]]:
        return self.card.networks()

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of the history, in JSON types."""
        return records(self.card.history)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Those of the last round: of the whole run where there was one round."""
        last = max((e["round"] for e in self.entries if isinstance(e.get("round"), int)), default=None)
        return [e for e in self.entries if e.get("round") == last]

    @property
    def widths(self) -> dict[str, Width]:
        """layer → channels before and after."""
        return dict(self.card.widths)

    def tell(self, sentence: str) -> None:
        """Add to the notes, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def events(self, kind: str, schema: type[Shape]) -> list[Shape]:
        """The entries of a kind that this schema reads. Others of the kind are named in the notes."""
        return self.readable([entry for entry in self.history if entry.get("event") == kind], schema, f"{kind!r}")

    def readable(self, entries: Sequence[Mapping[str, Any]], schema: type[Shape], what: str) -> list[Shape]:
        found, bad = [], 0
        for entry in entries:
            try:
                found.append(schema.model_validate(entry))
            except ValidationError:
                bad += 1
        if bad:
            self.tell(f"{bad} of the history's {what} entries have another form than expected, and are not shown.")
        return found


def names(folders: Sequence[str | Path]) -> list[str]:
    """The last two parts of each path, or more where it takes more to tell them apart."""
    every = [[part for part in Path(os.path.abspath(folder)).parts if part != os.sep] for folder in folders]
    longest = max(map(len, every), default=0)
    for n in range(2, longest + 1):
        found = ["/".join(parts[-n:]) for parts in every]
        if len(set(found)) == len(found):
            break
    return [shown(name) for name in found]
