"""Training steps without Python between the kernels: the network compiled, on a GPU with CUDA graphs."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from secateurs.graph.inputs import call, tensors
from secateurs.seeds import preserve_rng_state
from secateurs.training.run import TrainingRun

log = logging.getLogger("secateurs")

# Steps that are worth it: compiling takes a minute or so, and saves some milliseconds a step. Not measured on a GPU.
STEPS = 5000
RUNS = 3  # on a GPU, before a graph replays: to warm up, to record, to replay


def options(device: torch.device) -> dict[str, Any]:
    """The arguments of torch.compile."""
    return {"mode": "reduce-overhead"} if device.type == "cuda" else {}


def wanted(run: TrainingRun) -> bool:
    """Whether to compile the network: if the recipe says so, or on its own where it pays."""
    if run.recipe.compile != "auto":
        return run.recipe.compile
    return (
        run.device.type == "cuda"
        and run.world == 1
        and run.recipe.accumulate == 1  # gradients of several batches would live in one graph's memory
        and not run.objective.whole  # a function of the user's own may read values
        and run.total is not None
        and run.total - run.step >= STEPS
        and all(getattr(hook, "captures", True) for hook in run.hooks)
        and importlib.util.find_spec("triton") is not None
    )


class Captured(nn.Module):
    """The compiled network for inputs of one form, and the network itself for all others, such as an incomplete last batch:
    each form would be compiled anew."""

    def __init__(self, net: nn.Module, compiled: Callable[..., Any], inputs: Any) -> None:
        super().__init__()
        self._both = net, compiled  # a tuple, so that it is not registered: parameters have one owner
        self._form = _form(inputs)
        self._graphs = any(x.device.type == "cuda" for x in tensors(inputs))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        net, compiled = self._both
        if _form((args, kwargs)) != self._form:
            return net(*args, **kwargs)
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(*args, **kwargs)


def _form(inputs: Any) -> list[Any]:
    return [(x.shape, x.stride(), x.dtype, x.device) for x in tensors(inputs)]


def captured(
    net: nn.Module, inputs: Any, autocast: Callable[[], AbstractContextManager[Any]], clear: Callable[[], None]
) -> nn.Module:
    """The network, compiled and tried forward and backward on these inputs; the network itself, and a warning, if that fails.
    Neither its state nor the generators change. clear: sets all gradients to None."""
    device = next((x.device for x in tensors(inputs)), torch.device("cpu"))
    buffers = [(m, dict(m._buffers)) for m in net.modules()]
    values = [(x, x.detach().clone()) for x in net.buffers()]
    try:
        with preserve_rng_state():
            compiled = torch.compile(net, **options(device))
            made = Captured(net, compiled, inputs)
            for _ in range(RUNS if device.type == "cuda" else 1):
                with autocast():
                    out = call(made, inputs)
                if sums := [x.float().sum() for x in tensors(out) if x.requires_grad]:
                    torch.stack(sums).sum().backward()
                clear()
    except (
        Exception
    ) as error:  # a compiler's errors are of many types; those of the network itself come again without it
        reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
        log.warning("The training step is not compiled (compile=False silences this): %s", reason)
        return net
    finally:
        clear()
        with torch.no_grad():
            for module, own in buffers:
                module._buffers.clear()
                module._buffers.update(own)
            for x, before in values:
                x.copy_(before)
    return made
