"""Decode images to batches in threads, a few batches ahead of the one in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateurs.data.augment import Draws, gather
from secateurs.data.images import decode
from secateurs.data.unreadable import Skipped, Unreadable
from secateurs.errors import DataError

_AHEAD = 2  # batches decoded ahead of the one in use

Encoded = tuple[str, "Path | bytes"]  # its name, and the image
EncodedBatch = tuple[list[Encoded], Tensor, "Draws | None"]  # with targets (N,)


class Decoder:
    """An image that cannot be read raises DataError; with `skip` it is left out of its batch, counted in `skipped` and reported
    once.

    alone: no other process waits for our batches, so an empty last batch may be dropped.
    """

    def __init__(
        self, size: tuple[int, int], resize: bool, *, workers: int, device: torch.device, where: str, alone: bool = True,
        skip: bool = False,
    ) -> None:  # fmt: skip
        self.alone = alone
        self.size, self.resize, self.workers, self.device, self.where = size, resize, workers, device, where
        self._skipped = Skipped(skip)

    @property
    def skipped(self) -> int:
        return len(self._skipped)

    def run(self, batches: Iterator[EncodedBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, H, W, 3) uint8 and targets (N,), on the device. The batches are drawn in a separate thread."""
        pending: deque[tuple[EncodedBatch, list[Future[np.ndarray | Unreadable]]]] = deque()
        pool, reader = ThreadPoolExecutor(self.workers), ThreadPoolExecutor(1)
        try:
            coming = reader.submit(next, batches, None)
            more = True
            while True:
                while more and len(pending) <= _AHEAD:
                    batch = coming.result()
                    more = batch is not None
                    if batch is not None:
                        coming = reader.submit(next, batches, None)
                        tasks = [pool.submit(decode, x, self.size, self.resize, name) for name, x in batch[0]]
                        pending.append((batch, tasks))
                if not pending:
                    return
                images, targets = self._collect(*pending.popleft())
                if len(targets):
                    yield images, targets
                elif more or pending or not self.alone:
                    raise DataError(f"No image of a batch can be read ({self.where}).")
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            reader.shutdown(wait=True, cancel_futures=True)

    def _collect(self, batch: EncodedBatch, futures: list[Future[np.ndarray | Unreadable]]) -> tuple[Tensor, Tensor]:
        _, targets, draws = batch
        decoded = [future.result() for future in futures]
        good = torch.tensor([not isinstance(image, Unreadable) for image in decoded], dtype=torch.bool)
        for image in decoded:
            if isinstance(image, Unreadable):
                self._skipped.add(image)
        arrays = [image for image in decoded if not isinstance(image, Unreadable)]
        if not arrays:
            return torch.empty(0), torch.empty(0)
        images = torch.from_numpy(np.stack(arrays)).to(self.device, non_blocking=True)
        rows = torch.arange(len(arrays), device=self.device)
        return gather(images, rows, None if draws is None else draws[good]), targets[good].to(
            self.device, non_blocking=True
        )
