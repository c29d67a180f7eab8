"""The scores of layers and the nodes that recovery mimics, for a method that ranks layers, such as one-step pruning.

Its history has an event `crucial` with `scores` (layer → score), `layers` (the crucial layers), `released` (the crucial layers
that had to be cut for the budget) and `nodes` (the modules that recovery mimics).
"""

from __future__ import annotations

from secateurs.artifact.fields import Line, Number, Open
from secateurs.report.figures import count
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run


class Crucial(Open):
    scores: dict[Line, Number | None] = {}
    layers: dict[Line, Number | None] = {}
    released: list[Line] = []
    nodes: list[Line] = []


def panel(run: Run) -> Panel | None:
    found = run.events("crucial", Crucial)
    if not found:
        return None
    event = found[-1]
    scores = {name: value for name, value in (event.scores or event.layers).items() if value is not None}
    if not scores:
        return None
    known = [abs(value) for value in scores.values()]
    most = max(known) or 1.0
    # If the differences are far smaller than the scores, the bars begin near the smallest score.
    start = 0.0 if min(known) < 0.9 * most else min(known) - 0.1 * (most - min(known))
    kept = [name for name in event.layers if name not in event.released]
    rows = [
        {
            "name": name, "score": f"{value:.4g}", "filled": 100 * max(0.0, abs(value) - start) / ((most - start) or 1.0),
            "kept": name in kept, "released": name in event.released,
        }
        for name, value in scores.items()
    ]  # fmt: skip
    lead = (
        f"The mean importance of each layer's channels. {count(len(kept), 'layer')} with the highest scores stay whole."
    )
    if start:
        lead += f" The bars begin at {start:.4g}."
    return Panel("layers", "Layer scores", {"rows": rows, "nodes": event.nodes}, lead)
