"""The card of an artifact: the schema of everything that is read from it.

Unknown fields, for example from later versions, are preserved. Known fields are validated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from secateurs.artifact.fields import AtLeastOne, Count, Figures, Latency, Line, Number, Open, PathText, Seconds
from secateurs.artifact.history import VERSION as HISTORY_VERSION
from secateurs.artifact.history import Entry, Round
from secateurs.artifact.signature import Signature
from secateurs.artifact.state import StateRecord
from secateurs.files import check_format
from secateurs.plans.plan import PlanRecord
from secateurs.widening.grow import Widening

VERSION = 1
MOST = 100  # maximum number of cuts and widenings, each of which copies the network


class Cut(Open):
    """An earlier cut of the network, made `after` this many widenings."""

    after: Count
    plan: PlanRecord


class Source(Open):
    """How to build the network that was pruned: a spec, widenings and cuts. Other fields are options of its constructor.
    Without a spec, it begins with the user's own network."""

    spec: Line | None
    num_classes: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None
    widen: Annotated[list[Widening], Field(max_length=MOST)] = []
    plans: Annotated[list[Cut], Field(max_length=MOST)] = []

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def record(self) -> dict[str, Any]:
        """Return the JSON form: `Result.source`."""
        return self.model_dump(mode="json", exclude_unset=True)


class MethodRecord(Open):
    """The method and its settings."""

    name: Line


class TaskRecord(Open):
    """The network's task and its settings."""

    name: Line


class DataRecord(Open):
    """The data that the metrics were measured on."""

    data: PathText | None = None
    normalize: Line | None = None
    batch_size: AtLeastOne | None = None
    image_size: AtLeastOne | None = None
    channels: AtLeastOne | None = None
    skip_unreadable: Annotated[bool, Field(strict=True)] | None = None
    skipped: dict[str, Count] = {}  # number of files that could not be read, by split


class Earlier(Open):
    """An earlier cut of the network: its method, and the figures of the network before it."""

    method: Line
    before: Figures


class LimitsRecord(Open):
    """Which groups could be cut, and how far; see `secateurs.Limits`. Types and functions have their full names."""

    exclude: list[Line] = []
    only: list[Line] = []
    ratios: dict[Line, Number] = {}
    min_channels: dict[Line, AtLeastOne] = {}
    max_cut: dict[Line, Number] = {}


class Digests(BaseModel):
    """SHA-256 of the other files, to detect damage, not forgery."""

    plan: Annotated[str, Field(alias="plan.json")]
    model: Annotated[str, Field(alias="model.safetensors")]
    readme: Annotated[str | None, Field(alias="README.md")] = None  # as first written; it may be edited


class StripesRecord(Open):
    """The kept stripes of a layer; see `surgery.stripes.summary`."""

    layer: Line
    kernel: Annotated[list[Count], Field(min_length=1, max_length=3)]
    filters: Count
    of_filters: Count
    stripes: Count
    of_stripes: Count
    shares: list[Number] | list[list[Number]] | list[list[list[Number]]]
    index: Count


class Card(Open):
    """The metadata of an artifact: everything except its plan and weights."""

    format: str
    version: int
    files: Digests
    source: Source | None  # None for a network that `build` did not make
    method: MethodRecord
    before: Figures
    cut: Figures
    calibrated: Figures  # the cut's, if nothing was calibrated
    after: Figures
    error: Number | None  # relative error between the sliced and the masked network; None if not verified
    warnings: list[Line] = []  # what users must know before they use the network
    stripes: list[StripesRecord] = []
    widths: dict[
        Line, tuple[Count, Count]
    ] = {}  # layer → output channels before and after the cut; not on earlier cards
    history_version: Annotated[int, Field(strict=True, ge=1, le=HISTORY_VERSION)] = 1
    history: list[Entry] = []
    versions: dict[str, Line] = {}
    kernels: dict[str, dict[str, str]] = {}  # stripe convolution → size of its input → kernel; see `stripes.choose`
    task: TaskRecord | None = None  # None if the user named none
    functions: list[Line] = []  # custom functions in place of the task's: loss, step, forward, metrics
    signature: Signature | None = None  # how the network is called; None on cards of earlier versions
    state: StateRecord | None = None  # the network's state besides its weights
    data: DataRecord | None = None
    budget: dict[str, Any] | None = None
    latency: Latency | None = None  # what was measured, if the budget limits it
    scope: Line | None = None
    limits: LimitsRecord | None = None
    recover: Any = None
    calibrate: Annotated[bool, Field(strict=True)] = True
    seed: Count | None = None
    schedule: Line | None = None  # of the rounds, if there were several; not on earlier cards
    rounds: dict[str, Any] | None = None  # the settings of the whole run, if the network comes from one of its rounds
    earlier: list[Earlier] = []
    seconds: Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, body: Any) -> Any:
        check_format(body, "secateurs", VERSION, "the card of a Secateurs artifact")
        return {**body, "calibrated": body["cut"]} if "cut" in body and "calibrated" not in body else body

    @property
    def comparable(self) -> bool:
        """Whether the loss can be compared with other measurements: it is not a custom loss."""
        return not {"loss", "step"} & set(self.functions)

    def networks(self) -> list[tuple[str, Figures]]:
        """Return the name and figures of each network on the way to this artifact: the original, earlier cuts, the last cut,
        and the calibrated and recovered networks if their figures differ."""
        rounds = [entry for entry in self.history if isinstance(entry, Round)]
        return networks(self.earlier, self.before, rounds, self.cut, self.calibrated, self.after)

    @property
    def changed_before(self) -> str:
        """How the first of `networks` differs from the original, of which the card has no figures: `widened`, `cut` or `cut and
        widened`; empty if it is the original."""
        source = self.source or Source(spec=None)
        steps = list[str]()
        for i in range(len(source.widen) + 1):
            steps += ["cut" for cut in source.plans if cut.after == i]
            steps += ["widened"] * (i < len(source.widen))
        return " and ".join(sorted(set(steps[: len(steps) - len(self.earlier)])))


def networks(
    earlier: Sequence[Earlier], before: Figures, rounds: Sequence[Round], cut: Figures, calibrated: Figures,
    after: Figures,
) -> list[tuple[str, Figures]]:  # fmt: skip
    """Return `Card.networks` for figures that are not on a card yet."""
    names = ["before", *(f"after {one.method}" for one in earlier)]
    found = list(zip(names, [*(one.before for one in earlier), before], strict=True))
    found += [(f"after round {one.round}", one.after) for one in rounds[:-1]]  # the last round's are the whole run's
    found.append(("after the cut", cut))
    for name, last, figures in (("calibrated", cut, calibrated), ("after recovery", calibrated, after)):
        if figures != last:
            found.append((name, figures))
    return found
