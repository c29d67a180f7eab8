"""A run's folder: what it was started with, how far it came, and what may be written where."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateurs.errors import ArtifactError, ConfigError

PHASES = ("pretrain", "prune", "recover")  # each of them has a folder with its log and, until the end, checkpoints


class RunFolder:
    """`run.json` (settings, finished or not), the phases' logs and checkpoints, and in the end the artifact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "run.json"
        self.pretrained = folder / "pretrained.safetensors"

    def check(self, settings: Mapping[str, Any], *, resume: bool, force: bool) -> bool:
        """Whether this very run is finished already. ConfigError where its folder holds anything else to lose."""
        if resume and force:
            raise ConfigError("--resume goes on and --force starts anew: give one of them.")
        state = self._read()
        if not resume and not force and (what := self.to_lose()):
            raise ConfigError(f"{self.folder} holds {what}: --resume goes on with it, --force replaces it.")
        if not resume:
            return False
        if state is None and self.to_lose():
            raise ConfigError(f"{self.folder} was not written by this command (it has no run.json): nothing to resume.")
        if state is not None:
            now, then = json.loads(json.dumps(settings)), state["settings"]
            changed = [
                f"{k} ({then.get(k)!r} then, {now.get(k)!r} now)"
                for k in dict.fromkeys([*then, *now])
                if then.get(k) != now.get(k)
            ]
            if changed:
                raise ConfigError(f"{self.folder} is another run: it differs in {', '.join(changed)}.")
        return bool(state and state["finished"])

    def writable(self) -> None:
        """Raise now if the folder takes no files."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ArtifactError(f"{self.folder} is a file: give a folder to write to.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ArtifactError(f"{self.folder} cannot be written to: {error.strerror or error}.") from error

    def begin(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Put the settings on record; what an earlier run left goes, but its artifact until the new one is there."""
        if not resume and self.file.exists():  # else the folders are somebody else's
            for name in PHASES:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            self.pretrained.unlink(missing_ok=True)
        self._write(settings, finished=False)

    def finish(self, settings: Mapping[str, Any]) -> None:
        self._write(settings, finished=True)
        for name in PHASES:
            shutil.rmtree(self.folder / name / "checkpoints", ignore_errors=True)

    def to_lose(self) -> str | None:
        """What of value is in the folder."""
        from secateurs.artifact import CARD, NEW

        if (self.folder / CARD).exists() or (self.folder / NEW / CARD).exists():
            return "an artifact"
        if self.pretrained.exists() or any(any(self.folder.glob(f"{p}/checkpoints/step-*")) for p in PHASES):
            return "an unfinished run"
        foreign = [n for n in ("model.safetensors", "plan.json", *PHASES) if (self.folder / n).exists()]
        if foreign and not self.file.exists():
            return f"{foreign[0]}, which is no work of this command"
        return None

    def _read(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self.file.read_text())
            return {"settings": dict(state["settings"]), "finished": bool(state["finished"])}
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{self.file} is damaged ({error}): --force starts the run anew.") from None

    def _write(self, settings: Mapping[str, Any], *, finished: bool) -> None:
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"finished": finished, "settings": settings}, indent=2))
        os.replace(temporary, self.file)


def digest(path: Path) -> str:
    """Tells one file of weights from another."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
