"""Find, identify and read an artifact's files."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from torch import nn

from secateurs.artifact.card import Card
from secateurs.artifact.hub import fetched, on_hub
from secateurs.artifact.state import restore_
from secateurs.errors import ArtifactError, PlanError, SecateursError, a_or_an
from secateurs.files import StrPath, open_regular, read_bytes, read_json, read_tensors, shown
from secateurs.plans import Plan
from secateurs.stripes import choose
from secateurs.surgery import apply

PLAN, MODEL, CARD = "plan.json", "model.safetensors", "card.json"
README = "README.md"  # the card for people, who may edit it; nothing is read from it
NEW = ".new"  # committed files that are not yet moved into place
_PLAN_BYTES = 256 << 20


def read(folder: StrPath) -> tuple[Plan, Card]:
    """Read the plan and card of an artifact, checked against the card's digests. folder: may be on the Hub, `hf:USER/NAME`.

    Raises ArtifactError for a folder that is missing, incomplete, damaged, or from a newer version, and PlanError for an
    inconsistent plan.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ArtifactError(f"{a_or_an(type(folder).__name__)} is not a folder: pass its path, or hf:USER/NAME.")
    folder = local(folder)
    if not os.path.isdir(folder):
        other = ": it is a file, and an artifact is a folder" if os.path.isfile(folder) else ""
        raise ArtifactError(f"There is no folder {shown(folder)}{other}.")
    missing = [name for name in (CARD, PLAN, MODEL) if not os.path.lexists(place(folder, name))]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ArtifactError(
            f"{shown(folder)} is not a complete artifact: {', '.join(missing)} {verb} missing.", hint=_instead(folder)
        )
    card = read_json(place(folder, CARD), Card)
    text = read_bytes(place(folder, PLAN), _PLAN_BYTES)
    if hashlib.sha256(text).hexdigest() != card.files.plan:
        raise _damaged(folder, PLAN)
    if digest(place(folder, MODEL)) != card.files.model:
        raise _damaged(folder, MODEL)
    return Plan.from_json(text, place(folder, PLAN)), card


def _instead(folder: StrPath) -> str:
    """Say what to pass instead of a folder that is not an artifact, if it is known."""
    inner = sorted(path.parent for path in Path(folder).glob(f"*/{CARD}"))
    if inner:
        return f"It holds {'artifacts' if len(inner) > 1 else 'an artifact'}: {', '.join(map(shown, inner[:3]))}."
    if os.path.isdir(Path(folder, "train")):
        return f"If it is data, it is called folder:{shown(folder)}."
    return ""


def restored(folder: StrPath, plan: Plan, card: Card, model: nn.Module) -> nn.Module:
    """Return the pruned network of an artifact, in eval mode, from the result of `read` and the network that the plan is for.
    The given network is not modified. Raises PlanError or ArtifactError if the plan or weights do not fit it."""
    path = place(folder, PLAN)
    try:
        small = apply(model, plan)
    except SecateursError as error:
        raise type(error)(f"{shown(path)} does not fit this model: {shown(str(error))}") from None
    except Exception as error:  # well-formed, with a valid digest, but not applicable
        raise PlanError(f"{shown(path)} cannot be applied to this model: {shown(str(error))[:300]}.") from error
    path = place(folder, MODEL)
    restore_(small, read_tensors(path), card.state, path, place(folder, CARD))
    choose(small, card.kernels)
    return small.eval()


def local(folder: StrPath) -> StrPath:
    """Return the folder itself or, for one on the Hub, its copy in the local cache, which is fetched if necessary."""
    return fetched(folder, (CARD, PLAN, MODEL), _check_ours) if on_hub(folder) else folder


def _check_ours(card: Path) -> None:
    read_json(card, _Ours)


def place(folder: StrPath, name: str) -> Path:
    """Return the path of a file of the artifact: among the files that are committed but not yet moved, or in the folder."""
    folder = local(folder)
    new = Path(folder, NEW, name)
    return new if os.path.lexists(new) else Path(folder, name)


def digest(path: StrPath) -> str:
    """Return the SHA-256 of a file's content in hexadecimal. Raises ArtifactError unless it is a regular file."""
    sha = hashlib.sha256()
    with open_regular(path) as file:
        try:
            while block := file.read(1 << 20):
                sha.update(block)
        except OSError as error:
            raise ArtifactError(f"{shown(path)} cannot be read: {error.strerror or error}.") from None
    return sha.hexdigest()


class _Ours(BaseModel):
    """The minimum content of a card of any version."""

    format: Literal["secateurs"]
    files: Any = None
    rounds: Any = None


def exists(folder: StrPath) -> bool:
    """Whether the folder has an artifact, complete or not: a card that Secateurs wrote."""
    return bool(_cards(folder))


def is_round(folder: StrPath) -> bool:
    """Whether the folder has the artifact of a round of iterative pruning."""
    return any(card.rounds is not None for card in _cards(folder))


def remove(folder: StrPath) -> None:
    """Remove an artifact, and its folder if nothing else is in it. Files with these names that are not its own stay."""
    if not exists(folder) or foreign(folder):
        return
    names = (*([README] if own_readme(folder) else []), MODEL, PLAN, CARD)
    for name in names:  # the card last: without it, the other files would look foreign
        for path in (Path(folder, NEW, name), Path(folder, name)):
            with contextlib.suppress(OSError):
                path.unlink()
    for path in (Path(folder, NEW), Path(folder)):
        with contextlib.suppress(OSError):
            path.rmdir()


def foreign(folder: StrPath) -> list[str]:
    """Return files with an artifact's names that Secateurs did not write: there is no Secateurs card next to them, or they
    are not the files that the card lists."""
    names = [name for name in (MODEL, PLAN, CARD) if os.path.lexists(Path(folder, name))]
    new, cards = Path(folder, NEW), _cards(folder)
    if os.path.lexists(new) and not (os.path.isdir(new) and (not os.listdir(new) or _cards(new))):
        return [NEW, *names]  # the card is moved out of that folder last
    if not cards:
        return names
    saved = [card.files for card in cards if isinstance(card.files, dict)]
    return [name for name in names if name != CARD and not _one_of(Path(folder, name), [s.get(name) for s in saved])]


def own_readme(folder: StrPath) -> bool:
    """Whether the folder's README.md is as Secateurs wrote it, without edits."""
    digests = [card.files.get(README) for card in _cards(folder) if isinstance(card.files, dict)]
    path = Path(folder, README)
    return os.path.lexists(path) and any(digests) and _one_of(path, digests)


def _cards(folder: StrPath) -> list[_Ours]:
    """Return the cards that Secateurs wrote: two if an artifact's files were being moved into place."""
    found = []
    for path in (Path(folder, NEW, CARD), Path(folder, CARD)):
        with contextlib.suppress(ArtifactError):
            found.append(read_json(path, _Ours))
    return found


def _one_of(path: Path, digests: list[Any]) -> bool:
    try:
        return not digests or digest(path) in digests
    except ArtifactError:  # a folder, or unreadable
        return False


def _damaged(folder: StrPath, name: str) -> ArtifactError:
    path = shown(place(folder, name))
    return ArtifactError(f"{path} is damaged: its content does not match the digest on the card. Copy it again.")
