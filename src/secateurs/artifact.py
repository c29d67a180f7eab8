"""A pruned network on disk: `plan.json`, `model.safetensors`, `card.json`. No pickle, never half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from secateurs.errors import ArtifactError
from secateurs.surgery import Plan, apply

VERSION = 1
PLAN, MODEL, CARD = "plan.json", "model.safetensors", "card.json"


def save(folder: str | os.PathLike[str], model: nn.Module, plan: Plan, card: Mapping[str, Any]) -> Path:
    """Write an artifact, replacing one that is there. The folder is whole at every moment: the old one until the new
    one is complete on disk. What else lies in it (checkpoints, logs) stays.

    Raises ArtifactError if the disk is full or the place cannot be written to; the old artifact is then untouched.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file: give a folder to save to.")
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        safetensors.torch.save_model(model, str(temporary / MODEL))
        (temporary / PLAN).write_text(plan.to_json())
        body = {"format": "secateurs", "version": VERSION, **card}
        body["files"] = {name: _sha256(temporary / name) for name in (PLAN, MODEL)}
        (temporary / CARD).write_text(json.dumps(body, indent=2))
        for name in (PLAN, MODEL, CARD):
            _flush(temporary / name)
        os.chmod(temporary, 0o755)
        _put_in_place(temporary, target)
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"Could not save to {target}: {error}. What was there before is untouched.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def read(folder: str | os.PathLike[str]) -> tuple[Plan, dict[str, Any]]:
    """Plan and card of an artifact, checked against the card's digests.

    Raises ArtifactError for a folder that is missing, half-written, damaged, or from a newer version.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ArtifactError(f"There is no folder {path}.")
    missing = [name for name in (CARD, PLAN, MODEL) if not (path / name).is_file()]
    if missing:
        raise ArtifactError(f"{path} is not a whole artifact: {', '.join(missing)} is missing.")
    try:
        card = json.loads((path / CARD).read_text())
    except ValueError as error:
        raise ArtifactError(f"{path / CARD} is damaged: {error}.") from None
    if not isinstance(card, dict) or card.get("format") != "secateurs":
        raise ArtifactError(f"{path / CARD} is not the card of a Secateurs artifact.")
    if not isinstance(card.get("version"), int) or card["version"] > VERSION:
        raise ArtifactError(
            f"{path} was saved as version {card.get('version')}, this Secateurs reads up to {VERSION}: upgrade it."
        )
    for name, digest in card.get("files", {}).items():
        if name in (PLAN, MODEL) and _sha256(path / name) != digest:
            raise ArtifactError(f"{path / name} is damaged: its content does not match the digest on the card.")
    return Plan.from_json((path / PLAN).read_text()), card


def load(folder: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """The pruned network of an artifact, in eval mode; `model` is a fresh, unpruned one, and is left untouched."""
    plan, _ = read(folder)
    small = apply(model, plan)
    path = Path(folder) / MODEL
    try:
        safetensors.torch.load_model(small, str(path), strict=True)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {error}.") from None
    except RuntimeError as error:
        raise ArtifactError(f"{path} does not fit the model it is loaded into: {error}") from None
    return small.eval()


def _put_in_place(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.rename(temporary, target)
        return
    # The finished files and the old ones change places in one step where the system can do that, else in two.
    for other in target.iterdir():
        if other.name not in (PLAN, MODEL, CARD):
            os.rename(other, temporary / other.name)
    if not _exchange(temporary, target):
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        os.rename(target, old / target.name)
        os.rename(temporary, target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders atomically (Linux); False where that is not to be had."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_cwd, exchange = -100, 2
    return renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
