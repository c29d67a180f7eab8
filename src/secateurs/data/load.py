"""Load data from a spec."""

from __future__ import annotations

import math
import os
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from secateurs.data.augment import Augment
from secateurs.data.bundle import Data
from secateurs.data.cache import decoded
from secateurs.data.decoder import Decoder
from secateurs.data.digits import CLASSES, digits
from secateurs.data.folder import FolderSplit, readable, scan
from secateurs.data.hub import open_hf, open_wds
from secateurs.data.images import Size, first_size
from secateurs.data.loader import ArraySource, FileSource, Loader, Source
from secateurs.data.preprocess import Preprocess
from secateurs.data.stream import StreamLoader, StreamSource
from secateurs.data.unreadable import report_unreadable
from secateurs.errors import DataError, Setting, SpecError, nearest
from secateurs.files import shown
from secateurs.seeds import checked as checked_seed

Color = tuple[float, float, float]
Statistics = tuple[Color, Color]
OneOfEach = tuple[tuple[float], tuple[float]]
NORMALIZATIONS: dict[str, Statistics] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def load(
    spec: str,
    *,
    batch_size: int = 128,
    image_size: int | None = None,
    channels: int = 3,
    normalize: str | Statistics | OneOfEach = "imagenet",
    augment: bool = True,
    seed: int = 0,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    memory_limit: int = 4 << 30,
    cache: bool = True,
    skip_unreadable: bool = False,
) -> Data:
    """Load training and validation batches from a spec:

    - `digits`;
    - `folder:PATH`: `train/<class>/…` and `val/<class>/…` or `test/<class>/…`;
    - `hf:NAME_OR_PATH`: from Hugging Face `datasets`, a name on the Hub, a folder (of Parquet files, of images, or
      written by `save_to_disk`) or a Parquet file;
    - `wds:SHARDS,SHARDS`: WebDataset shards for training and validation, local paths or URLs, such as
      `wds:train-{000..123}.tar,val-{00..06}.tar`.

    The last two take options, `hf:NAME?image=img&label=fine_label`: the columns `image` and `label`, `config`, the
    splits `train` and `val` (`val=none` for no validation), `classes` (their number, or comma-separated names), `train_size`
    and `val_size` if the data does not define them, and `stream` (`true`, `false`). `hf:` data is read from a copy on disk,
    in any order. If it is larger than `memory_limit`, it is streamed, as `wds:` data always is: shards are distributed to
    the processes, nothing is cached, and an epoch can still be resumed at any batch. See `StreamLoader`.

    Inputs are (N, channels, H, W) float32 on `device`, scaled to [0, 1] and normalized by `normalize` (`imagenet`, `cifar10`,
    `none`, or a mean and a standard deviation per color, or one of each for all). Images are read as RGB; `channels=1` makes
    them grayscale. Targets are (N,) int64, in the order of the sorted class names.

    Training batches are shuffled. With `augment`, images are cropped after reflected padding (an eighth of the side, at least
    4 pixels; for digits, a sixteenth) and flipped (except digits). Validation batches are in order and not augmented.

    `image_size` resizes the shorter side and crops the center. Without it, all images must have the same size. Images that
    take up to `memory_limit` bytes when decoded are decoded once and, with `cache`, cached for the next start; larger sets are
    decoded on demand by `workers` threads. `batch_size` is the total over all `world_size` processes.

    Files that cannot be read (damaged images, broken links, a FIFO in place of a file, no permission) raise an
    error that counts them and names the first. With `skip_unreadable`, they are skipped with a warning and counted in
    `data.train.skipped` and `data.val.skipped`. Images that are decoded at the start are all checked before `load` returns.
    In larger folders, every header is read; with more than 100,000 images, each file is only checked to be a regular file.
    Other errors appear when images are decoded, as they do in `hf:` and `wds:` data.

    Raises SpecError for an invalid spec, and DataError for data that is invalid or cannot be read.
    """
    if not isinstance(spec, str):
        meant = f": did you mean 'folder:{shown(spec)}'?" if isinstance(spec, os.PathLike) else "."
        raise SpecError(f"{spec!r:.60} is not a data spec, which is a string{meant}")
    for name, value in (
        ("batch_size", batch_size),
        ("image_size", 1 if image_size is None else image_size),
        ("workers", workers or 1),
    ):
        _check_count(name, value)
    checked_channels(channels)
    seed = checked_seed(seed)
    workers = workers or default_workers()
    device = torch.device(device)
    mean, std = statistics(normalize)
    family, _, rest = spec.partition(":")
    if spec == "digits":
        classes = CLASSES
        size = (image_size or 32,) * 2
        policy = Augment(pad=min(max(1, size[0] // 16), size[0] - 1), flip=False)
        sources: list[Source | StreamSource | None] = [ArraySource(x, y, device=device) for x, y in digits(size[0])]
    elif family == "folder" and rest:
        *splits, classes = scan(Path(rest).expanduser())
        size = (image_size, image_size) if image_size else first_size(splits[0].files, splits[0].root)
        policy = _crops(size)
        sources = _folder(splits, size, bool(image_size), workers, device, alone=world_size == 1, cache=cache,
                          memory_limit=memory_limit, skip=skip_unreadable)  # fmt: skip
    elif family in ("hf", "wds") and rest:
        count, on = workers, device

        def decoder(size: tuple[int, int], where: str) -> Decoder:
            return Decoder(size, bool(image_size), workers=count, device=on, where=where, alone=world_size == 1,
                           skip=skip_unreadable)  # fmt: skip

        try:
            is_hf = family == "hf"
            opened = open_hf(rest, image_size, memory_limit, decoder) if is_hf else open_wds(rest, image_size, decoder)
        except OSError as error:  # a folder without read permission
            raise DataError(f"{shown(error.filename or rest)} cannot be read: {error.strerror or error}.") from error
        classes, size, sources = opened.classes, opened.size, [opened.train, opened.val]
        policy = _crops(size)
    elif family == "coco":
        raise SpecError(
            f"{spec!r}: coco: data has boxes, which are for detection: give ", Setting("task", "detection"), "."
        )
    else:
        raise SpecError(f"{shown(spec)!r} is not a valid data spec. {_meant(spec)}")

    def loader(source: Source | StreamSource, **more: Any) -> Loader:
        kind: Any = StreamLoader if isinstance(source, StreamSource) else Loader
        made: Loader = kind(
            source, batch_size=batch_size, mean=mean, std=std, rank=rank, world_size=world_size, device=device,
            channels=channels, **more
        )  # fmt: skip
        return made

    assert sources[0] is not None
    train = loader(sources[0], augment=policy if augment else None, shuffle=True, seed=seed, drop_last=drop_last)
    val = None if sources[1] is None else loader(sources[1])
    resizes = bool(image_size) or spec == "digits"
    how = Preprocess(
        channels="RGB" if channels == 3 else "L",
        size=size,
        resize="shorter-side" if resizes else None,
        mean=mean,
        std=std,
    )
    return Data(train, val, classes, (channels, *size), how)


def _check_count(name: str, value: Any) -> None:
    """Raise DataError unless this is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise DataError(Setting(name, value), " must be an integer of at least 1.")


def default_workers() -> int:
    """Return the default number of threads that decode images."""
    return min(16, os.cpu_count() or 1)


def _meant(spec: str) -> str:
    """Suggest a spec for one that is not valid, from what it names on disk or from the most similar form."""
    path, known = Path(spec).expanduser(), ("digits", "folder:PATH", "hf:NAME_OR_PATH", "wds:URL", "coco:PATH")
    if path.is_dir():
        family = "hf" if any(path.glob("*.parquet")) or (path / "dataset_info.json").is_file() else "folder"
        return f"There is a folder of that name: did you mean {family}:{shown(spec)}?"
    if spec.endswith((".parquet", ".tar")):
        return f"Did you mean {'wds' if spec.endswith('.tar') else 'hf'}:{shown(spec)}?"
    if path.is_file():
        return f"It is a file, and data is a folder of images, a Parquet file or shards: {', '.join(known)}."
    begun = [form for form in known if spec and form.startswith(spec)]  # `folder:`
    return f"Did you mean {begun[0]}?" if begun else nearest(spec, known)


def _crops(size: tuple[int, int]) -> Augment:
    return Augment(pad=min(max(4, min(size) // 8), min(size) - 1))


def _folder(
    splits: list[FolderSplit], size: Size, resize: bool, workers: int, device: torch.device, *, alone: bool, cache: bool,
    memory_limit: int, skip: bool,
) -> list[Source | StreamSource | None]:  # fmt: skip
    """Return the sources of a folder's splits, after checking which files can be read."""
    total = sum(split.total for split in splits)
    if sum(map(len, splits)) * size[0] * size[1] * 3 > memory_limit:
        splits = [readable(split, size, resize, workers) for split in splits]
        report_unreadable([one for split in splits for one in split.unreadable], total, skip=skip)
        return [FileSource(s, size, resize, workers=workers, device=device, alone=alone, skip=skip) for s in splits]
    found = [decoded(split, size, resize, workers=workers, use_cache=cache) for split in splits]
    bad = [[*split.unreadable, *more] for split, (_, _, more) in zip(splits, found, strict=True)]
    report_unreadable([one for split in bad for one in split], total, skip=skip)
    return [
        ArraySource(torch.from_numpy(images), torch.from_numpy(s.labels[kept]), device=device, skipped=len(without))
        for s, (images, kept, _), without in zip(splits, found, bad, strict=True)
    ]


def checked_channels(channels: int) -> int:
    """Return the number of channels. Raises DataError if it is not valid."""
    if channels not in (1, 3):
        raise DataError(Setting("channels", channels), " must be 3 (RGB) or 1 (grayscale).")
    return channels


def statistics(normalize: str | Statistics | OneOfEach) -> Statistics:
    """Return the means and standard deviations of the three colors. Raises DataError if `normalize` is not valid."""
    if isinstance(normalize, str):
        if normalize not in NORMALIZATIONS:
            raise DataError(Setting("normalize", normalize), f" is not valid. {nearest(normalize, NORMALIZATIONS)}")
        return NORMALIZATIONS[normalize]
    try:
        mean, std = (tuple(float(v) for v in values) for values in normalize)
    except (TypeError, ValueError):
        mean, std = (), ()
    finite = all(map(math.isfinite, (*mean, *std)))
    if len(mean) != len(std) or len(mean) not in (1, 3) or not all(v > 0 for v in std) or not finite:
        raise DataError(
            Setting("normalize", normalize),
            " must be ((three means), (three standard deviations above 0)), or one of each.",
        )
    means, deviations = ((values * 3)[:3] for values in (mean, std))
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])
