"""Save an artifact atomically: the folder holds a complete artifact at all times."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn

from secateurs.artifact.card import VERSION, Card
from secateurs.artifact.fields import plain
from secateurs.artifact.folder import CARD, MODEL, NEW, PLAN, README, digest, exists, foreign, own_readme
from secateurs.artifact.history import VERSION as HISTORY_VERSION
from secateurs.artifact.hub import on_hub
from secateurs.artifact.state import State, gathered
from secateurs.errors import ArtifactError, Setting
from secateurs.files import faults, shown, sync_folder, utf8
from secateurs.plans import Plan
from secateurs.stripes import choices

STAGED = ".saving"  # files that are being written
PATIENCE = 60.0  # seconds to wait for another process that saves to the same folder


def save(
    folder: str | os.PathLike[str], model: nn.Module, plan: Plan, card: Mapping[str, Any], *, overwrite: bool = False,
    describe: Callable[[Card], str] | None = None,
) -> Path:  # fmt: skip
    """Write an artifact. With `overwrite`, replace an existing one. The folder then holds a complete artifact at
    all times: the old one until the new one is complete on disk. Other files in it (checkpoints, logs) are not changed.
    Leftovers of a killed save are replaced.

    describe: makes the text of README.md from the card. An existing README.md is kept if no save wrote it, or if it was
        edited since.

    Raises ArtifactError if the folder has an artifact and `overwrite` is not set, if it has files with these names that
    are not an artifact (even with `overwrite`), if the network has a state that only pickle could store, if the disk is full,
    or if the folder cannot be written to. Existing files are then unchanged.
    """
    target = Path(folder)
    if on_hub(target):
        raise ArtifactError(
            f"{shown(target)} is on the hub: save to a folder, and upload that, for example with `hf upload`."
        )
    if os.path.lexists(target) and not os.path.isdir(target):
        raise ArtifactError(f"{shown(target)} is a file: pass a folder to save to.")
    if names := foreign(target):
        raise ArtifactError(
            f"{shown(target)} has {names[0]}, which is not part of an artifact: move it, or save to another folder."
        )
    if not overwrite and exists(target):
        raise ArtifactError(
            f"{shown(target)} already holds an artifact: save to another folder, or replace it with ",
            Setting("overwrite", True),
            ".",
        )
    state, kernels = gathered(model), choices(model)
    fresh = not os.path.lexists(target)
    if os.path.lexists(target / README) and not own_readme(target):
        describe = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _staging(target) as staged:
            _write(staged, state, plan, {**card, **({"kernels": kernels} if kernels else {})}, describe)
            _commit(staged, target)
    except (OSError, SafetensorError) as error:
        if fresh:
            with contextlib.suppress(OSError):
                target.rmdir()
        raise ArtifactError(f"Cannot save to {shown(target)}: {error}. Existing files were not changed.") from error
    with contextlib.suppress(OSError):  # the new artifact is committed: the rest is cleanup
        _move_into_place(target)
    return target


def _write(
    staged: Path, state: State, plan: Plan, card: Mapping[str, Any], describe: Callable[[Card], str] | None
) -> None:
    handle = os.open(staged, os.O_RDONLY) if os.name != "nt" else -1
    try:
        safetensors.torch.save_file(state.tensors, str(Path(utf8(staged, handle), MODEL)))
    finally:
        if handle >= 0:
            os.close(handle)
    (staged / PLAN).write_text(plan.to_json())
    shutil.copymode(staged / PLAN, staged / MODEL)  # a new file's permissions; safetensors creates it as private
    body = {"format": "secateurs", "version": VERSION, "history_version": HISTORY_VERSION, **plain(card)}
    if state.record:
        body["state"] = state.record
    body["files"] = {name: digest(staged / name) for name in (PLAN, MODEL)}
    try:
        valid = Card.model_validate(body)
    except ValidationError as error:
        raise ArtifactError(f"The card cannot be saved: {faults(error)}.") from None
    if describe is not None:
        (staged / README).write_text(describe(valid), encoding="utf-8")
        body["files"][README] = digest(staged / README)
    (staged / CARD).write_text(json.dumps(body, indent=2, allow_nan=False))
    for name in (PLAN, MODEL, CARD, *([] if describe is None else [README])):
        with open(staged / name, "r+b") as file:  # Windows only flushes files opened for writing
            os.fsync(file.fileno())
    sync_folder(staged)


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield an empty folder in the target that this process owns until the end. Its name is always the same, so that
    the next save removes the leftovers of a killed process.

    Raises ArtifactError if it has files that a save does not create, or if another process does not release it.
    """
    staged = target / STAGED
    with _locked(staged):
        for name in os.listdir(staged):
            if name not in (PLAN, MODEL, CARD, README):
                raise ArtifactError(
                    f"{shown(staged / name)} is not part of an artifact: move it, or save to another folder."
                )
            os.unlink(staged / name)
        try:
            yield staged
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create a folder if needed and lock it against other processes, if the file system supports locks. A process
    that dies releases the lock."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        handle = _lock(folder)
        # The previous owner of the lock may have renamed the folder, and then the handle is not of this folder.
        if handle is None or (handle >= 0 and _same(handle, folder)):
            break
        if handle >= 0:
            os.close(handle)
        if time.monotonic() > deadline:
            raise ArtifactError(
                f"Another process is saving to {shown(folder.parent)}: wait for it, or save to another folder."
            )
        time.sleep(0.02)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """Return the handle of the lock on a folder; -1 if another process has it, None if locks are not supported."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return -1
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle


def _same(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _commit(staged: Path, target: Path) -> None:
    """Commit the staged files in one step: rename their folder to the name that readers look for first."""
    for last in (False, False, False, True):
        _move_into_place(target)
        try:
            os.rename(staged, target / NEW)
            sync_folder(target)
            return
        except OSError as error:  # without locks, another process has just done the same
            if last or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _move_into_place(target: Path) -> None:
    """Move the files of a committed artifact into place. An interrupted move is completed by the next save."""
    if not (target / NEW).is_dir():
        return
    for name in (README, MODEL, PLAN, CARD):
        with contextlib.suppress(FileNotFoundError):
            os.replace(target / NEW / name, target / name)
    sync_folder(target)
    (target / NEW).rmdir()
