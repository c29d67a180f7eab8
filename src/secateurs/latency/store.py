"""Keep measurements on disk, by device, runtime, settings and versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field

from secateurs.caching import cache_folder, replacing
from secateurs.deploy.target import Target, machine
from secateurs.errors import ArtifactError
from secateurs.files import dump_json, read_json
from secateurs.latency.geometry import Geometry

VERSION = 1
Width = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Time = Annotated[float, Field(strict=True, gt=0, lt=1e6)]


class Samples(BaseModel):
    """The seconds of a piece at several widths."""

    format: Literal["secateurs-latency"]
    version: Literal[1]
    samples: Annotated[list[tuple[Width, Width, Time]], Field(max_length=10_000)]


class Store:
    """The files of a target on this machine. If a file cannot be read, its piece is measured again. If the folder cannot be
    written to, only the time to measure is lost."""

    def __init__(self, target: Target) -> None:
        about = {**where(target), "settings": {k: v for k, v in target.record().items() if k != "batch"}}
        self.folder = (
            cache_folder() / "latency" / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        )
        self.about = about
        self.fault = ""  # why the last file could not be written

    def read(self, geometry: Geometry) -> dict[tuple[int, int], float]:
        try:
            found = read_json(self._path(geometry), Samples, limit=1 << 20)
        except ArtifactError:
            return {}
        return {(i, o): seconds for i, o, seconds in found.samples}

    def write(self, geometry: Geometry, samples: dict[tuple[int, int], float]) -> None:
        known = {**self.read(geometry), **samples}
        body = {
            "format": "secateurs-latency", "version": VERSION, "geometry": asdict(geometry),
            "samples": [[i, o, seconds] for (i, o), seconds in sorted(known.items())],
        }  # fmt: skip
        self.keep(self._path(geometry), body)

    def keep(self, file: Path, body: Mapping[str, object]) -> None:
        """Write a file, which other processes may also write."""
        try:
            if not (about := self.folder / "about.json").exists():
                with replacing(about) as new:
                    new.write(dump_json(self.about, 1).encode())
            with replacing(file) as new:
                new.write(dump_json(body).encode())
        except OSError as error:
            self.fault = error.strerror or str(error)

    def _path(self, geometry: Geometry) -> Path:
        return self.folder / f"{geometry.key}.json"


def where(target: Target) -> dict[str, object]:
    """Return what times depend on besides the target's settings."""
    found: dict[str, object] = {
        "machine": machine(target), "torch": torch.__version__, "threads": target.used_threads,
    }  # fmt: skip
    if target.format is not None:
        # The module's version: distributions such as onnxruntime-gpu provide the same module.
        found[target.runtime] = str(getattr(import_module(target.runtime), "__version__", ""))
    return found
