"""The measured times of the original and the pruned network in each runtime, and what a latency budget allowed."""

from __future__ import annotations

from secateurs.artifact import Latency
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run


def panel(run: Run) -> Panel | None:
    timings, limit = run.timings, run.card.latency
    if limit is None and (timings is None or not timings.rows):
        return None
    rows = [
        {
            "target": str(row.target), "batch": "-" if row.batch is None else f"{row.batch:,}",
            "times": [milliseconds(t.median) for t in (row.original, row.pruned)],
            "speedup": f"{row.ratio.median:.2f}×", "quartiles": f"{row.ratio.low:.2f} – {row.ratio.high:.2f}",
            "machine": row.machine + ("" if row.threads is None else f", {row.threads} thread{'s' * (row.threads != 1)}"),
        }
        for row in (timings.rows if timings else [])
    ]  # fmt: skip
    first, last = (run.networks[at][1].macs for at in (0, -1))
    if timings is not None and timings.original is not None and timings.pruned is not None:
        # Of what was measured: inputs may have another size, and the original of a widened network is narrower.
        first, last = timings.original.macs, timings.pruned.macs
    told = []
    if limit is not None:
        times = f"{milliseconds(limit.before)} → {milliseconds(limit.after)}"
        told.append(
            f"The budget allowed {limit.goal:.1%} of the original's time on {runtime(limit)}; {limit.ratio:.1%} was measured "
            f"({times})."
        )
    if rows:
        told.append(
            "Both networks ran in turn; a speed-up is the median of the ratios of their times, with its quartiles."
        )
        sizes = dict.fromkeys(
            "×".join(map(str, shape)) for row in (timings.rows if timings else []) for shape in row.inputs
        )
        told += [f"The inputs were {' and '.join(sizes)}."] * bool(sizes)
        told += [f"MACs alone would give {first / last:.2f}×."] * bool(last)
    return Panel("speed", "Speed", {"rows": rows, "skipped": timings.skipped if timings else []}, " ".join(told))


def runtime(limit: Latency) -> str:
    """Return the runtime in which the budget's time was measured."""
    return str(limit.target.get("runtime", "its target"))


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds: '0.51 ms', '24.1 ms', '1,203 ms'."""
    ms = 1000 * seconds
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"
