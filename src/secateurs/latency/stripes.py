"""What a convolution gains from the stripes that it loses, in the target's runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from secateurs.deploy.target import DTYPES, Target, threaded
from secateurs.latency.model import LatencyModel
from secateurs.latency.pieces import Piece
from secateurs.seeds import preserve_rng_state
from secateurs.stripes import StripeConv2d, tune

SHARES = (0.25, 0.5, 0.75)
LAYERS = 2  # the ones that take longest are measured
FLAT = (0.0, 1.0), (1.0, 1.0)  # nothing is gained


@preserve_rng_state()
def curve(model: LatencyModel) -> tuple[Sequence[float], Sequence[float]]:
    """Shares of stripes, and the fractions of the whole convolution's time that they take with the fastest kernel. Files have
    the dense convolution, as have compiled networks: nothing is gained there."""
    target = model.target
    seconds = model.each(model.sizes)
    order = np.argsort(-seconds, kind="stable")
    own = [model.pieces[i] for i in order if _striped(model.pieces[i])][:LAYERS]
    if not target.in_torch or target.mode != "eager" or not own:
        return FLAT
    with threaded(target):
        found = np.array([[_fraction(piece, share, target) for share in SHARES] for piece in own]).mean(0)
    found = np.minimum(np.maximum.accumulate(found), 1.0)  # fewer stripes never take longer
    return (0.0, *SHARES, 1.0), (0.5 * float(found[0]), *found.tolist(), 1.0)


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
