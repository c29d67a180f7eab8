"""The tables of `coverage.py`, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

Record = dict[str, Any]
START = "## What has run"
MOST_FORWARDS = 40
WORDS = {
    "OUTPUT": "outputs", "CONSTANT": "meet the input or a constant", "NO_RULE": "op without a rule", "RULE": "rule",
    "CODE": "code", "UNREAD": "not read", "SINGLE": "single", "INEXACT": "normalized over channels",
}  # fmt: skip


def read(folder: Path) -> dict[str, list[Record]]:
    """The rows by family, smallest network first."""
    found: dict[str, list[Record]] = {}
    for path in sorted(folder.glob("*/*.json")):
        if path.parent.name != "peers":
            record = json.loads(path.read_text())
            if "wall" in record:  # finished
                found.setdefault(record["family"], []).append(record)
    return {f: sorted(rows, key=lambda r: (r.get("params", 0), r["name"])) for f, rows in found.items()}


def markdown(folder: Path) -> str:
    rows = read(folder)
    peers = {(r["family"], r["name"]): r for r in chain(*read(folder / "peers").values())}
    parts = [
        START,
        what_ran(folder, rows, peers),
        summary(rows, peers),
        *failures(rows),
        *slow(rows),
        *below_half(rows),
        *(f"## {family}\n\n{table(found, peers)}" for family, found in rows.items()),
    ]
    return "\n\n".join(parts)


def write_page(page: Path, folder: Path) -> None:
    """Replace what a page has from its line `START` on."""
    head, found, _ = page.read_text().partition(f"{START}\n")
    if not found:
        raise SystemExit(f"{page} has no line {START!r}, after which the tables would be written.")
    page.write_text(f"{head}{markdown(folder)}\n")


def what_ran(folder: Path, rows: dict[str, list[Record]], peers: dict[tuple[str, str], Record]) -> str:
    """How many of the listed networks have a row, when and where they ran, and with what."""
    names = folder / "listed.json"
    listed: dict[str, list[str]] = json.loads(names.read_text()) if names.exists() else {}
    every = list(chain(*rows.values()))
    counts, missing = [], []
    for family in {**listed, **rows}:
        ran = {r["name"] for r in rows.get(family, [])}
        due = dict.fromkeys([*listed.get(family, []), *sorted(ran)])
        counts.append(f"{family} {len(ran)} of {len(due)}")
        missing += [f"{name} ({family})" for name in due if name not in ran]
    apart = [f"{r['name']} ({r['family']}): {r['status']}" for r in every if not built([r])]
    machines = [r["machine"] for r in every]

    def distinct(key: str) -> str:
        return ", ".join(sorted({m[key] for m in machines if m.get(key)}))

    versions = folder / "versions.json"
    packages = json.loads(versions.read_text()) if versions.exists() else {}
    software = ", ".join([f"Python {distinct('python')}", *(f"{name} {version}" for name, version in packages.items())])
    lines = [
        f"{distinct('date')}: {len(every)} of {len(every) + len(missing)} networks ({', '.join(counts)}), and torch-pruning on "
        f"{len(peers)} of them.",
        f"Secateurs {distinct('secateurs')}, revision {distinct('revision') or 'unknown'}; "
        f"{software}; {distinct('processor')}, one thread.",
    ]
    if missing:
        lines.append(f"Not run: {', '.join(missing)}.")
    if apart:
        lines.append(f"Not in the tables, because the network itself could not be built or run: {', '.join(apart)}.")
    return "\n\n".join(lines)


def failures(rows: dict[str, list[Record]]) -> list[str]:
    """What went wrong, with its message."""
    lines = []
    for r in built(chain(*rows.values())):
        if r["status"] != "ok":
            message = " ".join(r.get("error", "").split())[:400]
            lines.append(f"- **{r['name']}** ({r['family']}): {r['status']} in step `{r.get('step')}`: {message}")
    return ["## What went wrong", "\n".join(lines)] if lines else []


def slow(rows: dict[str, list[Record]]) -> list[str]:
    """The networks whose trace takes longer than it should."""
    found = [r for r in chain(*rows.values()) if "reachable" in r and r["trace_ms"] > MOST_FORWARDS * r["forward_ms"]]
    lines = [
        f"- **{r['name']}** ({r['family']}): {r['trace_ms']:.0f} ms, {r['trace_ms'] / r['forward_ms']:.0f} forwards of "
        f"{r['forward_ms']:.1f} ms"
        for r in sorted(found, key=lambda r: r["forward_ms"] / r["trace_ms"])
    ]
    return [f"## Traces of more than {MOST_FORWARDS} forwards", "\n".join(lines)] if lines else []


def built(rows: Iterable[Record]) -> list[Record]:
    return [r for r in rows if r["status"] not in ("not built", "does not run")]


def summary(rows: dict[str, list[Record]], peers: dict[tuple[str, str], Record]) -> str:
    lines = [
        "| family | networks | agree | mismatch | crash | hang | refused | groups prunable | MACs reachable "
        "| trace ÷ forward: median | largest | torch-pruning runs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for family, found in {**rows, "all": list(chain(*rows.values()))}.items():
        here = built(found)
        counted = [sum(r["status"] in kinds for r in here) for kinds in (
            ("ok",), ("mismatch", "cost differs", "ambiguous"), ("crash", "memory"), ("hang",), ("refused",),
        )]  # fmt: skip
        traced = [r for r in here if "reachable" in r]
        ratios = [r["trace_ms"] / r["forward_ms"] for r in traced] or [float("nan")]
        shares = [r["prunable"] / max(r["groups"] - r["outputs"], 1) for r in traced] or [float("nan")]
        reach = [r["reachable"] for r in traced] or [float("nan")]
        others = [p for p in (peers.get((r["family"], r["name"])) for r in here) if p and p["status"] != "not built"]
        beside = f"{sum(p['status'] == 'ok' for p in others)} of {len(others)}" if others else ""
        lines.append(
            f"| {family} | {len(here)} | {' | '.join(map(str, counted))} | {statistics.median(shares):.0%} | "
            f"{statistics.median(reach):.0%} | {statistics.median(ratios):.1f} | {max(ratios):.1f} | {beside} |"
        )
    return "\n".join(lines)


def table(rows: list[Record], peers: dict[tuple[str, str], Record]) -> str:
    lines = [
        "| network | parameters | prunable groups | MACs reachable | difference | trace ÷ forward | 40% cut: MACs left "
        "| torch-pruning: MACs left | not prunable, but for outputs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in built(rows):
        peer = peers.get((r["family"], r["name"]))
        beside = "" if peer is None else f"{peer['left']:.0%}" if peer["status"] == "ok" else "fails"
        cells = [r["name"], f"{r.get('params', 0) / 1e6:.1f}M"]
        if "reachable" in r:
            cells += [
                f"{r['prunable']} of {r['groups']}", f"{r['reachable']:.0%}",
                f"{r['difference']:.0e}" if "difference" in r else r["status"], f"{r['trace_ms'] / r['forward_ms']:.1f}",
                f"{r['left']:.0%}" if "left" in r else "",
            ]  # fmt: skip
        else:
            cells += ["", "", r["status"], "", ""]
        lines.append("| " + " | ".join([*cells, beside, reasons(r)]) + " |")
    return "\n".join(lines)


def below_half(rows: dict[str, list[Record]]) -> list[str]:
    """For each network of which less than half of the MACs can be reached, its most frequent reasons."""
    lines = []
    for r in chain(*rows.values()):
        if r.get("reachable", 1) < 0.5:
            kinds = [kind for kind in r["reasons"] if kind != "OUTPUT"] or list(r["reasons"])
            found = [(n, text) for kind in kinds for text, n in r["reasons"][kind].items()]
            why = "; ".join(f"{n} × {text}" for n, text in sorted(found, key=lambda x: -x[0])[:3])
            inexact = (
                f" ({r['reachable_inexact']:.0%} with `allow_inexact`)"
                if r["reachable_inexact"] > r["reachable"] + 0.01
                else ""
            )
            lines.append(f"- **{r['name']}** ({r['family']}), {r['reachable']:.0%}{inexact}: {why}")
    return ["## Below half of the MACs", "\n".join(lines)] if lines else []


def reasons(record: Record) -> str:
    found = {k: sum(v.values()) for k, v in record.get("reasons", {}).items() if k != "OUTPUT"}
    return ", ".join(f"{WORDS.get(k, k.lower())} {n}" for k, n in sorted(found.items(), key=lambda x: -x[1]))
