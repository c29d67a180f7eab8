"""The record of a comparison of criteria: curves.json and its picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from secateurs.changes import differences
from secateurs.errors import ConfigError, Message
from secateurs.files import check_writable, dump_json, read_json, staged
from secateurs.report import heading
from secateurs.report.curves import can_plot, plot
from secateurs.runs.folder import FOLDER, OVERWRITE, RESUME, unwritten, write

Series = Annotated[tuple[float, ...], Field(min_length=1)]


class Curve(BaseModel):
    """The result of one criterion on one layer.

    order: channels in the order of removal; the last remaining one is not included.
    top1, loss, metrics: on validation data, with 0, 1, … len(order) channels removed; top1 in percent. None if it was not
        measured.
    examples: how many were evaluated to find the order, counted for each ablation. seconds: the time to find the order.
    figure: the figure that criteria are compared by: top1, loss, or a name in `metrics`.
    """

    model_config = ConfigDict(frozen=True)

    criterion: str
    order: tuple[int, ...]
    top1: Series | None
    loss: Series | None = None
    examples: int
    seconds: float
    metrics: dict[str, Series] = {}
    figure: str = "top1"

    @model_validator(mode="after")
    def _measured(self) -> Curve:
        if not self.values:
            raise ValueError(f"there are no values of its figure, {self.figure!r}")
        return self

    @property
    def values(self) -> Series:
        """The values of `figure` with 0, 1, … channels removed."""
        return {"top1": self.top1, "loss": self.loss, **self.metrics}.get(self.figure) or ()

    @property
    def area(self) -> float:
        """The mean of `figure` over all widths: for `top1`, the area under it as a fraction of the area under 100%, in
        percent."""
        return float(np.mean(self.values))

    def asdict(self) -> dict[str, Any]:
        return {**self.model_dump(), "area": self.area}


class Curves(BaseModel):
    """`curves.json`."""

    settings: dict[str, Any]
    curves: dict[str, Curve]


@dataclass(frozen=True)
class Record:
    """curves.json and its picture in the folder."""

    folder: Path
    settings: Mapping[str, Any]
    model: str
    layer: str
    log: Callable[[str], None]

    @property
    def file(self) -> Path:
        return self.folder / "curves.json"

    @property
    def picture(self) -> Path:
        return self.folder / "curves.png"

    def open(self, resume: bool, overwrite: bool) -> dict[str, Curve]:
        """Return the existing curves, if any. Raises ConfigError if they belong to another comparison."""
        if resume and overwrite:
            raise ConfigError(
                RESUME, " and ", OVERWRITE, " are mutually exclusive: one continues a comparison, the other starts over."
            )  # fmt: skip
        then, found = self._read()
        if then is not None and not overwrite:  # the picture is drawn with the next curve
            for file in (self.file, self.picture):
                staged(file).unlink(missing_ok=True)
        if then is None and (name := next((n for n in (self.file, self.picture) if os.path.lexists(n)), None)):
            raise ConfigError(
                f"{name} already exists and was not written by this command, which would replace it: move it, or give another ",
                FOLDER, ".",
            )  # fmt: skip
        if overwrite:
            found = {}
        elif then is not None:
            if not resume:
                raise ConfigError(
                    f"{self.file} already exists: ", RESUME, " adds to it, ", OVERWRITE, " replaces it."
                )  # fmt: skip
            now = json.loads(json.dumps(self.settings))
            if changed := list(differences(then, now)):
                raise ConfigError(
                    f"{self.file} belongs to another comparison: it differs in {', '.join(changed)}. To resume it, use the "
                    "same settings as before. Otherwise, choose another ", FOLDER, ", or replace it with ", OVERWRITE, ".",
                )  # fmt: skip
        check_writable(self.folder)
        if not can_plot():
            self.log("no picture will be drawn: that needs matplotlib, pip install 'secateurs[report]'")
        return found

    def _read(self) -> tuple[dict[str, Any] | None, dict[str, Curve]]:
        """The settings and curves that exist; None and no curves if there are none."""
        if not os.path.lexists(self.file):
            return None, {}
        advice = Message("If it is this command's, it is damaged: move it, or give another ", FOLDER, ".")
        state = read_json(self.file, Curves, 1 << 26, advice)
        return state.settings, dict(state.curves)

    def write(self, curves: Mapping[str, Curve]) -> None:
        found = {name: curve.asdict() for name, curve in curves.items()}
        write(self.file, dump_json({"settings": self.settings, "curves": found}, indent=1))
        if not can_plot():
            self.picture.unlink(missing_ok=True)  # it would show earlier curves
            return
        try:
            figure = heading(next(iter(curves.values())).figure)
            plot(
                self.picture,
                {name: (range(len(curve.values)), curve.values) for name, curve in curves.items()},
                title=f"{self.model}, {self.layer}, without fine-tuning",
                x="channels masked",
                y=f"{figure} on validation data" + (", %" if figure == "top-1" else ""),
            )
        except OSError as error:
            raise unwritten(self.picture, error) from error
