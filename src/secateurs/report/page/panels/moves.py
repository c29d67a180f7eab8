"""The widths over time, move by move, for a method that prunes step by step, such as AOFP.

Its history has an event `search` (groups, sizes, macs, params), an event `move` or `forced` for each cut (step, widths, macs,
params; also group, count and damage if it concerns one group), and an event `end` (step, widths, macs, params, reason).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from secateurs.artifact.fields import Count, Line, Number, Open
from secateurs.report.figures import count, share, short
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run
from secateurs.report.page.svg import Axis, Curve, chart, legend


class Search(Open):
    groups: list[Line] = Field(min_length=1)
    sizes: list[Count] = Field(min_length=1)
    macs: int = Field(gt=0)
    params: int = Field(gt=0)


class Move(Open):
    event: Line
    step: Count
    widths: list[Count]
    macs: Count
    params: Count
    group: Line | None = None
    count: Count | None = None
    damage: Number | None = None
    theta: Number | None = None
    reason: Line | None = None


def panel(run: Run) -> Panel | None:
    history = run.history
    begins = [i for i, entry in enumerate(history) if entry.get("event") == "search"]
    if not begins:
        return None
    found = run.readable([history[begins[-1]]], Search, "'search'")
    later = [e for e in history[begins[-1] :] if e.get("event") in ("move", "forced", "end")]
    moves = run.readable(later, Move, "'move'")
    if not found or not moves:
        return None
    search = found[0]
    size = len(search.groups)
    if len(search.sizes) != size or any(len(move.widths) != size for move in moves):
        run.tell("The moves are not shown: they are not of the groups that the search began with.")
        return None
    return Panel("moves", "Moves over time", _data(search, moves), _lead(moves))


def _lead(moves: list[Move]) -> str:
    cuts = sum(move.event != "end" for move in moves)
    end = moves[-1]
    why = f" It ended after step {end.step:,}: {end.reason}." if end.event == "end" and end.reason else ""
    return f"The search cut the network in {count(cuts, 'move')}.{why}"


def _data(search: Search, moves: list[Move]) -> dict[str, Any]:
    curves = [
        Curve(name, [(0.0, 1.0), *((float(m.step), getattr(m, key) / whole) for m in moves)], color, stairs=True)
        for color, (name, key, whole) in enumerate(
            (("MACs", "macs", search.macs), ("parameters", "params", search.params))
        )
    ]
    most = max(*search.sizes, 1)
    last, steps, script = list(search.sizes), [], []
    for move in moves:
        changed = [[i, w] for i, (w, v) in enumerate(zip(move.widths, last, strict=True)) if w != v]
        last = list(move.widths)
        script.append(changed)
        steps.append([move.step, _told(move), f"{share(move.macs, search.macs)} of the MACs"])
    rows = [
        {"name": name, "before": size, "after": width, "outline": 100 * size / most, "filled": 100 * width / most}
        for name, size, width in zip(search.groups, search.sizes, last, strict=True)
    ]
    return {
        "chart": chart(
            Axis("step", short), Axis("share that is left", lambda v: f"{v:.0%}", (1.0,), True), curves,
            title="The MACs and parameters that are left at each step", cursor=True,
        ),
        "legend": legend(curves),
        "rows": rows,
        "last": len(moves),
        "now": steps[-1],
        "script": {"sizes": search.sizes, "most": most, "changes": script, "steps": steps},
    }  # fmt: skip


def _told(move: Move) -> str:
    if move.event == "end":
        return "the end"
    if move.group is None:
        return f"{count(move.count or 0, 'channel')} cut to keep to the schedule"
    damage = "" if move.damage is None else f", damage {move.damage:.3g}"
    return f"{move.group} loses {count(move.count or 0, 'channel')}{damage}"
