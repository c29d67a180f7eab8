"""The file of a sensitivity study, from which a killed study resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateurs.changes import differences
from secateurs.errors import ArtifactError, ConfigError, Message, Setting
from secateurs.files import check_writable, read_json, shown, staged
from secateurs.report.curves import can_plot
from secateurs.runs.names import SENSITIVITY
from secateurs.studies.sensitivity.result import BYTES, Group, Sensitivity
from secateurs.training.processes import first

PICTURE = "sensitivity.png"


@dataclass(frozen=True)
class Record:
    """`sensitivity.json` in a folder, and its picture. settings: what the result depends on."""

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / SENSITIVITY

    @property
    def plain(self) -> dict[str, Any]:
        """The settings as they are in JSON."""
        found: dict[str, Any] = json.loads(json.dumps(self.settings))
        return found

    def open(self, resume: bool, overwrite: bool) -> Sensitivity | None:
        """Return the record of an earlier call, if it is resumed. Raises what `check` raises, and ConfigError for another
        study's file."""
        found = self.check(resume, overwrite)
        if found is None:
            return None
        if changed := list(differences(found.settings, self.plain)):
            raise ConfigError(
                f"{shown(self.file)} belongs to another study: it differs in {', '.join(changed)}. To resume it, use "
                "the same settings as before. Otherwise, choose another ", Setting("folder"), ", or replace it with ",
                Setting("overwrite", True), ".",
            )  # fmt: skip
        for name in (SENSITIVITY, PICTURE):
            staged(self.folder / name).unlink(missing_ok=True)
        return found

    def check(self, resume: bool, overwrite: bool) -> Sensitivity | None:
        """Return the record of an earlier call, if it is resumed, whatever its settings. Raises ConfigError if a file would be
        overwritten, ArtifactError for a file that is damaged or not ours."""
        if resume and overwrite:
            raise ConfigError(
                Setting("resume", True), " and ", Setting("overwrite", True), " are mutually exclusive: one continues a "
                "study, the other starts over.",
            )  # fmt: skip
        found = self._read()
        if found is None and os.path.lexists(self.folder / PICTURE):
            raise ConfigError(
                f"{shown(self.folder / PICTURE)} already exists and was not written by a sensitivity study, which would "
                "replace it: move it, or choose another folder."
            )
        check_writable(self.folder)
        if found is None or overwrite:
            return None
        if not resume:
            raise ConfigError(
                f"{shown(self.file)} already exists: ", Setting("resume", True), " continues it, ",
                Setting("overwrite", True), " replaces it.",
            )  # fmt: skip
        return found

    def _read(self) -> Sensitivity | None:
        if not os.path.lexists(self.file):
            return None
        advice = "If a sensitivity study wrote it, it is damaged: move it, or choose another folder."
        return read_json(self.file, Sensitivity, BYTES, advice)

    def interrupted(self) -> KeyboardInterrupt:
        """The exception for an interrupted study that can be resumed."""
        text = f"{shown(self.file)} keeps what is done so far: the same study with "
        return KeyboardInterrupt(Message(text, Setting("resume", True), " continues from there."))

    def write(self, found: Sensitivity) -> None:
        """Write the file after each group, and the picture at the end. Of several processes, only one writes."""
        if not first():
            return
        found.save(self.file)
        if found.finished and can_plot():
            found.plot(self.folder / PICTURE)
        else:
            (self.folder / PICTURE).unlink(missing_ok=True)  # it would show an earlier study


def taken_over(found: Sensitivity | None, names: Sequence[str]) -> dict[str, Group]:
    """Return the groups that an earlier call measured. Raises ArtifactError for groups that the network does not have."""
    groups = {} if found is None else {group.name: group for group in found.groups}
    if other := next((name for name in groups if name not in names), None):
        raise ArtifactError(f"{SENSITIVITY} is not valid: the network has no group {shown(other)} to cut.")
    return groups
