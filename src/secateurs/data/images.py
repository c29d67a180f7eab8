"""Folders of images: what is in them, and one image of it as an array."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateurs.errors import DataError, SpecError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_DEEP = ("I", "F")  # more than 8 bits a channel: what white is, the file does not say


@dataclass(frozen=True)
class FolderSplit:
    """The images under one folder of class folders."""

    root: Path
    files: list[Path]
    labels: np.ndarray  # (count,) int64

    def __len__(self) -> int:
        return len(self.files)


def scan(path: Path) -> tuple[FolderSplit, FolderSplit, tuple[str, ...]]:
    """The training and the validation images of a folder, and its classes. DataError if they don't make sense."""
    if not path.is_dir():
        raise DataError(f"There is no folder {path}.")
    root = path / "train"
    held_out = next((path / name for name in ("val", "test") if (path / name).is_dir()), None)
    if not root.is_dir() or held_out is None:
        found = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir())[:10]) or "no folders"
        raise DataError(f"{path} needs train/<class>/… and val/<class>/… or test/<class>/…; it has {found}.")
    classes = tuple(_folders(root))
    if not classes:
        raise DataError(f"{root} has no class folders: the images belong in {root.name}/<class>/.")
    other = _folders(held_out)
    if extra := sorted(set(other) - set(classes)):
        raise DataError(f"{held_out} has classes that {root} lacks: {_some(extra)}. Rename or remove them.")
    if absent := sorted(set(classes) - set(other)):
        raise DataError(f"{held_out} lacks classes of {root}: {_some(absent)}. Add images of them, or remove them.")
    return _split(root, classes), _split(held_out, classes), classes


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + ("…" if len(names) > 5 else "")


def _split(root: Path, classes: tuple[str, ...]) -> FolderSplit:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
        if not found:
            raise DataError(f"No images in {root / name}. Read are {', '.join(sorted(SUFFIXES))}.")
        files += found
        labels += [label] * len(found)
    return FolderSplit(root, files, np.asarray(labels, dtype=np.int64))


def first_size(files: Iterable[Path | bytes], where: Path | str) -> tuple[int, int]:
    """(height, width) of the first image that opens, which the others are held to."""
    image, count = _pillow(), 0
    for count, file in enumerate(files, 1):  # noqa: B007
        try:
            with image.open(_source(file)) as opened:
                return opened.height, opened.width
        except (OSError, SyntaxError, ValueError):
            continue
    raise DataError(f"None of the {count} images in {where} can be opened.")


def decode(file: Path | bytes, size: tuple[int, int], resize: bool, name: str | None = None) -> np.ndarray | None:
    """One image, from a file or as its bytes, as RGB (H, W, 3) uint8; None if it is damaged. name: for messages.

    With `resize`, the shorter side is brought to size and the middle is kept; without, DataError for another size.
    """
    image = _pillow()
    height, width = size
    name = name or (file.as_posix() if isinstance(file, Path) else "an image")
    try:
        with image.open(_source(file)) as opened:
            if opened.mode.partition(";")[0] in _DEEP:
                raise DataError(f"{name} has more than 8 bits per channel (mode {opened.mode}); convert it to 8 bits.")
            if not resize and (opened.height, opened.width) != size:
                raise DataError(
                    f"{name} is {opened.height}x{opened.width}, but the first training image is {height}x{width} "
                    f"(height x width). Pass image_size={min(size)} to resize them all."
                )
            rgb = opened
            if rgb.mode == "P" and "transparency" in rgb.info:
                rgb = rgb.convert("RGBA")  # Pillow wants palettes with transparency to go this way
            rgb = rgb.convert("RGB")
            if resize and (rgb.height, rgb.width) != size:
                scale = max(height / rgb.height, width / rgb.width)
                tall, wide = max(height, round(rgb.height * scale)), max(width, round(rgb.width * scale))
                top, left = (tall - height) // 2, (wide - width) // 2
                rgb = rgb.resize((wide, tall), image.Resampling.BILINEAR)
                rgb = rgb.crop((left, top, left + width, top + height))
            return np.asarray(rgb)
    except (OSError, SyntaxError, ValueError):  # truncated, not an image after all, a broken header
        return None


def _source(file: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(file) if isinstance(file, bytes) else file


def _pillow():  # type: ignore[no-untyped-def]
    try:
        from PIL import Image
    except ImportError as error:
        raise SpecError("Images are read by Pillow. Run: pip install 'secateurs[vision]'") from error
    return Image
