"""Folders of images: what is read, what is refused, and the two ways of reading."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from secateurs.data import cache, load
from secateurs.errors import DataError, SpecError

Image = pytest.importorskip("PIL.Image")


def write(path: Path, seed: int = 0, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def damage(path: Path) -> None:
    """Its header stays whole, its pixels don't."""
    path.write_bytes(path.read_bytes()[:100])


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "secateurs"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("bee", "ant")):
            for i in range(count):
                write(root / split / name / f"{i}.png", seed=100 * label + i)
    return root


def open_(root: Path, **options: object):
    return load(f"folder:{root}", **{"batch_size": 4, "normalize": "none", "workers": 2, **options})


def test_classes_shapes_and_pixels(images: Path) -> None:
    data = open_(images)
    assert data.classes == ("ant", "bee")
    assert data.input_shape == (3, 16, 16)
    assert len(data.train) == 3
    x = torch.cat([x for x, _ in data.val])
    assert torch.cat([y for _, y in data.val]).tolist() == [0, 0, 0, 1, 1, 1]
    with Image.open(images / "test" / "ant" / "1.png") as opened:
        expected = torch.from_numpy(np.asarray(opened).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(x[1], expected, rtol=0, atol=1e-6)


def test_decoding_on_the_fly_gives_the_same_batches(images: Path, cache_home: Path) -> None:
    memory = open_(images, normalize="cifar10")
    flying = open_(images, normalize="cifar10", memory_limit=0)
    for epoch in range(2):
        memory.train.set_epoch(epoch)
        flying.train.set_epoch(epoch)
        for start in (0, 2):
            pairs = zip(memory.train.iter_from(start), flying.train.iter_from(start), strict=True)
            assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def test_leaving_a_flying_epoch_early(images: Path) -> None:
    iterator = iter(open_(images, memory_limit=0).train)
    next(iterator)
    iterator.close()


def test_cache_is_used_and_follows_the_files(
    images: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = [x for x, _ in open_(images).train]
    assert len(list(cache_home.iterdir())) == 4  # images and indices of two splits, nothing left half-written
    assert {p.name for p in images.iterdir()} == {"train", "test"}

    decoded = []
    real = cache.decode
    monkeypatch.setattr(cache, "decode", lambda *a: decoded.append(a) or real(*a))
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, open_(images).train, strict=True))
    assert decoded == []

    write(images / "train" / "ant" / "3.png", seed=999)
    os.utime(images / "train" / "ant" / "3.png", ns=(1, 1))
    again = [x for x, _ in open_(images).train]
    assert len(decoded) == 12  # the training images only
    assert not all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(list(cache_home.iterdir())) == 4  # the old entry is gone

    open_(images, cache=False)
    assert len(decoded) == 12 + 18


def test_damaged_cache_is_decoded_anew(images: Path, cache_home: Path) -> None:
    first = [x for x, _ in open_(images).val]
    for path in cache_home.iterdir():
        path.write_bytes(path.read_bytes()[:150])
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, open_(images).val, strict=True))


def test_cache_that_cannot_be_written(images: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_(images).train) == 3
    assert "could not be cached" in caplog.text


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "LA"])
def test_other_modes_become_rgb(images: Path, mode: str) -> None:
    path = images / "test" / "ant" / ("0.tif" if mode == "CMYK" else "0.png")
    (images / "test" / "ant" / "0.png").unlink()
    write(path, mode=mode)
    x = next(iter(open_(images).val))[0]
    with Image.open(path) as opened:
        expected = torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(x[0], expected, rtol=0, atol=1e-6)


def test_palette_with_transparency_is_read_without_warning(images: Path) -> None:
    Image.new("P", (16, 16)).save(images / "test" / "ant" / "0.png", transparency=b"\x00\x80")
    assert open_(images).val.skipped == 0


def test_deep_images_are_refused(images: Path) -> None:
    Image.fromarray(np.zeros((16, 16), dtype=np.uint16)).save(images / "test" / "ant" / "0.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        open_(images)


@pytest.mark.parametrize("memory_limit", [0, 1 << 30])
def test_odd_size_is_named_or_resized(images: Path, memory_limit: int) -> None:
    write(images / "test" / "bee" / "1.png", size=(40, 20))
    with pytest.raises(DataError, match=r"bee.1.png is 20x40, but .* 16x16 .*Pass image_size=16"):
        list(open_(images, memory_limit=memory_limit).val)
    data = open_(images, memory_limit=memory_limit, image_size=12)
    assert data.input_shape == (3, 12, 12)
    assert torch.cat([x for x, _ in data.val]).shape == (6, 3, 12, 12)


def test_resize_keeps_the_middle(images: Path) -> None:
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = 255
    Image.fromarray(wide).save(images / "test" / "ant" / "0.png")
    assert next(iter(open_(images, image_size=16).val))[0][0].min() == 1


@pytest.mark.parametrize("memory_limit", [0, 1 << 30])
def test_truncated_images_are_named_or_left_out_and_counted(images: Path, memory_limit: int, caplog) -> None:
    for name in ("1", "4"):
        noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG")
        (images / "train" / "ant" / f"{name}.png").unlink()
        (images / "train" / "ant" / f"{name}.jpg").write_bytes(buffer.getvalue()[:-200])
    for _ in range(2):  # the second time from the cache
        with pytest.raises(
            DataError, match=r"^2 of 18 files cannot be read: .*ant/1\.jpg \(.*runcated.*skip_unreadable=True"
        ):
            open_(images, memory_limit=memory_limit)
    with caplog.at_level(logging.WARNING, "secateurs"):
        data = open_(images, memory_limit=memory_limit, skip_unreadable=True)
        counts = [sum(len(y) for _, y in data.train) for _ in range(2)]
    assert counts == [10, 10]
    assert data.train.skipped == 2
    assert data.val.skipped == 0
    assert [r.message for r in caplog.records if "2 of 18 files cannot be read" in r.message] == [
        r.message for r in caplog.records
    ]
    assert open_(images, skip_unreadable=True).train.skipped == 2  # from the cache too


def test_folders_that_make_no_sense(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        open_(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"needs train/<class>.*it has ant, bee"):
        open_(images / "train")
    write(images / "test" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"classes that .*train lacks: cat"):
        open_(images)
    (images / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=r"No images in .*cat"):
        open_(images)
    write(images / "train" / "cat" / "0.png")
    write(images / "train" / "dog" / "0.png")
    with pytest.raises(DataError, match=r"lacks classes of .*train: dog"):
        open_(images)


def test_val_goes_before_test(images: Path) -> None:
    write(images / "val" / "ant" / "0.png")
    write(images / "val" / "bee" / "0.png")
    assert len(next(iter(open_(images).val))[1]) == 2


def test_nothing_decodes(images: Path) -> None:
    for path in (images / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"None of the 12 images .*0\.png \(it is not an image"):
        open_(images)


@pytest.mark.parametrize(
    ("spec", "message"), [("digit", "Did you mean digits"), ("folder:", "folder:PATH"), ("fold:/x", "folder:PATH")]
)
def test_unknown_specs(spec: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load(spec)


def test_a_path_is_not_a_spec(images: Path) -> None:
    with pytest.raises(SpecError, match="which is a string: did you mean 'folder:"):
        load(images)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "imagnet"}, "Did you mean imagenet"),
        ({"normalize": ((0, 0), (1, 1))}, "three means"),
        ({"normalize": ((0, 0, 0), (1, 0, 1))}, "above 0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": (32, 32)}, r"image_size=\(32, 32\) must be an integer"),
        ({"batch_size": 4.5}, "batch_size=4.5 must be an integer"),
        ({"workers": -1}, "workers=-1 must be an integer of at least 1"),
        ({"normalize": ((0.5,), (float("nan"),))}, "three means"),
        ({"normalize": ((0.5,), (float("inf"),))}, "three means"),
    ],
)
def test_bad_options(images: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_(images, **options)


def test_a_last_batch_of_broken_images(images: Path, caplog) -> None:
    """Left out, where no other process waits for it; in the middle of an epoch it means that something is wrong."""
    for name in ("1", "2"):
        damage(images / "test" / "bee" / f"{name}.png")
    skipping: dict = {"memory_limit": 0, "skip_unreadable": True}
    assert [len(y) for _, y in open_(images, **skipping).val] == [4]
    damage(images / "test" / "ant" / "1.png")
    with pytest.raises(DataError, match=r"No image of a batch.*test"):
        list(open_(images, **skipping, batch_size=1).val)


def test_an_image_whose_damage_shows_only_when_it_is_decoded(images: Path) -> None:
    damage(images / "test" / "bee" / "1.png")
    data = open_(images, memory_limit=0)
    with pytest.raises(DataError, match=r"test/bee/1\.png cannot be read: .*truncated.*skip_unreadable=True"):
        list(data.val)
    val = open_(images, memory_limit=0, skip_unreadable=True).val
    assert [sum(len(y) for _, y in val), val.skipped] == [5, 1]
