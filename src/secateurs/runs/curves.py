"""The record of a comparison of criteria: curves.json and its picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from secateurs.errors import ConfigError
from secateurs.files import check_writable, dump_json, read_json, staged
from secateurs.report import heading
from secateurs.report.curves import can_plot, plot
from secateurs.runs.folder import unwritten, write


class Curve(BaseModel):
    model_config = ConfigDict(extra="allow")

    top1: Annotated[list[float], Field(min_length=1)] | None
    loss: list[float] | None = None
    metrics: dict[str, Annotated[list[float], Field(min_length=1)]] = {}
    figure: str = "top1"  # what criteria are compared by
    area: float
    examples: int
    seconds: float

    @model_validator(mode="after")
    def _measured(self) -> Curve:
        if not values(self.model_dump()):
            raise ValueError(f"there are no values of its figure, {self.figure!r}")
        return self


def values(curve: Mapping[str, Any]) -> Sequence[float]:
    """What a curve's figure is with 0, 1, … channels removed."""
    own: Sequence[float] | None = curve["metrics"].get(curve["figure"], curve.get(curve["figure"]))
    return own or ()


class Curves(BaseModel):
    """`curves.json`."""

    settings: dict[str, Any]
    curves: dict[str, Curve]


@dataclass(frozen=True)
class CurveRecord:
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

    def open(self, resume: bool, force: bool) -> dict[str, dict[str, Any]]:
        """The curves that exist, if any; ConfigError if they belong to another comparison."""
        if resume and force:
            raise ConfigError(
                "--resume and --force are mutually exclusive: one continues a comparison, the other starts over."
            )
        then, found = self._read()
        if then is not None and not force:  # the picture is drawn with the next curve
            for file in (self.file, self.picture):
                staged(file).unlink(missing_ok=True)
        if then is None and (name := next((n for n in (self.file, self.picture) if os.path.lexists(n)), None)):
            raise ConfigError(
                f"{name} already exists and was not written by this command, which would replace it: move it, or give another "
                "--out."
            )
        if force:
            found = {}
        elif then is not None:
            if not resume:
                raise ConfigError(f"{self.file} already exists: --resume adds to it, --force replaces it.")
            now = json.loads(json.dumps(self.settings))
            if changed := [k for k in now if then.get(k) != now[k]]:
                raise ConfigError(
                    f"{self.file} belongs to another comparison: it differs in {', '.join(changed)}. To resume it, use the "
                    "same settings as before. Otherwise, choose another --out, or replace it with --force."
                )
        check_writable(self.folder)
        if not can_plot():
            self.log("no picture will be drawn: that needs matplotlib, pip install 'secateurs[report]'")
        return found

    def _read(self) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
        """The settings and curves that exist; None and no curves if there are none."""
        if not os.path.lexists(self.file):
            return None, {}
        advice = "If it is this command's, it is damaged: move it, or give another --out."
        state = read_json(self.file, Curves, 1 << 26, advice)
        return state.settings, {name: curve.model_dump() for name, curve in state.curves.items()}

    def write(self, curves: Mapping[str, Mapping[str, Any]]) -> None:
        write(self.file, dump_json({"settings": self.settings, "curves": curves}, indent=1))
        if not can_plot():
            self.picture.unlink(missing_ok=True)  # it would show earlier curves
            return
        try:
            figure = heading(next(iter(curves.values()))["figure"])
            plot(
                self.picture,
                {name: (range(len(values(c))), values(c)) for name, c in curves.items()},
                title=f"{self.model}, {self.layer}, without fine-tuning",
                x="channels masked",
                y=f"{figure} on validation data" + (", %" if figure == "top-1" else ""),
            )
        except OSError as error:
            raise unwritten(self.picture, error) from error
