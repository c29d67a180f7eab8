"""A run's folder: its settings, its progress, and the files that it may write."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, StrictBool

from secateurs import artifact
from secateurs.changes import differences
from secateurs.errors import ArtifactError, ConfigError, Message, Setting
from secateurs.files import dump_json, read_json, shown, staged, write_whole
from secateurs.latency import notes
from secateurs.runs.names import RUN
from secateurs.training import CheckpointStore
from secateurs.training.resume import LOG

PHASES = ("pretrain", "prune", "recover")  # each of them has a folder with its log and, until the end, checkpoints
_several = re.compile(r"recover-\d+-(finetune|mimic|distil)")
_round = re.compile(r"round-\d+")
PICTURE = "predictions.png"
RESUME, OVERWRITE, FOLDER = Setting("resume", True), Setting("overwrite", True), Setting("folder")
TRACKED = "secateurs"  # where trackers that write files put them, within a phase's folder


class State(BaseModel):
    """`run.json`: whether a run is finished, and its settings."""

    finished: StrictBool
    settings: dict[str, Any]  # empty: the run of this folder has not begun, and replaces an earlier one


class RunFolder:
    """`run.json` (settings, finished or not), the phases' logs and checkpoints, and in the end the artifact. All rounds of
    iterative pruning but the last have phases and an artifact of their own, in `round-1` and so on.

    Only what a run wrote is ever replaced or removed. Files of these names without a `run.json` or a card of ours are
    not ours: the folder is then refused, even with `overwrite`.
    """

    def __init__(
        self,
        folder: Path,
        phases: Sequence[str] = PHASES,
        files: Sequence[str] = ("pretrained.safetensors", PICTURE, notes.FILE),
        artifacts: Sequence[str] = ("",),
    ) -> None:
        """files: other files that it writes; the first holds weights, which are only trained if none are given. artifacts: the
        folders of its artifacts, within its own."""
        self.folder, self._phases = folder, tuple(phases)
        self.file = folder / RUN
        self.files = tuple(folder / name for name in files)
        self.pretrained = self.files[0]
        self._artifacts = tuple(folder / name for name in artifacts)

    @property
    def rounds(self) -> tuple[str, ...]:
        """The folders of finished or begun rounds that exist. What else is saved in folders of these names is not ours."""
        if "recover" not in self._phases or not self.folder.is_dir():
            return ()
        found = [p for p in self.folder.glob("round-*") if _round.fullmatch(p.name) and p.is_dir()]
        ours = [p.name for p in found if artifact.is_round(p) or not artifact.exists(p)]
        return tuple(sorted(ours, key=lambda name: int(name.rpartition("-")[2])))

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """The folders of its artifacts, those of rounds included."""
        return (*self._artifacts, *(self.folder / name for name in self.rounds))

    @property
    def phases(self) -> tuple[str, ...]:
        """Their names, with those of rounds (round-1/recover …) and of recovery in several steps (recover-1-mimic …) that
        exist."""
        if "recover" not in self._phases or not self.folder.is_dir():
            return self._phases
        found = list(self._phases)
        for within in ("", *(f"{name}/" for name in self.rounds)):
            found += [f"{within}{name}" for name in self._phases if within]
            several = (p.name for p in self.folder.glob(f"{within}recover-*"))
            found += sorted(f"{within}{name}" for name in several if _several.fullmatch(name))
        return tuple(found)

    def check(
        self,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        log: Callable[[str], None] = lambda line: None,
    ) -> bool:
        """Whether this run is already finished. ConfigError if its folder holds anything else that would be lost."""
        if resume and overwrite:
            raise ConfigError(
                RESUME, " and ", OVERWRITE, " are mutually exclusive: one continues a run, the other starts over."
            )
        state, now = self._read(), json.loads(json.dumps(settings))
        if state is not None and (other := state.settings.get("command", "prune")) != now.get("command", "prune"):
            raise ConfigError(f"{shown(self.folder)} holds a run of `secateurs {other}`: give another ", FOLDER, ".")
        if name := self._foreign(state):
            raise ConfigError(
                f"{shown(self.folder)} holds {name}, which this run did not write but would replace: move it, or give "
                "another ", FOLDER, ".",
            )  # fmt: skip
        if not resume:
            if not overwrite and (what := self.to_lose()):
                resumes = (RESUME, " continues it, ") if state is not None else ()
                raise ConfigError(f"{shown(self.folder)} holds {what}: ", *resumes, OVERWRITE, " replaces it.")
            return False
        if state is None:
            if self.to_lose():
                raise ConfigError(f"{shown(self.folder)} has no run.json: there is no run to resume, only an artifact.")
            return False
        then = state.settings
        if not then:
            return False
        if changed := list(differences(then, now)):
            if state.finished or self._recovering() or {**then, "recover": 0} != {**now, "recover": 0}:
                raise ConfigError(
                    f"{shown(self.folder)} is another run: it differs in {', '.join(changed)}. To resume it, use the same "
                    "settings as before. Otherwise, choose another ", FOLDER, ", or replace it with ", OVERWRITE, ".",
                )  # fmt: skip
            log(f"recovery has not begun, and its settings have changed: {', '.join(changed)}")
        return state.finished

    @property
    def finished(self) -> bool:
        """Whether it holds a finished run."""
        state = self._read()
        return state is not None and state.finished

    @property
    def begun(self) -> bool:
        """Whether it holds a run, finished or not."""
        state = self._read()
        return state is not None and bool(state.settings)

    def spare(self, weights: Path | None, what: str | None = None) -> None:
        """Raise ConfigError for weights that the run would replace or remove: one of its own files has this path.

        what: where the weights were named; by default in the setting `weights`.
        """
        if weights is None:
            return
        inside = weights.resolve()
        parts = (artifact.CARD, artifact.MODEL, artifact.NEW, artifact.PLAN)
        ours = [self.folder / name for name in (self.file.name, *(f.name for f in self.files), *self._folders())]
        ours += [folder / name for folder in self.artifacts for name in parts]
        if any(inside.is_relative_to(path.parent.resolve() / path.name) for path in ours):
            named = Setting("weights", shown(weights)) if what is None else what
            raise ConfigError(named, " is where this run would write its own files: give another ", FOLDER, ".")

    def begin(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Record the settings, and remove what an earlier run left, except its artifact, which is replaced at the end."""
        self._sweep()
        if not resume and self.file.exists():  # else there was no run
            for name in self.phases:
                phase = self.folder / name
                (phase / LOG).unlink(missing_ok=True)
                self._checkpoints(name).clear()
                shutil.rmtree(phase / TRACKED, ignore_errors=True)
                with contextlib.suppress(OSError):  # what else lies there is not ours
                    phase.rmdir()
            for file in self.files:
                file.unlink(missing_ok=True)
            for name in self.rounds:
                artifact.remove(self.folder / name)
                with contextlib.suppress(OSError):
                    (self.folder / name).rmdir()
        elif "recover" in settings and not self._recovering():  # it may have other steps, and so folders, now
            for name in self._recovery():
                log = self.folder / name / LOG
                with contextlib.suppress(OSError):
                    if not log.stat().st_size:
                        log.unlink()
                    log.parent.rmdir()
        self._write(settings, finished=False)

    def reset(self) -> None:
        """Record that the run has not begun, if an earlier one left anything, so that it can be resumed."""
        if self.file.exists() or self.to_lose():
            self.begin({}, resume=False)

    def finish(self, settings: Mapping[str, Any]) -> None:
        self._write(settings, finished=True)
        self.tidy()

    def tidy(self) -> None:
        """Remove files that a finished run no longer needs, and leftovers of an interrupted cleanup."""
        for name in self.phases:
            self._checkpoints(name).clear()
        if (note := self.folder / notes.FILE) in self.files:
            note.unlink(missing_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove files that a killed process was writing. Only of names that this run writes itself."""
        logs = [self.folder / name / LOG for name in self.phases]
        for file in (self.file, *self.files, *logs) if self.file.exists() else ():
            with contextlib.suppress(OSError):
                staged(file).unlink()

    def resumable(self) -> bool:
        """Whether there is anything to resume from."""
        kept = any(file.exists() for file in self.files if file.name != PICTURE) or self._finished_rounds()
        return kept or any(self._checkpoints(name).steps() for name in self.phases)

    def can_resume(self, settings: Mapping[str, Any]) -> bool:
        """Whether the run with these settings can be resumed."""
        state = self._read()
        if state is None or state.finished or not self.resumable():
            return False
        return not any(differences(state.settings, json.loads(json.dumps(settings))))

    def interrupted(self) -> KeyboardInterrupt:
        """The exception for an interrupted run that can be resumed."""
        text = f"{shown(self.folder)} keeps what is done so far: the same run with "
        return KeyboardInterrupt(Message(text, RESUME, " continues from there."))

    def began(self, phase: str) -> bool:
        """Whether a phase has a log, in the round that is at work."""
        place = next((name for name in self.rounds if not artifact.is_round(self.folder / name)), "")
        return (self.folder / place / phase / LOG).exists()

    def to_lose(self) -> str | None:
        """What would be lost by starting over; None if nothing."""
        saved = any(artifact.exists(folder) for folder in self.artifacts)
        return "an artifact" if saved else "an unfinished run" if self.resumable() else None

    def _checkpoints(self, phase: str) -> CheckpointStore:
        return CheckpointStore(self.folder / phase / "checkpoints")

    def _recovery(self) -> list[str]:
        return [name for name in self.phases if name.rpartition("/")[2].startswith("recover")]

    def _recovering(self) -> bool:
        """Whether recovery has saved a checkpoint, or a round."""
        return self._finished_rounds() or any(self._checkpoints(name).steps() for name in self._recovery())

    def _finished_rounds(self) -> bool:
        return any(artifact.is_round(self.folder / name) for name in self.rounds)

    def _folders(self) -> list[str]:
        return [*self.phases, *(a.name for a in self._artifacts if a != self.folder)]

    def _foreign(self, state: State | None) -> str | None:
        """The first of the names that a run writes which is taken by a file or folder that is not ours."""
        for folder in self.artifacts:
            if names := artifact.foreign(folder):
                return str((folder / names[0]).relative_to(self.folder))
        others = [*(f.name for f in self.files), *self._folders()] if state is None else []
        if state is not None and state.settings.get("weights") is not None:
            others = [self.pretrained.name]  # a run with weights of its own trains none before
        return next((name for name in others if os.path.lexists(self.folder / name)), None)

    def _read(self) -> State | None:
        if not os.path.lexists(self.file):
            return None
        advice = Message("If a run wrote it, it is damaged: move it, or give another ", FOLDER, ".")
        return read_json(self.file, State, 1 << 20, advice)

    def _write(self, settings: Mapping[str, Any], *, finished: bool) -> None:
        write(self.file, dump_json({"finished": finished, "settings": settings}, indent=2))


def write(file: Path, content: bytes | str) -> None:
    """Write a file of a run, whole or not at all, and the folder if need be. Raises ArtifactError where the disk does not take
    it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as error:
        raise unwritten(file, error) from error


def unwritten(file: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"{shown(file)} could not be written: {error.strerror or error}.",
        hint=("Make room and run the same again with ", RESUME, ": it resumes from what is there."),
    )
