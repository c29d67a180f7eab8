"""Measure pieces in PyTorch, op by op, as a network runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.deploy.clock import Program, per_run
from secateurs.deploy.target import DTYPES, Target
from secateurs.latency.geometry import DEPTHWISE, Geometry

LEAST, SPAN = 3, 4e-3  # minimum runs and seconds of a measurement
BLOCK = {"cpu": 2e-4, "cuda": 2e-3}  # seconds between two readings of the clock

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0, inplace=True),
    "silu": lambda x: F.silu(x, inplace=True),
    "gelu": F.gelu,
    "hardswish": lambda x: F.hardswish(x, inplace=True),
    "hardsigmoid": lambda x: F.hardsigmoid(x, inplace=True),
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
    "leaky_relu": F.leaky_relu_,
    "mish": lambda x: F.mish(x, inplace=True),
}


def measure(geometry: Geometry, points: Sequence[tuple[int, int]], target: Target) -> list[float]:
    with torch.inference_mode():
        return [best(program(geometry, *widths, target), target.device.type) for widths in points]


def best(program: Program, device: str = "cpu") -> float:
    """Return the seconds of the fastest of several runs. Other load on the machine only slows runs down."""
    per_run(program)  # allocates memory
    once = per_run(program)
    repeats = max(1, round(BLOCK[device] / once)) if once > 0 else 1
    found, spent = [once], once
    while len(found) < LEAST or spent < SPAN:
        found.append(per_run(program, repeats))
        spent += found[-1] * repeats
    return min(found)


def program(geometry: Geometry, wide_in: int, wide_out: int, target: Target) -> Program:
    """Return a program that runs a piece at these widths on arbitrary values."""
    run = _run(geometry, wide_in, wide_out, target)
    if target.device.type != "cuda":
        return Program(run)
    if target.mode == "eager":
        return Program(run, torch.cuda.synchronize)
    for _ in range(3):  # warm up: launches through a graph cost the host next to nothing
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return Program(graph.replay, torch.cuda.synchronize)


def _run(g: Geometry, wide_in: int, wide_out: int, target: Target) -> Callable[[], object]:
    device, dtype = target.device, DTYPES[target.precision]

    def made(*shape: int) -> Tensor:
        x = torch.full(shape, 0.1, device=device, dtype=dtype)
        return x.to(memory_format=torch.channels_last) if target.channels_last and len(shape) == 4 else x

    fused = target.mode != "eager"  # ops that follow a layer are part of its kernel
    steps: list[Callable[[Tensor], Tensor]] = []
    if g.kind == "linear":
        x, w = made(g.batch, wide_in), made(wide_out, wide_in)
        layer: Callable[[], Tensor] = lambda: F.linear(x, w)  # noqa: E731
    elif g.kind == "convolution":
        layer = _convolution(g, wide_in, wide_out, made)
    elif g.kind == "norm":
        x = made(g.batch, wide_out, *g.space)
        own = _norm(wide_out, made)
        layer = lambda: own(x)  # noqa: E731
    elif g.kind == "concatenation":
        half = max(1, wide_out // 2)
        parts = [made(g.batch, half, *g.space), made(g.batch, max(1, wide_out - half), *g.space)]
        layer = lambda: torch.cat(parts, 1)  # noqa: E731
    elif g.kind == "pooling":
        layer = _pooling(g, made(g.batch, wide_out, *g.space))
    else:
        x, y = made(g.batch, wide_out, *g.space), made(g.batch, wide_out, *g.space)
        act = _ACTIVATIONS.get(g.activation, F.relu)
        layer = (lambda: torch.add(x, y)) if g.inputs > 1 else (lambda: act(x))
    if g.kind in ("convolution", "linear") and g.norm and not fused:
        steps.append(_norm(wide_out, made))
    if g.added:
        other = torch.zeros_like(layer())
        steps.append(lambda x: x.add_(other))
    if g.activation and g.kind != "pointwise" and not fused:
        steps.append(_ACTIVATIONS.get(g.activation, torch.relu_))

    def run() -> object:
        with torch.inference_mode():
            x = layer()
            for step in steps:
                x = step(x)
            return x

    return run


def _convolution(g: Geometry, wide_in: int, wide_out: int, made: Callable[..., Tensor]) -> Callable[[], Tensor]:
    groups = wide_in if g.groups == DEPTHWISE else g.groups
    x, axes = made(g.batch, wide_in, *g.space), len(g.space)
    shape = (wide_in, wide_out // groups) if g.transposed else (wide_out, wide_in // groups)
    w = made(*shape, *g.kernel)
    if g.transposed:
        function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        return lambda: function(x, w, None, g.stride, g.padding, 0, groups, g.dilation)
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return lambda: function(x, w, None, g.stride, g.padding, g.dilation, groups)


def _norm(width: int, made: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    mean, var, weight, bias = (made(width) for _ in range(4))
    return lambda x: F.batch_norm(x, mean, var, weight, bias, False)


def _pooling(g: Geometry, x: Tensor) -> Callable[[], Tensor]:
    axes = len(g.space)
    if g.mode == "global" or not 1 <= axes <= 3:
        dims = list(range(2, x.ndim)) or [-1]
        return lambda: x.mean(dims, keepdim=True)
    name = f"{'max' if g.mode == 'max' else 'avg'}_pool{axes}d"
    function = getattr(F, name)
    return lambda: function(x, g.kernel, g.stride, g.padding)
