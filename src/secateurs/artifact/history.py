"""The entries of a history on an artifact's card: epochs of training, and events. They are only read and written here.

Every field may be missing, except those that identify the kind of an entry, so that entries of older versions can be read.
Numbers that were not finite are null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from secateurs.artifact.fields import LONGEST, AtLeastOne, Count, Figures, Line, Number, Open, Percent, Seconds, plain
from secateurs.errors import shown

VERSION = 1  # of the entries; increase when a field changes its meaning


class Epoch(Open):
    """An epoch of training, by the method or by recovery."""

    epoch: AtLeastOne  # counted from 1
    phase: Line | None = None  # the method's name while it prunes, then the mode of recovery
    step: Count | None = None  # in total, at its end
    lr: Number | None = None
    share: Number | None = None  # weight of the original's class probabilities in the loss, if it was the teacher
    train_loss: Number | None = None
    train_top1: Percent | None = None
    val_loss: Number | None = None
    val_top1: Percent | None = None
    val_top5: Percent | None = None
    images_per_second: Number | None = None
    seconds: Seconds | None = None
    skipped: Count | None = None  # training images that could not be read …
    val_skipped: Count | None = None  # … and validation images


class Event(Open):
    """Something that happened during pruning. A method's own events have their own fields."""

    event: Line


class Calibrated(Open):
    """The network was calibrated after the cut."""

    event: Literal["calibrated"]
    images: Count | None = None
    norms: Count | None = None  # number of re-estimated norms
    layers: list[Line] = []  # layers whose lost constants were compensated
    left: list[Line] = []  # layers that have neither a bias nor a batch norm to absorb theirs


class Solved(Open):
    """A layer's error before and after reconstruction."""

    weight: Line
    before: Number | None = None
    after: Number | None = None
    solved: bool | None = None


class Reconstructed(Open):
    """The layers were solved by least squares."""

    event: Literal["reconstructed"]
    images: Count | None = None
    seconds: Seconds | None = None
    layers: list[Solved] = []


class Round(Open):
    """The end of a round of iterative pruning. Entries made in a round also have its number."""

    event: Literal["round"]
    round: AtLeastOne
    rounds: AtLeastOne  # in total
    budget: dict[str, Number | Count | None] = {}  # what may remain after this round
    cut: Figures
    calibrated: Figures
    after: Figures
    error: Number | None = None  # relative difference between the sliced and the masked network


class Warned(Open):
    """A warning of a method to the user."""

    event: Literal["warning"]
    text: Line


class Record(Open):
    """A method's record that is neither an epoch nor an event."""


OWN = ("calibrated", "reconstructed", "round")  # events whose fields are known


def warning(line: str) -> dict[str, str]:
    """Return the entry of a warning: a sentence in one line, shortened to what a card allows."""
    text = shown(" ".join(line.split()))
    return {"event": "warning", "text": text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"}


def is_warning(entry: Mapping[str, Any]) -> bool:
    """Whether an entry comes from `warning`, and is not a custom method's event of that name."""
    return entry.get("event") == "warning" and isinstance(entry.get("text"), str)


def _kind(entry: Any) -> str | None:
    fields = vars(entry) if isinstance(entry, Open) else entry
    if not isinstance(fields, Mapping):
        return None
    if is_warning(fields) or fields.get("event") in OWN:
        return str(fields["event"])
    if "event" in fields:
        return "event"
    return "epoch" if "epoch" in fields else "record"


Entry = Annotated[
    Annotated[Epoch, Tag("epoch")]
    | Annotated[Calibrated, Tag("calibrated")]
    | Annotated[Reconstructed, Tag("reconstructed")]
    | Annotated[Round, Tag("round")]
    | Annotated[Warned, Tag("warning")]
    | Annotated[Event, Tag("event")]
    | Annotated[Record, Tag("record")],
    Discriminator(_kind),
]


def rounds(history: Sequence[Mapping[str, Any]]) -> list[Round]:
    """Return the ends of rounds in a `Result.history`."""
    return [Round.model_validate(plain(entry)) for entry in history if entry.get("event") == "round"]


def records(history: Sequence[Open]) -> list[dict[str, Any]]:
    """Return the JSON form: `Result.history`."""
    return [entry.model_dump(mode="json", exclude_unset=True) for entry in history]
