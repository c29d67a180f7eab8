"""A pruned network on disk: `plan.json`, `model.safetensors`, `card.json`. No pickle, never half-written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from secateurs.errors import ArtifactError
from secateurs.stripes import choices, choose
from secateurs.surgery import Plan, apply

VERSION = 1
PLAN, MODEL, CARD = "plan.json", "model.safetensors", "card.json"
STAGED = ".saving-"  # files that are being written
NEW = ".new"  # files that are complete and count, on their way to their places


def save(
    folder: str | os.PathLike[str], model: nn.Module, plan: Plan, card: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Write an artifact; with `overwrite` also in the place of one that is there. The folder then holds a whole one at
    every moment: the old until the new is complete on disk. What else lies in it (checkpoints, logs) is not touched.

    Raises ArtifactError if the folder holds an artifact and `overwrite` is not set, if it holds files of these names that
    are no artifact (whatever `overwrite` says), if the disk is full or the place cannot be written to; what was there
    before is then untouched.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file: give a folder to save to.")
    if names := foreign(target):
        raise ArtifactError(f"{target} holds {names[0]}, which is no part of an artifact: move it, or save elsewhere.")
    if not overwrite and exists(target):
        raise ArtifactError(f"{target} holds an artifact already: save elsewhere, or replace it with overwrite=True.")
    fresh, staged = not target.exists(), None
    try:
        target.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=STAGED, dir=target))
        safetensors.torch.save_model(model, str(staged / MODEL))
        (staged / PLAN).write_text(plan.to_json())
        shutil.copymode(staged / PLAN, staged / MODEL)  # as readable as any new file; safetensors makes it private
        body = {"format": "secateurs", "version": VERSION, **_plain(card)}
        if kernels := choices(model):
            body["kernels"] = kernels
        body["files"] = {name: digest(staged / name) for name in (PLAN, MODEL)}
        (staged / CARD).write_text(json.dumps(body, indent=2, allow_nan=False))
        for part in (staged / PLAN, staged / MODEL, staged / CARD, staged):
            _flush(part)
        os.chmod(staged, 0o755)
        _commit(staged, target)
    except (OSError, SafetensorError) as error:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
        if fresh:
            with contextlib.suppress(OSError):
                target.rmdir()
        raise ArtifactError(f"Could not save to {target}: {error}. What was there before is untouched.") from error
    with contextlib.suppress(OSError):  # the new artifact is on disk and counts: the rest is tidying
        _settle(target)
        _sweep(target)
    return target


def read(folder: str | os.PathLike[str]) -> tuple[Plan, dict[str, Any]]:
    """Plan and card of an artifact, checked against the card's digests.

    Raises ArtifactError for a folder that is missing, half-written, damaged, or from a newer version.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ArtifactError(f"There is no folder {path}.")
    missing = [name for name in (CARD, PLAN, MODEL) if not _file(path, name).is_file()]
    if missing:
        raise ArtifactError(f"{path} is not a whole artifact: {', '.join(missing)} is missing.")
    try:
        card = json.loads(_file(path, CARD).read_text())
    except ValueError as error:
        raise ArtifactError(f"{path / CARD} is damaged: {error}.") from None
    if not isinstance(card, dict) or card.get("format") != "secateurs":
        raise ArtifactError(f"{path / CARD} is not the card of a Secateurs artifact.")
    if not isinstance(card.get("version"), int) or card["version"] > VERSION:
        raise ArtifactError(
            f"{path} was saved as version {card.get('version')}, this Secateurs reads up to {VERSION}: upgrade it."
        )
    _check(path / CARD, card)
    digests = card.get("files")
    for name in (PLAN, MODEL):
        if not isinstance(digests, dict) or digest(_file(path, name)) != digests.get(name):
            raise ArtifactError(f"{path / name} is damaged: its content does not match the digest on the card.")
    return Plan.from_json(_file(path, PLAN).read_text()), card


def _check(path: Path, card: Mapping[str, Any]) -> None:
    """Raise ArtifactError where the card holds something else than what others read from it. Nothing has to be there."""

    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def figures(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and all(number(value.get(name)) for name in ("macs", "params"))
            and all(value.get(name) is None or number(value[name]) for name in ("top1", "top5", "loss"))
        )

    sound: dict[str, Callable[[Any], bool]] = {
        **dict.fromkeys(("before", "cut", "after"), figures),
        "earlier": lambda cuts: (
            isinstance(cuts, list)
            and all(isinstance(c, dict) and isinstance(c.get("method"), str) and figures(c.get("before")) for c in cuts)
        ),
        **dict.fromkeys(("error", "seconds"), lambda value: value is None or number(value)),
        "source": lambda source: (
            source is None
            or (
                isinstance(source, dict)
                and isinstance(source.get("spec"), str)
                and isinstance(cuts := source.get("plans", []), list)
                and all(
                    isinstance(c, dict) and type(c.get("after")) is int and isinstance(c.get("plan"), dict)
                    for c in cuts
                )
            )
        ),
        "data": lambda data: data is None or isinstance(data, dict),
        "kernels": lambda kernels: (
            isinstance(kernels, dict)
            and all(isinstance(c, dict) and all(isinstance(k, str) for k in c.values()) for c in kernels.values())
        ),
    }
    for name, holds in sound.items():
        if name in card and not holds(card[name]):
            raise ArtifactError(f"{path} is damaged: '{name}' is {json.dumps(card[name])[:60]}.")


def exists(folder: str | os.PathLike[str]) -> bool:
    """Whether there is an artifact in the folder, whole or not: a card that Secateurs wrote."""
    for path in (Path(folder) / NEW / CARD, Path(folder) / CARD):
        with contextlib.suppress(OSError, ValueError):
            card = json.loads(path.read_text())
            if isinstance(card, dict) and card.get("format") == "secateurs":
                return True
    return False


def foreign(folder: str | os.PathLike[str]) -> list[str]:
    """Files that have an artifact's names and are somebody else's: there is no card of ours beside them, or they are not
    what it says was saved."""
    names = [name for name in (MODEL, PLAN, CARD) if os.path.lexists(Path(folder) / name)]
    if not exists(folder):
        return names
    saved: list[Mapping[str, Any]] = []
    for path in (Path(folder) / NEW / CARD, Path(folder) / CARD):  # stopped among the last moves there are both
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            saved.append(dict(json.loads(path.read_text())["files"]))
    return [name for name in names if name != CARD and not _one_of(Path(folder) / name, [s.get(name) for s in saved])]


def _one_of(path: Path, digests: list[Any]) -> bool:
    try:
        return not digests or digest(path) in digests
    except OSError:  # a folder, or nothing that can be read
        return False


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def load(folder: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """The pruned network of an artifact, in eval mode; `model` is a fresh, unpruned one, and is left untouched."""
    plan, card = read(folder)
    small = apply(model, plan)
    path = _file(Path(folder), MODEL)
    try:
        safetensors.torch.load_model(small, str(path), strict=True)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {error}.") from None
    except RuntimeError as error:
        raise ArtifactError(f"{path} does not fit the model it is loaded into: {error}") from None
    choose(small, card.get("kernels", {}))
    return small.eval()


def _commit(staged: Path, target: Path) -> None:
    """Make the staged files those that count, in one step: their folder gets the name that readers look for first."""
    for last in (False, False, False, True):
        _settle(target)
        try:
            os.rename(staged, target / NEW)
            _flush(target)
            return
        except OSError as error:  # another process has just done the same
            if last or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _settle(target: Path) -> None:
    """Move the files of a committed artifact to where they belong. Killed half-way it goes on the next time."""
    if not (target / NEW).is_dir():
        return
    for name in (MODEL, PLAN, CARD):
        with contextlib.suppress(FileNotFoundError):
            os.replace(target / NEW / name, target / name)
    _flush(target)
    (target / NEW).rmdir()


def _sweep(target: Path) -> None:
    """Remove what killed saves have left behind, if it is old enough to be nobody's."""
    for stale in target.glob(f"{STAGED}*"):
        if time.time() - stale.stat().st_mtime > 3600:
            shutil.rmtree(stale, ignore_errors=True)


def _file(folder: Path, name: str) -> Path:
    """Where a file of the artifact is: among those committed but not yet moved, or in the folder itself."""
    new = folder / NEW / name
    return new if new.is_file() else folder / name


def _plain(value: Any) -> Any:
    """The same in JSON's types: NaN and infinity, which JSON does not have, are null; arrays are lists."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
