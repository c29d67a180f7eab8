"""Cache of decoded images between runs, in `~/.cache/secateurs` (or XDG_CACHE_HOME), never in the user's data folder."""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from secateurs.caching import cache_folder, replacing
from secateurs.data.folder import FolderSplit
from secateurs.data.images import Size, decode
from secateurs.data.unreadable import Unreadable
from secateurs.errors import DataError
from secateurs.files import shown

log = logging.getLogger("secateurs")

_FORMAT = 1  # increase when the stored format changes


Decoded = tuple[np.ndarray, np.ndarray, list[Unreadable]]


def decoded(split: FolderSplit, size: Size, resize: bool, *, workers: int, use_cache: bool = True) -> Decoded:
    """Return the images that can be decoded, (count, H, W, 3) uint8, their indices in the split, (count,) int64, and the rest.

    If no file has changed, the images come from the cache and are memory-mapped. Otherwise threads decode and cache them.
    """
    images_at, kept_at = _paths(split, size, resize)
    if use_cache and (found := _read(images_at, kept_at, split, size, resize)) is not None:
        return found
    images, kept, bad = _decode_all(split, size, resize, workers)
    if use_cache:
        try:
            _write(images_at, kept_at, images, kept)
        except OSError as error:  # a full disk or a read-only home only costs time at the next start
            log.warning("decoded images could not be cached in %s: %s", cache_folder(), error)
    return images, kept, bad


def _paths(split: FolderSplit, size: Size, resize: bool) -> tuple[Path, Path]:
    """Derive the paths from what is read and how (so a changed folder replaces its old entry) and from the files' state."""
    what = hashlib.sha256(repr((_FORMAT, str(split.root.resolve()), size, resize)).encode())
    state = hashlib.sha256()
    for file in split.files:
        try:
            stat = file.stat()
        except OSError:  # it has just been removed, and cannot be read
            continue
        state.update(os.fsencode(file.relative_to(split.root)) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    name = f"{what.hexdigest()[:16]}-{state.hexdigest()[:32]}"
    return cache_folder() / f"{name}.npy", cache_folder() / f"{name}.kept.npy"


def _read(images_at: Path, kept_at: Path, split: FolderSplit, size: Size, resize: bool) -> Decoded | None:
    try:
        # Copy on write: torch does not support read-only arrays, and the file must not change.
        images = np.load(images_at, mmap_mode="c", allow_pickle=False)
        kept = np.load(kept_at, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = images.dtype == np.uint8 and images.shape == (len(kept), *size, 3) and kept.dtype == np.int64
    if not whole or not ((kept >= 0) & (kept < len(split))).all():
        return None
    left_out = np.setdiff1d(np.arange(len(split)), kept)
    again = [decode(split.files[i], size, resize) for i in left_out]
    bad = [one for one in again if isinstance(one, Unreadable)]
    return (images, kept, bad) if len(bad) == len(again) else None  # for example, its permissions were fixed


def _write(images_at: Path, kept_at: Path, images: np.ndarray, kept: np.ndarray) -> None:
    stale = set(images_at.parent.glob(f"{images_at.name[:16]}-*.npy"))
    for path, array in ((kept_at, kept), (images_at, images)):
        with replacing(path) as file:
            np.save(file, array, allow_pickle=False)
    for path in stale - {images_at, kept_at}:
        path.unlink(missing_ok=True)


def _decode_all(split: FolderSplit, size: Size, resize: bool, workers: int) -> Decoded:
    images = np.empty((len(split), *size, 3), dtype=np.uint8)
    good = np.zeros(len(split), dtype=bool)
    bad: dict[int, Unreadable] = {}

    def fill(rows: range) -> None:
        for i in rows:
            found = decode(split.files[i], size, resize)
            if isinstance(found, Unreadable):
                bad[i] = found
            else:
                images[i], good[i] = found, True

    chunks = [range(i, min(i + 256, len(split))) for i in range(0, len(split), 256)]
    with ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(fill, rows) for rows in chunks]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    kept = np.flatnonzero(good).astype(np.int64)
    if not len(kept):
        raise DataError(f"None of the {len(split)} images in {shown(split.root)} can be read. The first is {bad[0]}.")
    return (images if len(kept) == len(split) else images[kept]), kept, [bad[i] for i in sorted(bad)]
