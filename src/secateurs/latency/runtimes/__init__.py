"""Measure pieces of a network in each runtime at many widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from secateurs.deploy.target import Runtime, Target
from secateurs.latency.geometry import Geometry
from secateurs.latency.runtimes import in_onnx, in_openvino, in_torch

Widths = tuple[int, int]  # in and out
Measure = Callable[[Geometry, Sequence[Widths], Target], list[float]]

_MEASURES: dict[Runtime, Measure] = {
    "torch-cpu": in_torch.measure,
    "torch-cuda": in_torch.measure,
    "onnxruntime": in_onnx.measure,
    "openvino": in_openvino.measure,
}


def measure(geometry: Geometry, points: Sequence[Widths], target: Target) -> list[float]:
    """Return the seconds of one run of a piece at each of these widths: the minimum of several runs."""
    return _MEASURES[target.runtime](geometry, points, target)


def nbytes(geometry: Geometry, widths: Widths) -> int:
    """Return the bytes that a piece needs at these widths in float32."""
    wide_in, wide_out = widths
    space = kernel = 1
    for n in geometry.space:
        space *= n
    for n in geometry.kernel:
        kernel *= n
    weights = wide_in * wide_out * kernel // max(1, geometry.groups) if geometry.square else wide_out * kernel
    return 4 * (weights + geometry.batch * space * (wide_in + 2 * wide_out))


def channels(geometry: Geometry, widths: Widths) -> Widths:
    """Round widths up to widths that a convolution with groups can have."""
    n = max(1, geometry.groups)
    return -(-widths[0] // n) * n, -(-widths[1] // n) * n
