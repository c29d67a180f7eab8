"""What a convolution gains from the stripes that it loses, in the target's runtime."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import nn

from secateurs.deploy.target import DTYPES, Target, threaded
from secateurs.errors import ArtifactError
from secateurs.files import read_json
from secateurs.graph.modes import unwatched
from secateurs.latency.fits import Share
from secateurs.latency.model import LatencyModel
from secateurs.latency.pieces import Piece
from secateurs.latency.store import Store
from secateurs.seeds import preserve_rng_state
from secateurs.stripes import StripeConv2d, tune

SHARES = (0.25, 0.5, 0.75)
LAYERS = 2  # the ones that take longest are measured
FLAT = (0.0, 1.0), (1.0, 1.0)  # nothing is gained


class CurveRecord(BaseModel):
    """The JSON form of a curve."""

    format: Literal["secateurs-latency-stripes"]
    version: Literal[1]
    shares: Annotated[list[Share], Field(min_length=5, max_length=5)]
    fractions: Annotated[list[Share], Field(min_length=5, max_length=5)]


@preserve_rng_state()
def curve(model: LatencyModel) -> tuple[Sequence[float], Sequence[float]]:
    """Shares of stripes, and the fractions of the whole convolution's time that they take with the fastest kernel. Files have
    the dense convolution, as have compiled networks: nothing is gained there."""
    target, store = model.target, Store(model.target)
    file = store.folder / f"stripes-{_key(model)}.json"
    with contextlib.suppress(ArtifactError):
        known = read_json(file, CurveRecord, limit=1 << 16)
        return known.shares, known.fractions
    seconds = model.each(model.sizes)
    order = np.argsort(-seconds, kind="stable")
    own = [model.pieces[i] for i in order if _striped(model.pieces[i])][:LAYERS]
    if not target.in_torch or target.mode != "eager" or not own:
        return FLAT
    with threaded(target), unwatched():
        found = np.array([[_fraction(piece, share, target) for share in SHARES] for piece in own]).mean(0)
    found = np.minimum(np.maximum.accumulate(found), 1.0)  # fewer stripes never take longer
    shares, fractions = (0.0, *SHARES, 1.0), (0.5 * float(found[0]), *found.tolist(), 1.0)
    store.keep(file, {"format": "secateurs-latency-stripes", "version": 1, "shares": shares, "fractions": fractions})
    return shares, fractions


def _key(model: LatencyModel) -> str:
    """What a curve depends on: the pieces of the network at their full widths."""
    own = [[p.geometry.key, p.wide_in.full, p.wide_out.full, p.count] for p in model.pieces if _striped(p)]
    return hashlib.sha256(json.dumps(own).encode()).hexdigest()[:20]


def _striped(piece: Piece) -> bool:
    g = piece.geometry
    return bool(piece.kernel) and len(g.space) == 2 and max(g.kernel) > 1 and g.groups == 1 and not g.transposed


def _fraction(piece: Piece, share: float, target: Target) -> float:
    g, wide_in, wide_out = piece.geometry, round(piece.wide_in.full), round(piece.wide_out.full)
    kept = torch.rand(wide_out, *g.kernel, generator=torch.Generator().manual_seed(0)) < share
    kept[:, g.kernel[0] // 2, g.kernel[1] // 2] = True  # every filter keeps one
    layer = StripeConv2d(
        wide_in, kept, stride=(g.stride[0], g.stride[1]), padding=g.padding, dilation=(g.dilation[0], g.dilation[1])
    )
    network = nn.Sequential(layer).eval().to(target.device, DTYPES[target.precision])
    x = torch.randn(g.batch, wide_in, *g.space).to(target.device, DTYPES[target.precision])
    times = tune(network, x, rounds=3)["0"]
    return min(times.values())
