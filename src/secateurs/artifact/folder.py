"""An artifact's files: where they are, whose they are, and what they hold."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from torch import nn

from secateurs.artifact.card import Card
from secateurs.errors import ArtifactError, PlanError, SecateursError
from secateurs.files import StrPath, open_regular, read_bytes, read_json, read_tensors, shown
from secateurs.plans import Plan
from secateurs.stripes import choose
from secateurs.surgery import apply
from secateurs.zoo.weights import put

PLAN, MODEL, CARD = "plan.json", "model.safetensors", "card.json"
NEW = ".new"  # files that are complete and count, on their way to their places
_PLAN_BYTES = 256 << 20


def read(folder: StrPath) -> tuple[Plan, Card]:
    """Plan and card of an artifact, checked against the card's digests.

    Raises ArtifactError for a folder that is missing, half-written, damaged, or from a newer version; PlanError for a
    plan that does not agree with itself.
    """
    if not os.path.isdir(folder):
        raise ArtifactError(f"There is no folder {shown(folder)}.")
    missing = [name for name in (CARD, PLAN, MODEL) if not os.path.lexists(place(folder, name))]
    if missing:
        raise ArtifactError(f"{shown(folder)} is not a whole artifact: {', '.join(missing)} is missing.")
    card = read_json(place(folder, CARD), Card)
    text = read_bytes(place(folder, PLAN), _PLAN_BYTES)
    if hashlib.sha256(text).hexdigest() != card.files.plan:
        raise _damaged(folder, PLAN)
    if digest(place(folder, MODEL)) != card.files.model:
        raise _damaged(folder, MODEL)
    return Plan.from_json(text, place(folder, PLAN)), card


def restored(folder: StrPath, plan: Plan, card: Card, model: nn.Module) -> nn.Module:
    """The pruned network of an artifact, in eval mode, from what `read` gave and the network that the plan is for. That is
    left untouched. Raises PlanError or ArtifactError where plan or weights do not fit the model."""
    path = place(folder, PLAN)
    try:
        small = apply(model, plan)
    except SecateursError as error:
        raise type(error)(f"{shown(path)} does not fit this model: {shown(str(error))}") from None
    except Exception as error:  # well-formed, signed, and still of no network that there is
        raise PlanError(f"{shown(path)} cannot be applied to this model: {shown(str(error))[:300]}.") from error
    path = place(folder, MODEL)
    put(small, read_tensors(path), path, "the network that the plan leaves")
    choose(small, card.kernels)
    return small.eval()


def place(folder: StrPath, name: str) -> Path:
    """Where a file of the artifact is: among those committed but not yet moved, or in the folder itself."""
    new = Path(folder, NEW, name)
    return new if os.path.lexists(new) else Path(folder, name)


def digest(path: StrPath) -> str:
    """SHA-256 of a file's content, in hexadecimal. Raises ArtifactError for what is not a regular file."""
    sha = hashlib.sha256()
    with open_regular(path) as file:
        try:
            while block := file.read(1 << 20):
                sha.update(block)
        except OSError as error:
            raise ArtifactError(f"{shown(path)} cannot be read: {error.strerror or error}.") from None
    return sha.hexdigest()


class _Ours(BaseModel):
    """The least that a card of ours says, of whatever version."""

    format: Literal["secateurs"]
    files: Any = None


def exists(folder: StrPath) -> bool:
    """Whether there is an artifact in the folder, whole or not: a card that Secateurs wrote."""
    return bool(_cards(folder))


def foreign(folder: StrPath) -> list[str]:
    """Files that have an artifact's names and are somebody else's: there is no card of ours beside them, or they are not
    what it says was saved."""
    names = [name for name in (MODEL, PLAN, CARD) if os.path.lexists(Path(folder, name))]
    new, cards = Path(folder, NEW), _cards(folder)
    if os.path.lexists(new) and not (os.path.isdir(new) and (not os.listdir(new) or _cards(new))):
        return [NEW, *names]  # a card is the last to leave that folder
    if not cards:
        return names
    saved = [card.files for card in cards if isinstance(card.files, dict)]
    return [name for name in names if name != CARD and not _one_of(Path(folder, name), [s.get(name) for s in saved])]


def _cards(folder: StrPath) -> list[_Ours]:
    """The cards of ours: two of an artifact whose files were being moved to their places."""
    found = []
    for path in (Path(folder, NEW, CARD), Path(folder, CARD)):
        with contextlib.suppress(ArtifactError):
            found.append(read_json(path, _Ours))
    return found


def _one_of(path: Path, digests: list[Any]) -> bool:
    try:
        return not digests or digest(path) in digests
    except ArtifactError:  # a folder, or nothing that can be read
        return False


def _damaged(folder: StrPath, name: str) -> ArtifactError:
    path = shown(place(folder, name))
    return ArtifactError(f"{path} is damaged: its content does not match the digest on the card. Copy it again.")
