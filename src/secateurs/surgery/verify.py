"""Verification: the sliced network computes the same outputs as the masked one."""

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
from secateurs.graph.swapped import untouched
from secateurs.masking.mask import mask
from secateurs.plans.plan import Plan, trace
from secateurs.surgery.culprits import culprits
from secateurs.surgery.slice import apply

TOLERANCE = 1e-5
ROUNDING = 1e-2  # larger errors are never float32 rounding: float64 is not tried


def verify(model: nn.Module, plan: Plan, example_inputs: Any, *, tolerance: float = TOLERANCE) -> float:
    """Return the largest relative difference between the outputs of the masked and the sliced network, in eval mode.

    Half-precision models are compared in float32. If float32 is inconclusive (the error is above the tolerance, but
    may be rounding), the comparison is repeated in float64. A plan with inexact groups cannot pass: its networks differ.

    Raises VerificationError above the tolerance, or if the sliced network does not run; the message names the groups
    that cause it. Also for a model that is nondeterministic in eval mode.
    """
    return verified(model, plan, example_inputs, tolerance=tolerance)[1]


@untouched
def verified(
    model: nn.Module, plan: Plan, example_inputs: Any, *, tolerance: float = TOLERANCE
) -> tuple[nn.Module, float]:
    """The sliced network, and what `verify` says about it: it is the one that was compared, sliced once."""
    small = _sliced(model, plan)
    error, wrong = _judged(model, plan, example_inputs, tolerance, small)
    if not wrong:
        return small, error
    if plan.exact:
        check_deterministic(model, example_inputs)
        with contextlib.suppress(TraceError, VerificationError):
            graph = trace(model, example_inputs, allow_inexact=True)
            wrong += " " + culprits(graph, plan, lambda p: _fails(model, p, example_inputs, tolerance))
    else:
        wrong += " The plan cuts channels that a normalization computes its statistics over."
    raise VerificationError(wrong)


@untouched
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
            "The model is nondeterministic in eval mode, so a cut cannot be "
            "verified: its outputs differ between two runs on the "
            "same inputs. Its forward draws random numbers, for example noise, or F.dropout without training=self.training. "
            "Make that depend on self.training."
        )


def _fails(model: nn.Module, plan: Plan, example_inputs: Any, tolerance: float) -> bool:
    try:
        small = _sliced(model, plan)
    except SlicedError:
        return True
    return bool(_judged(model, plan, example_inputs, tolerance, small)[1])


def _sliced(model: nn.Module, plan: Plan) -> nn.Module:
    try:
        return apply(model, plan)
    except (PlanError, TraceError):
        raise
    except Exception as error:
        raise SlicedError(f"The network cannot be sliced: {type(error).__name__}: {error}.") from error


def _judged(model: nn.Module, plan: Plan, example_inputs: Any, tolerance: float, small: nn.Module) -> tuple[float, str]:
    """The error of the sliced network `small`, and the message about it: empty if the plan passes."""
    try:
        error = _difference(model, plan, example_inputs, torch.float32, small)
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
        # A network that creates float32 tensors may not run in float64: then the float32 result stands.
        with contextlib.suppress(VerificationError):
            error = _difference(model, plan, example_inputs, torch.float64, small)
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


def _difference(model: nn.Module, plan: Plan, example_inputs: Any, dtype: torch.dtype, small: nn.Module) -> float:
    """max |sliced - masked| / max |masked| over all outputs; inf if their shapes differ. small: the sliced network."""
    try:
        masked = outputs(mask(model, plan), example_inputs, dtype)
    except (PlanError, TraceError):
        raise
    except Exception as error:
        raise VerificationError(
            f"The model does not run on these example inputs in {dtype}: {type(error).__name__}: {error}"
        ) from error
    try:
        sliced = _outputs_of(small, example_inputs, dtype)
    except Exception as error:
        raise SlicedError(f"The sliced network does not run: {type(error).__name__}: {error}.") from error
    return disagreement(sliced, masked, "masked")


def disagreement(found: list[Tensor], due: list[Tensor], what: str) -> float:
    """max |found - due| / max |due| over all outputs; inf if their shapes differ. what: the network that the
    expected outputs come from."""
    if [x.shape for x in found] != [x.shape for x in due]:
        return float("inf")
    worst = 0.0
    for a, b in zip(found, due, strict=True):
        if b.numel() and b.is_floating_point():
            if not bool(b.isfinite().all()):
                raise NotFiniteError(
                    f"The {what} network's output is not finite on these inputs, so it cannot be compared."
                )
            scale = b.abs().max().clamp_min(torch.finfo(b.dtype).tiny)
            apart = float((a - b).abs().max() / scale)
            worst = max(worst, apart if apart == apart else float("inf"))  # nan counts as a difference
        elif not torch.equal(a, b):
            worst = float("inf")
    return worst


def outputs(model: nn.Module, example_inputs: Any, dtype: torch.dtype) -> list[Tensor]:
    """The model's outputs in eval mode, computed in this precision. Leaves the model in it."""
    model = model.to(dtype).eval()
    inputs = map_tensors(
        lambda x: x.to(dtype) if x.is_floating_point() else x, to_model_device(model, copy.copy(example_inputs))
    )
    with torch.no_grad(), full_precision():
        return [x.detach() for x in tensors(call(model, inputs))]


def _outputs_of(model: nn.Module, example_inputs: Any, dtype: torch.dtype) -> list[Tensor]:
    """The same of a network that is left as it is, whatever its forward does: a copy runs, of all but its parameters, if these
    need not be converted."""
    convert = any(x.is_floating_point() and x.dtype != dtype for x in named_tensors(model).values())
    shared = {} if convert else {id(p): p for p in model.parameters()}
    return outputs(copied(model, shared), example_inputs, dtype)
