"""The tables that several commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.table import Table

from secateurs.artifact import Figures
from secateurs.report.figures import count, percent, share, short

Justify = Literal["left", "right"]


def table(*columns: str, left: int = 1) -> Table:
    """An empty table with the first `left` columns left-aligned and the others (numbers) right-aligned."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        justify: Justify = "left" if i < left else "right"
        made.add_column(name, justify=justify, no_wrap=i >= left, overflow="fold")
    return made


def outcome(networks: Sequence[tuple[str, Figures]]) -> Table:
    """The cost and metrics of each network from the original to the artifact: see `Card.networks`."""
    made = table("", "MACs", "", "params", "", "top-1 %", "top-5 %", "loss")
    for name, figures in networks:
        before = networks[0][1]
        made.add_row(
            name,
            *(short(figures.macs), share(figures.macs, before.macs)),
            *(short(figures.params), share(figures.params, before.params)),
            *worth(figures),
        )
    return made


def worth(figures: Figures) -> tuple[str, str, str]:
    """Top-1, top-5 and loss."""
    loss = "-" if figures.loss is None else f"{figures.loss:.3f}"
    return percent(figures.top1), percent(figures.top5), loss


def listing(names: Sequence[str], most: int = 2) -> str:
    """'conv1, conv2 +3': the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" +{more}" if more > 0 else "")


def stripes(layers: Sequence[Mapping[str, Any]]) -> Table:
    """The kept stripes of each layer: from an artifact's card."""
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
    """The same in one line."""
    kept, of, index = (sum(layer[key] for layer in layers) for key in ("stripes", "of_stripes", "index"))
    return (
        f"stripes: {kept:,} of {of:,} kept ({share(kept, of)}) in {count(len(layers), 'layer')}; their positions take "
        f"{index:,} index entries, not counted as parameters"
    )
