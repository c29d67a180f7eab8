"""Images with a mask of class indices each, from folders and from Hugging Face `datasets`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateurs.data.decoder import Encoded
from secateurs.data.folder import images_in, instead, is_folder
from secateurs.data.images import Size, indices, pixels, size_of
from secateurs.data.samples import Sample
from secateurs.data.tables import masks_of, tables
from secateurs.data.unreadable import Unreadable, report_unreadable
from secateurs.errors import DataError, Setting
from secateurs.files import shown

IGNORED = -100  # the target of pixels that don't count, as in cross-entropy
FOLDERS = ("val", "validation", "test")
CHECKED = 5000  # masks of a split that are read before a run
_NAMED = 3  # files that a message names

log = logging.getLogger("secateurs")


@dataclass(frozen=True)
class Pairs:
    """The images and masks of one split, still encoded. pair(index): an image and its mask; several threads call it."""

    where: str
    pair: Callable[[int], tuple[Encoded, ...]]
    count: int
    workers: int
    skipped: int = 0

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample | Unreadable:
        """Return the image (3, H, W) uint8 and the mask (H, W) int64. 255 (65535 in 16 bits) becomes IGNORED."""
        (name, image), (mask_name, mask) = self.pair(index)
        rgb, classes = pixels(image, name), indices(mask, mask_name)
        if isinstance(rgb, Unreadable):
            return rgb
        if isinstance(classes, Unreadable):
            return classes
        _check_sizes(name, rgb.shape[:2], mask_name, classes.shape)
        return torch.from_numpy(rgb).permute(2, 0, 1), torch.from_numpy(counted(classes))

    def size(self, index: int) -> Size:
        return self.sizes[index]

    @cached_property
    def sizes(self) -> list[Size]:
        """The sizes of all images; (0, 0) for an image that cannot be read."""
        found = self._each(lambda pair: size_of(pair[0][1], pair[0][0]), range(len(self)))
        return [(0, 0) if isinstance(size, Unreadable) else size for size in found]

    def some_sizes(self, most: int = 256) -> list[Size]:
        """Return the sizes of up to `most` images, evenly spaced, without images that cannot be read."""
        if len(self) <= most:
            chosen = self.sizes
        else:
            which = [i * len(self) // most for i in range(most)]
            found = self._each(lambda pair: size_of(pair[0][1], pair[0][0]), which)
            chosen = [size for size in found if not isinstance(size, Unreadable)]
        return [size for size in chosen if size != (0, 0)]

    def check(self, classes: int | None, *, skip: bool) -> int:
        """Check the masks before a run, so that an invalid mask does not end it. Returns the highest class index, or -1 if
        there is none.

        classes: the number of classes. If it is None, all masks are read to find it; otherwise up to CHECKED, evenly spaced.

        Raises DataError, with the names of files, for masks that cannot be read (unless they are skipped), that differ in
        size from their image, or that have a class index that is too high.
        """
        total = len(self)
        which = range(total) if classes is None or total <= CHECKED else [i * total // CHECKED for i in range(CHECKED)]
        if len(which) < total:
            log.warning(
                "%s: checked %s of %s masks, evenly spaced; the others are checked when they are read",
                self.where, f"{len(which):,}", f"{total:,}",
            )  # fmt: skip

        def highest(pair: tuple[Encoded, ...]) -> tuple[str, int] | Unreadable:
            (name, image), (mask_name, mask) = pair
            found = indices(mask, mask_name)
            if isinstance(found, Unreadable):
                return found
            if isinstance(size := size_of(image, name), tuple):
                _check_sizes(name, size, mask_name, found.shape)
            return mask_name, int(counted(found).max(initial=-1))

        read = self._each(highest, which)
        report_unreadable([one for one in read if isinstance(one, Unreadable)], len(read), skip=skip)
        found = [one for one in read if not isinstance(one, Unreadable)]
        if classes is not None and (over := [one for one in found if one[1] >= classes]):
            raise _too_high(over, len(read), classes)
        return max((index for _, index in found), default=-1)

    def _each(self, function: Callable[[tuple[Encoded, ...]], Any], which: Sequence[int]) -> list[Any]:
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda i: function(self.pair(i)), which))


def counted(mask: np.ndarray) -> np.ndarray:
    """Convert class indices to int64; 255 in 8 bits, and 65535 in 16 bits, become IGNORED."""
    void = 1 if mask.dtype == bool else 255 if mask.dtype == np.uint8 else 65535
    found = mask.astype(np.int64)
    return found if mask.dtype == bool else np.where(found == void, IGNORED, found)


def open_folder(path: Path, workers: int, skip: bool) -> tuple[Pairs, Pairs, tuple[str, ...] | None]:
    """Open the training and validation pairs of a folder: `train/images` and `train/masks`, `val/images` and `val/masks` (or
    test). A mask has the name of its image, with any suffix. The classes are the lines of `classes.txt`, if it exists.

    Raises DataError for any other layout, for images without a mask, and for files that cannot be read unless they are
    skipped.
    """
    try:
        return _open_folder(path, workers, skip)
    except OSError as error:  # a folder without read permission
        raise DataError(f"{shown(error.filename or path)} cannot be read: {error.strerror or error}.") from error


def _open_folder(path: Path, workers: int, skip: bool) -> tuple[Pairs, Pairs, tuple[str, ...] | None]:
    if not path.is_dir():
        raise DataError(f"There is no folder {shown(path)}{instead(path)}.")
    held_out = next((path / name for name in FOLDERS if is_folder(path / name)), path / "val")
    missing = [
        f"{folder.name}/{part}"
        for folder in (path / "train", held_out)
        for part in ("images", "masks")
        if not is_folder(folder / part)
    ]
    if missing:
        raise DataError(
            f"{shown(path)} needs train/images, train/masks, val/images and val/masks (or test instead of val); it has no "
            f"{' and no '.join(missing)}."
        )
    splits = [_split(folder, workers, skip) for folder in (path / "train", held_out)]
    names = path / "classes.txt"
    classes = None
    if names.is_file():
        lines = names.read_text(encoding="utf-8", errors="replace").splitlines()
        classes = tuple(shown(line.strip()) for line in lines if line.strip())
    return splits[0], splits[1], classes


def _split(root: Path, workers: int, skip: bool) -> Pairs:
    (images, bad), (masks, bad_masks) = images_in(root / "images"), images_in(root / "masks")
    if not images:
        raise DataError(f"No images in {shown(root / 'images')}.")
    known = {file.relative_to(root / "masks").with_suffix(""): file for file in masks}
    found = [(file, known.get(file.relative_to(root / "images").with_suffix(""))) for file in images]
    if alone := [file for file, mask in found if mask is None]:
        names = ", ".join(map(shown, alone[:_NAMED])) + (", …" if len(alone) > _NAMED else "")
        raise DataError(
            f"{len(alone):,} of {len(images):,} images have no mask of the same name in {shown(root / 'masks')}: {names}."
        )
    files = [(image, mask) for image, mask in found if mask is not None]
    with ThreadPoolExecutor(workers) as pool:
        headers = list(pool.map(lambda pair: [size_of(file, shown(file)) for file in pair], files))
    faults = [next((one for one in sizes if isinstance(one, Unreadable)), None) for sizes in headers]
    good = [pair for pair, fault in zip(files, faults, strict=True) if fault is None]
    report_unreadable([*bad, *bad_masks, *(f for f in faults if f is not None)], len(images) + len(bad), skip=skip)
    for (image, mask), (size, of_mask) in zip(files, headers, strict=True):
        if isinstance(size, tuple) and isinstance(of_mask, tuple):
            _check_sizes(shown(image), size, shown(mask), of_mask)
    if not good:
        raise DataError(f"None of the {len(images)} images in {shown(root / 'images')} can be read.")

    def pair(index: int) -> tuple[Encoded, ...]:
        image, mask = good[index]
        return (shown(image), image), (shown(mask), mask)

    made = Pairs(shown(root), pair, len(good), workers, skipped=len(images) + len(bad) - len(good))
    made.__dict__["sizes"] = [size for (size, _), fault in zip(headers, faults, strict=True) if fault is None]  # known
    return made


def open_table(rest: str, workers: int) -> tuple[Pairs, Pairs | None, tuple[str, ...] | None]:
    """Open the pairs of a Hugging Face data set with a column of images and one of masks (the options `image` and `label`).
    The classes are those of the option `classes`; without it, they are None."""
    found = tables(rest)
    image, mask = masks_of(found)
    made = []
    for name, rows in found.splits.items():
        made.append(Pairs(f"{found.what}, {name}", found.cells(name, (image, mask)), len(rows), workers))
    return made[0], made[1] if len(made) > 1 else None, found.options.names


def found_classes(highest: int) -> int:
    """Return the number of classes in masks, given their highest index. Raises DataError if there is only one class."""
    if highest < 1:
        raise DataError(
            "The masks hold class 0 and pixels that don't count (255), and nothing else: a mask of two classes holds 0 and 1. "
            "If other classes are only rare, pass ", Setting("num_classes"), ".",
        )  # fmt: skip
    return highest + 1


def _too_high(over: Sequence[tuple[str, int]], total: int, classes: int) -> DataError:
    """Return the error for masks with class indices that are too high. over: the name and the highest index of each mask."""
    names = ", ".join(f"{name} ({index})" for name, index in over[:_NAMED]) + (", …" if len(over) > _NAMED else "")
    return DataError(
        f"{len(over):,} of {total:,} masks have a class index above {classes - 1}, and there are {classes} classes, counted "
        f"from 0: {names}. Pixels that don't count are 255 (65535 in 16 bits).",
        hint=("Correct the masks, or pass ", Setting("num_classes", 1 + max(index for _, index in over)), "."),
    )


def _check_sizes(image: str, size: Sequence[int], mask: str, of_mask: Sequence[int]) -> None:
    if tuple(size) != tuple(of_mask):
        raise DataError(
            f"{image} is {size[0]}x{size[1]}, and its mask {mask} {of_mask[0]}x{of_mask[1]} (height x width): they must be "
            "the same."
        )
