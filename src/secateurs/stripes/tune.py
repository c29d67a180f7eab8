"""Select the fastest kernel of each stripe convolution by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.graph.faults import running
from secateurs.graph.inputs import call, check_model, tensors, to_model_device
from secateurs.graph.modes import evaluating
from secateurs.stripes.kernels import KERNELS
from secateurs.stripes.module import StripeConv, size_of

WORTH = 0.98  # a kernel must be faster than this fraction of the dense convolution's time

Key = tuple[str, str]  # a layer's name, the size of its input


def tune(model: nn.Module, example_inputs: Any, *, rounds: int = 7) -> dict[str, dict[str, float]]:
    """Time every kernel for every stripe convolution at the input sizes that result from these inputs, and set the fastest.

    Times are measured from one stripe convolution to the next (or the end), since the ops between them take longer in one
    memory format than in another. Returns for each layer the time of each kernel relative to the dense convolution. Call it
    once for each input (and batch) size that the network will run on, on the target machine. The model runs in eval mode during
    the measurement. Raises TraceError if the model does not run on these inputs.
    """
    check_model(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, StripeConv)}
    training = {m: m.training for m in layers.values()}
    before = {m: dict(m.kernels) for m in layers.values()}
    inputs = to_model_device(model, example_inputs)
    try:
        with running(model, inputs), evaluating(model), torch.no_grad():
            times = _measured(model, layers, inputs, rounds)
            found: list[dict[Key, str]] = [_fastest(times, keep) for keep in (True, False)]
            if found[0] != found[1]:
                found.sort(key=lambda chosen: _seconds(model, layers, inputs, chosen, rounds))
            _set(layers, found[0])
    except BaseException:
        for layer, kernels in before.items():
            layer.kernels = kernels
        raise
    finally:
        for layer, mode in training.items():
            layer.train(mode)  # drops what the kernels prepared
    return {name: {kernel: t / own["dense"] for kernel, t in own.items()} for (name, _), own in times.items()}


def _fastest(times: Mapping[Key, Mapping[str, float]], keep_format: bool) -> dict[Key, str]:
    """Return the fastest kernel of each layer. With `keep_format`, choose among those whose output has the input's memory
    format."""
    chosen = {}
    for key, own in times.items():
        allowed = [name for name in own if KERNELS[name].keeps_format or not keep_format]
        best = min(allowed, key=lambda name: own[name])
        chosen[key] = best if own[best] < WORTH * own["dense"] else "dense"
    return chosen


def _measured(
    model: nn.Module, layers: Mapping[str, StripeConv], inputs: Any, rounds: int
) -> dict[Key, dict[str, float]]:
    """Measure the seconds of each kernel, used in all layers at once. Takes the minimum over several rounds, since other load
    only adds time."""
    times: dict[Key, dict[str, float]] = {}
    kernels = list(KERNELS)
    for turn in range(rounds + 1):  # interleaved, so that other load affects all kernels
        for kernel in list(kernels):
            try:
                took = _timed(model, layers, inputs, partial(_if_usable, kernel))
            except Exception:  # for example, a view that requires another memory format
                if KERNELS[kernel].keeps_format:
                    raise
                took = {}
            if not took:
                kernels.remove(kernel)
            for key, seconds in took.items() if turn else ():  # the first round prepares the weights
                own = times.setdefault(key, {})
                own[kernel] = min(seconds, own.get(kernel, seconds))
    return times


def _if_usable(kernel: str, key: Key, x: Tensor) -> str | None:
    return kernel if KERNELS[kernel].usable(x) else None


def _seconds(
    model: nn.Module, layers: Mapping[str, StripeConv], inputs: Any, chosen: Mapping[Key, str], rounds: int
) -> float:
    """Measure the seconds of the whole model with these kernels."""
    return min(
        sum(_timed(model, layers, inputs, lambda key, _: chosen.get(key, "dense")).values()) for _ in range(rounds)
    )


def _timed(
    model: nn.Module, layers: Mapping[str, StripeConv], inputs: Any, choose: Callable[[Key, Tensor], str | None]
) -> dict[Key, float]:
    """Measure the seconds from each stripe convolution to the next, with the chosen kernels. choose: returns None to leave a
    layer out."""
    took: dict[Key, float] = {}
    running: Key | None = None
    began = 0.0

    def reached(key: Key | None) -> None:
        nonlocal running, began
        now = time.perf_counter()
        if running:
            took[running] = took.get(running, 0.0) + now - began
        running, began = key, time.perf_counter()

    def enter(name: str, layer: StripeConv, x: Tensor) -> None:
        x = layer.as_computed(x)
        synchronize(x)
        key = name, size_of(x)
        kernel = choose(key, x)
        layer.kernels[key[1]] = kernel or "dense"
        reached(key if kernel else None)

    handles = [
        layer.register_forward_pre_hook(lambda module, args, name=name: enter(name, module, args[0]))
        for name, layer in layers.items()
    ]
    try:
        for out in tensors(call(model, inputs)):
            synchronize(out)
        reached(None)
    finally:
        for handle in handles:
            handle.remove()
    return took


def _set(layers: Mapping[str, StripeConv], chosen: Mapping[Key, str]) -> None:
    for (name, size), kernel in chosen.items():
        layers[name].kernels[size] = kernel


def synchronize(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def choices(model: nn.Module) -> dict[str, dict[str, str]]:
    """Return the kernels that `tune` set, by layer: the input of `choose`."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, StripeConv)}
    return {name: dict(layer.kernels) for name, layer in layers.items() if layer.kernels}


def choose(model: nn.Module, kernels: Mapping[str, Mapping[str, str]]) -> None:
    """Set the kernels that `choices` returned for the same network. A missing layer or kernel is skipped: the dense
    convolution is used instead."""
    layers = dict(model.named_modules())
    for name, chosen in kernels.items():
        layer = layers.get(name)
        if isinstance(layer, StripeConv):
            layer.kernels.update({size: kernel for size, kernel in chosen.items() if kernel in KERNELS})
