"""Detectors' operators for regions in plain PyTorch, for a torchvision whose C++ operators cannot be loaded."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 512  # boxes that are compared with all others at once


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes kept by greedy non-maximum suppression, highest score first.

    boxes (N, 4) as x1, y1, x2, y2; scores (N,); a box is suppressed if its IoU with a kept box with a higher score is above the
    threshold. Returns (K,) int64.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order].float()  # (N, 4)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for first in range(0, len(boxes), _ROWS):
        rows = first + alive[first : first + _ROWS].nonzero()[:, 0]  # (R,) the others are already suppressed
        corner = torch.maximum(boxes[rows, None, :2], boxes[None, first:, :2])  # (R, N - first, 2)
        overlap = (torch.minimum(boxes[rows, None, 2:], boxes[None, first:, 2:]) - corner).clamp(min=0).prod(2)
        iou = overlap / (area[rows, None] + area[None, first:] - overlap)
        above = (iou > iou_threshold).cpu().numpy()  # 0/0 for two empty boxes: nan is not above, both stay
        left = alive[first:].cpu().numpy().copy()
        for row, i in enumerate((rows - first).tolist()):
            if left[i]:
                left[i + 1 :] &= ~above[row, i + 1 :]
        alive[first:] = torch.from_numpy(left).to(alive.device)
    return order[alive]


def roi_align(
    x: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoI Align (He et al., 2017), computed as by torchvision's operator of that name.

    x (N, C, H, W); rois (K, 5) as image index, x1, y1, x2, y2; sampling_ratio: samples per bin along each side. If it is below
    1, it is taken from the size of each bin. Returns (K, C, pooled_height, pooled_width).
    """
    index, weight = _taps(x.shape, rois, spatial_scale, (pooled_height, pooled_width), sampling_ratio, aligned)
    pixels = x.movedim(1, 3).reshape(-1, x.shape[1])  # (N · H · W, C)
    bins = _weighted(index, pixels, weight)  # (K · pooled_height · pooled_width, C)
    out = bins.view(len(rois), pooled_height, pooled_width, x.shape[1])
    return out.movedim(3, 1).contiguous().to(x.dtype)


def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save what the backward pass of `roi_align` needs."""
    x, rois, scale, *size, samples, aligned = inputs
    ctx.save_for_backward(rois)
    ctx.shape, ctx.arguments = x.shape, (scale, tuple(size), samples, aligned)


def roi_align_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradient of `x`: each pixel gets every bin's gradient times its weight there. The rois get none."""
    (rois,) = ctx.saved_tensors
    index, weight = _taps(ctx.shape, rois, *ctx.arguments)
    n, channels, height, width = ctx.shape
    bins = grad.movedim(1, 3).reshape(-1, channels)  # (K · pooled_height · pooled_width, C)
    order = index.flatten().argsort(stable=True)
    begin = torch.searchsorted(index.flatten()[order], torch.arange(n * height * width, device=index.device))
    pixels = _weighted(order // index.shape[1], bins, weight.flatten()[order], begin) if len(bins) else bins.sum()
    found = pixels.expand(n * height * width, channels).view(n, height, width, channels).movedim(3, 1)
    return found.contiguous().to(grad.dtype), *[None] * 6


def _weighted(index: Tensor, rows: Tensor, weight: Tensor, begin: Tensor | None = None) -> Tensor:
    """Return weighted sums of rows (R, C), one for each row of `index`, or for each part that `begin` marks: (sums, C)."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return F.embedding_bag(index, rows, begin, mode="sum", per_sample_weights=weight.to(rows.dtype))


def _taps(
    shape: torch.Size, rois: Tensor, scale: float, pooled: tuple[int, int], samples: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return the pixels that each bin reads, as rows of (N · H · W, C), and their weights: (K · pooled, taps) each."""
    height, width = shape[2:]
    rois = rois.float()
    start = rois[:, [2, 1]] * scale - 0.5 * aligned  # (K, 2) as y, x
    size = (rois[:, [4, 3]] - rois[:, [2, 1]]) * scale
    if not aligned:
        size = size.clamp(min=1)
    (rows, of_rows), (columns, of_columns) = (
        _along(start[:, axis], size[:, axis], pooled[axis], side, samples) for axis, side in ((0, height), (1, width))
    )  # (K, pooled, taps) each
    index = rows[:, :, None, :, None] * width + columns[:, None, :, None, :]  # (K, PH, PW, taps, taps)
    index = index + (rois[:, 0].long() * height * width).view(-1, 1, 1, 1, 1)
    weight = of_rows[:, :, None, :, None] * of_columns[:, None, :, None, :]
    return index.flatten(3).flatten(0, 2), weight.flatten(3).flatten(0, 2)


def _along(start: Tensor, size: Tensor, bins: int, side: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return the positions along one axis that each bin reads, two per sample, and their weights: (K, bins, taps) each.

    start, size: the start and size of each region, (K,). side: the size of the image.
    """
    each = (size / bins)[:, None, None]  # (K, 1, 1) the size of a bin
    count = torch.full_like(each, samples) if samples > 0 else each.ceil().clamp(min=1)  # samples per bin
    sample = torch.arange(int(count.max()) if len(count) else 1, device=start.device)
    bin_ = torch.arange(bins, device=start.device)[:, None]
    at = start[:, None, None] + (bin_ + (sample + 0.5) / count) * each  # (K, bins, samples)
    # Samples more than a pixel outside count as 0; up to a pixel outside, they read the edge.
    valid = (sample < count) & (at >= -1) & (at <= side)
    at = at.clamp(0, side - 1)
    low = at.floor()
    part = at - low
    weight = torch.stack([1 - part, part], dim=-1) * (valid / count)[..., None]
    index = torch.stack([low, (low + 1).clamp(max=side - 1)], dim=-1).long()
    return index.flatten(2), weight.flatten(2)
