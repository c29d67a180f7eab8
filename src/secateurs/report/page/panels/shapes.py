"""The shapes of filters that lost stripes (PFF, figs. 6 and 9): the most frequent, and how often each position is kept."""

from __future__ import annotations

from secateurs.report.figures import share
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run
from secateurs.report.page.svg import cells
from secateurs.report.shapes import frequencies, masks

MOST = 8  # maximum number of shapes shown per layer
LARGEST = 11  # maximum rows or columns of a kernel that is drawn


def panel(run: Run) -> Panel | None:
    if not run.plan.stripes:
        return None
    rows = []
    for layer, mask in masks(run.plan).items():
        filters, height, width = mask.shape
        if max(height, width) > LARGEST:
            run.tell(f"The shapes of {layer} are not shown: its kernel is {height}×{width}.")
            continue
        every = frequencies(mask)
        positions = mask.mean(0)
        rows.append(
            {
                "name": layer, "filters": filters, "kept": share(float(mask.sum()), mask.size), "kinds": len(every),
                "shapes": [
                    {"drawn": cells(shape.tolist()), "share": f"{n / filters:.0%}", "count": n} for shape, n in every[:MOST]
                ],
                "columns": width,
                "positions": [{"alpha": round(float(p), 2), "share": f"{p:.0%}"} for p in positions.ravel()],
            }
        )  # fmt: skip
    lead = (
        "The most frequent shapes of each layer's filters, and the share of the filters that have them. Filled cells are kept "
        "stripes. The grid in front shows how often each position is kept: the stronger the color, the more often."
    )
    return Panel("shapes", "Filter shapes", {"rows": rows}, lead) if rows else None
