"""The proof: the sliced network computes what the masked one does."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.devices import full_precision
from secateurs.errors import PlanError, TraceError, VerificationError
from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.graph.inputs import call, map_tensors, tensors, to_model_device
from secateurs.masking.mask import mask
from secateurs.plans.plan import Plan, trace
from secateurs.surgery.culprits import culprits
from secateurs.surgery.slice import apply

TOLERANCE = 1e-5
ROUNDING = 1e-2  # more than this no network makes of float32's rounding: float64 has no say then


def verify(model: nn.Module, plan: Plan, example_inputs: Any, *, tolerance: float = TOLERANCE) -> float:
    """The largest relative difference between the outputs of the masked and the sliced network, in eval mode.

    Half-precision models are compared in float32. Where float32 leaves doubt (the error is above the tolerance, but
    might be rounding), float64 decides. A plan over inexact groups cannot pass: its networks differ by nature.

    Raises VerificationError above the tolerance, or when the sliced network does not run; its message names the groups
    that are to blame. Also for a model that answers the same inputs differently each time.
    """
    error, wrong = _judged(model, plan, example_inputs, tolerance)
    if not wrong:
        return error
    if plan.exact:
        check_deterministic(model, example_inputs)
        with contextlib.suppress(TraceError, VerificationError):
            graph = trace(model, example_inputs, allow_inexact=True)
            wrong += " " + culprits(graph, plan, lambda p: bool(_judged(model, p, example_inputs, tolerance)[1]))
    else:
        wrong += " The plan cuts channels that a normalization takes its statistics over."
    raise VerificationError(wrong)


def check_deterministic(model: nn.Module, example_inputs: Any) -> None:
    """Raise VerificationError if two runs of the model in eval mode, on the same inputs, give different outputs."""
    try:
        runs = [outputs(copied(model), example_inputs, torch.float32) for _ in range(2)]
    except Exception as error:
        raise VerificationError(
            f"The model does not run on these example inputs: {type(error).__name__}: {error}"
        ) from error
    if not disagreement(runs[0], runs[1], "given") <= TOLERANCE:
        raise VerificationError(
            "The model answers the same inputs differently each time, even in eval mode, so that no cut can be verified: "
            "something random runs in its forward, such as noise, or F.dropout without training=self.training. "
            "Let it depend on self.training."
        )


def _judged(model: nn.Module, plan: Plan, example_inputs: Any, tolerance: float) -> tuple[float, str]:
    """The error, and what to say of it: nothing if the plan passes."""
    try:
        error = difference(model, plan, example_inputs, torch.float32)
    except SlicedError as failure:
        return float("inf"), str(failure)
    except NotFiniteError as failure:
        bad = next(
            (n for n, t in named_tensors(model).items() if t.is_floating_point() and not t.isfinite().all()), None
        )
        if bad is None:
            raise
        raise NotFiniteError(
            f"{bad} of the model has values that are NaN or infinite: nothing can be verified."
        ) from failure
    if tolerance < error <= ROUNDING:
        # A network that makes float32 tensors of its own may not run in float64: then float32 has the last word.
        with contextlib.suppress(VerificationError):
            error = difference(model, plan, example_inputs, torch.float64)
    if error <= tolerance:
        return error, ""
    return error, (
        f"The sliced network differs from the masked one by {error:.1e} of the output's range (at most "
        f"{tolerance:.0e} is allowed)."
    )


class NotFiniteError(VerificationError):
    """A network's outputs are not finite: nothing can be compared."""


class SlicedError(VerificationError):
    """The sliced network does not run."""


def difference(model: nn.Module, plan: Plan, example_inputs: Any, dtype: torch.dtype) -> float:
    """max |sliced - masked| / max |masked| over all outputs; inf where they are not even of one shape."""
    try:
        masked = outputs(mask(model, plan), example_inputs, dtype)
    except (PlanError, TraceError):
        raise
    except Exception as error:
        raise VerificationError(
            f"The model does not run on these example inputs in {dtype}: {type(error).__name__}: {error}"
        ) from error
    try:
        sliced = outputs(apply(model, plan), example_inputs, dtype)
    except Exception as error:
        raise SlicedError(f"The sliced network does not run: {type(error).__name__}: {error}.") from error
    return disagreement(sliced, masked, "masked")


def disagreement(found: list[Tensor], due: list[Tensor], what: str) -> float:
    """max |found - due| / max |due| over all outputs; inf where they are not even of one shape. `what` network the
    outputs that are due come from."""
    if [x.shape for x in found] != [x.shape for x in due]:
        return float("inf")
    worst = 0.0
    for a, b in zip(found, due, strict=True):
        if b.numel() and b.is_floating_point():
            if not bool(b.isfinite().all()):
                raise NotFiniteError(f"The {what} network's output is not finite on these inputs: nothing to compare.")
            scale = b.abs().max().clamp_min(torch.finfo(b.dtype).tiny)
            apart = float((a - b).abs().max() / scale)
            worst = max(worst, apart if apart == apart else float("inf"))  # nan is no agreement
        elif not torch.equal(a, b):
            worst = float("inf")
    return worst


def outputs(model: nn.Module, example_inputs: Any, dtype: torch.dtype) -> list[Tensor]:
    """What the model answers in eval mode, computed in this precision, which it is left in."""
    model = model.to(dtype).eval()
    inputs = map_tensors(
        lambda x: x.to(dtype) if x.is_floating_point() else x, to_model_device(model, copy.copy(example_inputs))
    )
    with torch.no_grad(), full_precision():
        return [x.detach() for x in tensors(call(model, inputs))]
