"""Data from Hugging Face `datasets`: `hf:` names, folders and files, and `wds:` shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.data import opening as O
from secateurs.data import spec as S
from secateurs.data.augment import Draws
from secateurs.data.classes import Labels
from secateurs.data.counting import count
from secateurs.data.decoder import Decoder, Encoded
from secateurs.data.images import first_size
from secateurs.data.loader import Source
from secateurs.data.stream import Row, Shards, StreamSource
from secateurs.errors import DataError, SpecError
from secateurs.files import shown

MakeDecoder = Callable[[tuple[int, int], str], Decoder]


@dataclass(frozen=True)
class Opened:
    """Two opened splits."""

    train: Source | StreamSource
    val: Source | StreamSource | None
    classes: tuple[str, ...]
    size: tuple[int, int]


def open_hf(rest: str, image_size: int | None, memory_limit: int, decoder: MakeDecoder) -> Opened:
    """Open a name on the Hub, a folder (of images, of Parquet files, or written by `save_to_disk`), or a Parquet file."""
    datasets = O.library()
    name, options = S.parse(rest)
    what, path = f"hf:{shown(name)}", Path(name).expanduser()
    found = O.saved(datasets, what, path, options)
    if found is None:
        builder = O.builder(datasets, what, name, path, options)
        if options.streamed if options.streamed is not None else O.large(builder, path, memory_limit):
            return _streams(datasets, what, builder, O.split_names(builder), options, image_size, decoder)
        found = O.copied(what, builder)
    return _tables(datasets, what, *found, options, image_size, decoder)


def open_wds(rest: str, image_size: int | None, decoder: MakeDecoder) -> Opened:
    """Open WebDataset shards: tar files in which files with the same name and different suffixes form an example."""
    datasets = O.library()
    name, options = S.parse(rest)
    what = f"wds:{shown(name)}"
    train, *val = S.parts(name)
    if len(val) > 1:
        raise SpecError(
            f"{what} is not valid: write one pattern for training and one for validation, separated by a comma."
        )
    if options.val is not None:
        val = [] if options.val == "none" else [options.val]
    elif not val:
        raise DataError(
            f"{what} has no validation data: name its shards after a comma, {what},val-….tar, or train without it, "
            "with ?val=none."
        )
    files = {"train": S.shards(train)} | ({"val": S.shards(val[0])} if val else {})
    builder = O.guard(what, lambda: datasets.load_dataset_builder("webdataset", data_files=files))
    chosen = replace(options, train="train", val="val" if val else "none")
    return _streams(datasets, what, builder, list(files), chosen, image_size, decoder)


# -- random access -----------------------------------------------------------------------------------------------------


class TableSource:
    """Rows of a memory-mapped table on disk: read on demand, in any order."""

    def __init__(self, rows: Any, image: str, targets: Tensor, decoder: Decoder) -> None:
        self.rows, self.image, self.targets, self.decoder = rows, image, targets, decoder

    @property
    def skipped(self) -> int:
        return self.decoder.skipped

    def __len__(self) -> int:
        return len(self.targets)

    def stream(self, batches: Iterator[tuple[Tensor, Draws | None]]) -> Iterator[tuple[Tensor, Tensor]]:
        return self.decoder.run((self.encoded(i.tolist()), self.targets[i], draws) for i, draws in batches)

    def encoded(self, indices: list[int]) -> list[Encoded]:
        cells = self.rows[indices][self.image]
        return [O.encoded(f"{self.decoder.where}, row {i}", cell) for i, cell in zip(indices, cells, strict=True)]


def _tables(
    datasets: Any, what: str, split: O.Split, splits: list[str], options: S.Options,
    image_size: int | None, decoder: MakeDecoder,
) -> Opened:  # fmt: skip
    chosen = O.choose(what, splits, options)
    rows = [O.guard(what, partial(split, s)) for s in chosen if s is not None]
    for table, name in zip(rows, chosen, strict=False):
        O.check_rows(what, name, table)
    image, label = O.columns(datasets, what, rows[0].features, options)
    values = [_values(table, label) for table in rows]
    seen = [set(v.tolist()) for v in values]
    labels = Labels.of(what, rows[0].features.get(label), options, seen[0])
    each = [labels, *(labels.like(table.features.get(label)) for table in rows[1:])]
    if len(rows) == 2:
        labels.compare(each[1], seen[0], seen[1], chosen)
    images = [O.undecoded(datasets, t, (image,)) for t in rows]
    size = (image_size,) * 2 if image_size else first_size(
        (O.encoded("", images[0][i][image])[1] for i in range(len(images[0]))), what
    )  # fmt: skip
    sources: list[Any] = []
    for table, found, own, name in zip(images, values, each, chosen, strict=False):
        known = {v: own(v, f", {name}") for v in set(found.tolist())}
        targets = torch.tensor([known[v] for v in found.tolist()], dtype=torch.int64)
        sources.append(TableSource(table, image, targets, decoder(size, f"{what}, {name}")))
    return Opened(sources[0], sources[1] if len(sources) == 2 else None, labels.names, size)


def _values(table: Any, label: str) -> np.ndarray:
    column, *path = label.split(".")
    if not path:
        return np.asarray(table.select_columns([column]).with_format("numpy")[:][column])
    cells = table.select_columns([column]).with_format(None)[:][column]
    return np.asarray([_within(cell, path) for cell in cells])


def _within(cell: Any, path: list[str]) -> Any:
    for key in path:
        cell = cell.get(key) if isinstance(cell, dict) else None
    return cell


# -- streams -----------------------------------------------------------------------------------------------------------


def _streams(
    datasets: Any, what: str, builder: Any, splits: list[str], options: S.Options, image_size: int | None,
    decoder: MakeDecoder,
) -> Opened:  # fmt: skip
    chosen = O.choose(what, splits, options)
    if any("[" in (s or "") for s in chosen):
        raise DataError(f"{what}: a slice of a split cannot be streamed: set stream=false, or name whole splits.")
    streams = [O.guard(what, partial(builder.as_streaming_dataset, split=s)) for s in chosen if s is not None]
    streams = [s if s.features else O.guard(what, s._resolve_features) for s in streams]
    image, label = O.columns(datasets, what, streams[0].features, options)
    feature = streams[0].features.get(label)
    closed = getattr(feature, "names", None) is not None
    files = [_files(builder, s) for s in chosen if s is not None]
    counted = [[count(f, label, not closed or "://" not in f) for f in fs] for fs in files]
    seen = [_union([values for _, values in split]) for split in counted]
    labels = Labels.of(what, feature, options, seen[0])
    each = [labels, *(labels.like(stream.features.get(label)) for stream in streams[1:])]
    if len(streams) == 2:
        labels.compare(each[1], seen[0], seen[1], chosen)
    every = []
    for stream, names, rows, own, split in zip(streams, files, counted, each, chosen, strict=False):
        assert split is not None
        known = len(rows) == stream.num_shards and all(n is not None for n, _ in rows)
        stated = (
            builder.info.splits[split].num_examples if builder.info.splits and split in builder.info.splits else None
        )
        plain = stream.cast_column(image, datasets.Image(decode=False))
        if len(names) != stream.num_shards:
            names = [f"{what}, {split}, shard {i}" for i in range(stream.num_shards)]
        reader = _Reader(plain, names, image, label, own)
        size = options.size("train" if split == chosen[0] else "val") or stated or None
        every.append(Shards(names, reader, [n for n, _ in rows] if known else None, size))  # type: ignore[misc]
        if known and not sum(n or 0 for n, _ in rows):
            raise DataError(f"{what}: split {split} is empty.")
    size = (image_size,) * 2 if image_size else first_size((row[0][1] for row in every[0].read(0, 0)), what)
    sources = [StreamSource(s, decoder(size, f"{what}, {name}")) for s, name in zip(every, chosen, strict=False)]
    return Opened(sources[0], sources[1] if len(sources) == 2 else None, labels.names, size)


@dataclass(frozen=True)
class _Reader:
    """Reads the rows of a shard, from row `skip` on."""

    stream: Any
    names: list[str]
    image: str
    label: str
    labels: Labels

    def __call__(self, shard: int, skip: int) -> Iterator[Row]:
        one = self.stream.shard(num_shards=self.stream.num_shards, index=shard)
        rows = iter(one.skip(skip) if skip else one)
        column, *path = self.label.split(".")
        at = skip
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # a truncated file, a lost connection
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise DataError(f"{self.names[shard]} cannot be read past example {at}: {reason}") from error
            name = f"{self.names[shard]}, {row.get('__key__', f'row {at}')}"
            yield O.encoded(name, row[self.image]), self.labels(_within(row[column], path), f", {name}")
            at += 1


def _union(sets: list[set[Any] | None]) -> set[Any] | None:
    """Return the union of the sets; None if any is unknown, or there are none."""
    known = [s for s in sets if s is not None]
    return set().union(*known) if known and len(known) == len(sets) else None


def _files(builder: Any, split: str | None) -> list[str]:
    found = (builder.config.data_files or {}).get(split, [])
    return [str(f) for f in found]
