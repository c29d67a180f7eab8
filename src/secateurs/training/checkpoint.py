"""Checkpoints that survive: written aside and renamed, hashed, the last few kept, no pickle."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors

from secateurs.errors import ArtifactError, ConfigError, TrainingError
from secateurs.training.pack import pack, unpack

log = logging.getLogger("secateurs")

VERSION = 1


class CheckpointStore:
    """A folder of `step-<n>/` checkpoints, each of them `state.safetensors`, `state.json` and `manifest.json`.

    A checkpoint is there whole or not at all, whenever the process is killed: it is written to a temporary folder,
    flushed to the disk and renamed. The newest `keep` stay. One process writes; any may read.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2):
        if keep < 1:
            raise ConfigError(f"keep={keep}: at least one checkpoint must be kept")
        self.folder = Path(folder)
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps at which there are checkpoints, rising."""
        found = [p.name[5:] for p in self.folder.glob("step-*") if p.is_dir()]
        return sorted(int(n) for n in found if n.isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes `state` (nested dicts and lists of tensors and plain values). Raises TrainingError if the disk won't
        take it; what was saved before is then untouched."""
        tree, tensors = pack(state)
        files = {
            "state.safetensors": dump_tensors(tensors),
            "state.json": json.dumps(tree).encode(),
        }
        hashes = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
        }
        files["manifest.json"] = json.dumps({"version": VERSION, "step": step, "files": hashes}, indent=1).encode()
        temporary, final = self.folder / f".writing-{step:09d}", self.path(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            temporary.mkdir()
            for name, data in files.items():
                _write(temporary / name, data)
            _flush(temporary)
            if final.exists():  # left by an earlier life of this run, past the point it resumed from
                os.rename(final, self.folder / f".old-{step:09d}")
            os.rename(temporary, final)
            _flush(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = self.steps()
            last = f"The last good one is {self.path(kept[-1])}." if kept else "There is no earlier one."
            raise TrainingError(
                f"The checkpoint of step {step} could not be written to {self.folder}: {error.strerror or error}. "
                f"{last} Make room (or choose another disk) and resume."
            ) from error
        for old in self.steps()[: -self.keep]:
            os.rename(self.path(old), self.folder / f".old-{old:09d}")
        self._sweep()
        return final

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the newest checkpoint that is whole, None if there is none at all.

        Damaged ones are set aside as `damaged-…` with a warning in the log; if only such are left: ArtifactError.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                return step, self._read(self.path(step))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                damaged.append(f"{self.path(step)}: {error}")
                log.warning("checkpoint %s is damaged (%s); trying the one before", self.path(step), error)
                self._set_aside(step)
        if damaged:
            raise ArtifactError("No checkpoint is whole: " + "; ".join(damaged) + ". Start anew, without resuming.")
        return None

    def clear(self) -> None:
        """Forgets all checkpoints."""
        for step in self.steps():
            os.rename(self.path(step), self.folder / f".old-{step:09d}")
        self._sweep()

    def _read(self, path: Path) -> dict[str, Any]:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["version"] > VERSION:
            raise ArtifactError(f"{path} was written by a newer version of secateurs: upgrade to resume from it.")
        data = {}
        for name, expected in manifest["files"].items():
            data[name] = (path / name).read_bytes()
            if hashlib.sha256(data[name]).hexdigest() != expected["sha256"]:
                raise ValueError(f"{name} does not match its checksum ({len(data[name])} of {expected['bytes']} bytes)")
        state: dict[str, Any] = unpack(json.loads(data["state.json"]), parse_tensors(data["state.safetensors"]))
        return state

    def _set_aside(self, step: int) -> None:
        aside = self.folder / f"damaged-{self.path(step).name}"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self.path(step), aside)
        except OSError:  # a read-only folder, or another process was faster
            pass

    def _sweep(self) -> None:
        """Removes what killed processes left half-written or half-removed."""
        for pattern in (".writing-*", ".old-*"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Makes renames in the folder durable (where the system can: not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
