"""Batches of images with targets of their own shape (masks, boxes), which transforms change together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from secateurs.data.augment import Draws, generator
from secateurs.data.loader import ORDER, Loader
from secateurs.data.unreadable import Skipped, Unreadable
from secateurs.errors import DataError

_AHEAD = 2  # batches read ahead of the one in use

Sample = tuple[Tensor, Any]  # an image (3, H, W) uint8, and its target


class Samples(Protocol):
    """The examples of a split, by index."""

    @property
    def where(self) -> str:
        """What messages call the split."""

    @property
    def skipped(self) -> int:
        """The number of files that were left out before."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample | Unreadable:
        """An image (3, H, W) uint8 and its target, or why it cannot be read. Called by several threads."""

    def size(self, index: int) -> tuple[int, int]:
        """The height and width of an image, before any transform."""


class Transforms(Protocol):
    """What is done to samples, and how a batch is made of them."""

    def train(self, image: Tensor, target: Any) -> Sample:
        """An augmented sample. Random numbers come from PyTorch's default generator on the CPU."""

    def whole(self, image: Tensor, target: Any) -> Sample:
        """The sample as it is evaluated."""

    def alike(self, height: int, width: int) -> tuple[int, int] | None:
        """What has to be equal in a batch of whole images, given their size; None if images of any sizes go together."""

    def collate(self, images: list[Tensor], targets: list[Any]) -> Any:
        """A batch of images (C, H, W) float32, normalized, and their targets."""


class Seeds:
    """One seed for each image of a batch, in place of the random numbers themselves."""

    def draw(self, count: int, source: torch.Generator) -> Any:
        return torch.randint(0, 2**62, (count,), generator=source)


class SampleLoader(Loader):
    """A `Loader` of samples that are read one by one. Order and augmentation are functions of (seed, epoch, batch index).

    Without `augment` images are whole: a batch then holds up to `batch_size` images that are alike, see `Transforms`.
    """

    source: Samples  # type: ignore[assignment]
    augment: Any

    def __init__(
        self, source: Samples, transforms: Transforms, *, augment: bool = False, workers: int = 1, skip: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        """skip: leave out images that cannot be read. options: those of `Loader`."""
        self.transforms, self.workers = transforms, workers
        self._skipped = Skipped(skip)
        super().__init__(source, augment=Seeds() if augment else None, **options)  # type: ignore[arg-type]

    @property
    def skipped(self) -> int:
        return self.source.skipped + len(self._skipped)

    @property
    def samples(self) -> int:
        return len(self.source)

    def __len__(self) -> int:
        return super().__len__() if self.augment is not None else len(self._batches(0))

    def _batches(self, epoch: int) -> list[Tensor]:
        """The indices of each batch of whole images, in order."""
        count = len(self.source)
        order = torch.randperm(count, generator=generator(self.seed, epoch, ORDER)) if self.shuffle else range(count)
        waiting: dict[Any, list[int]] = {}
        done: list[Tensor] = []
        for index in map(int, order):
            kind = self.transforms.alike(*self.source.size(index))
            group = waiting.setdefault(kind, [])
            group.append(index)
            if len(group) == self.batch_size:
                done.append(torch.tensor(waiting.pop(kind)))
        return [*done, *map(torch.tensor, waiting.values())]

    def _draws(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Draws | None]]:
        if self.augment is not None:
            yield from super()._draws(epoch, start)
            return
        for indices in self._batches(epoch)[start:]:
            yield indices[self._share(len(indices))], None

    def _iterate(self, epoch: int, start: int) -> Iterator[Any]:
        pending: deque[tuple[Any, list[Future[Sample | Unreadable]]]] = deque()
        coming = self._draws(epoch, start)
        pool = ThreadPoolExecutor(self.workers)
        try:
            more = True
            while True:
                while more and len(pending) <= _AHEAD:
                    drawn = next(coming, None)
                    if more := drawn is not None:
                        indices, seeds = drawn
                        pending.append((seeds, [pool.submit(self.source.read, i) for i in indices.tolist()]))
                if not pending:
                    return
                seeds, futures = pending.popleft()
                if samples := self._collect([future.result() for future in futures], seeds):
                    yield self.transforms.collate(*map(list, zip(*samples, strict=True)))
                elif more or pending or self.world_size > 1:
                    raise DataError(f"No image of a batch can be read ({self.source.where}).")
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _collect(self, found: list[Sample | Unreadable], seeds: Any) -> list[Sample]:
        """The samples of a batch, transformed and normalized, on the device."""
        samples: list[Sample] = []
        for i, one in enumerate(found):
            if isinstance(one, Unreadable):
                self._skipped.add(one)
                continue
            if seeds is None:
                image, target = self.transforms.whole(*one)
            else:
                with drawing(int(seeds[i])):
                    image, target = self.transforms.train(*one)
            samples.append((self.normalized(image.to(self.device)), target))
        return samples


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Context in which PyTorch's default generator on the CPU begins with this seed; afterward it is as before."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
