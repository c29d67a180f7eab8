"""A comparison's folder: `comparison.json`, and in `cells` a file for each cell that is done.

A cell's file is written whole or not at all, by one process. A cell that is being measured keeps its checkpoints beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, StrictInt, StrictStr, model_validator

from secateurs.artifact import Figures
from secateurs.changes import differences
from secateurs.errors import ConfigError, Message
from secateurs.files import check_format, check_writable, dump_json, read_json, shown
from secateurs.runs.folder import FOLDER, OVERWRITE, RESUME, write
from secateurs.runs.names import COMPARISON
from secateurs.studies.comparison.contestants import Cell, budget_text
from secateurs.studies.comparison.outcomes import NOT_RUN, Outcome
from secateurs.studies.comparison.result import Comparison

FORMAT, VERSION = "secateurs-comparison", 2  # 2: how compute is counted
LEFT_OVER = re.compile(r"\..*\.json\.tmp")


class CellRecord(BaseModel):
    """`cells/NAME.json`."""

    settings: dict[str, Any]
    outcome: Outcome
    versions: dict[str, str] = Field(default_factory=dict)

    def whole(self) -> Outcome:
        """Return the outcome, with the versions that are stored next to it."""
        return self.outcome.model_copy(update={"versions": self.versions})


class Names(BaseModel):
    """A cell, as the table names it."""

    method: StrictStr
    budget: StrictStr
    seed: StrictInt
    file: StrictStr


class Index(BaseModel):
    """`comparison.json`: what all cells share, and which cells there are. examples: how many the data has, by split."""

    format: str
    version: int
    settings: dict[str, Any]
    original: Figures | None = None
    examples: dict[str, int] = Field(default_factory=dict)
    cells: list[Names] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _ours(cls, body: Any) -> Any:
        check_format(body, FORMAT, VERSION, "the record of a comparison")
        return body


class ComparisonFolder:
    """The files of a comparison."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """settings: what all cells share."""
        self.folder, self.cells = folder, folder / "cells"
        self.file = folder / COMPARISON
        self.settings = json.loads(json.dumps(settings))
        self._replaces = False

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Raise ConfigError for a folder that holds another comparison, or files that are not a comparison's. Nothing in it is
        changed."""
        if resume and overwrite:
            raise ConfigError(
                RESUME,
                " and ",
                OVERWRITE,
                " are mutually exclusive: one continues a comparison, the other starts over.",
            )
        where = shown(self.folder)
        if not os.path.lexists(self.file):
            if os.path.lexists(self.cells) and not (self.cells.is_dir() and not any(self.cells.iterdir())):
                raise ConfigError(
                    f"{where} holds cells, which this comparison did not write: move them, or give another ",
                    FOLDER,
                    ".",
                )
        else:
            then = self.read().settings
            if not resume and not overwrite:
                raise ConfigError(
                    f"{where} holds a comparison: ", RESUME, " continues it, ", OVERWRITE, " replaces it."
                )
            if resume and (changed := list(differences(then, self.settings))):
                raise ConfigError(
                    f"{where} is another comparison: it differs in {', '.join(changed)}. To resume it, use the same "
                    "settings as before. Otherwise, choose another ", FOLDER, ", or replace it with ", OVERWRITE, ".",
                )  # fmt: skip
        self._replaces = overwrite
        check_writable(self.folder)

    def read(self) -> Index:
        advice = Message("If a comparison wrote it, it is damaged: move it, or give another ", FOLDER, ".")
        return read_json(self.file, Index, 1 << 26, advice)

    def begin(self, cells: Sequence[Cell], original: Figures | None, examples: Mapping[str, int]) -> Mapping[str, int]:
        """Record which cells there are: these, and those of an earlier call, which are removed if it is to be replaced.
        examples: see `Index`; if they are not known now, those of an earlier call are kept. Returns them."""
        check_writable(self.cells)
        for path in self.cells.iterdir() if self.cells.exists() else ():
            if path.suffix == ".work" and self._replaces:
                shutil.rmtree(path)
            elif LEFT_OVER.fullmatch(path.name) or (path.suffix == ".json" and self._replaces):
                path.unlink()
        names = [_named(cell) for cell in cells]
        before = self.read() if os.path.lexists(self.file) else None
        earlier = [] if before is None else before.cells
        examples = examples or ({} if before is None else before.examples)
        now = {one.file for one in names}
        names += [one for one in earlier if one.file not in now and (self.cells / one.file).exists()]
        body = Index(
            format=FORMAT, version=VERSION, settings=self.settings, original=original, examples=dict(examples), cells=names
        )  # fmt: skip
        write(self.file, dump_json(body.model_dump(mode="json"), indent=1))
        return examples

    def done(self, cell: Cell) -> Outcome | None:
        """Return the outcome of a finished cell; one that failed is run again. Raises ArtifactError for a file that is
        damaged."""
        file = self.cells / file_name(cell)
        if self._replaces or not os.path.lexists(file):
            return None
        record = self._record(file.name)
        return record.whole() if record.outcome.failed is None else None

    def earlier(self, cells: Sequence[Cell]) -> list[Outcome]:
        """Return the outcomes of the cells of earlier calls, other than these."""
        now = {file_name(cell) for cell in cells}
        return [self._record(Path(one.file).name).whole() for one in self.read().cells if one.file not in now]

    def _record(self, name: str) -> CellRecord:
        return read_json(self.cells / name, CellRecord, 1 << 24, "Remove it, and the cell is measured again.")

    def keep(self, cell: Cell, outcome: Outcome) -> None:
        record = CellRecord(settings=cell.record(), outcome=outcome, versions=outcome.versions)
        body = record.model_dump(mode="json", exclude={"outcome": {"versions"}})
        write(self.cells / file_name(cell), dump_json(body, indent=1))
        shutil.rmtree(self.work(cell), ignore_errors=True)

    def work(self, cell: Cell) -> Path:
        """Where a cell that is being measured keeps its checkpoints."""
        return (self.cells / file_name(cell)).with_suffix(".work")

    def interrupted(self, done: int, total: int) -> KeyboardInterrupt:
        text = f"{done} of {total} cells are kept in {shown(self.folder)}: the same comparison with "
        return KeyboardInterrupt(Message(text, RESUME, " continues from there."))


def read_comparison(folder: str | Path) -> Comparison:
    """Read the comparison in a folder, as far as it is done. Raises ArtifactError if it is damaged, or if there is none."""
    index = read_json(Path(folder) / COMPARISON, Index, 1 << 26, "If a comparison wrote it, it is damaged.")
    found = []
    for names in index.cells:
        file = Path(folder) / "cells" / Path(names.file).name
        if os.path.lexists(file):
            found.append(read_json(file, CellRecord, 1 << 24, "").whole())
        else:
            found.append(Outcome(method=names.method, budget=names.budget, seed=names.seed, failed=NOT_RUN))
    return Comparison(tuple(found), index.original, index.settings, index.examples)


def file_name(cell: Cell) -> str:
    """Return the file name of a cell: readable, and different for different settings."""
    digest = hashlib.sha256(json.dumps(cell.record(), sort_keys=True).encode()).hexdigest()[:10]
    return f"{re.sub(r'[^A-Za-z0-9.=-]+', '-', cell.label)[:80]}-{digest}.json"


def _named(cell: Cell) -> Names:
    return Names(
        method=cell.contestant.label, budget=budget_text(cell.budget), seed=cell.seed, file=file_name(cell)
    )  # fmt: skip
