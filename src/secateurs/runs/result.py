"""The results of runs, and their records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, field_validator
from torch import nn

from secateurs import artifact
from secateurs.artifact import Earlier, Figures
from secateurs.artifact.history import records, rounds
from secateurs.methods import Method
from secateurs.result import Result

_SETTINGS = {"task", "functions", "data", "budget", "scope", "recover", "calibrate", "seed", "schedule"}


@dataclass(frozen=True, repr=False)
class RunResult(Result):
    """The result of pruning, and what is on record about the run."""

    earlier: Sequence[Earlier] = ()  # the cuts that the network had been through before
    seconds: float | None = None  # that the run took

    @property
    def networks(self) -> list[tuple[str, Figures]]:
        """What each network on the way is called, and its figures, the original first; see `Card.networks`."""
        return artifact.networks(self.earlier, self.before, rounds(self.history), self.cut, self.calibrated, self.after)

    def card(self) -> dict[str, Any]:
        before = [{"method": cut.method, "before": asdict(cut.before)} for cut in self.earlier]
        return {**super().card(), "earlier": before, "seconds": self.seconds}

    @classmethod
    def read(cls, folder: Path, model: nn.Module, method: Method) -> RunResult:
        """The result of a finished run. model: the pruned network of the folder."""
        plan, card = artifact.read(folder)
        body = card.model_dump(mode="json", include=_SETTINGS, exclude_unset=True)
        return cls(
            model, plan, card.before, card.cut, card.calibrated, card.after,
            float("nan") if card.error is None else card.error, method, records(card.history),
            None if card.source is None else card.source.record(),
            None if card.limits is None else card.limits.model_dump(mode="json", exclude_unset=True),
            tuple(card.warnings), card.signature, body, card.latency, card.earlier, card.seconds,
        )  # fmt: skip


Row = Literal["base", "scaled", "re-design-pruned", "re-design-scratch"]
ROWS: tuple[Row, ...] = get_args(Row)


class Redesign(BaseModel):
    """What a re-design found, which is also `redesign.json`.

    rows: the four networks. widths: by layer, the channels of the base, of the scaled network, of the one found. error:
        relative, of the sliced to the masked network; None if the cut was not verified. seconds: that it took.
    """

    rows: dict[Row, Figures]
    widths: dict[str, tuple[int, int, int]]
    error: float | None
    seconds: float

    @field_validator("rows")
    @classmethod
    def _complete(cls, rows: dict[Row, Figures]) -> dict[Row, Figures]:
        if missing := [name for name in ROWS if name not in rows]:
            raise ValueError(f"{missing[0]} is missing")
        return rows
