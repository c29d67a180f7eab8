"""The widths of the layers before and after."""

from __future__ import annotations

from secateurs.report.figures import share
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run

FOLDED = 60  # with more layers than this, they are collapsed


def panel(run: Run) -> Panel | None:
    widths = run.widths
    if not widths:
        return None
    most = max(before for before, _ in widths.values())
    rows = [
        {
            "name": name,
            "before": before,
            "after": after,
            "share": share(after, before),
            "whole": after == before,
            "outline": 100 * before / most,
            "filled": 100 * after / most,
        }
        for name, (before, after) in widths.items()
    ]
    cut = sum(not row["whole"] for row in rows)
    lead = f"Output channels of each layer. {cut} of {len(rows)} layers are narrower than before."
    if not run.card.widths:
        lead = "Output channels of the layers that were cut. This artifact's card does not list the others."
    return Panel("widths", "Widths", {"rows": rows, "folded": len(rows) > FOLDED}, lead)
