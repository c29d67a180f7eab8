"""Optimize a network for inference: fewer ops, and the memory format that is fastest on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.deploy.clock import check_seconds, in_turn, ratios
from secateurs.deploy.export import AGREEMENT
from secateurs.deploy.fold import folded_, merged_
from secateurs.deploy.runners import program
from secateurs.devices import channels_last_, full_precision
from secateurs.graph.copies import copied
from secateurs.graph.faults import running
from secateurs.graph.inputs import call, tensors, to_model_device
from secateurs.seeds import preserve_rng_state
from secateurs.stripes import StripeConv, tune
from secateurs.surgery.compare import disagreement

log = logging.getLogger("secateurs")


@torch.inference_mode(False)
@preserve_rng_state()
def deployed(model: nn.Module, example_inputs: Any, *, seconds: float = 1.0) -> nn.Module:
    """Return a copy of a network optimized for inference, in eval mode: an ordinary module that computes the same, faster.

    Branches are merged where blocks support it (`reparameterize`, `switch_to_deploy`, `fuse`), batch norms are folded into the
    layers before them, and stripe convolutions get their fastest kernels. The network uses the memory format (contiguous or
    channels last) that is faster on the model's device, as measured on these inputs for `seconds`.

    After merging and folding, the outputs must agree with the given network's to a relative 1e-4 (four units of rounding in
    half precision). A step that does not agree is left out, with a warning. The given model is not modified. Raises TraceError
    if it does not run on these inputs.
    """
    check_seconds(seconds)
    model, inputs = copied(model).eval(), to_model_device(model, example_inputs)
    with running(model, inputs):
        due = _outputs(model, inputs)
    for name, step in (("merging branches", merged_), ("folding batch norms", lambda m: folded_(m, inputs))):
        changed = copied(model)
        why = _wrong(changed, step, inputs, due)
        if why:
            log.warning("deploy: %s was left out: %s", name, why)
        else:
            model = changed
    return _fastest(model, inputs, seconds) if any(p.ndim == 4 for p in model.parameters()) else model


def _wrong(model: nn.Module, step: Callable[[nn.Module], int], inputs: Any, due: Sequence[Tensor]) -> str:
    """Apply a step in place, and return why its result cannot be used; empty if it can."""
    try:
        if not step(model):
            return ""
        found = disagreement(_outputs(model.eval(), inputs), due, "given")
    except Exception as error:  # blocks' own code may not support pruned widths
        return f"{type(error).__name__}: {error}"
    rounding = max(torch.finfo(x.dtype).eps for x in [*due, torch.empty(0)] if x.is_floating_point())
    return "" if found <= max(AGREEMENT, 4 * rounding) else f"outputs would differ by {found:.1e}"


def _fastest(model: nn.Module, inputs: Any, seconds: float) -> nn.Module:
    """Return the network in channels-last format if that is faster beyond the noise; otherwise, return it as it is."""
    last = copied(model)
    channels_last_(last)
    for network in (model, last):
        if any(isinstance(m, StripeConv) for m in network.modules()):
            tune(network, inputs, rounds=3)
    found = in_turn({"as it is": program(model, inputs), "channels last": program(last, inputs)}, seconds)
    return last if ratios(found, "as it is", "channels last").low > 1 else model


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad(), full_precision():
        return [x.clone() for x in tensors(call(model, inputs))]
