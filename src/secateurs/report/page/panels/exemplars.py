"""The filters that each exemplar represents, for a method that chooses exemplars, such as EPruner.

Its history has an event `exemplars` with `groups`: for each group, the index of the exemplar that represents each channel.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from pydantic import Field

from secateurs.artifact.fields import Count, Line, Number, Open
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run

LISTED = 12  # members of a cluster that are named


class Exemplars(Open):
    groups: dict[Line, Annotated[list[Count], Field(min_length=1)]] = {}
    beta: Number | None = None


def panel(run: Run) -> Panel | None:
    found = [event for event in run.events("exemplars", Exemplars) if event.groups]
    if not found:
        return None
    rows = []
    for name, by in found[-1].groups.items():
        if max(by) >= len(by):
            run.tell(f"The exemplars of {name} are not shown: they are not channels of the group.")
            continue
        sizes = Counter(by)
        told = f"largest cluster {max(sizes.values())}, {sum(n == 1 for n in sizes.values())} on their own"
        rows.append({"name": name, "of": len(by), "kept": len(sizes), "clusters": _clusters(by), "told": told})
    lead = "Solid cells are exemplars, which stay. The faint cells after each are the filters that it represents."
    return Panel("exemplars", "Exemplars", {"rows": rows}, lead) if rows else None


def _clusters(by: list[int]) -> list[dict[str, Any]]:
    """Return the exemplars, largest cluster first, and how many filters each of them represents besides itself."""
    members: dict[int, list[int]] = {k: [] for k in sorted(set(by))}
    for i, k in enumerate(by):
        if i != k:
            members[k].append(i)
    order = sorted(members.items(), key=lambda item: -len(item[1]))
    return [{"title": _title(k, others), "others": len(others)} for k, others in order]


def _title(exemplar: int, others: list[int]) -> str:
    if not others:
        return f"filter {exemplar} represents itself only"
    more = len(others) - LISTED
    return f"filter {exemplar} represents {', '.join(map(str, others[:LISTED]))}" + (
        f" and {more} more" if more > 0 else ""
    )
