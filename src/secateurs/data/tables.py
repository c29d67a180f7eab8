"""Data sets of Hugging Face `datasets` with columns of images and of masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from secateurs.data import opening as O
from secateurs.data import spec as S
from secateurs.data.decoder import Encoded
from secateurs.errors import DataError, SpecError
from secateurs.files import shown

MASKS = ("mask", "annotation", "label", "labels", "segmentation_mask", "masks", "annotations", "png")


@dataclass(frozen=True)
class Tables:
    """The splits of a data set, training first, whose rows can be read in any order."""

    datasets: Any
    what: str
    options: S.Options
    splits: dict[str, Any]

    def cells(self, split: str, columns: tuple[str, ...]) -> Callable[[int], tuple[Encoded, ...]]:
        """Return a function that reads the images of a row, which stay encoded."""
        rows = O.undecoded(self.datasets, self.splits[split], columns)

        def read(index: int) -> tuple[Encoded, ...]:
            row = rows[index]
            return tuple(O.encoded(f"{self.what}, {split}, row {index}, {name}", row[name]) for name in columns)

        return read


def tables(rest: str) -> Tables:
    """Open a data set that `open_hf` accepts, with any columns, from a copy on disk. Raises DataError for an empty split."""
    datasets = O.library()
    name, options = S.parse(rest)
    what, path = f"hf:{shown(name)}", Path(name).expanduser()
    if options.streamed:
        raise SpecError(f"{what}: stream=true is for classification; this data is read from a copy on disk.")
    found = O.saved(datasets, what, path, options)
    split, names = found or O.copied(what, O.builder(datasets, what, name, path, options))
    chosen = [s for s in O.choose(what, names, options) if s is not None]
    splits = {s: O.guard(what, partial(split, s)) for s in chosen}
    for s, rows in splits.items():
        O.check_rows(what, s, rows)
    return Tables(datasets, what, options, splits)


def masks_of(found: Tables) -> tuple[str, str]:
    """Return the names of the image and mask columns."""
    features = next(iter(found.splits.values())).features
    there = ", ".join(f"{name} ({O.kind(feature)})" for name, feature in features.items())
    images = [name for name, feature in features.items() if isinstance(feature, found.datasets.Image)]
    chosen = []
    for asked, usual, what, key in (
        (found.options.image, O.IMAGES, "images", "image"),
        (found.options.label, MASKS, "masks", "label"),
    ):
        left = [name for name in images if name not in chosen]
        name = asked or next((n for n in (*usual, *left[:1]) if n in left), None)
        if name is None or name not in left:
            wanted = f"column of {what}" + ("" if asked is None else f" {asked!r}")
            raise DataError(f"{found.what} has no {wanted}. Its columns are {there}. Choose one with ?{key}=….")
        chosen.append(name)
    return chosen[0], chosen[1]
