from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.errors import ArtifactError, ConfigError, TrainingError
from secateurs.training import CheckpointStore, checkpoint
from secateurs.training.pack import pack, unpack

tensors = st.builds(
    lambda shape, dtype: torch.arange(max(1, int(torch.Size(shape).numel()))).reshape(shape or (1,)).to(dtype),
    st.lists(st.integers(1, 3), max_size=3),
    st.sampled_from([torch.float32, torch.int64, torch.bfloat16, torch.bool, torch.uint8]),
)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4) | tensors
trees = st.recursive(
    leaves,
    lambda t: (
        st.lists(t, max_size=3)
        | st.lists(t, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), t, max_size=3)
    ),
    max_leaves=8,
)


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) and a.stride() == b.stride()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=60, deadline=None)
@given(trees)
def test_packing_round_trips(tree: object) -> None:
    plain, found = pack(tree)
    assert equal(unpack(json.loads(json.dumps(plain)), found), tree)


def test_packing_keeps_strides_and_shared_tensors() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tree = {"a": image, "same": image, "view": image[:1], "t": torch.randn(3, 4).T}
    plain, found = pack(tree)
    back = unpack(plain, found)
    assert equal({k: back[k] for k in ("a", "same", "t")}, {k: tree[k] for k in ("a", "same", "t")})
    assert torch.equal(back["view"], tree["view"])
    with pytest.raises(TypeError, match=r"/hook/3 is a set|'/hook/3' is a set"):
        pack({"hook": {3: {1}}})


def state(value: float) -> dict:
    return {"w": torch.full((50,), value), "epoch": int(value), "optimizer": {"state": {0: {"m": torch.ones(2)}}}}


def test_saves_loads_and_keeps_the_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep=2)
    assert store.load() is None
    for step in (1, 2, 30):
        store.save(step, state(step))
    assert store.steps() == [2, 30]
    found = store.load()
    assert found is not None
    step, loaded = found
    assert step == 30
    assert equal(loaded, state(30))
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-000000002", "step-000000030"]
    store.save(30, state(31))  # again at the same step, after a resume
    assert equal(store.load(), (30, state(31)))
    store.clear()
    assert store.load() is None
    assert not store.folder.exists()
    with pytest.raises(ConfigError):
        CheckpointStore(tmp_path, keep=0)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "state.safetensors"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_falls_back_when_the_last_is_damaged(
    tmp_path: Path, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, state(1))
    path = store.save(2, state(2)) / name
    data = path.read_bytes()
    if harm == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "flip":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 0xFF]) + data[-2:])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING, "secateurs"):
        assert equal(store.load(), (1, state(1)))
    assert "damaged" in caplog.text
    assert store.steps() == [1]


def test_nothing_whole_is_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (store.save(1, state(1)) / "state.json").unlink()
    with pytest.raises(ArtifactError, match="All checkpoints are damaged"):
        store.load()


def test_newer_version_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(1, state(1)) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(ArtifactError, match="newer version"):
        store.load()


def test_full_disk_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, state(1))
    write = checkpoint._write

    def full(path: Path, data: bytes) -> None:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*The last valid one is .*step-000000001"):
        store.save(2, state(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    assert equal(store.load(), (1, state(1)))


def test_files_of_others_stay(tmp_path: Path) -> None:
    store, other = CheckpointStore(tmp_path / "c"), CheckpointStore(tmp_path / "other")
    notes = [store.save(step, state(step)) / "notes.txt" for step in (1, 2)]
    for file in notes:
        file.write_text("mine")
    (store.folder / "step-000000003").symlink_to(other.save(3, state(3)))
    (store.folder / ".old-000000007").mkdir()
    (store.folder / ".old-000000007" / "state.json").touch()
    store.clear()
    assert store.steps() == []
    assert store.load() is None
    assert sorted(p.name for p in (store.folder / "step-000000001").iterdir()) == ["notes.txt"]
    assert not (store.folder / ".old-000000007").exists()
    assert equal(other.load(), (3, state(3)))


@pytest.mark.parametrize("moment", range(9))
def test_killed_at_any_moment_of_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Every call that touches the disk may be the last: what is left loads, and the next save cleans up."""
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, state(1))
    calls = 0

    class Killed(BaseException):
        pass

    def mortal(function):  # type: ignore[no-untyped-def]
        def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("rename", "fsync"):
            patch.setattr(checkpoint.os, name, mortal(getattr(os, name)))
        patch.setattr(checkpoint, "_remove", mortal(checkpoint._remove))
        with contextlib.suppress(Killed):
            store.save(2, state(2))
    found = store.load()
    assert equal(found, (1, state(1))) or equal(found, (2, state(2)))
    store.save(3, state(3))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000003"]
