"""The reasons that channels cannot be cut."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from secateurs.errors import Message, Setting


class Kind(Enum):
    """The kinds of reasons for which a group is not prunable."""

    OUTPUT = auto()  # its channels are the model's outputs
    CONSTANT = auto()  # they are combined with the model's input, or a constant, channel by channel
    NO_RULE = auto()  # they are the input of an op without a rule
    RULE = auto()  # a rule freezes them
    CODE = auto()  # the code has a constant that only fits the uncut network, or computes with their number
    UNREAD = auto()  # no layer consumes them
    UNTRIED = auto()  # code that could not be run may read them
    SINGLE = auto()  # there is only one channel, or all are coupled
    INEXACT = auto()  # a normalization computes statistics over them; `allow_inexact` cuts them


@dataclass(frozen=True)
class Reason:
    """Why a group is not prunable. `str(reason)` is a sentence.

    place: the line of the user's code that it comes from, `file.py:12`, or "".
    """

    kind: Kind
    detail: str
    place: str = ""

    @property
    def message(self) -> Message:
        text = f"{self.detail} ({self.place})" if self.place else self.detail
        if self.kind is Kind.INEXACT:
            return Message(f"inexact: {text} (", Setting("allow_inexact", True), " allows the cut)")
        return Message(text)

    def __str__(self) -> str:
        return str(self.message)


OUTPUT = Reason(Kind.OUTPUT, "reaches the model's output")
TARGET = Reason(Kind.OUTPUT, "is compared with the targets, in training")

# Details of reasons that come from the code.
EXPANDED = "a tensor is expanded to a size that is a constant in the code"
GROUPS = "the number of groups is a constant in the code"
SHAPE = "the normalized shape is a constant in the code"
