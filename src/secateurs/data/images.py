"""Decode an image to an array, or return the reason that it cannot be read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.data.unreadable import Unreadable
from secateurs.errors import DataError, Setting, SpecError
from secateurs.files import opened, shown

_DEEP = ("I", "F")  # more than 8 bits per channel: the file does not define the white level
Size = tuple[int, int]  # height, width


def first_size(files: Iterable[Path | bytes], where: Path | str) -> Size:
    """(height, width) of the first readable image, which the others must match."""
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
    """Decode one image, from a file or bytes, to RGB (H, W, 3) uint8; or return why it cannot be read. name: for messages.

    With `resize`, the shorter side is resized and the center is cropped; without, raises DataError for another size.
    """
    height, width = size
    name = name or _name(file)
    try:
        with _image(file) as image:
            _check_usable(image, size, resize, name)
            rgb = image
            if rgb.mode == "P" and "transparency" in rgb.info:
                rgb = rgb.convert("RGBA")  # Pillow requires this for palettes with transparency
            rgb = rgb.convert("RGB")
            if resize and (rgb.height, rgb.width) != size:
                scale = max(height / rgb.height, width / rgb.width)
                tall, wide = max(height, round(rgb.height * scale)), max(width, round(rgb.width * scale))
                top, left = (tall - height) // 2, (wide - width) // 2
                rgb = rgb.resize((wide, tall), _pillow().Resampling.BILINEAR)
                rgb = rgb.crop((left, top, left + width, top + height))
            return np.asarray(rgb)
    except (DataError, SpecError):
        raise
    except Exception as error:  # Pillow raises many types on damaged files
        return Unreadable(name, _why(error))


def check_header(file: Path, size: Size, resize: bool) -> Unreadable | None:
    """Check an image without decoding it. Returns the reason that it cannot be read, or None.

    Raises DataError for an image for which `decode` would raise it.
    """
    name = _name(file)
    try:
        with _image(file) as image:
            _check_usable(image, size, resize, name)
    except (DataError, SpecError):
        raise
    except Exception as error:
        return Unreadable(name, _why(error))
    return None


def _check_usable(image: Any, size: Size, resize: bool, name: str) -> None:
    """Raise DataError for an image that is valid but cannot be used."""
    if image.mode.partition(";")[0] in _DEEP:
        raise DataError(f"{name} has more than 8 bits per channel (mode {image.mode}); convert it to 8 bits.")
    if not resize and (image.height, image.width) != size:
        raise DataError(
            f"{name} is {image.height}x{image.width}, but the first training image is {size[0]}x{size[1]} "
            "(height x width).",
            hint=("Pass ", Setting("image_size", min(size)), " to resize them all."),
        )


@contextmanager
def _image(file: Path | bytes) -> Iterator[Any]:
    """The image opened by Pillow, with its header read."""
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
        raise SpecError("Reading images needs Pillow. Run: pip install 'secateurs[vision]'") from error
    return Image
