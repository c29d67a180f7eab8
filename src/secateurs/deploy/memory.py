"""Measure the peak memory of a network's tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn

from secateurs.graph.dispatch import DispatchMode
from secateurs.graph.leaves import tensors


class _Live(DispatchMode):
    """Counts the bytes of the storages that ops allocate, as long as they are alive."""

    def __init__(self, held: set[int]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = held  # storages, by address

    def add(self, x: torch.Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tensors(out):
            self.add(x)
        return out


def peak(model: nn.Module, run: Callable[[], object], inputs: Any) -> int:
    """Return the peak memory of a run in bytes: parameters, buffers, inputs, and the activations alive at the peak. On a CPU,
    it does not include what an op uses internally (such as a convolution's workspace)."""
    storages = [x.untyped_storage() for x in chain(model.parameters(), model.buffers(), tensors(inputs))]
    held = {s._cdata: s.nbytes() for s in storages}
    device = storages[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return sum(held.values()) + torch.cuda.max_memory_allocated(device) - before
    live = _Live(set(held))
    with live:
        run()
    return sum(held.values()) + live.peak
