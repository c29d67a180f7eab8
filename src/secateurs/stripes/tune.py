"""The fastest kernel of each stripe convolution, by measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.channels.inputs import call, map_tensors
from secateurs.stripes.kernels import KERNELS
from secateurs.stripes.module import StripeConv2d, size_of

WORTH = 0.98  # of the dense convolution's time, or the dense one is kept


def tune(model: nn.Module, example_inputs: Any, *, rounds: int = 7) -> dict[str, dict[str, float]]:
    """Measure every kernel for every stripe convolution at the sizes that these inputs lead to, and set the fastest.

    Returns for each layer the time of each kernel over the dense convolution's. Do it once for each size of input (and
    batch) that the network is to run on, on the machine that it is to run on. The model computes in eval mode meanwhile.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, StripeConv2d)}
    seen: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, args[0].detach()))
        for name, layer in layers.items()
    ]
    modes = {m: m.training for m in model.modules()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found = {}
    try:
        with torch.no_grad():
            call(model.eval(), map_tensors(lambda t: t.to(device), example_inputs))
            for name, x in seen.items():
                found[name] = fastest(layers[name], x, rounds)
    finally:
        for handle in handles:
            handle.remove()
        for m, training in modes.items():
            m.training = training
    return found


def fastest(layer: StripeConv2d, x: Tensor, rounds: int = 7) -> dict[str, float]:
    """The same for one layer."""
    usable = [name for name, kernel in KERNELS.items() if kernel.usable(x)]
    times: dict[str, list[float]] = {name: [] for name in usable}
    for turn in range(rounds + 1):
        for name in usable:  # in turn, so that what else the machine does falls on all
            synchronise(x)
            began = time.perf_counter()
            layer.run(name, x)
            synchronise(x)
            if turn:  # the first prepares the weights
                times[name].append(time.perf_counter() - began)
    least = {name: min(own) for name, own in times.items()}  # what others do on the machine only ever adds
    best = min(least, key=lambda name: least[name])
    layer.kernels[size_of(x)] = best if least[best] < WORTH * least["dense"] else "dense"
    return {name: t / least["dense"] for name, t in least.items()}


def synchronise(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def choices(model: nn.Module) -> dict[str, dict[str, str]]:
    """What `tune` has set, by layer; to be kept, and given to `choose`."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, StripeConv2d)}
    return {name: dict(layer.kernels) for name, layer in layers.items() if layer.kernels}


def choose(model: nn.Module, kernels: Mapping[str, Mapping[str, str]]) -> None:
    """Set what `choices` gave, for the same network. A layer or kernel that is not there is passed over: the dense
    convolution does in its place."""
    layers = dict(model.named_modules())
    for name, chosen in kernels.items():
        layer = layers.get(name)
        if isinstance(layer, StripeConv2d):
            layer.kernels.update({size: kernel for size, kernel in chosen.items() if kernel in KERNELS})
