"""Decode an image to an array, or return the reason that it cannot be read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from secateurs.data.unreadable import Unreadable
from secateurs.errors import DataError, Setting, SpecError
from secateurs.files import opened, shown

_DEEP = ("I", "F")  # more than 8 bits per channel: the file does not define the white level
Size = tuple[int, int]  # height, width
T = TypeVar("T")


def first_size(files: Iterable[Path | bytes], where: Path | str) -> Size:
    """Return (height, width) of the first readable image, which the others must match."""
    count, first = 0, None
    for count, file in enumerate(files, 1):  # noqa: B007
        try:
            with _image(file) as image:
                return image.height, image.width
        except SpecError:
            raise
        except Exception as error:  # whatever Pillow raises: see `decode`
            first = first or Unreadable(_name(file), _why(error))
    raise DataError(f"None of the {count} images in {shown(where)} can be read. The first is {first}.")


def decode(file: Path | bytes, size: Size, resize: bool, name: str | None = None) -> np.ndarray | Unreadable:
    """Decode one image, from a file or bytes, to RGB (H, W, 3) uint8, or return why it cannot be read. name: for messages.

    With `resize`, the shorter side is resized and the center is cropped. Without it, another size raises DataError.
    """
    height, width = size
    name = name or _name(file)

    def read(image: Any) -> np.ndarray:
        _check_usable(image, size, resize, name)
        rgb = _rgb(image)
        if resize and (rgb.height, rgb.width) != size:
            scale = max(height / rgb.height, width / rgb.width)
            tall, wide = max(height, round(rgb.height * scale)), max(width, round(rgb.width * scale))
            top, left = (tall - height) // 2, (wide - width) // 2
            rgb = rgb.resize((wide, tall), _pillow().Resampling.BILINEAR)
            rgb = rgb.crop((left, top, left + width, top + height))
        return np.asarray(rgb)

    return _attempt(file, name, read)


def pixels(file: Path | bytes, name: str | None = None) -> np.ndarray | Unreadable:
    """Decode an image of any size to RGB (H, W, 3) uint8, or return why it cannot be read. name: for messages."""
    name = name or _name(file)

    def read(image: Any) -> np.ndarray:
        _check_depth(image, name)
        return np.array(_rgb(image))

    return _attempt(file, name, read)


def indices(file: Path | bytes, name: str) -> np.ndarray | Unreadable:
    """Decode a mask of class indices to (H, W) integers, or return why it cannot be read. The indices are palette indices, or
    the values of one channel of 8 or 16 bits. Raises DataError for images with several channels, and for JPEG files."""

    def read(image: Any) -> np.ndarray:
        if image.format == "JPEG":
            raise DataError(
                f"{name} is a JPEG file, whose compression changes the class indices of a mask: save masks as PNG files, from "
                "the originals if there are any."
            )
        if image.mode.partition(";")[0] not in ("1", "L", "P", "I"):
            raise DataError(
                f"{name} is not a mask: its mode is {image.mode}, and a mask holds one class index per pixel, as a grayscale "
                "or palette image."
            )
        return np.array(image)

    return _attempt(file, name, read)


def size_of(file: Path | bytes, name: str) -> Size | Unreadable:
    """Return (height, width) from the header, or why the image cannot be read."""
    return _attempt(file, name, lambda image: (image.height, image.width))


def _attempt(file: Path | bytes, name: str, read: Callable[[Any], T]) -> T | Unreadable:
    try:
        with _image(file) as image:
            return read(image)
    except (DataError, SpecError):
        raise
    except Exception as error:  # Pillow raises many types on damaged files
        return Unreadable(name, _why(error))


def _rgb(image: Any) -> Any:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow requires this for palettes with transparency
    return image.convert("RGB")


def check_header(file: Path, size: Size, resize: bool) -> Unreadable | None:
    """Check an image without decoding it. Returns the reason that it cannot be read, or None.

    Raises DataError where `decode` would.
    """
    name = _name(file)
    return _attempt(file, name, lambda image: _check_usable(image, size, resize, name))


def _check_usable(image: Any, size: Size, resize: bool, name: str) -> None:
    """Raise DataError for an image that is valid but cannot be used."""
    _check_depth(image, name)
    if not resize and (image.height, image.width) != size:
        raise DataError(
            f"{name} is {image.height}x{image.width}, but the first training image is {size[0]}x{size[1]} "
            "(height x width).",
            hint=("Pass ", Setting("image_size", min(size)), " to resize them all."),
        )


def _check_depth(image: Any, name: str) -> None:
    if image.mode.partition(";")[0] in _DEEP:
        raise DataError(f"{name} has more than 8 bits per channel (mode {image.mode}); convert it to 8 bits.")


@contextmanager
def _image(file: Path | bytes) -> Iterator[Any]:
    """Open an image with Pillow, which reads its header."""
    pillow = _pillow()
    with io.BytesIO(file) if isinstance(file, bytes) else opened(file) as source, pillow.open(source) as image:
        yield image


def _why(error: Exception) -> str:
    pillow = _pillow()
    if isinstance(error, pillow.DecompressionBombError | pillow.DecompressionBombWarning):
        return f"it has more pixels than Pillow's limit: {error}".rstrip(".")
    if isinstance(error, MemoryError):
        return "it does not fit in memory"
    if isinstance(error, pillow.UnidentifiedImageError):
        return "it is not an image, or its header is damaged"
    reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return str(reason).rstrip(".")


def _name(file: Path | bytes) -> str:
    return shown(file) if isinstance(file, Path) else "an image"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise SpecError("Reading images needs Pillow. Run: pip install 'secateurs[data]'") from error
    return Image
