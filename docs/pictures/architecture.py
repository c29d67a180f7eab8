"""Draws architecture.svg: the layers of the package, from the import contract in pyproject.toml.

`python docs/pictures/architecture.py` after the contract has changed.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHAT = {
    "cli": "parses and renders, a file for each command",
    "testing": "the conformance suite",
    "tasks": "classification, segmentation, detection: data, networks, metrics",
    "adapters": "functions of a batch",
    "integrations": "Lightning, transformers, Ultralytics",
    "api": "the Python interface",
    "models": "build, load",
    "runs": "preflight, stages, folder, resume",
    "cutting": "one cut, or several rounds",
    "result": "what prune returns",
    "studies": "comparisons, sensitivity, oracle curves",
    "placement": "devices of a run",
    "timing": "latency budgets",
    "speed": "is a cut slower?",
    "calls": "the call of an artifact",
    "methods": "which channels stay: criteria, and a folder for each paper",
    "recovery": "fine-tune, distill, mimic",
    "budget": "what may remain",
    "latency": "how long a network takes at any widths",
    "deploy": "bench, export, fold",
    "training": "the engine, checkpoints",
    "report": "tables, plots, the page",
    "artifact": "plan, weights, card",
    "zoo": "networks by spec",
    "data": "data by spec",
    "widening": "wider networks",
    "surgery": "slice, verify",
    "masking": "masks, gates",
    "plans": "what stays of each parameter",
    "stripes": "the stripe convolution and its kernels",
    "graph": "labels, rules, the tracer, channel groups, cost",
    "files": "safe reading and writing",
    "devices": "which device",
    "importing": "code by name",
    "errors": "what users see",
    "keywords": "wrong arguments",
    "foreign": "names of other libraries",
    "proposed": "a study's limits",
    "version": "of this package",
    "caching": "values computed once",
    "changes": "settings then and now",
}
# One color for each part of the way from a model to a saved result.
COLORS = {
    "#e8eef7": ("cli", "testing", "tasks", "adapters", "integrations", "studies", "api", "models", "runs"),
    "#f7efe0": ("cutting", "result", "placement", "timing", "speed", "calls", "methods", "budget", "latency"),
    "#e9f4e6": ("recovery", "training"),
    "#f3ecf6": ("report", "artifact", "zoo", "data"),
    "#fbe9e7": ("widening", "surgery", "masking", "plans", "stripes", "graph"),
}
WIDTH, HEIGHT, GAP, LEFT, TOP = 860, 46, 12, 24, 24


def layers(pyproject: str) -> list[list[str]]:
    """The rows of the contract from top to bottom, without the package's name."""
    block = pyproject.split("\nlayers = [\n")[1].split("\n]")[0]
    rows = [line.strip().strip('",').split(" | ") for line in block.splitlines()]
    return [[name.removeprefix("secateurs.") for name in row] for row in rows]


def color(name: str) -> str:
    return next((fill for fill, names in COLORS.items() if name in names), "#f0f0f0")


def draw(rows: list[list[str]]) -> str:
    height = TOP * 2 + len(rows) * (HEIGHT + GAP) - GAP
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT * 2 + 60} {height}" '
        'font-family="Helvetica, Arial, sans-serif" role="img">',
        "<title>The layers of the package: each imports from those below it, and none from those above</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#666"/></marker></defs>',
    ]
    for i, row in enumerate(rows):
        y = TOP + i * (HEIGHT + GAP)
        width = (WIDTH - GAP * (len(row) - 1)) / len(row)
        for k, name in enumerate(row):
            x, what = LEFT + k * (width + GAP), WHAT.get(name, "")
            out.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{HEIGHT}" rx="6" fill="{color(name)}" stroke="#888"/>'
            )
            middle = x + width / 2
            out.append(
                f'<text x="{middle:.1f}" y="{y + (20 if what else 28)}" text-anchor="middle" font-size="15" '
                f'font-weight="bold" fill="#222">{escape(name)}</text>'
            )
            if what:
                out.append(
                    f'<text x="{middle:.1f}" y="{y + 37}" text-anchor="middle" font-size="12" fill="#444">{escape(what)}</text>'
                )
    x = LEFT + WIDTH + 28
    out.append(
        f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{height - TOP}" stroke="#666" stroke-width="2" marker-end="url(#tip)"/>'
    )
    out.append(
        f'<text x="{x + 16}" y="{height / 2}" font-size="13" fill="#444" text-anchor="middle" '
        f'transform="rotate(90 {x + 16} {height / 2})">imports</text>'
    )
    return "\n".join([*out, "</svg>", ""])


def picture() -> str:
    return draw(layers((ROOT / "pyproject.toml").read_text()))


if __name__ == "__main__":
    (Path(__file__).parent / "architecture.svg").write_text(picture())
