"""The panels of a run's page, one per file. A panel is made from the run. It is None if the run has nothing to show in it.

A method gets a panel through the entries in its history: `moves`, `gates`, `exemplars` and `layers` document which entries
they read, and show those of any method.
"""

from __future__ import annotations

from collections.abc import Callable

from secateurs.report.page.panel import Panel
from secateurs.report.page.panels import (
    curve,
    error,
    exemplars,
    gates,
    layers,
    moves,
    reconstruction,
    record,
    shapes,
    speed,
    stages,
    widths,
)
from secateurs.report.page.panels.stages import cards
from secateurs.report.page.run import Run

PANELS: tuple[Callable[[Run], Panel | None], ...] = (
    stages.panel,
    error.panel,
    speed.panel,
    widths.panel,
    moves.panel,
    gates.panel,
    exemplars.panel,
    shapes.panel,
    layers.panel,
    reconstruction.panel,
    curve.panel,
    record.panel,
)

__all__ = ["PANELS", "cards", "panels"]


def panels(run: Run) -> list[Panel]:
    """Return the panels that this run has something to show in."""
    return [found for panel in PANELS if (found := panel(run)) is not None]
