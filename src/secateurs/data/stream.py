"""Batches of streamed data in shards. No process needs to store or read all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from secateurs.data.augment import generator
from secateurs.data.decoder import Decoder, Encoded, EncodedBatch
from secateurs.data.loader import ORDER, Loader
from secateurs.errors import DataError

log = logging.getLogger("secateurs")

Row = tuple[Encoded, int]  # the image, still encoded, and its class

BUFFER = 2048  # encoded rows in the shuffle buffer
LANES = 64
_TAIL = 0.05  # fraction of an epoch that may be in the tail


@dataclass(frozen=True)
class Shards:
    """A split in shards. read(shard, skip): its rows from number `skip` on, in order.

    counts: rows per shard; None if counting them would require reading all the data. size: rows in total, if known.
    """

    names: list[str]
    read: Callable[[int, int], Iterator[Row]]
    counts: list[int] | None = None
    size: int | None = None

    @property
    def total(self) -> int | None:
        return self.size if self.counts is None else sum(self.counts)


class StreamSource:
    """The source of a `StreamLoader`: shards, and the decoder of their images."""

    def __init__(self, shards: Shards, decoder: Decoder) -> None:
        self.shards, self.decoder = shards, decoder

    @property
    def skipped(self) -> int:
        return self.decoder.skipped

    def __len__(self) -> int:
        if self.shards.total is None:
            raise TypeError("the length of this stream is not known")
        return self.shards.total


class StreamLoader(Loader):
    """A `Loader` of shards. Its order and augmentation also depend only on (seed, epoch, batch index).

    Shards are assigned to lanes, and every batch takes the same number of rows from each lane. A process reads only its own
    lanes. When the first lane is exhausted, the rows left in the others form the last batches (the tail), which
    every process reads. The lanes do not depend on the number of processes, so the global batches are the same.
    Training data is shuffled by shard, and within blocks of consecutive rows of a lane. An epoch that is
    resumed in the middle skips whole shards without reading them.

    This needs the number of rows in each shard. If it is unknown, there is one lane, every process reads
    everything (and decodes its own rows), and an epoch is resumed by reading the preceding rows without decoding.
    """

    source: StreamSource  # type: ignore[assignment]

    def __init__(self, source: StreamSource, **options: Any) -> None:
        super().__init__(source, **options)  # type: ignore[arg-type]
        self.lanes = self._choose()
        if self.lanes % self.world_size and self.rank == 0:
            log.warning(
                "every process reads all of %s …: its %d shards%s cannot be split between %d processes",
                source.shards.names[0],
                len(source.shards.names),
                " of unknown length" if source.shards.counts is None else "",
                self.world_size,
            )

    def _check(self) -> None:
        if self.drop_last and self.source.shards.total is not None:
            super()._check()

    def _choose(self) -> int:
        """Choose the number of lanes: the largest that divides the batch and leaves few rows to the tail."""
        counts = self.source.shards.counts
        if counts is None:
            return 1
        allowed = _TAIL * sum(counts) + self.batch_size
        for lanes in range(min(len(counts), self.batch_size, LANES), 1, -1):
            if self.batch_size % lanes == 0:
                rows = [sum(counts[i] for i in lane) for lane in deal(counts, range(len(counts)), lanes)]
                if sum(rows) - lanes * min(rows) <= allowed:
                    return lanes
        return 1

    @property
    def samples(self) -> int:
        if self.source.shards.total is None:
            raise AttributeError("the length of this stream is not known")
        return super().samples

    def iter_from(self, batch_index: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.source.shards.total is None and batch_index >= 0:
            return self._iterate(self.epoch, batch_index)
        return super().iter_from(batch_index)

    def _iterate(self, epoch: int, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from self._normalized(self.source.decoder.run(self._batches(epoch, start)))

    def _batches(self, epoch: int, start: int) -> Iterator[EncodedBatch]:
        for index, rows, of, mine in self._read(epoch, start):
            draws = self._augmentation(epoch, index, of, mine)
            yield [encoded for encoded, _ in rows], torch.tensor([label for _, label in rows]), draws

    def _read(self, epoch: int, start: int) -> Iterator[tuple[int, list[Row], int, slice]]:
        """Yield (batch index, our rows, number of rows in the batch, our slice) from batch `start` on."""
        counts, lanes = self.source.shards.counts, self.lanes
        order = list(range(len(self.source.shards.names)))
        if self.shuffle:
            order = torch.randperm(len(order), generator=generator(self.seed, epoch, ORDER)).tolist()
        dealt = deal(counts, order, lanes) if counts is not None else [order]
        each = self.batch_size // lanes
        whole = min(sum(counts[i] for i in lane) for lane in dealt) // each if counts is not None else 0
        shared = lanes % self.world_size == 0
        low, high = (lanes * r // self.world_size for r in (self.rank, self.rank + 1)) if shared else (0, lanes)
        mine = self._share(self.batch_size)
        if start < whole:
            flows = [self._lane(epoch, i, dealt[i], start * each) for i in range(low, high)]
            for index in range(start, whole):
                rows = [row for flow in flows for row in islice(flow, each)]
                yield index, rows if shared else rows[mine], self.batch_size, mine
        rest = self._tail(epoch, dealt, whole * each, max(0, start - whole) * self.batch_size)
        index, end = max(start, whole), self._end()
        while (end is None or index < end) and (rows := list(islice(rest, self.batch_size))):
            if self.drop_last and len(rows) < self.batch_size:
                return
            mine = self._share(len(rows))
            yield index, rows[mine], len(rows), mine
            index += 1

    def _end(self) -> int | None:
        return None if self.source.shards.total is None else len(self)

    def _tail(self, epoch: int, dealt: list[list[int]], begin: int, skip: int) -> Iterator[Row]:
        """Yield the rows of the lanes from row `begin` on, one lane after another, without the first `skip` rows."""
        counts = self.source.shards.counts
        for i, lane in enumerate(dealt):
            left = sum(counts[s] for s in lane) - begin if counts is not None else None
            if left is not None and left <= skip:
                skip -= left
                continue
            flow = self._lane(epoch, i, lane, begin + skip)
            skip = 0
            yield from flow

    def _lane(self, epoch: int, lane: int, shards: list[int], start: int) -> Iterator[Row]:
        """Yield the lane's rows from row `start` on."""
        if not self.shuffle:
            yield from self._rows(shards, start)
            return
        size = max(1, BUFFER // self.lanes)
        block = start // size
        rows = self._rows(shards, block * size)
        skip = start - block * size
        while held := list(islice(rows, size)):
            order = torch.randperm(len(held), generator=generator(self.seed, epoch, ORDER, 1 + lane, block))
            for i in order[skip:].tolist():
                yield held[i]
            skip, block = 0, block + 1

    def _rows(self, shards: Iterable[int], skip: int) -> Iterator[Row]:
        source = self.source.shards
        for shard in shards:
            if source.counts is None:
                for row in source.read(shard, 0):
                    if skip:
                        skip -= 1
                    else:
                        yield row
                continue
            expected = source.counts[shard]
            if skip >= expected:
                skip -= expected
                continue
            found = skip
            for row in islice(source.read(shard, skip), expected - skip):
                found += 1
                yield row
            if found < expected:
                raise DataError(
                    f"{source.names[shard]} ended after {found} of {expected} examples: it changed during use."
                )
            skip = 0


def deal(counts: list[int], order: Iterable[int], lanes: int) -> list[list[int]]:
    """Assign each shard, in this order, to the lane with the fewest rows so far."""
    dealt: list[list[int]] = [[] for _ in range(lanes)]
    rows = [0] * lanes
    for shard in order:
        lane = rows.index(min(rows))
        dealt[lane].append(shard)
        rows[lane] += counts[shard]
    return dealt
