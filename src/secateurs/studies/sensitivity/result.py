"""The result of a sensitivity study: a table, a picture, a file, and ratios for `prune`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator
from rich.table import Table

from secateurs.artifact import Figures
from secateurs.artifact.fields import AtLeastOne, Line
from secateurs.errors import ArtifactError, ConfigError, Message, Setting, nearest
from secateurs.files import StrPath, check_format, dump_json, read_json, shown, write_whole
from secateurs.markup import html_table, join, tag
from secateurs.proposed import Exactly, Study, from_file, largest_cuts
from secateurs.report import as_text, table
from secateurs.report.figures import count, number
from secateurs.report.heatmap import heatmap

FORMAT: Literal["secateurs-sensitivity"] = "secateurs-sensitivity"
VERSION = 1
BYTES = 1 << 26
DROP = 1.0  # points of accuracy that ratios allow by default …
SHARE = 0.01  # … or the share of another metric's value


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cut(_Frozen):
    """One group cut alone. kept: channels that stay. cut: figures right after the cut; calibrated: after calibration, None if
    there was none. Their MACs and parameters are those of the whole network."""

    kept: AtLeastOne
    cut: Figures
    calibrated: Figures | None = None


class Group(_Frozen):
    """The cuts of one group, in the order of the shares."""

    name: Line
    size: AtLeastOne
    cuts: tuple[Cut, ...]


class Sensitivity(_Frozen):
    """The result of `sensitivity`: how a network performs with each of its channel groups cut alone.

    metric: the figure that drops are measured in: top1, top5, loss or a metric's name. higher_is_better: whether more of it is
        better. shares: the fractions of a group's channels that were cut. images: how many each cut was measured on.
        calibrated_on: how many images batch norms were calibrated on, 0 without calibration. base: the whole network on the
        same images; base_calibrated: the same, calibrated like the cut ones; drops after calibration are measured from it.
        method: the criterion that chose the channels, and its settings.

    Pass it to `prune` as `ratios=` to keep in each group what `ratios()` says; or as `max_cut=`, with a budget, to cut no group
    further than that.
    """

    format: Literal["secateurs-sensitivity"] = FORMAT
    version: int = VERSION
    finished: bool = True
    settings: dict[str, Any] = Field(default_factory=dict, repr=False)
    model: Line
    method: dict[str, Any]
    metric: Line
    higher_is_better: bool = True
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    images: AtLeastOne
    calibrated_on: Annotated[int, Field(ge=0)] = 0
    base: Figures
    base_calibrated: Figures | None = None
    groups: tuple[Group, ...]
    seconds: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _ours(cls, body: Any) -> Any:
        check_format(
            {"format": FORMAT, "version": VERSION, **body} if isinstance(body, dict) else body, FORMAT, VERSION, _WHAT
        )
        return body

    @model_validator(mode="after")
    def _whole(self) -> Sensitivity:
        for group in self.groups:
            if len(group.cuts) != len(self.shares):
                raise ValueError(f"{shown(group.name)} has {len(group.cuts)} cuts, expected {len(self.shares)}")
            if any(cut.kept > group.size for cut in group.cuts):
                raise ValueError(f"{shown(group.name)} has {group.size} channels and keeps more")
        return self

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.0%}" for share in self.shares)
        return f"Sensitivity({self.model}: {len(self.groups)} groups cut by {shares}, {self.metric} {self.whole:.4g} whole)"

    def __str__(self) -> str:
        """The table, and below it what it shows."""
        return "\n".join([as_text(self.table()), "", *self.summary()])

    # -- figures ------------------------------------------------------------------------------------------------------

    @property
    def whole(self) -> float:
        """The metric of the whole network, not calibrated."""
        return self.value(self.base)

    @property
    def whole_calibrated(self) -> float:
        """The metric of the whole network, calibrated like the cut ones; not calibrated if they were not."""
        return self.whole if self.base_calibrated is None else self.value(self.base_calibrated)

    def value(self, figures: Figures | None) -> float:
        """The metric among some figures; nan if it is not there or not finite."""
        if figures is None:
            return math.nan
        found = getattr(figures, self.metric) if self.metric in _OURS else figures.metrics.get(self.metric)
        return math.nan if found is None else float(found)

    def drops(self, calibrated: bool | None = None) -> dict[str, tuple[float, ...]]:
        """Return by group how much worse the metric is at each share, in its own units (percentage points for top1 and top5);
        infinite where it cannot be computed. calibrated: as in `ratios`; calibrated cuts are compared with the calibrated whole
        network, so that the effect of calibration alone is not a drop."""
        calibrated = self._calibrated(calibrated)
        whole = self.whole_calibrated if calibrated else self.whole

        def lost(cut: Cut) -> float:
            value = self.value(cut.calibrated if calibrated else cut.cut)
            drop = whole - value if self.higher_is_better else value - whole
            return math.inf if math.isnan(drop) else drop

        return {group.name: tuple(map(lost, group.cuts)) for group in self.groups}

    def ratios(self, drop: float | None = None, *, calibrated: bool | None = None) -> dict[str, float]:
        """Return what to keep of each group so that the network, with this group cut alone, is worse by at most `drop`:
        fractions for `ratios` of `prune`.

        drop: in units of the metric; by default one point of accuracy, or a hundredth of another metric's value. Between two
            measured shares, the drop is interpolated linearly, and a group is never cut by more than the largest measured
            share.
        calibrated: whether to use the figures after calibration; by default, if there are any.

        Several groups cut together lose more than each alone: with a budget, use `max_cut` instead.

        Raises ConfigError for a drop that is negative, or for calibrated figures that were not measured.
        """
        drop = self.usual if drop is None else drop
        if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < math.inf:
            raise ConfigError(Setting("drop", drop), " is not valid: it must be a number of 0 or more.")
        found: dict[str, float] = {}
        study = Study(self.model, self.scope, float(drop))
        for group, drops in zip(self.groups, self.drops(calibrated).values(), strict=True):
            keep = 1 - _tolerated(self._reached(group), drops, float(drop))
            kept = _short(math.ceil(group.size * keep - 1e-9), group.size)
            found[Exactly(group.name, study, kept)] = kept
        # A pattern of a card has the name only: then what is within a module counts after the module.
        return dict(sorted(found.items(), key=lambda item: item[0].count(".")))

    def max_cut(self, drop: float | None = None, *, calibrated: bool | None = None) -> dict[str, float]:
        """Return how far each group may be cut so that the network, with this group cut alone, is worse by at most `drop`:
        fractions for `max_cut` of `prune`, within which its budget decides. The arguments are those of `ratios`."""
        return largest_cuts(self.ratios(drop, calibrated=calibrated))

    @property
    def scope(self) -> str | None:
        """The scope that the study was measured with; None for a file that does not have it."""
        found = self.settings.get("scope")
        return found if found in ("internal", "all") else None

    @property
    def usual(self) -> float:
        """The drop that ratios allow by default."""
        return DROP if self._percent else SHARE * abs(0.0 if math.isnan(self.whole) else self.whole)

    @property
    def _percent(self) -> bool:
        return self.metric in ("top1", "top5")

    def _reached(self, group: Group) -> list[float]:
        """The shares that were really cut, of whole channels."""
        return [1 - cut.kept / group.size for cut in group.cuts]

    def _calibrated(self, asked: bool | None) -> bool:
        if asked and not self.calibrated_on:
            raise ConfigError("Nothing was calibrated in this study: there are only the figures right after each cut.")
        return bool(self.calibrated_on) if asked is None else asked

    # -- for people ---------------------------------------------------------------------------------------------------

    def table(self, drop: float | None = None) -> Table:
        """Return a row for each group: the metric at each share (right after the cut → calibrated, if it was calibrated), and
        what `ratios(drop)` keeps."""
        rows = table("group", "channels", *(f"{share:.0%} cut" for share in self.shares), "keep")
        kept = self.ratios(drop)
        for group in self.groups:
            rows.add_row(
                shown(group.name), f"{group.size:,}", *(self._cell(cut) for cut in group.cuts),
                f"{kept[group.name]:.2f}",
            )  # fmt: skip
        return rows

    def _cell(self, cut: Cut) -> str:
        text = self._text(self.value(cut.cut))
        return f"{text} → {self._text(self.value(cut.calibrated))}" if self.calibrated_on else text

    def _text(self, value: float) -> str:
        if math.isnan(value):
            return "-"
        return f"{value:.2f}" if self._percent else number(value)

    def summary(self, drop: float | None = None) -> list[str]:
        """Return what the table shows, one sentence per line."""
        most = self.usual if drop is None else drop
        arrow = ["→: right after the cut, and calibrated"] * bool(self.calibrated_on)
        on = f"calibrated on {self.calibrated_on:,} images" if self.calibrated_on else "not calibrated"
        return [
            f"{self.model}: {self.label} {self._whole_text()} with all channels, on "
            f"{self.images:,} images; each group cut alone by {shown(str(self.method.get('name')))}, {on}",
            *arrow,
            *self._noise(most),
            f"keep: the fraction of its channels with which a group cut alone loses at most {self._allowed(most)}",
        ]

    def _noise(self, drop: float) -> list[str]:
        """How much chance there is in an accuracy, and whether it hides the drop."""
        part = self.whole / 100
        if not self._percent or not 0 <= part <= 1:
            return []
        error, image = 100 * math.sqrt(part * (1 - part) / self.images), 100 / self.images
        said = f"noise: one standard error of {self.label} is {error:.2f} points, one image is {image:.2f}"
        if drop >= max(error, image):
            return [said]
        figure = (", or take ", Setting("metric", "loss")) * (self.base.loss is not None)
        advice = ("raise ", Setting("images"), " or ", Setting("drop"), *figure, ".")
        return [said, Message(f"warning: a drop of {self._allowed(drop)} is within the noise: ", *advice)]

    def _whole_text(self) -> str:
        found = f"{self._text(self.whole)}{'%' * self._percent}"
        if self.base_calibrated is None:
            return found
        return f"{found} → {self._text(self.whole_calibrated)}{'%' * self._percent}"

    @property
    def label(self) -> str:
        """The display name of the metric."""
        return {"top1": "top-1", "top5": "top-5"}.get(self.metric, shown(self.metric))

    def _allowed(self, drop: float) -> str:
        return f"{drop:g} point{'s' * (drop != 1)}" if self._percent else f"{drop:.3g} of {self.label}"

    def _repr_html_(self) -> str:
        """A table with the colors of the picture, for notebooks."""
        heads = ["group", "channels", *(f"{share:.0%} cut" for share in self.shares), "keep"]
        kept, drops, top = self.ratios(), self.drops(), self._scale()
        rows = [
            (
                shown(group.name), f"{group.size:,}",
                *(tag("span", self._cell(cut), style=f"background:{_shade(drop, top)};padding:.2em .4em")
                  for cut, drop in zip(group.cuts, drops[group.name], strict=True)),
                f"{kept[group.name]:.2f}",
            )
            for group in self.groups
        ]  # fmt: skip
        return html_table(heads, rows) + tag("p", join(tag("div", line) for line in self.summary()))

    def _scale(self) -> float:
        """The drop at the dark end of the colors."""
        every = [d for c in {False, self._calibrated(None)} for ds in self.drops(c).values() for d in ds]
        return max((d for d in every if math.isfinite(d)), default=1.0) or 1.0

    def plot(self, path: StrPath) -> Path:
        """Draw the drops as a heat map, to a file whose suffix sets the format (.png, .svg, .pdf). Raises ConfigError if
        matplotlib is not installed (extra `report`), ArtifactError if the file cannot be written."""
        names = {"right after the cut": False, **({"calibrated": True} if self.calibrated_on else {})}
        panels = {
            name: [[math.nan if math.isinf(d) else d for d in drops] for drops in self.drops(which).values()]
            for name, which in names.items()
        }
        try:
            return heatmap(
                Path(path), panels, [shown(g.name) for g in self.groups], [f"{share:.0%}" for share in self.shares],
                title=self.model, x="cut", scale=f"drop of {self.label}{', points' * self._percent}", most=self._scale(),
            )  # fmt: skip
        except OSError as error:
            raise _unwritten(path, error) from error

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: StrPath) -> Path:
        """Write it as JSON, whole or not at all, and create its folder if needed. Raises ArtifactError if it cannot be
        written."""
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, dump_json(self.model_dump(mode="json"), indent=1) + "\n")
        except OSError as error:
            raise _unwritten(path, error) from error
        return Path(path)

    @classmethod
    def load(cls, path: StrPath) -> Sensitivity:
        """Read what `save` wrote. Raises ArtifactError for a file that is not valid, or a study that is not finished."""
        found = read_json(path, cls, BYTES)
        if not found.finished:
            raise ArtifactError(
                f"{shown(path)} is not finished: it has {count(len(found.groups), 'group')}. Resume the study."
            )
        return found


_OURS = ("top1", "top5", "loss")
_WHAT = "what a sensitivity study wrote"


def _tolerated(shares: Sequence[float], drops: Sequence[float], most: float) -> float:
    """The share at which a drop first exceeds `most`, on the line through the measured points and (0, 0)."""
    low, lost = 0.0, 0.0
    for share, drop in sorted(zip(shares, drops, strict=True)):
        if drop > most:
            reach = 0.0 if math.isinf(drop) else (most - lost) / (drop - lost)
            return low + max(0.0, reach) * (share - low)
        low, lost = share, drop
    return low


def _short(width: int, size: int) -> float:
    """The fraction of so many channels in a few digits, which lead back to the same width."""
    return math.floor(width / size * 1e6 + 1e-6) / 1e6


def _shade(drop: float, top: float) -> str:
    """A color from transparent to dark."""
    part = 1.0 if math.isinf(drop) else min(1.0, max(0.0, drop / top))
    return f"rgba(190, 60, 60, {0.75 * part:.2f})"


def _unwritten(path: StrPath, error: OSError) -> ArtifactError:
    return ArtifactError(f"{shown(path)} could not be written: {error.strerror or error}.")


def primary(asked: str | None, figures: Figures, own: Sequence[str]) -> str:
    """Return the metric that drops are measured in. asked: the user's choice. own: the names of the user's metrics.

    Raises ConfigError for a metric that was not measured, or if nothing was.
    """
    measured = [name for name in _OURS if getattr(figures, name) is not None] + [*figures.metrics]
    if asked is not None:
        if asked in measured:
            return asked
        raise ConfigError(Setting("metric", asked), f" is not measured. {nearest(asked, measured)}")
    for name in own:
        if found := next((m for m in figures.metrics if m == name or m.startswith(f"{name}.")), None):
            return found
    if not measured:
        raise ConfigError("Nothing is measured of this network: pass metrics={name: function}, or a loss.")
    return measured[0]


class _File(RootModel[dict[str, Any]]):
    """Any JSON object."""


def read_max_cut(path: StrPath, drop: float | None = None) -> dict[str, float]:
    """Return how far each group may be cut according to the study in a file, see `Sensitivity.max_cut`. Raises ArtifactError
    for other files."""
    if "format" not in read_json(path, _File, BYTES).root:
        raise ArtifactError(
            f"{shown(path)} is not {_WHAT}. Bounds of your own are given as ",
            Setting("max_cut", {"layer4.*": 0.5}),
            ".",
        )
    return from_file(Sensitivity.load(path).max_cut(drop), shown(path))


def read_ratios(path: StrPath, drop: float | None = None) -> dict[str, float]:
    """Return the ratios in a JSON file: `{pattern: fraction to keep}`, or those of a study, see `Sensitivity.ratios`.

    Raises ArtifactError for a file that is neither, ConfigError for a drop with ratios that are not from a study.
    """
    body = read_json(path, _File, BYTES).root
    if "format" in body:
        return from_file(Sensitivity.load(path).ratios(drop), shown(path))
    if drop is not None:
        raise ConfigError(f"{shown(path)} holds ratios, which no drop changes: give the sensitivity.json of a study.")
    for pattern, keep in body.items():
        if isinstance(keep, bool) or not isinstance(keep, int | float):
            raise ArtifactError(
                f'{shown(path)} is not valid: {shown(pattern)} must have a fraction to keep: write {{"layer4.*": 0.5}}.'
            )
    return {pattern: float(keep) for pattern, keep in body.items()}
