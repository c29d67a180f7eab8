"""The error of each layer before and after it was solved by least squares."""

from __future__ import annotations

from secateurs.artifact.history import Reconstructed
from secateurs.report.figures import count
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run


def panel(run: Run) -> Panel | None:
    found = [event for event in run.events("reconstructed", Reconstructed) if event.layers]
    if not found:
        return None
    event = found[-1]
    most = max((max(s.before or 0.0, s.after or 0.0) for s in event.layers), default=0.0) or 1.0
    rows = [
        {
            "name": solved.weight.removesuffix(".weight"),
            "before": solved.before, "after": solved.after,
            "outline": 100 * (solved.before or 0.0) / most, "filled": 100 * (solved.after or 0.0) / most,
        }
        for solved in event.layers
    ]  # fmt: skip
    images = "" if event.images is None else f" on {count(event.images, 'image')}"
    lead = f"The relative error of each layer's output{images}, before and after the layer was solved by least squares."
    return Panel("reconstruction", "Reconstruction", {"rows": rows}, lead)
