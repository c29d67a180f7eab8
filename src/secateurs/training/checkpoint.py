"""Durable checkpoints: written atomically, hashed, with a limited number kept, without pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, RootModel
from safetensors.torch import save as dump_tensors

from secateurs.errors import ArtifactError, ConfigError, TrainingError, a_or_an
from secateurs.files import parse_json, parse_tensors, read_bytes, shown, sync_folder
from secateurs.training.pack import pack, unpack

log = logging.getLogger("secateurs")

VERSION = 1
FILES = MANIFEST, TREE, TENSORS = "manifest.json", "state.json", "state.safetensors"
_left = re.compile(r"(\.writing-|\.old-|damaged-step-)\d{9,}")  # left by killed processes, or set aside
_step = re.compile(r"step-(\d{9,})", re.ASCII)


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: NonNegativeInt = Field(alias="bytes")


class _Files(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tree: _File = Field(alias="state.json")
    tensors: _File = Field(alias="state.safetensors")


class _Version(BaseModel):
    version: Annotated[int, Field(strict=True)]


class _Manifest(_Version):
    step: Annotated[int, Field(strict=True, ge=0)]
    files: _Files


class _Tree(RootModel[Any]):
    """The output of `pack` for a state: validated by `unpack` and by the code that loads the state."""


class CheckpointStore:
    """A folder of `step-<n>/` checkpoints, each of them `state.safetensors`, `state.json` and `manifest.json`.

    Checkpoints are written atomically, even if the process is killed: each is written to a temporary folder,
    flushed to disk and renamed. The newest `keep` are kept. Only one process may write; any may read.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2):
        if keep < 1:
            raise ConfigError(f"keep={keep}: at least one checkpoint must be kept")
        self.folder = Path(folder)
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that have checkpoints, ascending."""
        return [step for step in self._folders() if any(os.path.lexists(self.path(step) / name) for name in FILES)]

    def _folders(self) -> list[int]:
        """The steps that have folders, ascending. One that is removed or not ours may be without a checkpoint."""
        found = (_step.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state` (nested dicts and lists of tensors and plain values). Raises TrainingError if writing
        fails; earlier checkpoints are then unchanged."""
        tree, tensors = pack(state)
        files = {TENSORS: dump_tensors(tensors), TREE: json.dumps(tree, allow_nan=False).encode()}
        hashes = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
        }
        files[MANIFEST] = json.dumps({"version": VERSION, "step": step, "files": hashes}, indent=1).encode()
        temporary, final = self.folder / f".writing-{step:09d}", self.path(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            temporary.mkdir()
            for name, data in files.items():
                _write(temporary / name, data)
            sync_folder(temporary)
            if final.exists():  # left by an earlier process of this run, after the point that it resumed from
                os.rename(final, self.folder / f".old-{step:09d}")
            os.rename(temporary, final)
            sync_folder(self.folder)
        except OSError as error:
            _remove(temporary)
            kept = self.steps()
            last = f"The last valid one is {self.path(kept[-1])}." if kept else "There is no earlier one."
            raise TrainingError(
                f"The checkpoint of step {step} could not be written to {self.folder}: {error.strerror or error}. "
                f"{last} Free disk space (or choose another disk) and resume."
            ) from error
        self.tidy()
        return final

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the newest valid checkpoint, None if there are no checkpoints.

        Damaged ones are renamed to `damaged-…` with a warning in the log. If all are damaged, raises ArtifactError and
        renames none.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                found = self._read(step)
            except _NewerError:
                raise
            except ArtifactError as error:
                damaged[step] = str(error)
                continue
            for other, fault in damaged.items():
                log.warning("a checkpoint is damaged, resuming from %s instead: %s", self.path(step).name, fault)
                self._set_aside(other)
            return step, found
        if damaged:
            raise ArtifactError(
                f"All checkpoints are damaged: {'; '.join(damaged.values())} Remove {shown(self.folder)} to start over."
            )
        return None

    def clear(self) -> None:
        """Remove all checkpoints, and the folder if nothing else is in it. Ignores what cannot be removed."""
        for step in self._folders():
            _remove(self.path(step))
        self._sweep()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def tidy(self) -> None:
        """Remove checkpoints beyond the newest `keep`, and partial ones left by killed processes.
        Ignores those that cannot be removed."""
        try:
            for old in self.steps()[: -self.keep]:
                os.rename(self.path(old), self.folder / f".old-{old:09d}")
        except OSError:  # the new checkpoint has been written
            pass
        self._sweep()

    def _read(self, step: int) -> dict[str, Any]:
        """The state of one checkpoint. Raises ArtifactError if any part differs from what was written."""
        path = self.path(step)
        manifest = _manifest(path / MANIFEST, step)
        tree = parse_json(_content(path / TREE, manifest.files.tree), _Tree, path / TREE).root
        tensors = parse_tensors(_content(path / TENSORS, manifest.files.tensors), path / TENSORS, advice="")
        try:
            state = unpack(tree, tensors)
        except (ValueError, RuntimeError, OverflowError) as error:
            raise ArtifactError(f"{shown(path / TREE)} is not valid: {error}.") from None
        except RecursionError:
            raise ArtifactError(f"{shown(path / TREE)} is not valid: it is nested too deeply.") from None
        if not isinstance(state, dict):
            raise ArtifactError(
                f"{shown(path / TREE)} is not valid: it holds {a_or_an(type(state).__name__)}, expected a dict."
            )
        return state

    def _set_aside(self, step: int) -> None:
        aside = self.folder / f"damaged-{self.path(step).name}"
        try:
            _remove(aside)
            os.rename(self.path(step), aside)
        except OSError:  # a read-only folder, or another process did it first
            pass

    def _sweep(self) -> None:
        for path in self.folder.glob("*"):
            if _left.fullmatch(path.name):
                _remove(path)


def _remove(checkpoint: Path) -> None:
    """Remove the files of a checkpoint, and its folder if nothing else is in it. Of a link, only the link is removed."""
    with contextlib.suppress(OSError):
        if checkpoint.is_symlink():
            checkpoint.unlink()
            return
        for name in FILES:
            (checkpoint / name).unlink(missing_ok=True)
        checkpoint.rmdir()


class _NewerError(ArtifactError):
    """The checkpoint is not damaged, but this version cannot read it."""


def _manifest(path: Path, step: int) -> _Manifest:
    data = read_bytes(path, limit=1 << 16)
    if parse_json(data, _Version, path).version > VERSION:
        raise _NewerError(
            f"{shown(path.parent)} was written by a newer version of secateurs: upgrade to resume from it."
        )
    manifest = parse_json(data, _Manifest, path)
    if manifest.step != step:
        raise ArtifactError(f"{shown(path)} is not valid: field 'step' is {manifest.step}, expected {step}.")
    return manifest


def _content(path: Path, expected: _File) -> bytes:
    """The content of a file, verified against its checksum."""
    data = read_bytes(path, expected.size)
    if len(data) != expected.size or hashlib.sha256(data).hexdigest() != expected.sha256:
        raise ArtifactError(
            f"{shown(path)} does not match its checksum ({len(data):,} of {expected.size:,} bytes): it is damaged."
        )
    return data


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
