"""Blocks of filters that keep the same stripes: what hardware that computes several filters at a time can skip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from torch import nn

from secateurs.graph.channels import parameter

Blocks = Mapping[str, np.ndarray]  # weight → (filters,) the block of each filter, counted from 0


def blocks(model: nn.Module, kernels: Iterable[str], size: int) -> dict[str, np.ndarray]:
    """Blocks of `size` filters of similar shapes; the last one of a layer may be smaller.

    A filter's shape is the norms of its stripes. The largest filter begins a block, and those closest to it join.
    """
    found = {}
    for name in kernels:
        weight = parameter(model, name).detach().float()  # (O, C, *kernel)
        shapes = weight.square().sum(1).sqrt().flatten(1).double().cpu().numpy()  # (O, positions)
        found[name] = _grouped(shapes, size)
    return found


def _grouped(shapes: np.ndarray, size: int) -> np.ndarray:
    """(rows,) the block of each row."""
    block = np.full(len(shapes), -1, dtype=np.int64)
    lengths = np.linalg.norm(shapes, axis=1)
    for b in range(-(-len(shapes) // size)):
        left = np.flatnonzero(block < 0)
        first = left[np.argmax(lengths[left])]
        apart = np.linalg.norm(shapes[left] - shapes[first], axis=1)
        block[left[np.argsort(apart, kind="stable")[:size]]] = b
    return block
