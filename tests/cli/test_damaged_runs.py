"""Whatever lies where a file of a run should be, `--resume` says what is wrong with it, at once, and changes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateurs import files
from secateurs.cli import main
from secateurs.training import CheckpointStore
from tests.damage import DAMAGES, tree

NET = "zoo:small_cnn"
QUICK = ("--batch-size", 16, "--device", "cpu")


@pytest.fixture(scope="module")
def prune(images: Path) -> tuple[object, ...]:
    rest = ("--pretrain-epochs", 1, "--recover-epochs", 1, "--method", "l1", "--macs", 0.5)
    return ("prune", NET, "--data", f"folder:{images}", *QUICK, *rest)


@pytest.fixture(scope="module")
def redesign(images: Path) -> tuple[object, ...]:
    rest = ("--epochs", 1, "--recover-epochs", 1, "--scratch-epochs", 1, "--method", "l1", "--widen", 1.5)
    return ("redesign", NET, "--data", f"folder:{images}", *QUICK, *rest)


def stopped(job: tuple[object, ...], out: Path, saved: int) -> None:
    """Run a command that is interrupted once that many checkpoints are written."""
    whole, left = CheckpointStore.save, saved

    def save(store: CheckpointStore, step: int, state: dict[str, Any]) -> Path:
        nonlocal left
        path = whole(store, step, state)
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "save", save)
        assert main([str(t) for t in (*job, "--out", out)]) == 130


@pytest.fixture(scope="module")
def unfinished(prune: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained and cut; recovery has saved its first checkpoint."""
    out = tmp_path_factory.mktemp("unfinished") / "run"
    stopped(prune, out, 2)
    return out


@pytest.fixture(scope="module")
def finished(redesign: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main([str(t) for t in (*redesign, "--out", out)]) == 0
    return out


RUN_FILES = ("run.json", "pretrained.safetensors", "recover/metrics.jsonl")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_damaged_file_of_a_run(run, prune, unfinished, tmp_path, name, damage):
    out = tmp_path / "run"
    shutil.copytree(unfinished, out)
    DAMAGES[damage](out / name)
    before = tree(out)
    ran = run(*prune, "--out", out, "--resume")
    if (name, damage) in {("pretrained.safetensors", "gone"), ("recover/metrics.jsonl", "gone"),
                          ("recover/metrics.jsonl", "emptied"), ("recover/metrics.jsonl", "truncated")}:  # fmt: skip
        assert ran.status == 0, ran.err  # made again
        return
    assert ran.status in (1, 2)
    message = ran.err.strip().splitlines()[-1]
    assert message.startswith("secateurs: ")
    assert "Error:" not in message  # of Python's
    assert len(message) < 700
    if (name, damage) == ("run.json", "gone"):
        assert "holds pretrained.safetensors, which this run did not write" in message
    else:
        assert str(out / name) in message
        assert "emove it" in message or "ove it" in message
    if name != "recover/metrics.jsonl":
        assert _but_run_json(tree(out)) == _but_run_json(before)
    assert (out / name).is_symlink() == (damage in {"loop", "link that leads nowhere", "device"})


def _but_run_json(found: dict[str, Any]) -> dict[str, Any]:
    """A run that is resumed writes its settings again."""
    return {k: v for k, v in found.items() if bytes.fromhex(k) != b"run.json"} | {
        "run.json": found.get(b"run.json".hex(), (0, b""))[0]
    }


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table(run, redesign, finished, tmp_path, damage):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    DAMAGES[damage](out / "redesign.json")
    before = tree(out)
    ran = run(*redesign, "--out", out, "--resume")
    assert ran.status == 1
    message = ran.err.strip().splitlines()[-1]
    assert message.startswith(f"secateurs: {out / 'redesign.json'} ")
    assert tree(out) == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["base.safetensors", "scaled.safetensors"])
def test_damaged_weights_of_a_redesign(run, redesign, tmp_path, name, damage, halfway):
    out = tmp_path / "run"
    shutil.copytree(halfway, out)
    DAMAGES[damage](out / name)
    ran = run(*redesign, "--out", out, "--resume")
    if damage == "gone":
        assert ran.status == 0, ran.err
        return
    assert ran.status == 1
    assert str(out / name) in ran.err
    assert "Remove it, and the run trains that network again." in ran.err


@pytest.fixture(scope="module")
def halfway(redesign: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and scaled network are trained; recovery has begun."""
    out = tmp_path_factory.mktemp("halfway") / "run"
    stopped(redesign, out, 3)
    return out


WRONG_WEIGHTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "integers": (lambda w: w.long(), "is int64 of shape"),
    "another shape": (lambda w: w[:1], "of shape .*expected float32 of shape"),
    "NaN": (lambda w: w * float("nan"), "holds NaN"),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_that_do_not_fit(run, prune, unfinished, tmp_path, case):
    import re

    from safetensors.torch import load_file, save_file

    out = tmp_path / "run"
    shutil.copytree(unfinished, out)
    change, reason = WRONG_WEIGHTS[case]
    weights = load_file(out / "pretrained.safetensors")
    name = next(name for name in weights if name.endswith("conv1.weight"))
    save_file({**weights, name: change(weights[name]).contiguous()}, out / "pretrained.safetensors")
    ran = run(*prune, "--out", out, "--resume")
    assert ran.status == 1
    assert re.search(rf"pretrained\.safetensors does not fit the network: tensor '{name}'.*{reason}", ran.err)


CURVES = ("--layer", "conv1", "--criteria", "l1,index", "--examples", 8, "--val-examples", 8)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_curves(run, images, unfinished, tmp_path, damage):
    out = tmp_path / "curves"
    job = ("compare-criteria", NET, "--weights", unfinished / "pretrained.safetensors", "--data", f"folder:{images}")
    job = (*job, *QUICK, *CURVES, "--out", out)
    assert run(*job).status == 0
    DAMAGES[damage](out / "curves.json")
    before = tree(out)
    for flag in ("--resume", "--force"):
        ran = run(*job, flag)
        assert ran.status == (2 if damage == "gone" else 1)
        if damage == "gone":
            assert "curves.png already exists and was not written by this command" in ran.err
        else:
            assert f"{out / 'curves.json'} " in ran.err
        assert tree(out) == before


def test_a_folder_whose_name_is_not_utf8(run, prune, tmp_path):
    out = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        ran = run(*prune, "--out", out)
    assert ran.status == 130, ran.err
    ran = run(*prune, "--out", out)
    assert ran.status == 0, ran.err
    assert r"caf\xe9" in ran.out
    ran = run(*prune, "--out", out)
    assert ran.status == 2
    assert r"caf\xe9 holds an artifact" in ran.err
    Path(out, "run.json").write_text("{")
    ran = run(*prune, "--out", out, "--resume")
    assert r"caf\xe9/run.json is not valid JSON" in ran.err


# -- a disk that is full -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["run.json", "pretrained.safetensors", "metrics.jsonl", "state.json", "base.safetensors", "redesign.json"]
)
def test_a_full_disk(run, prune, redesign, tmp_path, monkeypatch, name):
    """One message that names the file; with room again, `--resume` gets through."""
    job = redesign if name in {"base.safetensors", "redesign.json"} else prune
    out, fsync = tmp_path / "run", os.fsync

    def full(handle: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ran = run(*job, "--out", out)
    assert ran.status == 1
    message = ran.err.strip().splitlines()[-1]
    assert message.startswith("secateurs: ")
    assert "No space left on device" in message
    assert name in message or name == "state.json"
    assert "Make room" in message or "Free disk space" in message
    assert not list(out.rglob(".*.tmp"))
    ran = run(*job, "--out", out, "--resume")
    assert ran.status == 0, ran.err


def test_half_a_line_never_stays_in_a_log(tmp_path, monkeypatch):
    from secateurs.training import resume
    from tests.training.helpers import batches, engine, net

    e = engine(net(), batches(), folder=tmp_path)

    def full(file: Any, data: bytes) -> None:
        file.write(data[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(resume, "_write_all", full)
    with pytest.raises(Exception, match=r"metrics\.jsonl cannot be written: No space left on device\. Free disk space"):
        e.fit()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_disk_that_really_is_full(run, prune, tmp_path):
    """A file system of 128 KiB, where this user may mount one."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        ran = run(*prune, "--out", disk / "run")
        assert ran.status == 1
        message = ran.err.strip().splitlines()[-1]
        assert "No space left on device" in message
        assert message.startswith("secateurs: ")
        assert "Make room" in message or "Free disk space" in message
        (disk / "fill").write_bytes(b"x" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
        shutil.rmtree(disk / "run")
        (disk / "run").mkdir()
        with open(disk / "more", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        ran = run(*prune, "--out", disk / "run")
        assert ran.status == 1
        assert "No space left on device" in ran.err
        assert list((disk / "run").iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_errors_about_any_name_can_be_printed():
    from secateurs.errors import ArtifactError

    assert str(ArtifactError(f"{os.fsdecode(b'caf' + bytes([233]))} \ud800")).encode()
    assert files.shown(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
