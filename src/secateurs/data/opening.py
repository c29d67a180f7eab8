"""Open data sets of Hugging Face `datasets`: their splits and columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from secateurs.data import spec as S
from secateurs.data.decoder import Encoded
from secateurs.errors import DataError, SecateursError, SpecError
from secateurs.files import shown

IMAGES = ("image", "img", "pixel_values", "jpg", "jpeg", "png", "webp")
LABELS = ("label", "labels", "fine_label", "cls", "class", "target")
VAL = ("validation", "val", "valid", "test", "dev")


Split = Callable[[str], Any]  # its name, or a slice of it → its rows


def library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise SpecError("hf: and wds: data needs the package datasets. Run: pip install 'secateurs[data]'") from error
    return datasets


def saved(datasets: Any, what: str, path: Path, options: S.Options) -> tuple[Split, list[str]] | None:
    """Return the splits that `save_to_disk` wrote, and their names. None if it did not write the folder."""
    if not ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        return None
    saved = guard(what, lambda: datasets.load_from_disk(str(path)))
    found = dict(saved) if isinstance(saved, dict) else {"train": saved}
    slices = {s: found[s.partition("[")[0]] for s in (options.train, options.val) if s and s.partition("[")[0] in found}
    if any("[" in (s or "") for s in (options.train, options.val)):
        slices = {s: sliced(d, s) for s, d in slices.items()}
    return (lambda s: {**found, **slices}[s]), list(found)


def copied(what: str, builder: Any) -> tuple[Split, list[str]]:
    """Copy the data set to disk, and return its splits and their names."""
    names = split_names(builder)
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise read_error(what, error) from error
    return (lambda text: builder.as_dataset(split=text)), names


def split_names(builder: Any) -> list[str]:
    return list(builder.config.data_files or builder.info.splits or ())


def builder(datasets: Any, what: str, name: str, path: Path, options: S.Options) -> Any:
    if path.is_file():
        kind = {".parquet": "parquet", ".arrow": "arrow"}.get(path.suffix)
        if kind is None:
            raise DataError(f"{what} is a file, but not a .parquet file: name a folder or a .parquet file.")
        return guard(what, lambda: datasets.load_dataset_builder(kind, data_files={"train": [str(path)]}))
    if path.exists() and not path.is_dir():
        raise DataError(f"{what} is neither a folder nor a regular file.")
    if not path.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise DataError(f"There is no folder {shown(path)}, and no data set of this name on the Hugging Face Hub.")
    return guard(what, lambda: datasets.load_dataset_builder(str(path) if path.exists() else name, options.config))


def guard(what: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except SecateursError:
        raise
    except Exception as error:
        raise read_error(what, error) from error


def read_error(what: str, error: Exception) -> DataError:
    """Return a DataError for an error of `datasets`, which raises OSError, ValueError, the HTTP client's errors and its own."""
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


def large(builder: Any, path: Path, memory_limit: int) -> bool:
    """Whether the data is too large for the copy on disk that random access needs."""
    if path.is_file():
        return path.stat().st_size > memory_limit
    if path.exists():
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) > memory_limit
    size = builder.info.dataset_size
    return size is None or size > memory_limit


def choose(what: str, splits: list[str], options: S.Options) -> tuple[str, str | None]:
    """Return the names of the training and validation splits."""
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


def columns(datasets: Any, what: str, features: Any, options: S.Options) -> tuple[str, str]:
    """Return the names of the image and class columns."""
    there = ", ".join(f"{name} ({kind(feature)})" for name, feature in features.items() if name[:2] != "__")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    image = options.image or next((n for n in (*IMAGES, *images) if n in images), None)
    if image is None or image not in images:
        wanted = "column of images" if options.image is None else f"column of images {options.image!r}"
        raise DataError(f"{what} has no {wanted}. Its columns are {there}. Choose one with ?image=….")
    single = {n: f for n, f in features.items() if isinstance(f, datasets.Value | datasets.ClassLabel)}
    named = [name for name, feature in single.items() if isinstance(feature, datasets.ClassLabel)]
    label = options.label or next((n for n in (*LABELS, *named) if n in single), None)
    if label is None or label.partition(".")[0] not in features:
        wanted = "column of classes" if options.label is None else f"column {options.label!r}"
        raise DataError(f"{what} has no {wanted}. Its columns are {there}. Choose one with ?label=….")
    if label in features and label not in single:
        raise DataError(
            f"{what}: column {label!r} does not hold one class for each image. Its columns are {there}. Choose one with "
            "?label=…."
        )
    return image, label


def kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__) if not isinstance(feature, dict) else "dict"


def encoded(name: str, cell: Any) -> Encoded:
    """Return the image in a cell, with its own name if it has one."""
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


def undecoded(datasets: Any, table: Any, columns: Sequence[str]) -> Any:
    """Select columns of images, which stay encoded."""
    table = table.select_columns(list(columns))
    for column in columns:
        table = table.cast_column(column, datasets.Image(decode=False))
    return table.with_format(None)


def check_rows(what: str, split: str | None, table: Any) -> None:
    if not len(table):
        raise DataError(f"{what}: split {split} is empty.")


def sliced(table: Any, text: str) -> Any:
    """Return a slice of a table, such as `train[:90%]`."""
    match = re.fullmatch(r"[^\[]+\[(\d*)(%?):(\d*)(%?)\]", text)
    if match is None:
        raise SpecError(f"{text!r}: write a slice such as train[:90%] or train[90%:].")
    n = len(table)
    low, high = (
        default if not figure else round(int(figure) * n / 100) if percent else int(figure)
        for figure, percent, default in ((match[1], match[2], 0), (match[3], match[4], n))
    )
    return table.select(range(low, min(high, n)) if low < min(high, n) else range(0))
