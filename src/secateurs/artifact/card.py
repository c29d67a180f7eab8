"""What an artifact says of itself: a schema for all that is ever read from a card.

Fields of later versions, and of others, are kept as they are; what is there has to be of its kind.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from secateurs.files import check_format, shown
from secateurs.plans.plan import PlanRecord
from secateurs.widening.grow import Widening

VERSION = 1
MOST = 100  # cuts and widenings, each of which copies the network


def _path(text: object) -> str:
    """Text that may be a path: bytes that are not UTF-8 have their place in it, as Python has them in names of files."""
    if not isinstance(text, str) or len(text) > 10_000:
        raise ValueError(f"expected text, got {type(text).__name__}")
    os.fsencode(text)  # UnicodeEncodeError is a ValueError
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"it holds control characters: {shown(text)[:60]}")
    return text


Line = Annotated[str, Field(strict=True, max_length=1000), AfterValidator(_printable)]
PathText = Annotated[Any, BeforeValidator(_path)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
AtLeastOne = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Percent = Annotated[float, Field(strict=True, ge=0, le=100)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=1e12)]


@dataclass(frozen=True)
class Figures:
    """What a network costs and, where there is validation data, how good it is (top-1 and top-5 in percent)."""

    macs: Count
    params: Count
    top1: Percent | None = None
    top5: Percent | None = None
    loss: Number | None = None


class _Open(BaseModel):
    """With fields that we do not know, too."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Cut(_Open):
    """A cut that a network has been through before, `after` so many widenings."""

    after: Count
    plan: PlanRecord


class Source(_Open):
    """How to build the network that was pruned: a spec, widenings and cuts. Other fields are options of its constructor.
    Without a spec it begins with a network of the user's own."""

    spec: Line | None
    num_classes: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None
    widen: Annotated[list[Widening], Field(max_length=MOST)] = []
    plans: Annotated[list[Cut], Field(max_length=MOST)] = []

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def record(self) -> dict[str, Any]:
        """The same as JSON has it: what `Result.source` is."""
        return self.model_dump(mode="json", exclude_unset=True)


class MethodRecord(_Open):
    """Which method, and its settings."""

    name: Line


class DataRecord(_Open):
    """The data that the figures were measured on."""

    data: PathText | None = None
    normalize: Line | None = None
    batch_size: AtLeastOne | None = None
    image_size: AtLeastOne | None = None
    skip_unreadable: Annotated[bool, Field(strict=True)] | None = None
    skipped: dict[str, Count] = {}  # files that could not be read, by split


class Earlier(_Open):
    """A cut that the network has been through before: which method, and the network that it began with."""

    method: Line
    before: Figures


class Digests(BaseModel):
    """SHA-256 of the other files: against damage, not against forgery."""

    plan: Annotated[str, Field(alias="plan.json")]
    model: Annotated[str, Field(alias="model.safetensors")]


class StripesRecord(_Open):
    """What a layer keeps of its stripes: see `surgery.stripes.summary`."""

    layer: Line
    kernel: Annotated[list[Count], Field(min_length=2, max_length=2)]
    filters: Count
    of_filters: Count
    stripes: Count
    of_stripes: Count
    shares: list[list[Number]]
    index: Count


class Card(_Open):
    """All that is known of an artifact but its plan and weights."""

    format: str
    version: int
    files: Digests
    source: Source | None  # None for a network that did not come from `build`
    method: MethodRecord
    before: Figures
    cut: Figures
    after: Figures
    error: Number | None  # relative, of the sliced to the masked network; None where there is none
    stripes: list[StripesRecord] = []
    history: list[dict[str, Any]] = []
    versions: dict[str, Line] = {}
    kernels: dict[str, dict[str, str]] = {}  # stripe convolution → size of its input → kernel; see `stripes.choose`
    data: DataRecord | None = None
    budget: dict[str, Any] | None = None
    recover: Any = None
    seed: Count | None = None
    earlier: list[Earlier] = []
    seconds: Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, body: Any) -> Any:
        check_format(body, "secateurs", VERSION, "the card of a Secateurs artifact")
        return body

    def networks(self) -> list[tuple[str, Figures]]:
        """What each network on the way to this artifact is called, and its figures: the original first, the last cut,
        and what recovery made of it where that is another."""
        names = ["before", *(f"after {cut.method}" for cut in self.earlier), "after the cut"]
        found = list(zip(names, [*(cut.before for cut in self.earlier), self.before, self.cut], strict=True))
        return found if self.after == self.cut else [*found, ("after recovery", self.after)]
