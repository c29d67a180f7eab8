"""Measure the time that convolutions save with fewer stripes in the target's runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field

from secateurs.errors import ArtifactError
from secateurs.files import read_json
from secateurs.latency.model import LatencyModel
from secateurs.latency.pieces import Piece
from secateurs.latency.stopwatch import Stopwatch
from secateurs.latency.store import Store
from secateurs.plans import PrunableGraph

Array = np.ndarray
Curve = tuple[Sequence[float], Sequence[float]]
SHARES = (0.1, 0.25, 0.5, 0.75)
FLAT = (0.0, 1.0), (1.0, 1.0)  # no time is saved
MARGIN = 0.01  # the standard error to reach in measurements


class CurveRecord(BaseModel):
    """The JSON form of the measurements: the fractions of the original's time that the network takes with `SHARES` of the
    stripes of every convolution."""

    format: Literal["secateurs-latency-stripes"]
    version: Literal[2]
    ratios: Annotated[
        list[Annotated[float, Field(gt=0, lt=100)]], Field(min_length=len(SHARES), max_length=len(SHARES))
    ]


def curve(model: LatencyModel, graph: PrunableGraph, watch: Callable[[], AbstractContextManager[Stopwatch]]) -> Curve:
    """Return shares of stripes, and the fractions of its time that a convolution takes with them, each with the fastest kernel.
    With these fractions, the model predicts the end-to-end time of the network at these shares. Ops that follow a convolution
    do not get faster. Files and compiled networks compute the dense convolution, so no time is saved there.

    graph: the network's. watch: makes a stopwatch, if there is no earlier measurement.
    """
    target, store = model.target, Store(model.target)
    own = [piece for piece in model.pieces if _striped(piece)]
    if not target.in_torch or target.mode != "eager" or not own:
        return FLAT
    file = store.folder / f"stripes-{_key(model, own)}.json"
    try:
        ratios = read_json(file, CurveRecord, limit=1 << 16).ratios
    except ArtifactError:
        with watch() as measuring:
            plans = [graph.plan({}, stripes=_random(graph, own, share)) for share in SHARES]
            ratios = [measuring.measure(plan, margin=MARGIN).ratio for plan in plans]
        store.keep(file, {"format": "secateurs-latency-stripes", "version": 2, "ratios": ratios})
    none = {piece.kernel: 0 for piece in own}
    least = model.with_curve(((0.0, 1.0), (0.0, 1.0)))(model.sizes, none) / model(
        model.sizes
    )  # if these convolutions took no time
    if least > 1 - 1e-6:
        return FLAT
    gained = (np.array(ratios) - least) / (1 - least)
    fractions = np.clip(np.maximum.accumulate(gained), 0.0, 1.0)  # fewer stripes never take longer
    return (0.0, *SHARES, 1.0), (float(fractions[0]), *fractions.tolist(), 1.0)


def _key(model: LatencyModel, own: Sequence[Piece]) -> str:
    """Return a key of what a curve depends on: the pieces of the network at their full widths."""
    every = [[p.geometry.key, p.wide_in.full, p.wide_out.full, p.count] for p in model.pieces]
    about = [every, sorted(p.kernel for p in own)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]


def _striped(piece: Piece) -> bool:
    g = piece.geometry
    return bool(piece.kernel) and len(g.space) == 2 and max(g.kernel) > 1 and g.groups == 1 and not g.transposed


def _random(graph: PrunableGraph, own: Sequence[Piece], share: float) -> dict[str, Array]:
    """Choose a random share of the stripes of each of these convolutions: kernel → (filters, *kernel)."""
    generator = np.random.default_rng(0)
    found = {}
    for piece in own:
        shape = graph.kernels[piece.kernel]
        order = generator.permutation(int(np.prod(shape))).reshape(shape)
        found[piece.kernel] = order < max(1, round(share * order.size))
    return found
