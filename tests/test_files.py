"""Whatever lies where a file should be: one clear error, at once, that names it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from secateurs import files
from secateurs.errors import ArtifactError
from tests.damage import bound


class Settings(BaseModel):
    name: str
    sizes: list[int]


def nothing(path: Path) -> None:
    """There is nothing at the path."""


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def looping(path: Path) -> None:
    path.symlink_to(path.name)


NOT_FILES = {
    "nothing": (nothing, "there is no such file"),
    "a dangling link": (dangling, "is a broken link"),
    "a looping link": (looping, "symbolic links"),
    "a folder": (Path.mkdir, "a folder"),
    "a FIFO": (os.mkfifo, "a FIFO"),
    "a socket": (bound, "cannot be read"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
}


@pytest.mark.parametrize("kind", NOT_FILES)
@pytest.mark.parametrize("reader", ["bytes", "json", "tensors"])
def test_only_regular_files_are_opened(kind, reader, tmp_path):
    make, reason = NOT_FILES[kind]
    path = tmp_path / "some.file"
    make(path)
    read = {
        "bytes": files.read_bytes,
        "json": lambda p: files.read_json(p, Settings, advice="Copy it again."),
        "tensors": lambda p: files.read_tensors(p, "Copy it again."),
    }[reader]
    with pytest.raises(ArtifactError, match=reason) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("Copy it again.") == (reader != "bytes" and kind != "nothing")


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert files.read_bytes(tmp_path / "link") == b"content"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtifactError, match=r"too large: 1,099,511,627,776 bytes"):
        files.read_bytes(tmp_path / "large", 1000)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
        (b'{"name": "a", "sizes": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"name": "a", "sizes": [NaN]}', "NaN is not a JSON number"),
        (b"3", "dictionary"),
        (b'{"name": 3, "sizes": [1]}', r"field 'name'.*string, got 3"),
        (b'{"name": "a", "sizes": [1, "b"]}', r"field 'sizes\.1'.*integer.*got 'b'"),
        (b'{"name": "a"}', r"field 'sizes': field required"),
        (b'{"name": "a", "sizes": [' + b"9" * 10_000 + b"]}", "some.json"),
    ],
)
def test_json_that_does_not_fit_names_the_file_and_the_field(content, reason, tmp_path):
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=reason) as caught:
        files.read_json(path, Settings, advice="Move it.")
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("Move it.")
    assert len(str(caught.value)) < 600


def test_json_that_fits_comes_back(tmp_path):
    files.write_whole(tmp_path / "some.json", json.dumps({"name": "a", "sizes": [1, 2]}))
    assert files.read_json(tmp_path / "some.json", Settings) == Settings(name="a", sizes=[1, 2])


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}", b"PK\x03\x04" * 9]
)
def test_what_is_not_safetensors_is_said_so(content, tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="safetensors file"):
        files.read_tensors(path)


def test_a_cut_off_safetensors_file_is_said_so(tmp_path):
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.arange(100.0)}, path)
    whole = path.read_bytes()
    assert torch.equal(files.read_tensors(path)["a"], torch.arange(100.0))
    for n in range(0, len(whole), 17):
        path.write_bytes(whole[:n])
        with pytest.raises(ArtifactError, match="safetensors file"):
            files.read_tensors(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "some.json"
    files.write_whole(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            files.write_whole(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["some.json"]
    assert path.read_text() == "old"
    (tmp_path / ".some.json.tmp").write_text("left by a process that was killed")
    files.write_whole(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["some.json"]
    assert path.read_text() == "new"


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    with pytest.raises(ArtifactError, match=r"caf\\xe9 cannot be read") as caught:
        files.read_bytes(name)
    str(caught.value).encode()
