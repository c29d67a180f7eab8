"""Why channels stay whole."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from secateurs.errors import Message, Setting


class Kind(Enum):
    """The kinds of reasons for which a group is not prunable."""

    OUTPUT = auto()  # its channels are the model's outputs
    CONSTANT = auto()  # they meet the model's input, or a constant, channel by channel
    NO_RULE = auto()  # an op that no rule is known for takes them
    RULE = auto()  # a rule says so
    CODE = auto()  # the code holds a figure that only fits the uncut network, or computes with their number
    UNREAD = auto()  # no layer reads them
    SINGLE = auto()  # there is one only, or all hang together
    INEXACT = auto()  # a normalization takes its statistics over them; `allow_inexact` cuts them


@dataclass(frozen=True)
class Reason:
    """Why a group is not prunable: `str` of it is a sentence.

    place: the line of the author's code that it comes from, `file.py:12`, or "".
    """

    kind: Kind
    detail: str
    place: str = ""

    @property
    def message(self) -> Message:
        text = f"{self.detail} ({self.place})" if self.place else self.detail
        if self.kind is Kind.INEXACT:
            return Message(f"inexact: {text} (", Setting("allow_inexact", True), " cuts it all the same)")
        return Message(text)

    def __str__(self) -> str:
        return str(self.message)


OUTPUT = Reason(Kind.OUTPUT, "reaches the model's output")
