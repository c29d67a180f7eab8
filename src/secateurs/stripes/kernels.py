"""Kernels that compute a stripe convolution. All return the same output up to rounding; the fastest depends on the layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.errors import ConfigError
from secateurs.stripes import native
from secateurs.stripes.layout import Layout, Size, dense, pairs

Cached = dict[str, Any]  # what a kernel precomputed from the weights, reused until they change
Run = Callable[[Layout, Tensor, Tensor | None, Tensor, Cached], Tensor]


@dataclass(frozen=True)
class Kernel:
    """A kernel: run(layout, weight, bias, x, cached) -> (N, O, *out), without gradients. `usable` tells whether it can run.

    A contiguous input has a contiguous output, unless the kernel is marked as not keeping the memory format.
    """

    run: Run
    usable: Callable[[Tensor], bool]
    keeps_format: bool = True


def padded(x: Tensor, padding: Size) -> Tensor:
    """Pad with zeros; negative padding crops. padding: as in a `Layout`."""
    if not any(padding):
        return x
    sides = pairs(padding)
    if min(padding) < 0:  # F.pad cannot crop more than a whole axis, which a map smaller than the dilation requires
        wanted = [n + before + after for n, (before, after) in zip(x.shape[-len(sides) :], sides, strict=True)]
        axes = list(zip(wanted, sides, strict=True))
        part: Any = (..., *(slice(max(-before, 0), max(n - before, 0)) for n, (before, _) in axes))
        x = x[part]
        left = x.shape[-len(sides) :]
        starts = [min(max(before, 0), n - own) for (n, (before, _)), own in zip(axes, left, strict=True)]
        sides = [(start, n - start - own) for start, n, own in zip(starts, wanted, left, strict=True)]
    return F.pad(x, [p for pair in reversed(sides) for p in pair])  # F.pad begins with the last axis


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
    """Compute the dense convolution with this weight, (O, C, *kernel)."""
    conv, before = _DENSE[weight.ndim - 3], layout.padding[::2]
    if before == layout.padding[1::2] and min(before) >= 0:
        return conv(x, weight, bias, layout.stride, before, layout.dilation)
    return conv(padded(x, layout.padding), weight, bias, layout.stride, 0, layout.dilation)


_DENSE: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


def _dense(layout: Layout, weight: Tensor, bias: Tensor | None, x: Tensor, cached: Cached) -> Tensor:
    if "dense" not in cached:
        full = dense(layout.kept, weight)
        # In the memory format of the input; otherwise cuDNN would convert it in each call.
        if x.device.type != "cpu" and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            full = full.contiguous(memory_format=torch.channels_last)
        cached["dense"] = full
    return convolved(x, cached["dense"], bias, layout)


def _gemm(layout: Layout, weight: Tensor, bias: Tensor | None, x: Tensor, cached: Cached) -> Tensor:
    """Compute one product of all stripes for each phase of the stride, then add it, shifted, for each position.

    This works on a few images at a time, so that the products of all stripes, S/O times the output, fit in the cache.
    """
    if "gemm" not in cached:
        cached["gemm"] = [
            (
                place,
                weight[torch.cat([rows for _, rows, _ in own])][..., None, None],
                [(position, filters) for position, _, filters in own],
            )
            for place, own in _by_phase(layout).items()
        ]
    x = padded(x, layout.padding)
    (sh, sw), (dh, dw) = layout.stride, layout.dilation
    height = (x.shape[2] - dh * (layout.kernel_size[0] - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (layout.kernel_size[1] - 1) - 1) // sw + 1
    if min(height, width) < 1:
        raise ConfigError(f"The input is too small: the output would be empty ({height}x{width}).")
    outputs = layout.kept.shape[0]
    exact = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    start = x.new_zeros(outputs, dtype=exact) if bias is None else bias.to(exact)
    out = start.view(1, -1, 1, 1).expand(len(x), -1, height, width).contiguous()
    images = max(1, _CACHED // max(1, len(weight) * x.shape[2] * x.shape[3]))
    for first in range(0, len(x), images):
        chunk, sums = x[first : first + images], out[first : first + images]
        for (a, b), rows, owners in cached["gemm"]:
            part = chunk[:, :, a::sh, b::sw]
            products = F.conv2d(part, rows)  # (n, S, h, w): one product, by the fastest library for it
            at = 0
            for position, filters in owners:
                r, c = (o // s for o, s in zip(layout.offset(position), layout.stride, strict=True))
                own = products[:, at : at + len(filters), r : r + height, c : c + width]
                sums.index_add_(1, filters, own.to(exact))
                at += len(filters)
    return out.to(x.dtype)


_CACHED = 1 << 20  # values


def _by_phase(layout: Layout) -> dict[tuple[int, int], list[tuple[int, Tensor, Tensor]]]:
    phases: dict[tuple[int, int], list[tuple[int, Tensor, Tensor]]] = {}
    for position, rows, filters in layout.positions:
        r, c = layout.offset(position)
        phases.setdefault((r % layout.stride[0], c % layout.stride[1]), []).append((position, rows, filters))
    return phases


def _fused(fill: str, channels_last: bool = False) -> Run:
    """Return the kernel of cpu/ that holds pixels, images or filters in registers."""

    def run(layout: Layout, weight: Tensor, bias: Tensor | None, x: Tensor, cached: Cached) -> Tensor:
        ops, kind = native.load(), "wide" if fill == "filters" else "narrow"
        if kind not in cached:
            most, lanes = (2 * ops.lanes(), ops.lanes()) if kind == "wide" else (ops.most(), 1)
            cached[kind] = native.Packed(layout, weight, most, lanes)
        packed: native.Packed = cached[kind]
        found: Tensor = ops.stripe_conv2d(
            fill, x, packed.weights, packed.blocks, packed.filters, bias, len(layout.kept), layout.kernel_size,
            layout.stride, layout.padding, layout.dilation, channels_last,
        )  # fmt: skip
        return found

    return run


def _image_on_cpu(x: Tensor) -> bool:
    return x.ndim == 4 and x.device.type == "cpu"


def _compiled(x: Tensor) -> bool:
    return _image_on_cpu(x) and x.dtype == torch.float32 and x.numel() > 0 and native.load() is not None


def _several(x: Tensor) -> bool:
    return _compiled(x) and len(x) > 1


KERNELS: dict[str, Kernel] = {
    "dense": Kernel(_dense, lambda x: True),
    "gemm": Kernel(_gemm, _image_on_cpu),
    "native": Kernel(_fused("pixels"), _compiled),
    "native-wide": Kernel(_fused("filters"), _compiled),
    "native-images": Kernel(_fused("images"), _several),
    "native-images-last": Kernel(_fused("images", channels_last=True), _several, keeps_format=False),
}
