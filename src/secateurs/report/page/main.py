"""The main measure of a page: top-1, the first custom metric, or the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateurs.artifact import Figures
from secateurs.report.figures import formatted, number, percent


@dataclass(frozen=True)
class Measure:
    """A measure of a network. of: returns its value. higher: whether a higher value is better."""

    name: str
    of: Callable[[Figures], float | None]
    unit: str = ""
    higher: bool = True

    def text(self, value: float | None) -> str:
        return percent(value) if self.unit == "%" else number(value)

    def whole(self, value: float | None) -> str:
        """Format a single value with its unit."""
        return f"{self.text(value)}{self.unit}" if value is not None else "-"

    def change(self, before: float, after: float) -> str:
        show = percent if self.unit == "%" else formatted([before, after])
        return ("−" if after < before else "+") + show(abs(after - before))

    @property
    def label(self) -> str:
        return f"{self.name}, %" if self.unit else self.name


def main_measure(every: Sequence[Figures]) -> Measure | None:
    """Return the measure to compare these networks by: the first that most of them have."""
    own = dict.fromkeys(name for f in every for name in f.metrics)
    candidates = [
        Measure("Top-1", lambda f: f.top1, "%"),
        *(Measure(name, lambda f, name=name: f.metrics.get(name)) for name in own),  # type: ignore[misc]
        Measure("Loss", lambda f: f.loss, higher=False),
    ]
    known = [sum(m.of(f) is not None for f in every) for m in candidates]
    return candidates[known.index(max(known))] if max(known) else None
