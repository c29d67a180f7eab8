"""Verify that the sliced network computes the same outputs as the masked one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.errors import ConfigError, PlanError, TraceError, VerificationError
from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.graph.inputs import map_tensors, tensors
from secateurs.graph.swapped import untouched
from secateurs.masking.mask import masked_twin
from secateurs.plans.plan import Plan, PrunableGraph, trace
from secateurs.surgery.compare import NotFiniteError, disagreement
from secateurs.surgery.culprits import culprits
from secateurs.surgery.slice import apply
from secateurs.surgery.twins import Run, cast, run

TOLERANCE = 1e-5
ROUNDING = 1e-2  # a larger error is unlikely to be float32 rounding
OWN_ROUNDING = 10.0  # unless it is at most this many times the masked network's own
# If the model does not run in float64, an error counts as rounding up to REORDERED times the difference that another order of
# computation makes in the masked network, and at most LARGEST.
REORDERED = 3.0
LARGEST = 3e-4


def verify(model: nn.Module, plan: Plan, example_inputs: Any, *, tolerance: float = TOLERANCE) -> float:
    """Return the largest relative difference between the outputs of the masked and the sliced network, in eval mode.

    The input of a choice (a sort, a comparison, a suppression) is compared like an output, and the choice itself is made once
    for both networks. Random numbers are drawn from the same seeds. Half-precision models are compared in float32. If float32
    is inconclusive (the error is above the tolerance, but may be rounding), the comparison is repeated in float64. For a model
    that does not run in float64, the error may be up to three times the change that another order of computation makes in the
    masked network, and at most 3e-4. A plan with inexact groups cannot pass, because its two networks differ.

    Raises VerificationError if the error is above the tolerance, or if the sliced network does not run. The message names the
    groups that cause it. VerificationError is also raised if nothing was compared (the network returns no tensors, or nothing
    that depends on its parameters), if the sliced network still reads parameters of the given one, and for a model that is
    nondeterministic in eval mode.
    """
    return verified(model, plan, example_inputs, tolerance=tolerance)[1]


@torch.inference_mode(False)
@untouched
def verified(
    model: nn.Module,
    plan: Plan,
    example_inputs: Any,
    *,
    tolerance: float = TOLERANCE,
    graph: PrunableGraph | None = None,
) -> tuple[nn.Module, float]:
    """Return the sliced network that was verified, and the error that `verify` returns. graph: also check that the sliced
    network takes as many multiply-accumulates as this graph predicts for the plan."""
    small = _sliced(model, plan)
    with explained(model, example_inputs):
        error, wrong = _judged(model, plan, example_inputs, tolerance, small, graph)
    if not wrong:
        return small, error
    if plan.exact:
        check_deterministic(model, example_inputs)
        with contextlib.suppress(TraceError, VerificationError):
            graph = graph or trace(model, example_inputs, allow_inexact=True)
            wrong += " " + culprits(graph, plan, lambda p: _fails(model, p, example_inputs, tolerance))
    else:
        wrong += " The plan cuts channels that a normalization computes its statistics over."
    raise VerificationError(wrong)


@untouched
def check_deterministic(model: nn.Module, example_inputs: Any) -> None:
    """Raise VerificationError if two runs of the model in eval mode, on the same inputs and with the same random numbers, give
    different outputs."""
    try:
        runs = [outputs(copied(model), example_inputs, torch.float32) for _ in range(2)]
    except Exception as error:
        raise VerificationError(
            f"The model does not run on these example inputs: {type(error).__name__}: {error}"
        ) from error
    with explained(model, example_inputs):
        apart = disagreement(runs[0], runs[1], "given")
    if not apart <= TOLERANCE:
        raise VerificationError(
            "The model is nondeterministic in eval mode, so a cut cannot be verified: its outputs differ between two runs on "
            "the same inputs, with the same seeds of torch, NumPy and Python. It depends on something else that changes, for "
            "example a counter outside of the model, the time, or a generator that seeds itself."
        )


@contextlib.contextmanager
def explained(model: nn.Module, example_inputs: Any) -> Iterator[None]:
    """Context for a comparison. If outputs are not finite because the model or its inputs are not, the error says so."""
    try:
        yield
    except NotFiniteError as failure:
        if any(x.is_floating_point() and bool(x.isnan().any()) for x in tensors(example_inputs)):
            raise NotFiniteError(
                "The example inputs contain NaN, and so does all that the model returns: nothing can be verified. Pass inputs "
                "without NaN."
            ) from failure
        bad = next((n for n, t in named_tensors(model).items() if not t.isfinite().all()), None)
        if bad is None:
            raise
        raise NotFiniteError(
            f"{bad} of the model has values that are NaN or infinite: nothing can be verified."
        ) from failure


def outputs(model: nn.Module, example_inputs: Any, dtype: torch.dtype) -> list[Tensor]:
    """Return the model's outputs in eval mode, in this precision. The model stays in that mode and precision."""
    return run(model, example_inputs, dtype).outputs


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


def _judged(
    model: nn.Module,
    plan: Plan,
    example_inputs: Any,
    tolerance: float,
    small: nn.Module,
    graph: PrunableGraph | None = None,
) -> tuple[float, str]:
    """Return the error of the sliced network `small` and a message about it, which is empty if the plan passes."""
    twins = _Twins(model, plan, example_inputs, small)
    for witness in (False, True):
        try:
            error, masked, sliced = twins.difference(torch.float32, witness)
        except SlicedError as failure:
            return float("inf"), str(failure)
        allowed = tolerance
        if tolerance < error < math.inf:
            try:
                closer, exact, _ = twins.difference(torch.float64, witness)
                # A larger error is rounding only if the masked network's own rounding is as large: its output may be a small
                # difference of large numbers.
                if error <= ROUNDING or error <= OWN_ROUNDING * disagreement(masked.outputs, exact.outputs, "masked"):
                    error = closer
            except SlicedError as failure:  # only the masked network runs in float64
                return float("inf"), str(failure)
            except VerificationError:  # the model only runs in float32
                if error <= LARGEST:
                    allowed = max(tolerance, min(LARGEST, REORDERED * twins.rounding(masked, witness)))
        if not error <= allowed:
            return error, _wrong(error, allowed, sliced)
        if not plan.kept and not plan.stripes:
            break
        twins.check_own(masked, sliced)
        if masked.telling:
            if graph is not None:
                _check_cost(graph, plan, masked, sliced)
            break
    else:
        noise = _noise(example_inputs)
        if noise is not None:
            return _judged(model, plan, noise, tolerance, small, graph)
        raise VerificationError(
            f"{_NOTHING}all that the network returns on these example inputs is empty or zero (for example no detections), and "
            "so is what its layers put out before that. Pass inputs for which it returns something."
        )
    if (plan.kept or plan.stripes) and _all_blank(
        example_inputs
    ):  # zeros pass through many layers as zeros, whatever was cut
        more, message = _judged(model, plan, _noise(example_inputs), tolerance, small, graph)
        return max(error, more), message
    return error, ""


_NOTHING = "Nothing can be verified: "


def _noise(example_inputs: Any) -> Any:
    """Return the inputs with noise in place of those that are all zeros, for a network that maps zeros to zeros; None if no
    input is all zeros."""
    generator = torch.Generator().manual_seed(0)
    blank = [x for x in tensors(example_inputs) if x.is_floating_point() and not bool(x.any())]
    if not blank:
        return None
    return map_tensors(
        lambda x: torch.rand(x.shape, generator=generator).to(x) if any(x is b for b in blank) else x, example_inputs
    )


def _all_blank(example_inputs: Any) -> bool:
    floats = [x for x in tensors(example_inputs) if x.is_floating_point()]
    return bool(floats) and not any(bool(x.any()) for x in floats)


def _wrong(error: float, tolerance: float, sliced: Run) -> str:
    wrong = f"The sliced network differs from the masked one by {error:.1e} of the output's range"
    wrong += f" (at most {tolerance:.0e} is allowed)."
    if sliced.uneven:
        wrong += (
            f" It draws random numbers in the shape of channels that are cut ({', '.join(sliced.uneven)}), which are others in "
            "a smaller network: draw them in training only, or leave these channels whole."
        )
    return wrong


class SlicedError(VerificationError):
    """The sliced network does not run."""


class _Twins:
    """The masked and the sliced network of a plan, which run side by side."""

    def __init__(self, model: nn.Module, plan: Plan, example_inputs: Any, small: nn.Module) -> None:
        self.model, self.plan, self.example_inputs, self.small = model, plan, example_inputs, small

    def difference(self, dtype: torch.dtype, witness: bool = False) -> tuple[float, Run, Run]:
        """Return max |sliced - masked| / max |masked| over everything that is compared, inf if shapes differ; and the two runs.
        witness: also compare the layers."""
        try:
            twin = masked_twin(self.model, self.plan, _shared(self.model, dtype))
            masked = run(twin, self.example_inputs, dtype, other=self.model, witness=witness)
        except (ConfigError, PlanError, TraceError):
            raise
        except Exception as error:
            raise VerificationError(
                f"The model does not run on these example inputs in {dtype}: {type(error).__name__}: {error}"
            ) from error
        try:
            sliced = self._run(self.small, dtype, leader=masked, witness=witness)
        except Exception as error:
            raise SlicedError(f"The sliced network does not run: {type(error).__name__}: {error}.") from error
        check_foreign(self.model, [*masked.foreign, *sliced.foreign], self.plan.kept)
        return max(disagreement(sliced.outputs, masked.outputs, "masked"), sliced.error), masked, sliced

    def rounding(self, masked: Run, witness: bool) -> float:
        """Return the change that another order of computation makes in the masked network, relative to its outputs: the larger
        one of two random orders."""
        found = []
        for order in range(2):
            twin = masked_twin(self.model, self.plan, _shared(self.model, torch.float32))
            other = run(twin, self.example_inputs, torch.float32, leader=masked, witness=witness, order=order)
            found.append(max(disagreement(other.outputs, masked.outputs, "masked"), other.error))
        return max(found)

    def _run(self, small: nn.Module, dtype: torch.dtype, **options: Any) -> Run:
        """Run a copy that shares the network's parameters, so that the network does not change, whatever its forward does."""
        return run(copied(small, dict(_shared(small, dtype))), self.example_inputs, dtype, other=self.model, **options)

    def check_own(self, masked: Run, sliced: Run) -> None:
        """Raise VerificationError if the two runs agree without using the networks' parameters."""
        if not masked.outputs:
            raise VerificationError(
                f"{_NOTHING}the network returns no tensors that were found. Return tensors, or containers, mappings or objects "
                "that hold them."
            )
        own = {name for name, x in named_tensors(self.small).items() if isinstance(x, nn.Parameter)}
        if own and not own & sliced.read:
            raise VerificationError(
                f"{_NOTHING}the sliced network reads none of its own parameters, so it runs something else"
                f"{_see(self.model)}."
            )
        if not sliced.depends and not self._depends(sliced):
            raise VerificationError(
                f"{_NOTHING}the network's outputs do not depend on its parameters on these example inputs: pass inputs for "
                "which they do."
            )

    def _depends(self, sliced: Run) -> bool:
        """Whether other parameters give other outputs. This works for outputs that went through NumPy, for example."""
        other = copied(self.small)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in other.parameters():
                if p.is_floating_point() or p.is_complex():
                    noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
                    p.add_(noise.to(p) * p.abs().mean().clamp_min(0.1))
        try:
            found = run(other, self.example_inputs, torch.float32).outputs
            return disagreement(found, sliced.outputs, "sliced") > 0
        except Exception:  # it does not run with other parameters, or gives no finite output
            return True


@untouched
def check_copy(copy: nn.Module, model: nn.Module, example_inputs: Any) -> None:
    """Raise VerificationError if a copy of a model runs the model itself, because the two share a function that holds the
    model. The copy only runs if such a function may exist, and does not change."""
    if shared_functions(model):
        try:
            seen = run(copied(copy, dict(_shared(copy, torch.float32))), example_inputs, torch.float32, other=model)
        except Exception:  # what does not run is refused elsewhere
            return
        check_foreign(model, seen.foreign)


def check_foreign(model: nn.Module, foreign: Iterable[str], kept: Container[str] = ()) -> None:
    """Raise VerificationError if a copy of a model read parameters of the model, or tensors that are cut."""
    params = {name for name, x in named_tensors(model).items() if isinstance(x, nn.Parameter)}
    read = [name for name in foreign if name in params or name in kept]
    if read:
        raise VerificationError(
            f"A copy of the model still runs the model itself: it reads {read[0]} of the given model, and not its own. Python "
            f"functions are shared by copies, with whatever they hold{_see(model)}. Make it a method that uses `self`, or "
            "a submodule, or remove it before the cut."
        )


def _check_cost(graph: PrunableGraph, plan: Plan, masked: Run, sliced: Run) -> None:
    """Raise VerificationError if the sliced network's multiply-accumulates differ from those that the graph predicts. If the
    masked network's differ as well, they depend on the data (on the number of detections, for example), and nothing is
    raised."""
    due = graph.cost_of(plan).macs
    if sliced.macs != due and masked.macs == graph.cost().macs:
        raise VerificationError(
            f"The sliced network takes {sliced.macs:,} multiply-accumulates on these inputs, where its channels should take "
            f"{due:,}: either it does not run what was cut, or an op is counted wrongly. Leave out the groups that lead to it."
        )


def _shared(model: nn.Module, dtype: torch.dtype) -> dict[int, Tensor]:
    """Return the parameters, by id, that copies of a model can share in runs of this precision: none if any tensor must be
    converted."""
    convert = any(cast(x, dtype) is not x for x in named_tensors(model).values())
    return {} if convert else {id(p): p for p in model.parameters()}


def shared_functions(model: nn.Module) -> list[str]:
    """Return where a network holds functions that may hold the network or a part of it."""
    found = []
    for path, module in model.named_modules():
        name = path or "the model"
        for key, value in module.__dict__.items():
            if key.endswith("_hooks"):
                if any(map(_shared_function, value.values() if isinstance(value, Mapping) else ())):
                    found.append(f"a hook of {name}")
            elif (
                any(map(_shared_function, value if isinstance(value, list | tuple) else (value,)))
                and key != "_compiled_call_impl"
            ):
                found.append(f"{path}.{key}" if path else key)
    return found


def _shared_function(value: Any) -> bool:
    """Whether a value is a user's function. Copies share it, with everything that it holds or finds in its module."""
    while isinstance(value, partial):
        value = value.func
    return isinstance(value, FunctionType) and bool(
        value.__closure__ or not (value.__module__ or "").startswith("torch.")
    )


def _see(model: nn.Module) -> str:
    """Return the end of a sentence that says where the network holds functions."""
    found = shared_functions(model)
    return f": see {', '.join(found[:3])}" if found else ""
