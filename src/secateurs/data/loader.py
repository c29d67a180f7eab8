"""Batches in an order that depends on the seed, the epoch and the batch, and on nothing else."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from secateurs.data.augment import Augment, Draws, gather, generator
from secateurs.data.images import FolderSplit, decode
from secateurs.errors import DataError

log = logging.getLogger("secateurs")

_AHEAD = 2  # batches decoded ahead of the one in use
_ORDER = 0xFFFFFFFF  # in the place of the batch index, for the draw of the order


class Source(Protocol):
    """Images by index, with their targets."""

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def stream(self, batches: Iterator[tuple[Tensor, Draws | None]]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each (indices (N,), draws): images (N, H, W, 3) uint8 and targets (N,), on the source's device."""


class ArraySource:
    """Images held in memory (or mapped from the cache), on the device that trains: (count, H, W, 3) uint8."""

    def __init__(self, images: Tensor, targets: Tensor, *, device: torch.device, skipped: int = 0) -> None:
        self.images = images.to(device)
        self.targets = targets.to(device)
        self._skipped = skipped

    @property
    def skipped(self) -> int:
        return self._skipped

    def __len__(self) -> int:
        return len(self.targets)

    def stream(self, batches: Iterator[tuple[Tensor, Draws | None]]) -> Iterator[tuple[Tensor, Tensor]]:
        for indices, draws in batches:
            indices = indices.to(self.images.device)
            yield gather(self.images, indices, draws), self.targets[indices]


class FileSource:
    """Images too many for memory: decoded by threads as they are needed, a few batches ahead.

    A file that cannot be decoded is left out of its batch, counted in `skipped` and reported once.
    """

    def __init__(self, split: FolderSplit, size: tuple[int, int], resize: bool, *, workers: int, device: torch.device):
        self.split, self.size, self.resize, self.workers, self.device = split, size, resize, workers, device
        self.targets = torch.from_numpy(split.labels)
        self._broken: set[int] = set()

    @property
    def skipped(self) -> int:
        return len(self._broken)

    def __len__(self) -> int:
        return len(self.split.files)

    def stream(self, batches: Iterator[tuple[Tensor, Draws | None]]) -> Iterator[tuple[Tensor, Tensor]]:
        pending: deque[tuple[Tensor, Draws | None, list[Future[np.ndarray | None]]]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            while True:
                while len(pending) <= _AHEAD and (item := next(batches, None)) is not None:
                    futures = [pool.submit(decode, self.split.files[i], self.size, self.resize) for i in item[0]]
                    pending.append((*item, futures))
                if not pending:
                    return
                yield self._collect(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _collect(
        self, indices: Tensor, draws: Draws | None, futures: list[Future[np.ndarray | None]]
    ) -> tuple[Tensor, Tensor]:
        decoded = [future.result() for future in futures]
        good = torch.tensor([image is not None for image in decoded], dtype=torch.bool)
        for i in indices[~good].tolist():
            if not self._broken:
                log.warning("%s cannot be decoded and is skipped, as will be others like it", self.split.files[i])
            self._broken.add(i)
        arrays = [image for image in decoded if image is not None]
        if not arrays:
            raise DataError(f"None of the {len(decoded)} images of a batch could be decoded ({self.split.root}).")
        images = torch.from_numpy(np.stack(arrays)).to(self.device, non_blocking=True)
        rows = torch.arange(len(arrays), device=self.device)
        return gather(images, rows, None if draws is None else draws[good]), self.targets[indices[good]].to(self.device)


class Loader:
    """Batches `(inputs (N, 3, H, W) float32, targets (N,) int64)` of a source, on the source's device.

    Order and augmentation depend on (seed, epoch, batch index) alone, so an epoch can be taken up anywhere
    (`iter_from`), and `world_size` processes get the rows of one and the same global batch of `batch_size`, in order.
    (A last batch of fewer rows than processes goes whole to each of them: no process may be left without a row.)
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: Augment | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < world_size or not 0 <= rank < world_size:
            raise DataError(
                f"batch_size={batch_size} is that of all processes together and must be at least "
                f"world_size={world_size}, and rank={rank} must be in 0…{world_size - 1}."
            )
        if drop_last and len(source) < batch_size:
            raise DataError(f"drop_last leaves nothing: {len(source)} images are less than a batch of {batch_size}.")
        self.source = source
        self.batch_size, self.drop_last = batch_size, drop_last
        self.augment, self.shuffle, self.seed = augment, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        # (x / 255 - mean) / std as one multiplication and one addition per pixel
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        self._scale = scale.float().view(3, 1, 1).to(device)
        self._shift = (-torch.tensor(mean, dtype=torch.float64) * 255 * scale).float().view(3, 1, 1).to(device)

    @property
    def skipped(self) -> int:
        """Files that could not be decoded, so far as they have been read."""
        return self.source.skipped

    @property
    def samples(self) -> int:
        """Images in one epoch."""
        return len(self) * self.batch_size if self.drop_last else len(self.source)

    def __len__(self) -> int:
        count = len(self.source)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is of."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.iter_from(0)

    def iter_from(self, batch_index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches from `batch_index` on, exactly those the uninterrupted epoch has there."""
        if not 0 <= batch_index <= len(self):
            raise DataError(f"There is no batch {batch_index}: an epoch has {len(self)}.")
        return self._iterate(self.epoch, batch_index)

    def _iterate(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self.source.stream(self._draws(epoch, start)):
            x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)  # (N, 3, H, W)
            yield x.mul_(self._scale).add_(self._shift), targets

    def _draws(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Draws | None]]:
        count = len(self.source)
        order = torch.randperm(count, generator=generator(self.seed, epoch, _ORDER)) if self.shuffle else None
        for batch in range(start, len(self)):
            low, high = batch * self.batch_size, min((batch + 1) * self.batch_size, count)
            indices = torch.arange(low, high) if order is None else order[low:high]
            draws = None
            if self.augment is not None:  # drawn for the whole batch and shared out afterwards
                draws = self.augment.draw(high - low, generator(self.seed, epoch, batch))
            mine = self._share(high - low)
            yield indices[mine], None if draws is None else draws[mine]

    def _share(self, rows: int) -> slice:
        if rows < self.world_size:
            return slice(0, rows)
        return slice(rows * self.rank // self.world_size, rows * (self.rank + 1) // self.world_size)
