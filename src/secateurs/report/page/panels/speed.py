"""The measured times: of the original and the pruned network, in each runtime."""

from __future__ import annotations

from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run


def panel(run: Run) -> Panel | None:
    if run.timings is None or not run.timings.rows:
        return None
    rows = [
        {
            "target": str(row.target), "batch": "-" if row.batch is None else f"{row.batch:,}",
            "times": [milliseconds(t.median) for t in (row.original, row.pruned)],
            "speedup": f"{row.ratio.median:.2f}×", "quartiles": f"{row.ratio.low:.2f} – {row.ratio.high:.2f}",
            "machine": row.machine + ("" if row.threads is None else f", {row.threads} thread{'s' * (row.threads != 1)}"),
        }
        for row in run.timings.rows
    ]  # fmt: skip
    networks = run.networks
    first, last = networks[0][1].macs, networks[-1][1].macs
    ideal = f" MACs alone would give {first / last:.2f}×." if last else ""
    lead = (
        f"Both networks were run in turn; a speed-up is the median of the ratios of their times, with quartiles.{ideal}"
    )
    return Panel("speed", "Speed", {"rows": rows, "skipped": run.timings.skipped}, lead)


def milliseconds(seconds: float) -> str:
    """'0.51 ms', '24.1 ms', '1,203 ms'."""
    ms = 1000 * seconds
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"
