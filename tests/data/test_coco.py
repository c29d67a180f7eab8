"""Annotations in COCO's format."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from secateurs.data import load
from secateurs.data.coco import Boxes, open_coco
from secateurs.data.spec import absolute
from secateurs.data.unreadable import Unreadable
from secateurs.errors import DataError, SpecError

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}]


def entry(image: int = 1, box: Any = (2, 3, 10, 8), category: int = 2, **more: Any) -> dict[str, Any]:
    return {"id": 11, "image_id": image, "category_id": category, "bbox": list(box), **more}


def write(
    root: Path,
    split: str = "train",
    annotations: Any = None,
    *,
    images: Any = None,
    categories: Any = None,
    file: str = "",
) -> Path:
    """Two images of 20 x 30 pixels, and their annotations."""
    (root / split).mkdir(parents=True, exist_ok=True)
    names = ("a.png", "b.jpg")
    for name in names:
        Image.new("RGB", (30, 20)).save(root / split / name)
    if images is None:
        images = [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(names, 1)]
    content = {"images": images, "categories": categories or CATEGORIES,
               "annotations": [entry()] if annotations is None else annotations}  # fmt: skip
    path = root / (file or f"annotations/instances_{split}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return root


def opened(root: Path, query: str = "", skip: bool = False, classes: int | None = None) -> Any:
    return open_coco(f"{root}{query}", 1, skip, classes)


def target(split: Boxes, index: int) -> dict[str, torch.Tensor]:
    found = split.read(index)
    assert not isinstance(found, Unreadable)
    return found[1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path)
    return write(tmp_path, "val")


def test_categories_are_classes_from_one(root: Path) -> None:
    crowd = entry(box=(0, 0, 5, 5), category=7, iscrowd=1, area=9.5)
    for split in ("train", "val"):
        write(root, split, [entry(category=7), entry(image=2, box=(25, 15, 10, 10)), crowd])
    train, val, names = opened(root)
    assert names == ("cat", "dog")
    assert target(train, 0)["labels"].tolist() == [2]  # a crowd is nothing to learn
    assert target(train, 0)["boxes"].tolist() == [[2, 3, 12, 11]]
    assert target(train, 1)["labels"].tolist() == [1]
    assert target(train, 1)["boxes"].tolist() == [[25, 15, 30, 20]]  # within the image
    assert target(val, 0)["labels"].tolist() == [2, 2]
    assert target(val, 0)["iscrowd"].tolist() == [0, 1]
    assert target(val, 0)["area"].tolist() == [80, 9.5]
    assert train.sizes == [(20, 30)] * 2


def test_images_without_boxes(root: Path) -> None:
    train, _, _ = opened(root)
    empty = target(train, 1)
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].dtype == torch.int64
    write(root, "train", [])
    with pytest.raises(DataError, match=r"instances_train.json has no box: there is nothing to learn"):
        opened(root)


def test_ids_as_classes(root: Path) -> None:
    """As torchvision's weights for COCO have them."""
    train, _, names = opened(root, classes=9)
    assert target(train, 0)["labels"].tolist() == [2]
    assert names == ("1", "cat", "3", "4", "5", "6", "dog", "8", "9")
    with pytest.raises(DataError, match=r"2 categories, with ids 2 to 7: num_classes=5 must be 2, or at least 7"):
        opened(root, classes=5)


@pytest.mark.parametrize(
    "files",
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
        ("instances_train.json", "instances_val.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("train.json", "test.json"),
    ],
)
def test_usual_layouts(tmp_path: Path, files: tuple[str, str]) -> None:
    folders = {"train2017": "train2017", "val2017": "val2017", "valid": "valid", "test": "test"}
    for file in files:
        folder = next((f for key, f in folders.items() if key in file), "train" if "train" in file else "val")
        write(tmp_path, folder, file=file)
    train, val, _ = opened(tmp_path)
    assert len(train) == len(val) == 2
    assert train.images[0].file.exists()


def test_files_by_name(tmp_path: Path) -> None:
    write(tmp_path, "images", file="boxes/mine.json")
    write(tmp_path, "images", file="boxes/held-out.json")
    train, val, _ = opened(tmp_path, "?train=boxes/mine.json&val=boxes/held-out.json")
    assert train.where != val.where
    assert opened(tmp_path, "?train=boxes/mine.json&val=none")[1] is None
    with pytest.raises(DataError, match=r"no annotations for val: .*instances_val.json.*val=FILE, or val=none"):
        opened(tmp_path, "?train=boxes/mine.json")
    with pytest.raises(SpecError, match="'label' is not an option of coco: data"):
        opened(tmp_path, "?label=x")
    for name in ("a", "b"):
        write(tmp_path, "train", file=f"annotations/instances_train_{name}.json")
    with pytest.raises(
        DataError, match=r"2 files of annotations for train: .*\?train=annotations/instances_train_a.json"
    ):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (entry(image=5), "annotation 11 is of image 5, which is not in images"),
        (entry(category=3), "annotation 11 has category 3, which is not in categories"),
        (entry(box=(1, 2, 3)), r"annotations: .*bbox"),
        (entry(box=(1, 2, 3, "wide")), r"annotations: .*bbox"),
        ({"id": 4}, r"annotations: .*image_id"),
    ],
)
def test_entries_that_cannot_be_used(root: Path, wrong: Any, message: str, caplog: pytest.LogCaptureFixture) -> None:
    write(root, "train", [entry(), wrong])
    with pytest.raises(DataError, match=message) as raised:
        opened(root)
    assert "instances_train.json" in str(raised.value)
    assert "skip_unreadable=True to skip them" in str(raised.value)
    with caplog.at_level(logging.WARNING, "secateurs"):
        train, _, _ = opened(root, skip=True)
    assert len(target(train, 0)["boxes"]) == 1
    assert "skipped" in caplog.text


def test_boxes_without_area_are_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """COCO has some."""
    write(root, "train", [entry(), entry(box=(1, 1, 0, 5)), entry(box=(40, 1, 5, 5))])
    with caplog.at_level(logging.WARNING, "secateurs"):
        train, _, _ = opened(root)
    assert len(target(train, 0)["boxes"]) == 1
    assert "1 of 3 boxes have no area and are left out" in caplog.text


def test_images_that_are_not_there(root: Path) -> None:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "gone.png"}]
    write(root, "train", images=images)
    with pytest.raises(DataError, match=r"1 of 2 files cannot be read: .*gone.png \(there is no such file\)"):
        opened(root)
    train, _, _ = opened(root, skip=True)
    assert len(train) == 1
    assert train.skipped == 1
    assert train.sizes == [(20, 30)]  # from the file
    write(root, "train", [entry(image=2)], images=images[1:])
    with pytest.raises(DataError, match=r"names the image gone.png, which is in none of .*train, "):
        opened(root)


def test_sizes_that_do_not_agree(root: Path) -> None:
    write(root, "train", images=[{"id": 1, "file_name": "a.png", "height": 30, "width": 20}])
    train, _, _ = opened(root)
    with pytest.raises(DataError, match=r"a.png is 20x30, and .*instances_train.json says 30x20"):
        train.read(0)


def test_damaged_images(root: Path) -> None:
    (root / "train" / "a.png").write_bytes(b"no image")
    train, _, _ = opened(root)
    assert isinstance(train.read(0), Unreadable)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "is not in COCO's format: it must be an object with images, annotations and categories"),
        ('{"images": 3}', "is not in COCO's format: 'categories' must be a list"),
        ('{"images": [], "categories": [], "annotations": []}', "has no images"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "categories": [], "annotations": []}',
         "images: the id 1 occurs more than once"),
    ],
)  # fmt: skip
def test_files_that_are_not_annotations(root: Path, content: str, message: str) -> None:
    (root / "annotations" / "instances_train.json").write_text(content)
    with pytest.raises(DataError, match=message):
        opened(root)


def test_both_splits_have_the_same_categories(root: Path) -> None:
    write(root, "val", categories=[{"id": 2, "name": "cow"}])
    with pytest.raises(DataError, match=r"category 2 \('cow'\), and .*instances_train.json calls it 'cat'"):
        opened(root)
    write(root, "val", categories=[{"id": 3, "name": "cow"}], annotations=[])
    with pytest.raises(DataError, match="does not have it"):
        opened(root)


def test_specs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    assert absolute(f"coco:{root.name}?val=none") == f"coco:{root}?val=none"
    with pytest.raises(DataError, match="There is no folder missing"):
        opened(Path("missing"))
    with pytest.raises(SpecError, match="coco: data has boxes, which are for detection"):
        load(f"coco:{root}")
