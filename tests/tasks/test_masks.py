"""Images with masks: read from folders and tables, batched, augmented together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from secateurs.data import Data, masks
from secateurs.data.images import indices
from secateurs.data.masks import IGNORED
from secateurs.errors import ConfigError, DataError, SecateursError, SpecError
from secateurs.tasks import Classification, Reading, Segmentation, resolve, tasks
from tests.tasks.drawn import SIZES, folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("set"))


def load(root: Path, **reading: Any) -> Data:
    task = reading.pop("task", Segmentation())
    return task.load(f"folder:{root}", Reading(**{"batch_size": 4, "normalize": "none", **reading}))


def test_tasks_by_name() -> None:
    assert {"classification", "segmentation"} <= set(tasks())
    assert resolve(None) == Classification()
    assert resolve("segmentation", dice=1) == Segmentation(dice=1)
    assert resolve(Segmentation(flip=False)).flip is False  # type: ignore[attr-defined]
    for wrong in ("segment", 3):
        with pytest.raises(ConfigError, match="task"):
            resolve(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'dise' is not a valid setting"):
        Segmentation(dise=1)


def test_a_folder(root: Path) -> None:
    data = load(root)
    assert data.classes == ("0", "1", "2")
    assert data.input_shape == (3, 32, 32)  # the median size
    assert data.train.samples == 12
    (x, y), *_ = data.batches("train")
    assert x.shape == (4, 3, 32, 32)
    assert y.shape == (4, 32, 32)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert set(y.unique().tolist()) <= {IGNORED, 0, 1, 2}


def test_whole_images_are_evaluated_in_batches_of_one_size(root: Path) -> None:
    """Padded at the right and the bottom to multiples of 32, with pixels that don't count."""
    data, seen = load(root, batch_size=2), 0
    sizes = []
    for x, y in data.batches("val"):
        sizes.append((len(x), *x.shape[-2:]))
        for image, mask in zip(x, y, strict=True):
            height, width = next(s for s in SIZES if (mask[: s[0], : s[1]] != IGNORED).sum() == (s[0] - 1) * s[1]
                                 and (mask != IGNORED).sum() == (s[0] - 1) * s[1])  # fmt: skip
            assert not image[:, height:].any()
            assert not image[..., width:].any()
            at = {0: (0.4, 0.56), 1: (0.05, 0.1), 2: (0.85, 0.95)}
            for kind, (low, high) in at.items():
                values = image[:, mask == kind]
                assert low < values.min()
                assert values.max() < high
            seen += 1
    assert seen == len(data.val) + 2 == len(SIZES)
    assert sorted(sizes) == [(1, 32, 32), (1, 32, 64), (2, 32, 32), (2, 64, 32)]


def test_masks_follow_the_images(root: Path) -> None:
    """In every crop, flip and resize: the color tells the class, except where colors are mixed at an edge."""
    task, kinds = Segmentation(scale=0.3), 0
    data = load(root, task=task)
    crops = torch.cat([x for x, _ in data.batches("train")]), torch.cat([y for _, y in data.batches("train")])
    for image, mask in zip(*crops, strict=True):
        gray = image.mean(0)
        for kind, (low, high) in {1: (0.0, 0.3), 2: (0.7, 1.0)}.items():
            sure = gray < 0.12 if kind == 1 else gray > 0.85
            assert sure.sum() == 0 or (mask[sure] == kind).float().mean() > 0.9
            found = gray[mask == kind]
            kinds += len(found) > 0
            assert len(found) == 0 or ((low <= found) & (found <= high)).float().mean() > 0.6
    assert kinds > 12
    data.train.set_epoch(1)
    again = torch.cat([x for x, _ in data.batches("train")])
    assert not torch.equal(crops[0], again)


def test_an_epoch_resumes_at_any_batch(root: Path) -> None:
    state = torch.get_rng_state()
    data = load(root, seed=3)
    data.train.set_epoch(2)
    whole = list(data.train)
    data.train.set_epoch(2)
    rest = list(data.train.iter_from(2))
    assert len(whole) == len(data.train) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole[2], rest[0], strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # augmentation draws from a generator of its own


def test_processes_share_a_batch(root: Path) -> None:
    one = next(iter(load(root).train))
    parts = [next(iter(load(root, rank=r, world_size=2).train)) for r in (0, 1)]
    assert torch.equal(one[0], torch.cat([x for x, _ in parts]))
    assert torch.equal(one[1], torch.cat([y for _, y in parts]))
    val = load(root, rank=1, world_size=2).val
    assert sum(len(x) for x, _ in val.whole()) == len(SIZES)


def test_without_augmentation_training_images_are_whole(root: Path) -> None:
    train = load(root).train.plain()
    assert sorted({tuple(x.shape[-2:]) for x, _ in train}) == [(32, 32), (32, 64), (64, 32)]
    assert sum(len(x) for x, _ in train) == 12


def test_a_size_that_is_given(root: Path) -> None:
    data = load(root, image_size=48)
    assert {tuple(x.shape) for x, _ in data.batches("train")} == {(4, 3, 64, 64)}  # the next multiple of 32
    assert {tuple(x.shape[-2:]) for x, _ in data.batches("val")} == {(64, 64), (96, 64), (64, 128)}  # shorter side 48


def test_one_channel(root: Path) -> None:
    x, _ = next(iter(load(root, channels=1, normalize=((0.5,), (0.25,))).val))
    color, _ = next(iter(load(root).val))
    assert x.shape[1] == 1
    luminance = (color * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    counts = x != 0  # not padding
    assert torch.allclose(x[counts], ((luminance - 0.5) / 0.25)[counts], atol=1e-5)


def test_class_names(tmp_path: Path) -> None:
    root = folder(tmp_path / "named")
    (root / "classes.txt").write_text("ground\ndark\nlight\n\n")
    assert load(root).classes == ("ground", "dark", "light")
    assert load(root, classes=5).classes == tuple("01234")


def test_palette_and_deep_masks(tmp_path: Path) -> None:
    root = folder(tmp_path / "modes", count=4)
    for i, file in enumerate(sorted((root / "train" / "masks").iterdir())):
        mask = np.array(Image.open(file))
        if i % 2:
            deep = mask.astype(np.uint16)
            deep[mask == 255] = 65535
            Image.fromarray(deep).save(file)
        else:
            palette = Image.fromarray(mask, "L").convert("L")
            palette.putpalette([v for _ in range(256) for v in (9, 9, 9)])
            palette.save(file)
    batches = torch.cat([y.flatten() for _, y in load(root).train.plain()])
    assert set(batches.unique().tolist()) == {IGNORED, 0, 1, 2}


def spoiled(tmp_path: Path, spoil: Any) -> SecateursError:
    root = folder(tmp_path / "spoiled", count=4)
    spoil(root)
    with pytest.raises(DataError) as caught:
        list(load(root).train)
    return caught.value


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    def no_masks(root: Path) -> None:
        (root / "val" / "masks").rename(root / "val" / "labels")

    assert "it has no val/masks" in str(spoiled(tmp_path, no_masks))


def test_an_image_without_a_mask(tmp_path: Path) -> None:
    error = str(spoiled(tmp_path, lambda root: (root / "train/masks/2.png").unlink()))
    assert "1 of 4 images have no mask of the same name" in error
    assert "images/2.png" in error


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    def other(root: Path) -> None:
        Image.new("L", (5, 6)).save(root / "train/masks/1.png")

    assert "its mask" in (error := str(spoiled(tmp_path, other)))
    assert "6x5" in error


def test_a_mask_of_colors(tmp_path: Path) -> None:
    def colors(root: Path) -> None:
        for file in (root / "train/masks").iterdir():
            Image.open(file).convert("RGB").save(file)

    assert "its mode is RGB, and a mask holds one class index per pixel" in str(spoiled(tmp_path, colors))


def test_masks_in_a_lossy_format(tmp_path: Path) -> None:
    def compressed(root: Path) -> None:
        for file in (root / "train/masks").iterdir():
            Image.open(file).convert("L").save(file.with_suffix(".jpg"))
            file.unlink()

    assert "whose compression changes the class indices" in str(spoiled(tmp_path, compressed))


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    def binary(root: Path) -> None:
        for file in root.glob("*/masks/*"):
            Image.fromarray(np.where(np.array(Image.open(file)) > 0, 255, 0).astype(np.uint8)).save(file)

    assert "a mask of two classes holds 0 and 1" in str(spoiled(tmp_path, binary))


def test_a_damaged_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def cut(root: Path) -> None:
        file = root / "train/images/1.png"
        file.write_bytes(file.read_bytes()[:20])

    assert "1 of 4 files cannot be read" in str(spoiled(tmp_path, cut))
    data = load(tmp_path / "spoiled", skip_unreadable=True)
    assert (data.train.samples, data.train.skipped) == (3, 1)


def test_a_file_that_is_damaged_past_its_header(tmp_path: Path) -> None:
    def cut(root: Path) -> None:
        file = root / "train/images/1.png"
        file.write_bytes(file.read_bytes()[:200])

    assert "1.png cannot be read" in str(spoiled(tmp_path, cut))
    data = load(tmp_path / "spoiled", skip_unreadable=True)
    assert sum(len(x) for x, _ in data.train) == 3
    assert data.train.skipped == 1


def test_masks_are_checked_before_the_run(tmp_path: Path) -> None:
    """What is wrong with any mask is said when the data is opened, with the name of the file."""
    root = folder(tmp_path / "set", count=4)
    good = {file: file.read_bytes() for file in root.glob("*/masks/*")}

    def refused(file: Path, **reading: Any) -> str:
        with pytest.raises(DataError) as caught:
            load(root, **reading)  # nothing is read afterwards
        file.write_bytes(good[file])
        return str(caught.value)

    late = root / "val" / "masks" / "5.png"
    mask = np.array(Image.open(late))
    mask[-1, -1] = 7
    Image.fromarray(mask).save(late)
    error = refused(late, classes=3)
    assert "1 of 6 masks have a class index above 2, and there are 3 classes" in error
    assert "val/masks/5.png (7)" in error
    assert "num_classes=8" in error
    (root / "classes.txt").write_text("ground\ndark\nlight\n")
    Image.fromarray(mask).save(late)
    assert "val/masks/5.png (7)" in refused(late)
    first = root / "train" / "masks" / "0.png"
    first.write_bytes(good[first][:-40])
    assert re.search(r"1 of 4 files cannot be read: \S*train/masks/0.png \(", refused(first))
    first.write_bytes(good[first][:-40])
    data = load(root, skip_unreadable=True)
    assert sum(len(x) for x, _ in data.train) == 3


def test_of_many_masks_some_are_checked(tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "set", count=9)
    monkeypatch.setattr(masks, "CHECKED", 4)
    read: list[str] = []
    monkeypatch.setattr(masks, "indices", lambda file, name: read.append(name) or indices(file, name))
    load(root, classes=3)
    assert len(read) == 8
    assert "train: checked 4 of 9 masks, evenly spaced" in caplog.text
    caplog.clear()
    load(root)  # to find the classes all of them are read
    assert len(read) == 8 + 15
    assert not caplog.text


def test_a_table_with_a_mask_of_another_size(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    root = folder(tmp_path / "set", ((32, 32),))
    Image.new("L", (5, 6), 1).save(root / "train/masks/1.png")
    files = {k: [str(root / "train" / f"{k}s" / f"{i}.png") for i in range(3)] for k in ("image", "mask")}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = datasets.Dataset.from_dict(files, features=features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"train, row 1, mask \(1.png\) 6x5"):
        Segmentation().load(f"hf:{tmp_path / 'saved'}", Reading(batch_size=4, classes=3))


@pytest.mark.parametrize("spec", ["digits", "wds:a.tar", "folder", "coco:x"])
def test_specs_of_other_data(spec: str) -> None:
    with pytest.raises(SpecError, match="is not valid data for segmentation"):
        Segmentation().load(spec, Reading())


def test_class_folders_are_not_masks(root: Path, tmp_path: Path) -> None:
    from secateurs import data

    with pytest.raises(DataError, match=r"images and masks, not a folder for each class.*task='segmentation'"):
        data.load(f"folder:{root}")


def test_a_table(root: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    splits = {}
    for split in ("train", "val"):
        names = sorted((root / split / "images").iterdir())
        rows = {"image": list(map(str, names)), "mask": [str(root / split / "masks" / n.name) for n in names]}
        features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
        splits[split] = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "table"))
    task = Segmentation()
    data = task.load(f"hf:{tmp_path / 'table'}", Reading(batch_size=4, normalize="none"))
    assert data.classes == ("0", "1", "2")
    expected = load(root)
    for a, b in zip(data.batches("val"), expected.batches("val"), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    named = task.load(f"hf:{tmp_path / 'table'}?classes=ground,dark,light&label=mask", Reading())
    assert named.classes == ("ground", "dark", "light")
    for options, message in (("label=depth", "no column of masks 'depth'"), ("stream=true", "stream=true is for")):
        with pytest.raises(SecateursError, match=message):
            task.load(f"hf:{tmp_path / 'table'}?{options}", Reading())
