"""Batches in an order that depends only on the seed, the epoch and the batch index."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from secateurs.data.augment import Augment, Draws, gather, generator
from secateurs.data.decoder import Decoder
from secateurs.data.folder import FolderSplit
from secateurs.data.preprocess import affine, luminance, normalized
from secateurs.errors import DataError, Setting
from secateurs.files import shown

ORDER = 0xFFFFFFFF  # used as the batch index to draw the order


class Source(Protocol):
    """Images by index, with their targets."""

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def stream(self, batches: Iterator[tuple[Tensor, Draws | None]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (N, H, W, 3) uint8 and targets (N,) for each (indices (N,), draws), on the source's device."""


class ArraySource:
    """Images in memory (or memory-mapped from the cache), on the training device: (count, H, W, 3) uint8."""

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
            indices = indices.to(self.images.device, non_blocking=True)
            yield gather(self.images, indices, draws), self.targets[indices]


class FileSource:
    """Image files decoded on demand, for data sets that do not fit in memory."""

    def __init__(
        self,
        split: FolderSplit,
        size: tuple[int, int],
        resize: bool,
        *,
        workers: int,
        device: torch.device,
        alone: bool = True,
        skip: bool = False,
    ):
        self.split = split
        self.targets = torch.from_numpy(split.labels)
        self.decoder = Decoder(
            size, resize, workers=workers, device=device, where=shown(split.root), alone=alone, skip=skip
        )

    @property
    def skipped(self) -> int:
        return len(self.split.unreadable) + self.decoder.skipped

    def __len__(self) -> int:
        return len(self.split.files)

    def stream(self, batches: Iterator[tuple[Tensor, Draws | None]]) -> Iterator[tuple[Tensor, Tensor]]:
        files = self.split.files
        return self.decoder.run(
            ([(shown(files[i]), files[i]) for i in indices], self.targets[indices], draws) for indices, draws in batches
        )


class Loader:
    """Batches `(inputs (N, channels, H, W) float32, targets (N,) int64)` of a source, on the source's device.

    Order and augmentation depend only on (seed, epoch, batch index), so an epoch can be resumed at any batch
    (`iter_from`), and `world_size` processes get consecutive rows of the same global batch of `batch_size`.
    If the last batch has fewer rows than there are processes, each process gets all of it, because none may be without a row.
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
        channels: int = 3,
    ) -> None:
        """channels: 3, or 1 for the luminance."""
        if batch_size < world_size or not 0 <= rank < world_size:
            raise DataError(
                Setting("batch_size", batch_size),
                f" is the total over all processes and must be at least world_size={world_size}, and rank={rank} must be "
                f"in 0…{world_size - 1}.",
            )
        self.source = source
        self.batch_size, self.drop_last = batch_size, drop_last
        self.augment, self.shuffle, self.seed = augment, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.device, self.channels = torch.device(device), channels
        self.epoch = 0
        self._check()
        self._scale, self._shift = (x.to(device) for x in affine(mean, std))

    def _check(self) -> None:
        if self.drop_last and not len(self):
            raise DataError(
                f"drop_last drops all data: {len(self.source)} images are less than a batch of {self.batch_size}."
            )

    @property
    def skipped(self) -> int:
        """The number of unreadable files found so far."""
        return self.source.skipped

    @property
    def samples(self) -> int:
        """The number of images in one epoch."""
        return len(self) * self.batch_size if self.drop_last else len(self.source)

    def __len__(self) -> int:
        count = len(self.source)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def whole(self) -> Loader:
        """Return a copy of this loader that is not split between processes."""
        other = copy.copy(self)
        other.rank, other.world_size = 0, 1
        return other

    def plain(self) -> Loader:
        """Return a copy of this loader that is not split between processes and does not augment."""
        other = self.whole()
        other.augment = None
        return other

    def reseeded(self, seed: int) -> Loader:
        """Return a copy of this loader at epoch 0 whose order and augmentation come from another seed."""
        other = copy.copy(self)
        other.seed, other.epoch = seed, 0
        return other

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.iter_from(0)

    def iter_from(self, batch_index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the epoch from batch `batch_index` on. The batches are the same as in an uninterrupted epoch."""
        if not 0 <= batch_index <= len(self):
            raise DataError(f"There is no batch {batch_index}: an epoch has {len(self)}.")
        return self._iterate(self.epoch, batch_index)

    def _iterate(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._normalized(self.source.stream(self._draws(epoch, start)))

    def _normalized(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in batches:
            yield self.normalized(images.permute(0, 3, 1, 2)), targets  # (N, 3, H, W)

    def normalized(self, images: Tensor) -> Tensor:
        """Convert images (…, 3, H, W) uint8 to normalized (…, channels, H, W) float32."""
        x = normalized(images, self._scale, self._shift)
        return x if self.channels == 3 else luminance(x)

    def _draws(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Draws | None]]:
        count = len(self.source)
        order = torch.randperm(count, generator=generator(self.seed, epoch, ORDER)) if self.shuffle else None
        for batch in range(start, len(self)):
            low, high = batch * self.batch_size, min((batch + 1) * self.batch_size, count)
            indices = torch.arange(low, high) if order is None else order[low:high]
            mine = self._share(high - low)
            yield indices[mine], self._augmentation(epoch, batch, high - low, mine)

    def _augmentation(self, epoch: int, batch: int, rows: int, mine: slice) -> Draws | None:
        """Draw the random numbers of the whole batch, and return those of this process's rows."""
        if self.augment is None:
            return None
        return self.augment.draw(rows, generator(self.seed, epoch, batch))[mine]

    def _share(self, rows: int) -> slice:
        if rows < self.world_size:
            return slice(0, rows)
        return slice(rows * self.rank // self.world_size, rows * (self.rank + 1) // self.world_size)
