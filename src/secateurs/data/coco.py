"""Images with boxes, annotated in COCO's JSON format."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError
from torch import Tensor

from secateurs.data import spec as S
from secateurs.data.folder import instead, is_folder
from secateurs.data.images import Size, pixels, size_of
from secateurs.data.samples import Sample
from secateurs.data.unreadable import Unreadable, report_unreadable
from secateurs.errors import ArtifactError, DataError, Setting, SpecError, nearest
from secateurs.files import faults, read_bytes, shown

log = logging.getLogger("secateurs")

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "test")}
_NAMED = 3  # entries that a message names
_SKIP = ("Repair the file, or pass ", Setting("skip_unreadable", True), " to skip them.")
M = TypeVar("M", bound=BaseModel)


class ImageEntry(BaseModel):
    """An item of `images`. If the height or the width is missing, both are read from the image file."""

    id: int | str
    file_name: str
    height: int | None = None
    width: int | None = None


class BoxEntry(BaseModel):
    """An item of `annotations`. bbox: x, y, width and height, in pixels."""

    id: int | str | None = None
    image_id: int | str
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    area: FiniteFloat | None = None
    iscrowd: bool = False


class CategoryEntry(BaseModel):
    """An item of `categories`."""

    id: int
    name: str


@dataclass(frozen=True)
class Annotated:
    """An image and the boxes on it."""

    file: Path
    size: Size | None  # height and width, if the annotations give them
    boxes: Sequence[BoxEntry]


@dataclass(frozen=True)
class Boxes:
    """The images and boxes of one split.

    labels: the class of each category id, counted from 1 (0 is the background). crowds: keep boxes around many objects
    (`iscrowd`), which evaluation ignores and training must not see.
    """

    where: str
    images: Sequence[Annotated]
    labels: dict[int, int]
    crowds: bool
    workers: int
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Sample | Unreadable:
        """Return the image, (3, H, W) uint8, and a dict of its B boxes: `boxes` (B, 4) float32 as x1, y1, x2, y2 in pixels,
        `labels` (B,) int64, `iscrowd` (B,) int64 and `area` (B,) float32."""
        one = self.images[index]
        rgb = pixels(one.file, shown(one.file))
        if isinstance(rgb, Unreadable):
            return rgb
        if one.size is not None and rgb.shape[:2] != one.size:
            raise DataError(
                f"{shown(one.file)} is {rgb.shape[0]}x{rgb.shape[1]}, and {self.where} says {one.size[0]}x{one.size[1]} "
                "(height x width): its boxes may be of another image. If the file was resized or rotated, change its boxes too."
            )
        return torch.from_numpy(rgb).permute(2, 0, 1), self._target(one.boxes, rgb.shape[:2])

    def _target(self, entries: Sequence[BoxEntry], size: Size) -> dict[str, Tensor]:
        kept = [entry for entry in entries if self.crowds or not entry.iscrowd]
        corners = torch.tensor([entry.bbox for entry in kept], dtype=torch.float64).view(-1, 4)
        corners[:, 2:] += corners[:, :2]
        height, width = size
        boxes = corners.clamp(min=torch.zeros(4), max=torch.tensor([width, height, width, height]))
        whole = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        areas = [float(a) if e.area is None else e.area for e, a in zip(kept, whole, strict=True)]
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)  # boxes that overlap the image
        return {
            "boxes": boxes[seen].float(),
            "labels": torch.tensor([self.labels[entry.category_id] for entry in kept], dtype=torch.long)[seen],
            "iscrowd": torch.tensor([entry.iscrowd for entry in kept], dtype=torch.long)[seen],
            "area": torch.tensor(areas, dtype=torch.float32)[seen],
        }

    def size(self, index: int) -> Size:
        return self.sizes[index]

    @cached_property
    def sizes(self) -> list[Size]:
        """The sizes of all images; (0, 0) for an image that cannot be read."""

        def known(one: Annotated) -> Size:
            found = one.size or size_of(one.file, shown(one.file))
            return (0, 0) if isinstance(found, Unreadable) else found

        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(known, self.images))


def open_coco(rest: str, workers: int, skip: bool, classes: int | None) -> tuple[Boxes, Boxes | None, tuple[str, ...]]:
    """Return the training and validation images of `PATH?train=FILE&val=FILE`, and the names of the classes.

    Without options, each split's annotations are `annotations/instances_<split>*.json`, `instances_<split>*.json`, or
    `<split>/_annotations.coco.json`. Its images are in a folder with the split's name (`train2017` for
    `instances_train2017.json`), in that folder within `images`, in `images`, next to the annotations, or in PATH. `val=none`
    omits validation. Categories are numbered from 1 in the order of their ids; if there are fewer than `classes`, each keeps
    its id.

    skip: leave out what cannot be read. Raises SpecError for other options, and DataError for invalid data.
    """
    name, options = S.parse(rest)
    if other := [key for key, value in vars(options).items() if value is not None and key not in SPLITS]:
        raise SpecError(f"coco:{rest}: {other[0]!r} is not an option of coco: data. {nearest(other[0], SPLITS)}")
    root = Path(name).expanduser()
    if not is_folder(root):
        raise DataError(f"There is no folder {shown(root)}{instead(root)}.")
    train, known = _read(root, "train", _annotations(root, "train", options.train), workers, skip)
    if not any(not box.iscrowd for one in train.images for box in one.boxes):
        raise DataError(f"{train.where} has no box: there is nothing to learn.")
    labels, names = _numbered(known, classes, train.where)
    train = replace(train, labels=labels)
    if options.val == "none":
        return train, None, names
    val, also = _read(root, "val", _annotations(root, "val", options.val), workers, skip)
    for identity, label in also.items():
        if known.get(identity) != label:
            other_name = f"calls it {known[identity]!r}" if identity in known else "does not have it"
            raise DataError(
                f"{val.where} has category {identity} ({label!r}), and {train.where} {other_name}: both need the same "
                "categories."
            )
    return train, replace(val, labels=labels), names


def _numbered(names: dict[int, str], classes: int | None, where: str) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return the class of each category id, counted from 1, and the names of the classes."""
    ids = sorted(names)
    if classes is None or classes == len(ids):
        return {identity: i for i, identity in enumerate(ids, 1)}, tuple(names[identity] for identity in ids)
    if classes < ids[-1] or ids[0] < 1:
        raise DataError(
            f"{where} has {len(ids)} categories, with ids {ids[0]} to {ids[-1]}: ", Setting("num_classes", classes),
            f" must be {len(ids)}, or at least {ids[-1]} for classes that are numbered by their ids.",
        )  # fmt: skip
    return {identity: identity for identity in ids}, tuple(names.get(i, str(i)) for i in range(1, classes + 1))


def _annotations(root: Path, split: str, given: str | None) -> Path:
    """Find the annotation file of a split."""
    if given is not None:
        return root / given
    for name in SPLITS[split]:
        for folder in (root / "annotations", root):
            found = sorted(folder.glob(f"instances_{name}*.json"))
            if len(found) > 1:
                names = ", ".join(shown(file.name) for file in found[:_NAMED])
                raise DataError(
                    f"{shown(folder)} has {len(found)} files of annotations for {split}: {names}. "
                    f"Name one: coco:{shown(root)}?{split}={shown(found[0].relative_to(root))}."
                )
            if found:
                return found[0]
        for file in (
            root / name / "_annotations.coco.json",
            root / f"{name}.json",
            root / "annotations" / f"{name}.json",
        ):
            if file.is_file():
                return file
    hint = f", or val=none for no validation: coco:{shown(root)}?val=none" if split == "val" else ""
    raise DataError(
        f"{shown(root)} has no annotations for {split}: it needs annotations/instances_{split}.json. Another file can be "
        f"named, coco:{shown(root)}?{split}=FILE{hint}."
    )


def _read(root: Path, split: str, file: Path, workers: int, skip: bool) -> tuple[Boxes, dict[int, str]]:
    """Read the images of a split, and the names of categories by id."""
    where = shown(file)
    tree = _json(file)
    categories = _entries(tree, "categories", CategoryEntry, where, skip=False)
    images = _entries(tree, "images", ImageEntry, where, skip=False)
    boxes = _entries(tree, "annotations", BoxEntry, where, skip)
    _check_unique([c.id for c in categories], "categories", where)
    _check_unique([i.id for i in images], "images", where)
    names = {c.id: shown(c.name) for c in categories}
    if not images or not names:
        raise DataError(f"{where} has no {'images' if not images else 'categories'}.")
    by_image: dict[int | str, list[BoxEntry]] = {image.id: [] for image in images}
    wrong, empty = [], 0
    for box in boxes:
        if box.image_id not in by_image:
            wrong.append(f"annotation {box.id} is of image {box.image_id!r}, which is not in images")
        elif box.category_id not in names:
            wrong.append(f"annotation {box.id} has category {box.category_id}, which is not in categories")
        elif min(box.bbox[2:]) <= 0:
            empty += 1
        else:
            by_image[box.image_id].append(box)
    _complain(wrong, len(boxes), where, skip)
    if empty:
        log.warning("%s: %d of %d boxes have no area and are left out", where, empty, len(boxes))
    folder = _folder(root, split, file, images)
    files = [folder / image.file_name for image in images]
    with ThreadPoolExecutor(workers) as pool:
        there = list(pool.map(Path.is_file, files))
    lost = [Unreadable(shown(file), "there is no such file") for file, ok in zip(files, there, strict=True) if not ok]
    report_unreadable(lost, len(images), skip=skip)
    found = [
        Annotated(file, (image.height, image.width) if image.height and image.width else None, by_image[image.id])
        for image, file, ok in zip(images, files, there, strict=True)
        if ok
    ]
    return Boxes(where, found, {}, split == "val", workers, len(lost)), names


def _json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(read_bytes(file))
    except ArtifactError as error:
        raise DataError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(file)} is not valid JSON: {error}.") from None
    if not isinstance(tree, dict) or "images" not in tree:
        raise DataError(
            f"{shown(file)} is not in COCO's format: it must be an object with images, annotations and categories."
        )
    return tree


def _entries(tree: dict[str, Any], name: str, schema: type[M], where: str, skip: bool) -> list[M]:
    """Validate and return the items of a list. skip: leave out invalid items with a warning."""
    items = tree.get(name)
    if not isinstance(items, list):
        raise DataError(f"{where} is not in COCO's format: {name!r} must be a list.")
    adapter = TypeAdapter(list[schema])  # type: ignore[valid-type]
    try:
        return adapter.validate_python(items)
    except ValidationError as error:
        if not skip:
            raise DataError(
                f"{where}, {name}: {faults(error)}.",
                hint=_SKIP if name == "annotations" else "",
            ) from None
        bad = {int(item["loc"][0]) for item in error.errors(include_url=False, include_context=False)}
    log.warning("%s: %d of %d %s are not valid and are skipped", where, len(bad), len(items), name)
    return adapter.validate_python([item for i, item in enumerate(items) if i not in bad])


def _check_unique(ids: Sequence[int | str], name: str, where: str) -> None:
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise DataError(f"{where}, {name}: the id {twice!r} occurs more than once.")


def _complain(wrong: list[str], total: int, where: str, skip: bool) -> None:
    if not wrong:
        return
    text = f"{where}: {len(wrong):,} of {total:,} annotations cannot be used: {'; '.join(wrong[:_NAMED])}"
    text += "; …" if len(wrong) > _NAMED else ""
    if not skip:
        raise DataError(f"{text}.", hint=_SKIP)
    log.warning("%s. They are skipped.", text)


def _folder(root: Path, split: str, file: Path, images: Sequence[ImageEntry]) -> Path:
    """Find the folder of a split's images: the first of the usual places that has any of the first ten images."""
    places = list(dict.fromkeys(_places(root, split, file)))
    for place in places:
        if any((place / image.file_name).is_file() for image in images[:10]):
            return place
    looked = ", ".join(shown(place) for place in places)
    raise DataError(f"{shown(file)} names the image {shown(images[0].file_name)}, which is in none of {looked}.")


def _places(root: Path, split: str, file: Path) -> Iterator[Path]:
    stem = file.stem.partition("_")[2] or file.stem  # instances_train2017 → train2017
    for name in (stem, *SPLITS[split]):
        yield from (root / name, root / "images" / name)
    yield from (root / "images", file.parent, root)
