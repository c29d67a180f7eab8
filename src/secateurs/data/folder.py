"""Image folders with one subfolder per class: scan them, and find files that cannot be read."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from secateurs.data.images import Size, check_header
from secateurs.data.unreadable import Unreadable
from secateurs.errors import DataError, Setting
from secateurs.files import kind, shown

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
HEADERS = 100_000  # maximum number of headers read at the start, if decoding all images would take too long


@dataclass(frozen=True)
class FolderSplit:
    """The images of one split: a folder of class folders."""

    root: Path
    files: list[Path]  # regular files
    labels: np.ndarray  # (count,) int64
    unreadable: tuple[Unreadable, ...] = ()  # other entries

    def __len__(self) -> int:
        return len(self.files)

    @property
    def total(self) -> int:
        return len(self.files) + len(self.unreadable)


def scan(path: Path) -> tuple[FolderSplit, FolderSplit, tuple[str, ...]]:
    """Return the training and validation images of a folder, and its classes. Raises DataError if they are not valid.

    Hidden files and folders are skipped. Links to files and to class folders are followed. Other links to folders
    are not. Only regular files can be images; other entries are `unreadable`.
    """
    try:
        return _scan(path)
    except OSError as error:  # a folder without read permission
        raise DataError(f"{shown(error.filename or path)} cannot be read: {error.strerror or error}.") from error


def _scan(path: Path) -> tuple[FolderSplit, FolderSplit, tuple[str, ...]]:
    if not path.is_dir():
        raise DataError(f"There is no folder {shown(path)}{instead(path)}.")
    root = path / "train"
    held_out = next((path / name for name in ("val", "test") if (path / name).is_dir()), None)
    if not root.is_dir() or held_out is None:
        found = ", ".join(shown(p.name) for p in sorted(path.iterdir()) if is_folder(p)) or "no folders"
        raise DataError(f"{shown(path)} needs train/<class>/… and val/<class>/… or test/<class>/…; it has {found}.")
    (classes, broken), (other, also_broken) = _folders(root), _folders(held_out)
    if not classes:
        why = f" ({broken[0]})" if broken else ""
        raise DataError(f"{shown(root)} has no class folders{why}: put the images in {root.name}/<class>/.")
    if set(classes) == {"images", "masks"}:
        raise DataError(
            f"{shown(root)} has images and masks, not a folder for each class.",
            hint=("If each mask is that of an image, pass ", Setting("task", "segmentation"), "."),
        )
    if extra := sorted(set(other) - set(classes)):
        raise DataError(
            f"{shown(held_out)} has classes that {shown(root)} lacks: {_some(extra, root)}. Rename or remove them."
        )
    if absent := sorted(set(classes) - set(other)):
        raise DataError(
            f"{shown(held_out)} lacks classes of {shown(root)}: {_some(absent, held_out)}. Add images of them, or remove "
            "them."
        )
    train, val = _split(root, classes, broken), _split(held_out, classes, also_broken)
    return train, val, tuple(map(shown, classes))


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # it may be a folder
        return False


def instead(path: Path) -> str:
    """Say, in parentheses, what is in place of a missing folder. Empty if there is nothing."""
    if not os.path.lexists(path):
        return ""
    return f" ({shown(path)} is {'a file' if os.path.exists(path) else 'a broken link'})"


def _folders(root: Path) -> tuple[list[str], list[Unreadable]]:
    """Return the sorted names of the class folders, and broken links that may have pointed to one."""
    names, broken = [], []
    with os.scandir(root) as entries:
        for entry in entries:
            mode = _mode(entry)
            if entry.name.startswith("."):
                continue
            if isinstance(mode, str):
                broken.append(Unreadable(shown(entry.path), mode))
            elif stat.S_ISDIR(mode):
                names.append(entry.name)
    return sorted(names), sorted(broken, key=str)


def _some(names: list[str], root: Path) -> str:
    """Name the first five classes, each with what `root` has in place of its folder."""
    return ", ".join(shown(name) + instead(root / name) for name in names[:5]) + ("…" if len(names) > 5 else "")


def _mode(entry: os.DirEntry[str]) -> int | str:
    """Return the file's mode, following links, or the reason that it cannot be read."""
    try:
        if entry.is_file(follow_symlinks=False):
            return stat.S_IFREG
        return entry.stat().st_mode
    except FileNotFoundError:
        return "it is a broken link"
    except OSError as error:
        return error.strerror or str(error)


def _split(root: Path, classes: list[str], broken: list[Unreadable]) -> FolderSplit:
    files: list[Path] = []
    labels: list[int] = []
    unreadable = list(broken)
    for label, name in enumerate(classes):
        found, bad = images_in(root / name)
        if not found:
            why = f": {bad[0].path} cannot be read ({bad[0].why})" if bad else ""
            raise DataError(
                f"No images in {shown(root / name)}{why}. Supported formats: {', '.join(sorted(SUFFIXES))}."
            )
        files += found
        unreadable += bad
        labels += [label] * len(found)
    return FolderSplit(root, files, np.asarray(labels, dtype=np.int64), tuple(unreadable))


def images_in(folder: Path) -> tuple[list[Path], list[Unreadable]]:
    """Return the sorted images in a folder, and entries that cannot be read as images."""
    found: list[Path] = []
    bad: list[Unreadable] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                        continue
                    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                        continue
                    mode = _mode(entry)
                    if isinstance(mode, str):
                        bad.append(Unreadable(shown(entry.path), mode))
                    elif stat.S_ISREG(mode):
                        found.append(Path(entry.path))
                    elif not stat.S_ISDIR(mode):
                        bad.append(Unreadable(shown(entry.path), f"it is {kind(mode)}, not a regular file"))
        except OSError as error:
            bad.append(Unreadable(shown(here), error.strerror or str(error)))
    return sorted(found), sorted(bad, key=str)


def readable(split: FolderSplit, size: Size, resize: bool, workers: int) -> FolderSplit:
    """Return the split without the images whose header cannot be read. Images are not decoded.

    A split of more than `HEADERS` images is returned unchecked: its errors appear when images are decoded. Raises DataError
    for an image that is valid but cannot be used, and if no image is left.
    """
    if len(split) > HEADERS:
        return split
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda file: check_header(file, size, resize), split.files))
    bad = [one for one in found if one is not None]
    if len(bad) == len(split):
        raise DataError(f"None of the {len(bad)} images in {shown(split.root)} can be read. The first is {bad[0]}.")
    if not bad:
        return split
    good = np.array([one is None for one in found])
    files = [file for file, ok in zip(split.files, good, strict=True) if ok]
    return replace(split, files=files, labels=split.labels[good], unreadable=(*split.unreadable, *bad))
