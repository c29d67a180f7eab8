"""The fit of a network's latency model, on disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from secateurs.errors import ArtifactError
from secateurs.files import read_json
from secateurs.graph import ChannelGroup
from secateurs.latency.model import Fit, LatencyModel
from secateurs.latency.store import Store

PASSING = 600.0  # seconds for which a fit that is in doubt is used
Share = Annotated[float, Field(ge=0, le=1)]


class FitRecord(BaseModel):
    """The JSON form of a `Fit`."""

    format: Literal["secateurs-latency-fit"]
    version: Literal[2]
    pieces: Share
    params: Share
    macs: Share
    overhead: Share
    seconds: Annotated[float, Field(gt=0, lt=1e6)]
    errors: Annotated[list[Annotated[float, Field(ge=0)]], Field(max_length=1000)] = []
    noise: Annotated[float, Field(ge=0)] = 0.0
    made: float  # seconds since 1970

    @property
    def fit(self) -> Fit:
        return Fit(
            self.pieces, self.params, self.macs, self.overhead, self.seconds, tuple(self.errors), self.noise
        )  # fmt: skip

    @classmethod
    def of(cls, fit: Fit) -> FitRecord:
        return cls(format="secateurs-latency-fit", version=2, made=time.time(), **asdict(fit))


def key(model: LatencyModel, groups: Sequence[ChannelGroup]) -> str:
    """Return a key of what a fit depends on: the ops of the network, its pieces, and the groups that are cut."""
    found = [
        [p.geometry.key, p.count, *([f.constant, sorted(f.multiplicities.items())] for f in (p.wide_in, p.wide_out))]
        for p in model.pieces
    ]
    ops = [str(op.target) for op in model.graph.flow.ops if op.live]  # ops that are not pieces take time, too
    about = [ops, found, model.sizes.tolist(), sorted(g.name for g in groups), model.steps.tolist(), model.target.batch]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]


def read(store: Store, key: str) -> Fit | None:
    """Read a fit. Returns None if there is none, or if it cannot be read. A fit that is in doubt is only valid for a short
    time: for the command that made it, and commands right after it."""
    try:
        found = read_json(store.folder / f"fit-{key}.json", FitRecord, limit=1 << 16)
    except ArtifactError:
        return None
    return None if found.fit.doubt and not 0 <= time.time() - found.made < PASSING else found.fit


def write(store: Store, key: str, fit: Fit) -> None:
    store.keep(store.folder / f"fit-{key}.json", FitRecord.of(fit).model_dump(mode="json"))
