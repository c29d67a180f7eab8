"""The proof: the sliced network computes what the masked one does."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.channels.inputs import call, map_tensors, tensors
from secateurs.errors import PlanError, VerificationError
from secateurs.surgery.cut import apply, mask
from secateurs.surgery.plan import Plan

TOLERANCE = 1e-5


def verify(model: nn.Module, plan: Plan, example_inputs: Any, *, tolerance: float = TOLERANCE) -> float:
    """The largest relative difference between the outputs of the masked and the sliced network, in eval mode.

    Half-precision models are compared in float32. Where float32 leaves doubt (the error is above the tolerance),
    float64 decides. A plan over inexact groups cannot pass: its networks differ by nature.

    Raises VerificationError above the tolerance, or when the sliced network does not run.
    """
    error = difference(model, plan, example_inputs, torch.float32)
    if not error <= tolerance:
        # A network that makes float32 tensors of its own may not run in float64: then float32 has the last word.
        with contextlib.suppress(VerificationError):
            error = difference(model, plan, example_inputs, torch.float64)
    if not error <= tolerance:
        raise VerificationError(
            f"The sliced network differs from the masked one by {error:.1e} of the output's range (at most "
            f"{tolerance:.0e} is allowed)."
            + ("" if plan.exact else " The plan cuts channels that a normalisation takes its statistics over.")
        )
    return error


def difference(model: nn.Module, plan: Plan, example_inputs: Any, dtype: torch.dtype) -> float:
    """max |sliced - masked| / max |masked| over all outputs; inf where they are not even of one shape."""
    try:
        masked = _run(lambda: mask(model, plan), example_inputs, dtype)
    except PlanError:
        raise
    except Exception as error:
        raise VerificationError(
            f"The model does not run on these example inputs in {dtype}: {type(error).__name__}: {error}"
        ) from error
    try:
        sliced = _run(lambda: apply(model, plan), example_inputs, dtype)
    except Exception as error:
        raise VerificationError(f"The sliced network does not run: {type(error).__name__}: {error}") from error
    if [x.shape for x in sliced] != [x.shape for x in masked]:
        return float("inf")
    worst = 0.0
    for a, b in zip(sliced, masked, strict=True):
        if b.numel() and b.is_floating_point():
            if not bool(b.isfinite().all()):
                raise VerificationError(
                    "The masked network's output is not finite on these inputs: nothing to compare."
                )
            scale = b.abs().max().clamp_min(torch.finfo(b.dtype).tiny)
            worst = max(worst, float((a - b).abs().max() / scale))
        elif not torch.equal(a, b):
            worst = float("inf")
    return worst


def _run(build: Callable[[], nn.Module], example_inputs: Any, dtype: torch.dtype) -> list[Tensor]:
    model = build().to(dtype).eval()
    inputs = map_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, copy.copy(example_inputs))
    with torch.no_grad(), torch.autocast(device_type="cpu", enabled=False):
        return [x.detach() for x in tensors(call(model, inputs))]
