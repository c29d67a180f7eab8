"""Data from Hugging Face `datasets`: `hf:` names, folders and files, and `wds:` shards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.data import spec as S
from secateurs.data.augment import Draws
from secateurs.data.classes import Labels
from secateurs.data.counting import count
from secateurs.data.decoder import Decoder, Encoded
from secateurs.data.images import first_size
from secateurs.data.loader import Source
from secateurs.data.stream import Row, Shards, StreamSource
from secateurs.errors import DataError, SecateursError, SpecError
from secateurs.files import shown

IMAGES = ("image", "img", "pixel_values", "jpg", "jpeg", "png", "webp")
LABELS = ("label", "labels", "fine_label", "cls", "class", "target")
VAL = ("validation", "val", "valid", "test", "dev")

MakeDecoder = Callable[[tuple[int, int], str], Decoder]


@dataclass(frozen=True)
class Opened:
    """Two opened splits."""

    train: Source | StreamSource
    val: Source | StreamSource | None
    classes: tuple[str, ...]
    size: tuple[int, int]


def library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise SpecError("hf: and wds: data needs the package datasets. Run: pip install 'secateurs[data]'") from error
    return datasets


def open_hf(rest: str, image_size: int | None, memory_limit: int, decoder: MakeDecoder) -> Opened:
    """A data set by its name on the Hub; a folder of images, of Parquet files, of `save_to_disk`; a Parquet file."""
    datasets = library()
    name, options = S.parse(rest)
    what, path = f"hf:{shown(name)}", Path(name).expanduser()
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = _guard(what, lambda: datasets.load_from_disk(str(path)))
        found = dict(saved) if isinstance(saved, dict) else {"train": saved}
        slices = {
            s: found[s.partition("[")[0]] for s in (options.train, options.val) if s and s.partition("[")[0] in found
        }
        if any("[" in (s or "") for s in (options.train, options.val)):
            slices = {s: _sliced(d, s) for s, d in slices.items()}
        return _tables(datasets, what, lambda s: {**found, **slices}[s], list(found), options, image_size, decoder)
    builder = _builder(datasets, what, name, path, options)
    splits = list(builder.config.data_files or builder.info.splits or ())
    if options.streamed if options.streamed is not None else _large(builder, path, memory_limit):
        return _streams(datasets, what, builder, splits, options, image_size, decoder)
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise _read_error(what, error) from error

    def split(text: str) -> Any:
        return builder.as_dataset(split=text)

    return _tables(datasets, what, split, splits, options, image_size, decoder)


def open_wds(rest: str, image_size: int | None, memory_limit: int, decoder: MakeDecoder) -> Opened:
    """WebDataset shards: tar files in which files with the same name and different suffixes form an example."""
    datasets = library()
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
    builder = _guard(what, lambda: datasets.load_dataset_builder("webdataset", data_files=files))
    chosen = replace(options, train="train", val="val" if val else "none")
    return _streams(datasets, what, builder, list(files), chosen, image_size, decoder)


# -- opening -----------------------------------------------------------------------------------------------------------


def _builder(datasets: Any, what: str, name: str, path: Path, options: S.Options) -> Any:
    if path.is_file():
        kind = {".parquet": "parquet", ".arrow": "arrow"}.get(path.suffix)
        if kind is None:
            raise DataError(f"{what} is a file, but not a .parquet file: name a folder or a .parquet file.")
        return _guard(what, lambda: datasets.load_dataset_builder(kind, data_files={"train": [str(path)]}))
    if path.exists() and not path.is_dir():
        raise DataError(f"{what} is neither a folder nor a regular file.")
    if not path.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise DataError(f"There is no folder {shown(path)}, and no data set of this name on the Hugging Face Hub.")
    return _guard(what, lambda: datasets.load_dataset_builder(str(path) if path.exists() else name, options.config))


def _guard(what: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except SecateursError:
        raise
    except Exception as error:
        raise _read_error(what, error) from error


def _read_error(what: str, error: Exception) -> DataError:
    """datasets raises many types: OSError, ValueError, errors of the HTTP client and its own."""
    kinds = {cls.__name__ for cls in type(error).__mro__}
    cause = error.__cause__ if "DatasetGenerationError" in kinds and error.__cause__ is not None else error
    if isinstance(cause, UnicodeEncodeError):
        return DataError(
            f"{what} has file names that are not UTF-8, which a local copy cannot represent: rename them, or add ?stream=true."
        )
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    if kinds & {
        "ConnectionError",
        "ConnectError",
        "OfflineModeIsEnabled",
        "TimeoutException",
        "LocalEntryNotFoundError",
    }:
        return DataError(
            f"{what}: there is no such local folder, and the Hugging Face Hub cannot be reached ({reason}). Check the name "
            "and the network connection, or use a local copy."
        )
    if "DatasetNotFoundError" in kinds:
        return DataError(f"{what}: there is no such local folder, and no data set of this name on the Hub. {reason}")
    if "config" in reason.lower():
        return DataError(f"{what}: {' '.join(str(error).split())} Choose one with ?config=NAME.")
    return DataError(f"{what} cannot be read: {reason}")


def _large(builder: Any, path: Path, memory_limit: int) -> bool:
    """Whether the data is too large for the copy on disk that random access needs."""
    if path.is_file():
        return path.stat().st_size > memory_limit
    if path.exists():
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) > memory_limit
    size = builder.info.dataset_size
    return size is None or size > memory_limit


def _choose(what: str, splits: list[str], options: S.Options) -> tuple[str, str | None]:
    """The names of the training and validation splits."""
    train = options.train or ("train" if "train" in splits else None)
    val = options.val or next((s for s in VAL if s in splits and s != train), None)
    for split in (train, val):
        if split not in (None, "none") and split.partition("[")[0] not in splits:
            raise DataError(f"{what} has no split {split!r}. Its splits are {', '.join(splits)}.")
    if train is None:
        raise DataError(f"{what} has no split train: choose one of {', '.join(splits)} with ?train=….")
    if val is None:
        raise DataError(
            f"{what} has no validation split (splits: {', '.join(splits)}): choose one with ?val=…, hold out images with "
            f"?train={train}[:90%]&val={train}[90%:], or train without one with ?val=none."
        )
    return train, None if val == "none" else val


def _columns(datasets: Any, what: str, features: Any, options: S.Options) -> tuple[str, str]:
    """The names of the image and class columns."""
    there = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items() if name[:2] != "__")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    image = options.image or next((n for n in (*IMAGES, *images) if n in images), None)
    if image is None or image not in images:
        wanted = "column of images" if options.image is None else f"column of images {options.image!r}"
        raise DataError(f"{what} has no {wanted}. Its columns are {there}. Choose one with ?image=….")
    named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    label = options.label or next((n for n in (*LABELS, *named) if n in features), None)
    if label is None or label.partition(".")[0] not in features:
        wanted = "column of classes" if options.label is None else f"column {options.label!r}"
        raise DataError(f"{what} has no {wanted}. Its columns are {there}. Choose one with ?label=….")
    return image, label


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__) if not isinstance(feature, dict) else "dict"


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
        return [_encoded(f"{self.decoder.where}, row {i}", cell) for i, cell in zip(indices, cells, strict=True)]


def _encoded(name: str, cell: Any) -> Encoded:
    """The image in a cell, with its own name if it has one."""
    if cell is None:
        return name, b""  # counts as an image that cannot be decoded
    data, path = cell["bytes"], cell["path"]
    if data is None and path and "://" in path:
        import fsspec

        with fsspec.open(path) as file:
            data = file.read()
    if data is not None:
        return f"{name} ({path})" if path else name, data
    return (shown(path), Path(path)) if path else (name, b"")


def _tables(
    datasets: Any, what: str, split: Callable[[str], Any], splits: list[str], options: S.Options,
    image_size: int | None, decoder: MakeDecoder,
) -> Opened:  # fmt: skip
    chosen = _choose(what, splits, options)
    rows = [_guard(what, partial(split, s)) for s in chosen if s is not None]
    image, label = _columns(datasets, what, rows[0].features, options)
    values = [_values(table, label) for table in rows]
    seen = [set(v.tolist()) for v in values]
    labels = Labels.of(what, rows[0].features.get(label), options, seen[0])
    if len(rows) == 2:
        labels.compare(seen[0], seen[1], chosen)
    images = [
        t.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format(None) for t in rows
    ]
    for table, name in zip(images, chosen, strict=False):
        if not len(table):
            raise DataError(f"{what}: split {name} is empty.")
    size = (image_size,) * 2 if image_size else first_size(
        (_encoded("", images[0][i][image])[1] for i in range(len(images[0]))), what
    )  # fmt: skip
    sources: list[Any] = []
    for table, found, name in zip(images, values, chosen, strict=False):
        known = {v: labels(v, f", {name}") for v in set(found.tolist())}
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


def _sliced(table: Any, text: str) -> Any:
    """`train[:90%]` of a table."""
    match = re.fullmatch(r"[^\[]+\[(\d*)(%?):(\d*)(%?)\]", text)
    if match is None:
        raise SpecError(f"{text!r}: write a slice such as train[:90%] or train[90%:].")
    n = len(table)
    low, high = (
        default if not figure else round(int(figure) * n / 100) if percent else int(figure)
        for figure, percent, default in ((match[1], match[2], 0), (match[3], match[4], n))
    )
    return table.select(range(low, min(high, n)))


# -- streams -----------------------------------------------------------------------------------------------------------


def _streams(
    datasets: Any, what: str, builder: Any, splits: list[str], options: S.Options, image_size: int | None,
    decoder: MakeDecoder,
) -> Opened:  # fmt: skip
    chosen = _choose(what, splits, options)
    if any("[" in (s or "") for s in chosen):
        raise DataError(f"{what}: a slice of a split cannot be streamed: set stream=false, or name whole splits.")
    streams = [_guard(what, partial(builder.as_streaming_dataset, split=s)) for s in chosen if s is not None]
    streams = [s if s.features else _guard(what, s._resolve_features) for s in streams]
    image, label = _columns(datasets, what, streams[0].features, options)
    feature = streams[0].features.get(label)
    closed = getattr(feature, "names", None) is not None
    files = [_files(builder, s) for s in chosen if s is not None]
    counted = [[count(f, label, not closed or "://" not in f) for f in fs] for fs in files]
    seen = [_union([values for _, values in split]) for split in counted]
    labels = Labels.of(what, feature, options, seen[0])
    if len(streams) == 2:
        labels.compare(seen[0], seen[1], chosen)
    every = []
    for stream, names, rows, split in zip(streams, files, counted, chosen, strict=False):
        assert split is not None
        known = len(rows) == stream.num_shards and all(n is not None for n, _ in rows)
        stated = (
            builder.info.splits[split].num_examples if builder.info.splits and split in builder.info.splits else None
        )
        plain = stream.cast_column(image, datasets.Image(decode=False))
        if len(names) != stream.num_shards:
            names = [f"{what}, {split}, shard {i}" for i in range(stream.num_shards)]
        reader = _Reader(plain, names, image, label, labels)
        size = options.size("train" if split == chosen[0] else "val") or stated or None
        every.append(Shards(names, reader, [n for n, _ in rows] if known else None, size))  # type: ignore[misc]
        if known and not sum(n or 0 for n, _ in rows):
            raise DataError(f"{what}: split {split} is empty.")
    size = (image_size,) * 2 if image_size else first_size((row[0][1] for row in every[0].read(0, 0)), what)
    sources = [StreamSource(s, decoder(size, f"{what}, {name}")) for s, name in zip(every, chosen, strict=False)]
    return Opened(sources[0], sources[1] if len(sources) == 2 else None, labels.names, size)


@dataclass(frozen=True)
class _Reader:
    """The rows of a shard, from number `skip` on."""

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
            yield _encoded(name, row[self.image]), self.labels(_within(row[column], path), f", {name}")
            at += 1


def _union(sets: list[set[Any] | None]) -> set[Any] | None:
    """None if any is unknown, or there are none."""
    known = [s for s in sets if s is not None]
    return set().union(*known) if known and len(known) == len(sets) else None


def _files(builder: Any, split: str | None) -> list[str]:
    found = (builder.config.data_files or {}).get(split, [])
    return [str(f) for f in found]
