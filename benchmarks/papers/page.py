"""docs/papers.md, from figures.yaml and results/: `python benchmarks/papers/run.py --page`."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from row import HERE, IMAGES, RESULTS, Row, rows

PAGE = HERE.parents[1] / "docs" / "papers.md"
HEAD = """# The papers' tables

The headline rows of the five papers, as files for `secateurs prune --config` in `benchmarks/papers/rows`, with the papers'
results and ours. Rows that were not run are blank. Anyone who has the images can run them:

```
python benchmarks/papers/run.py --list
python benchmarks/papers/run.py --row epruner-resnet56 --data folder:data/cifar10 --weights resnet56.safetensors --minutes 9
```

A row is a run like any other: with `--minutes` it stops in time, and the same command continues it. Accuracies are in percent,
top-1 unless marked top-5; MACs are the share of the original's that is left. *Compute* is what the paper reports spending after
training the original, and what our run took. The settings of a row, and what its paper leaves open, are in its file.

This page is generated from the results by `benchmarks/papers/run.py --page`.
"""
REDUCED = f"""## Reduced

`--profile reduced` runs any row on CIFAR-10 and two CPU cores: {IMAGES["train"]:,} training images, {IMAGES["test"]:,} for
validation, CIFAR's VGG-16 and GoogLeNet, ResNet-20 in place of all ResNets, an epoch or two of the method, one epoch of
each recovery phase, and default settings otherwise. It shows only that a row runs from end to end: its accuracies are not
comparable to the papers'.
"""


def write() -> None:
    PAGE.write_text(text(results()))


def results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def text(found: Sequence[Mapping[str, Any]]) -> str:
    by: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for one in found:
        by[one["profile"], one["row"]].append(one)
    known = rows()
    parts = [HEAD]
    for data in dict.fromkeys(row.figures["data"] for row in known.values()):
        parts.append(f"## {data}\n")
        parts.append("\n".join(_table([row for row in known.values() if row.figures["data"] == data], by)) + "\n")
    parts.append(REDUCED)
    parts.append("\n".join(_reduced(known, by)) + "\n")
    return "\n".join(parts)


def _table(some: Sequence[Row], by: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    heads = (
        "row",
        "paper: before → after",
        "MACs left",
        "compute",
        "settings",
        "ours",
        "MACs left",
        "seeds",
        "compute",
    )
    yield f"| {' | '.join(heads)} |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in some:
        f, ours = row.figures, by.get(("paper", row.name), ())
        unit = " top-5" if f["metric"] == "top5" else ""
        label = f", {f['label']}" if "label" in f else ""
        place = f"`{row.name}`, table {f['table']}{label}"
        theirs = f"{f['before']:.2f} → {f['after']:.2f} ({_signed(f['after'] - f['before'])}){unit}"
        cells = (place, theirs, f"{f['macs']:.1f}%", f["compute"], _settings(row), *_ours(ours, f["metric"]))
        yield f"| {' | '.join(cells)} |"


def _reduced(known: Mapping[str, Row], by: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    yield "| row | network | original | after the cut | in the end | MACs left | error | seeds | compute |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in known:
        ours = by.get(("reduced", name), ())
        if ours:
            model = ours[0]["settings"]["model"].rpartition(":")[2]
            firsts = [next(iter(one["figures"].values())) for one in ours]
            cuts = [one["figures"]["after the cut"] for one in ours]
            ends = [list(one["figures"].values())[-1] for one in ours]
            errors = [one["error"] for one in ours]
            error = "not verified" if None in errors else f"{max(errors):.1e}"
            yield (
                f"| `{name}` | {model} | {_mean([f['top1'] for f in firsts])} | {_mean([c['top1'] for c in cuts])} | "
                f"{_mean([one['after']['top1'] for one in ours])} | {100 * ends[0]['macs']:.1f}% | {error} | "
                f"{_seeds(ours)} | {_compute(ours)} |"
            )


def _settings(row: Row) -> str:
    """The main ones of a row's file."""
    config = row.config
    own = ", ".join(f"{name} {value}" for name, value in config.get("set", {}).items())
    recover = "not fine-tuned" if row.phases == ["none"] else " + ".join(row.phases)
    return f"preset {config['preset']}{f' ({own})' * bool(own)}; {recover}; batches of {config['batch_size']}"


def _ours(found: Sequence[Mapping[str, Any]], metric: str) -> tuple[str, str, str, str]:
    if not found:
        return "", "", "", ""
    before = [next(iter(one["figures"].values()))[metric] for one in found]
    after = [one["after"][metric] for one in found]
    change = _signed(statistics.mean(after) - statistics.mean(before))
    macs = statistics.mean(list(one["figures"].values())[-1]["macs"] for one in found)
    return f"{_mean(before)} → {_mean(after)} ({change})", f"{100 * macs:.1f}%", _seeds(found), _compute(found)


def _mean(values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _seeds(found: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(one["seed"]) for one in found)


def _compute(found: Sequence[Mapping[str, Any]]) -> str:
    minutes = statistics.mean(one["minutes"] for one in found)
    time = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    return f"{time}, {found[0]['machine']}"
