"""`bench.json`: the measurements of an artifact by `secateurs bench --save`, for `secateurs report`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from secateurs.artifact.fields import Count, Line, Open, plain
from secateurs.artifact.folder import MODEL, digest, place
from secateurs.errors import ArtifactError
from secateurs.files import StrPath, dump_json, read_json, shown, write_whole

TIMINGS = "bench.json"
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class Times(Open):
    """The median and the quartiles of a time in seconds, or of a ratio of times."""

    median: Positive
    low: Positive
    high: Positive


class TargetRecord(Open):
    """The target of a measurement; see `secateurs.deploy.Target`."""

    runtime: Line
    threads: Count | None = None
    precision: Line = "fp32"
    channels_last: bool = False
    mode: Line = "eager"

    def __str__(self) -> str:
        others = [*[self.precision] * (self.precision != "fp32"), *["channels last"] * self.channels_last]
        return ", ".join([self.runtime, *others, *[self.mode] * (self.mode != "eager")])


class Timing(Open):
    """Two networks on one target; see `secateurs.deploy.bench.Timed`."""

    target: TargetRecord
    batch: Count | None = None
    machine: Line = ""
    threads: Count | None = None
    original: Times
    pruned: Times
    ratio: Times
    memory: tuple[Count, Count] | None = None
    inputs: Annotated[list[Annotated[list[Count], Field(max_length=16)]], Field(max_length=100)] = []  # of one example


class CostRecord(Open):
    """The cost of a network on inputs of the size that it was measured on."""

    macs: Count
    params: Count


class Timings(Open):
    """The result of `Bench.record`."""

    format: Literal["secateurs-bench"] = "secateurs-bench"
    version: Literal[1] = 1
    model: Line | None = None  # SHA-256 of the measured network's file
    rows: Annotated[list[Timing], Field(max_length=1000)]
    skipped: list[Line] = []
    original: CostRecord | None = None
    pruned: CostRecord | None = None


def save_timings(folder: StrPath, record: Mapping[str, Any]) -> str:
    """Save measurements in an artifact's folder, and replace an earlier file. Returns the path.

    Raises ArtifactError if it cannot be written, or if a file with that name exists that Secateurs did not write.
    """
    path = os.path.join(folder, TIMINGS)
    if os.path.lexists(path):
        read_json(path, Timings, advice="It is not a measurement of Secateurs, and would be replaced: move it.")
    ours = {"format": "secateurs-bench", "version": 1, "model": digest(place(folder, MODEL))}
    body = Timings.model_validate(plain({**record, **ours}))
    try:
        write_whole(path, dump_json(body.model_dump(mode="json"), indent=2))
    except OSError as error:
        raise ArtifactError(f"{shown(path)} cannot be written: {error.strerror or error}.") from error
    return path


def read_timings(folder: StrPath) -> Timings | None:
    """Return the measured speed of an artifact's network; None if there is no file. Raises ArtifactError for a damaged file."""
    path = os.path.join(folder, TIMINGS)
    return read_json(path, Timings) if os.path.lexists(path) else None
