"""Folders as they are found on users' machines: links that lead nowhere, FIFOs, no permission, images too large, odd names."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from secateurs.data import Data, folder, load
from secateurs.errors import DataError, SecateursError

Image = pytest.importorskip("PIL.Image")
LIMITS = pytest.mark.parametrize("memory_limit", [0, 1 << 30])
ODD = b"caf\xe9-\xff"  # a name that is not UTF-8


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split, count in (("train", 4), ("test", 2)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def open_(root: Path, **options: object) -> Data:
    return load(f"folder:{root}", **{"batch_size": 4, "normalize": "none", "workers": 2, **options})


def counts(data: Data) -> list[int]:
    return [sum(len(y) for _, y in split) for split in (data.train, data.val)]


def within(seconds: float, work: Callable[[], object]) -> None:
    """Fail rather than hang."""
    failed: list[BaseException] = []

    def go() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    if failed:
        raise failed[0]


def huge_png(side: int) -> bytes:
    """A PNG whose header claims side x side pixels; a few bytes on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path.name)
    os.chdir(here)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "dangling link": (lambda p: p.symlink_to("/nowhere/at/all.png"), "it is a broken link"),
    "looping link": (lambda p: p.symlink_to(p.name), "Too many levels of symbolic links"),
    "FIFO": (_fifo, "it is a FIFO, not a regular file"),
    "link to a FIFO": (lambda p: (_fifo(p.with_suffix("")), p.symlink_to(p.with_suffix("").name)), "it is a FIFO"),
    "socket": (_socket, "it is a socket, not a regular file"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "it is a device, not a regular file"),
    "empty": (lambda p: p.write_bytes(b""), "it is not an image"),
    "text": (lambda p: p.write_text("no image"), "it is not an image"),
    "400 megapixels": (lambda p: p.write_bytes(huge_png(20_000)), "it has more pixels than Pillow's limit"),
    "100 megapixels, where warnings are errors": (
        lambda p: p.write_bytes(huge_png(10_000)),
        "it has more pixels than Pillow's limit",
    ),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@LIMITS
@pytest.mark.parametrize("kind", BAD)
def test_one_bad_file_is_named_or_left_out(images: Path, kind: str, memory_limit: int, caplog) -> None:
    make, why = BAD[kind]
    path = images / "train" / "ant" / "5.png"
    make(path)

    def refused() -> None:
        with pytest.raises(DataError) as error:
            open_(images, memory_limit=memory_limit, image_size=16)
        assert str(error.value).startswith(f"1 of 13 files cannot be read: {path} ({why}"), error.value
        assert "skip_unreadable=True" in str(error.value)

    within(20, refused)
    within(20, refused)  # what was decoded meanwhile is cached
    assert not caplog.records

    def left_out() -> None:
        data = open_(images, memory_limit=memory_limit, image_size=16, skip_unreadable=True)
        assert counts(data) == [8, 4]
        assert (data.train.skipped, data.val.skipped) == (1, 0)

    within(20, left_out)
    assert [r.message for r in caplog.records] == [f"1 of 13 files cannot be read: {path} ({why}{_rest(caplog, why)}"]


def _rest(caplog: pytest.LogCaptureFixture, why: str) -> str:
    return caplog.records[0].message.partition(f"({why}")[2]


@LIMITS
def test_files_without_permission(images: Path, memory_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = {str(images / "train" / "bee" / f"{i}.png") for i in (1, 3)} | {str(images / "test" / "ant" / "0.png")}
    real = os.open

    def guarded(path, *args, **more):  # whoever runs the tests may be allowed everything
        if os.fspath(path) in locked:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", guarded)
        with pytest.raises(
            DataError, match=r"^3 of 12 files cannot be read: .*1\.png \(Permission denied\), .*3\.png \("
        ):
            open_(images, memory_limit=memory_limit)
        data = open_(images, memory_limit=memory_limit, skip_unreadable=True)
        assert counts(data) == [6, 3]
        assert (data.train.skipped, data.val.skipped) == (2, 1)
    assert counts(open_(images, memory_limit=memory_limit)) == [8, 4]  # mended; the cache does not remember


def test_folders_without_permission(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "train" / "ant" / "more").mkdir()
    locked, real = {str(images / "train" / "ant" / "more")}, os.scandir

    def guarded(path="."):
        if os.fspath(path) in locked:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match=r"^1 of 13 files cannot be read: .*ant/more \(Permission denied\)"):
        open_(images)
    assert counts(open_(images, skip_unreadable=True)) == [8, 4]
    locked.add(str(images / "test" / "bee"))  # nothing is left of a class
    with pytest.raises(DataError, match=r"No images in .*test/bee: .*test/bee cannot be read \(Permission denied\)"):
        open_(images, skip_unreadable=True)
    locked.add(str(images / "train"))
    with pytest.raises(DataError, match=r"images/train cannot be read: Permission denied"):
        open_(images)


def test_class_folders_that_are_none(images: Path, tmp_path: Path) -> None:
    (images / "train" / "readme.txt").write_text("a file beside class folders is nobody's business")
    assert counts(open_(images)) == [8, 4]
    (images / "test" / "cat").mkdir()
    (images / "train" / "cat").write_text("")
    with pytest.raises(DataError, match=r"classes that .*train lacks: cat \(.*train/cat is a file\)"):
        open_(images)
    (images / "train" / "cat").unlink()
    (images / "train" / "cat").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"classes that .* lacks: cat \(.*train/cat is a broken link\)"):
        open_(images)
    (images / "test" / "cat").rmdir()
    (images / "test" / "cat").symlink_to("cat")
    with pytest.raises(DataError, match=r"^2 of 14 files cannot be read: .*train/cat \(it is a broken link\)"):
        open_(images)
    assert open_(images, skip_unreadable=True).classes == ("ant", "bee")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match=r"There is no folder .*file \(.*file is a file\)"):
        open_(file)
    with pytest.raises(DataError, match="There is no folder"):
        open_(images / "train" / "cat")


def test_links_to_class_folders_and_images_are_followed_and_hidden_ones_passed_over(images: Path) -> None:
    (images / "train" / "bee").rename(images / "elsewhere")
    (images / "train" / "bee").symlink_to(images / "elsewhere")
    (images / "train" / "bee" / "9.png").symlink_to(images / "test" / "bee" / "0.png")
    for hidden in (".ipynb_checkpoints", "../.git"):
        (images / "train" / "ant" / hidden).mkdir()
        (images / "train" / "ant" / hidden / "0.png").write_text("no image")
    (images / "train" / "ant" / "._0.png").write_text("no image")
    assert counts(open_(images)) == [9, 4]


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are UTF-8 here")
@LIMITS
def test_names_that_are_not_utf8(images: Path, memory_limit: int, caplog) -> None:
    odd = Path(os.fsdecode(ODD))
    for split in ("train", "test"):
        (images / split / "bee").rename(images / split / odd)
    root = images.rename(images.with_name(f"images-{odd}"))
    (root / "train" / odd / "0.png").rename(root / "train" / odd / f"{odd}.png")
    data = open_(root, memory_limit=memory_limit)
    assert counts(data) == [8, 4]
    assert data.classes == ("ant", r"caf\xe9-\xff")
    json.dumps(data.classes, ensure_ascii=False).encode()
    (root / "train" / odd / f"{odd}.png").write_text("no image")
    with pytest.raises(DataError, match=r"caf\\xe9-\\xff\.png \(it is not an image") as error:
        open_(root, memory_limit=memory_limit)
    str(error.value).encode()
    assert counts(open_(root, memory_limit=memory_limit, skip_unreadable=True)) == [7, 4]
    caplog.records[-1].message.encode()
    (root / "test" / odd / "0.png").unlink()
    (root / "test" / odd / "1.png").unlink()
    for spec in (
        f"folder:{root}",
        f"folder:{root}/none",
        f"wds:{root}/{{a,b}}.tar?val=none",
        f"hf:{root}/none",
        str(root),
    ):
        with pytest.raises(SecateursError) as caught:
            load(spec)
        str(caught.value).encode()


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are UTF-8 here")
def test_more_names_that_are_not_utf8(images: Path) -> None:
    """Every message of a folder that makes no sense."""
    odd = os.fsdecode(ODD)
    (images / "train" / odd).mkdir()
    for make in (lambda: (images / "test" / odd).mkdir(), lambda: (images / "train" / odd).rmdir(), lambda: None):
        with pytest.raises(DataError, match=r"caf\\xe9-\\xff") as error:
            open_(images)
        str(error.value).encode()
        make()


def test_headers_are_read_of_so_many_images_only(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = images / "test" / "bee" / "1.png"
    path.write_text("no image")
    with pytest.raises(DataError, match=r"^1 of 12 files"):
        open_(images, memory_limit=0)
    monkeypatch.setattr(folder, "HEADERS", 3)
    data = open_(images, memory_limit=0)
    assert sum(len(y) for _, y in data.train) == 8
    with pytest.raises(DataError, match=rf"^{path} cannot be read: it is not an image.*skip_unreadable=True"):
        list(data.val)


def test_a_whole_image_that_does_not_fit_is_found_at_the_start(images: Path) -> None:
    Image.new("RGB", (8, 16)).save(images / "test" / "bee" / "1.png")
    with pytest.raises(DataError, match=r"1\.png is 16x8, but the first training image is 16x16"):
        open_(images, memory_limit=0, skip_unreadable=True)  # it can be read


def test_whatever_pillow_raises(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Image.Image.convert

    def broken(self, *args, **more):
        if self.getpixel((0, 0)) == first:
            raise MemoryError
        return real(self, *args, **more)

    with Image.open(images / "train" / "ant" / "2.png") as opened:
        first = opened.getpixel((0, 0))
    monkeypatch.setattr(Image.Image, "convert", broken)
    with pytest.raises(DataError, match=r"^2 of 12 files cannot be read: .*2\.png \(it does not fit in memory\)"):
        open_(images)


def test_many_are_counted_and_a_few_named(images: Path) -> None:
    for path in (images / "train").glob("*/[123].png"):
        path.write_text("no image")
    with pytest.raises(DataError, match=r"^6 of 12 files cannot be read: (\S+ \([^)]*\), ){3}…\. Repair or remove"):
        open_(images)
    assert torch.cat([y for _, y in open_(images, skip_unreadable=True).train]).tolist() in ([0, 1], [1, 0])


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are UTF-8 here")
def test_through_datasets(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    (images / "train" / "ant" / "5.png").symlink_to("/nowhere/at/all.png")
    os.mkfifo(images / "train" / "ant" / "6.png")
    for split in ("train", "test"):
        (images / split / "bee").rename(images / split / os.fsdecode(ODD))
    with pytest.raises(DataError, match=r"has file names that are not UTF-8.*add \?stream=true"):
        load(f"hf:{images}", batch_size=4)

    def streamed() -> None:  # only files are looked at
        data = load(f"hf:{images}?stream=true", batch_size=4)
        assert counts(data) == [8, 4]
        assert data.classes == ("ant", r"caf\xe9-\xff")

    within(60, streamed)
