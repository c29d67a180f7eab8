"""The fused kernel for NVIDIA GPUs, in Triton: for each tile of output pixels, all positions in turn, in one launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from secateurs.stripes.layout import Layout

PIXELS, CHANNELS = 64, 32  # pixels of a tile; channels multiplied at a time
LEAST, MOST = 16, 64  # filters of a block: the minimum for tensor cores, and the maximum for the registers


class Packed:
    """Weights in blocks of filters that keep one position: (B, C, F), zeros for filters that a block lacks."""

    def __init__(self, layout: Layout, weight: Tensor) -> None:
        positions = layout.positions
        widest = max((len(rows) for _, rows, _ in positions), default=0)
        self.size = min(MOST, max(LEAST, triton.next_power_of_2(widest)))
        blocks = [
            (p, rows[part], filters[part])
            for p, rows, filters in positions
            for part in torch.arange(len(rows)).split(self.size)
        ]
        self.weights = weight.new_zeros(len(blocks), weight.shape[1], self.size)
        owners = torch.full((len(blocks), self.size), -1, dtype=torch.int32)
        offsets = torch.zeros(len(blocks), 2, dtype=torch.int32)
        for i, (position, rows, filters) in enumerate(blocks):
            self.weights[i, :, : len(rows)] = weight[rows.to(weight.device)].t()
            owners[i, : len(rows)] = filters
            offsets[i] = torch.tensor(layout.offset(position))
        self.owners, self.offsets = owners.to(weight.device), offsets.to(weight.device)


@triton.jit
def _add_stripes(  # type: ignore[no-untyped-def]
    x, weights, owners, offsets, out, blocks, channels, filters, height, width, out_height, out_width,
    top, left, down: tl.constexpr, right: tl.constexpr, F: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """out[n, owners[b, f], pixel] += Σ_c weights[b, c, f] · x[n, c, pixel·stride + offsets[b]], for all b in turn."""
    n = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * P + tl.arange(0, P)
    row, column = pixel // out_width, pixel % out_width
    real = pixel < out_height * out_width
    f = tl.arange(0, F)
    for b in range(blocks):
        h = row * down + tl.load(offsets + 2 * b) - top
        w = column * right + tl.load(offsets + 2 * b + 1) - left
        inside = real & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        sums = tl.zeros((F, P), dtype=tl.float32)
        for first in range(0, channels, C):
            c = first + tl.arange(0, C)
            block = tl.load(
                weights + (b * channels + c[None, :]) * F + f[:, None], mask=c[None, :] < channels, other=0.0
            )
            at = (n * channels + c[:, None]) * height * width + (h * width + w)[None, :]
            values = tl.load(x + at, mask=inside[None, :] & (c[:, None] < channels), other=0.0)
            sums += tl.dot(block, values, input_precision="ieee")  # (F, C) @ (C, P)
        owner = tl.load(owners + b * F + f)
        to = out + (n * filters + owner[:, None]) * out_height * out_width + pixel[None, :]
        mask = (owner[:, None] >= 0) & real[None, :]
        tl.store(to, tl.load(to, mask=mask, other=0.0) + sums, mask=mask)
        tl.debug_barrier()  # the next block may add to the same outputs from other threads


def stripe_conv2d(layout: Layout, packed: Packed, bias: Tensor | None, x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, O, H', W'), summed in float32."""
    x = x.contiguous()
    n, channels, height, width = x.shape
    (out_height, out_width), filters = layout.out_size(height, width), len(layout.kept)
    start = x.new_zeros(filters, dtype=torch.float32) if bias is None else bias.float()
    out = start.view(1, -1, 1, 1).expand(n, -1, out_height, out_width).contiguous()
    grid: Any = (triton.cdiv(out_height * out_width, PIXELS), n)
    if len(packed.weights):
        _add_stripes[grid](
            x, packed.weights, packed.owners, packed.offsets, out, len(packed.weights), channels, filters, height, width,
            out_height, out_width, layout.padding[0], layout.padding[2], layout.stride[0], layout.stride[1],
            F=packed.size, P=PIXELS, C=CHANNELS,
        )  # fmt: skip
    return out.to(x.dtype)
