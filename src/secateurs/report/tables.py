"""The tables that several commands print."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from rich import box
from rich.console import Console
from rich.table import Table

from secateurs.artifact import Figures, Latency, Signature
from secateurs.markup import Markup, html_table
from secateurs.report.figures import count, error, formatted, heading, percent, share, short

Justify = Literal["left", "right"]


def table(*columns: str, left: int = 1) -> Table:
    """Return an empty table. The first `left` columns are left-aligned, and the others (numbers) right-aligned."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        justify: Justify = "left" if i < left else "right"
        made.add_column(name, justify=justify, no_wrap=i >= left, overflow="fold")
    return made


def as_text(made: Table) -> str:
    """Return a table as lines of text of any width."""
    file = io.StringIO()
    Console(file=file, width=1000, highlight=False, markup=False).print(made, markup=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


class Measured(Protocol):
    """The measurements of a network; see `Figures`."""

    @property
    def top1(self) -> float | None: ...
    @property
    def top5(self) -> float | None: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def metrics(self) -> Mapping[str, float | None]: ...


def outcome(networks: Sequence[tuple[str, Figures]]) -> Table:
    """Return a table of the cost and measurements of each network from the original to the artifact. See `Card.networks`."""
    measured = columns([figures for _, figures in networks])
    made = table("", "MACs", "", "params", "", *measured)
    for name, figures in networks:
        before = networks[0][1]
        made.add_row(
            name,
            *(short(figures.macs), share(figures.macs, before.macs)),
            *(short(figures.params), share(figures.params, before.params)),
            *(measure(figures) for measure in measured.values()),
        )
    return made


def notebook(networks: Sequence[tuple[str, Figures]], method: str, verified: float | None) -> Markup:
    """Return the table of `outcome` as HTML for a notebook."""
    figures, before = [f for _, f in networks], networks[0][1]
    measured = columns(figures) if any(f.loss is not None or f.top1 is not None or f.metrics for f in figures) else {}
    rows = [
        (
            name, short(f.macs), share(f.macs, before.macs), short(f.params), share(f.params, before.params),
            *(measure(f) for measure in measured.values()),
        )
        for name, f in networks
    ]  # fmt: skip
    checked = error(verified)
    told = checked if verified is None or math.isnan(verified) else f"masked ≡ sliced to {checked}"
    return html_table(("", "MACs", "", "params", "", *measured), rows, caption=f"{method} · {told}")


def columns(every: Sequence[Measured]) -> dict[str, Callable[[Measured], str]]:
    """Return a column for each measurement of these networks: its heading, and its formatter. Without any measurements, the
    columns are top-1, top-5 and the loss."""
    own = dict.fromkeys(name for figures in every for name in figures.metrics)
    nothing = not own and all(f.top1 is None and f.loss is None for f in every)
    found: dict[str, Callable[[Measured], str]] = {}
    if nothing or any(f.top1 is not None for f in every):
        found["top-1 %"] = lambda f: percent(f.top1)
    if nothing or any(f.top5 is not None for f in every):
        found["top-5 %"] = lambda f: percent(f.top5)
    for name in own:
        show = formatted([figures.metrics.get(name) for figures in every])
        found[heading(name)] = lambda f, name=name, show=show: show(f.metrics.get(name))  # type: ignore[misc]
    if nothing or any(f.loss is not None for f in every):
        found["loss"] = lambda f: "-" if f.loss is None else f"{f.loss:.3f}"
    return found


def listing(names: Sequence[str], most: int = 2, rest: str = " +{}") -> str:
    """List the first names, and say how many more there are: 'conv1, conv2 +3'."""
    more = len(names) - most
    return ", ".join(names[:most]) + (rest.format(more) if more > 0 else "")


KINDS = {"L": "grayscale"}  # Pillow's image modes


def signature(called: Signature) -> list[str]:
    """Describe a network's inputs, classes and preprocessing, one line each, from an artifact's card."""
    lines = [f"input {' and '.join(map(str, called.inputs))}"] if called.inputs else []
    if called.classes is not None:
        number_of = f"{len(called.classes):,} class{'es' * (len(called.classes) != 1)}"
        lines.append(f"{number_of}: {listing(called.classes, 8, ' and {:,} more')}")
    if (how := called.preprocess) is not None:
        if how.size is None:
            resized = "of any size"
        elif how.resize == "whole":
            resized = f"resized to a shorter side of {min(how.size)}"
        else:
            size = "x".join(map(str, how.size))
            resized = f"resized and cropped to {size}" if how.resize else f"of {size}"
        mean, std = (", ".join(f"{x:.4g}" for x in values) for values in (how.mean, how.std))
        plain = set(how.mean) == {0.0} and set(how.std) == {1.0}
        scaled = "" if plain else f", minus {mean}, divided by {std}"
        lines.append(f"{KINDS.get(how.channels, how.channels)} images {resized}, in [0, 1]{scaled}")
    return lines


def stripes(layers: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the kept stripes of each layer, from an artifact's card."""
    made = table("layer", "kernel", "filters", "stripes", "", "index")
    for layer in layers:
        made.add_row(
            layer["layer"],
            "×".join(map(str, layer["kernel"])),
            f"{layer['filters']:,}",
            f"{layer['stripes']:,}",
            share(layer["stripes"], layer["of_stripes"]),
            f"{layer['index']:,}",
        )
    return made


def stripes_line(layers: Sequence[Mapping[str, Any]]) -> str:
    """Summarize the kept stripes in one line."""
    kept, of, index = (sum(layer[key] for layer in layers) for key in ("stripes", "of_stripes", "index"))
    return (
        f"stripes: {kept:,} of {of:,} kept ({share(kept, of)}) in {count(len(layers), 'layer')}; their positions take "
        f"{index:,} index entries, not counted as parameters"
    )


def timed(found: Latency) -> str:
    """Describe the time of a network that was cut to a latency budget in one line."""
    settings = dict(found.target)
    where = ", ".join([str(settings.pop("runtime", "")), *(f"{name}={value}" for name, value in settings.items())])
    checked = "" if found.model_error is None else f", within {found.model_error:.1%} on {count(found.cuts, 'cut')}"
    return (
        f"time on {where}: {found.before * 1000:.3g} → {found.after * 1000:.3g} ms, {found.ratio:.1%} ± {found.noise:.1%} "
        f"(budget {found.goal:.1%}; the latency model predicts {found.predicted:.1%}{checked})"
    )
