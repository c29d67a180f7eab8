"""Plots of a network with pruned stripes: the filters' shapes, the positions of kept stripes, and their norms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from secateurs.errors import ConfigError
from secateurs.plans import Plan
from secateurs.plans.stripes import as_mask
from secateurs.report.curves import can_plot
from secateurs.stripes import StripeConv

Array = np.ndarray
MOST = 12  # maximum number of shapes shown per layer


def masks(plan: Plan) -> dict[str, Array]:
    """Return each layer's kept stripes, (filters, *kernel) of bools, without filters that were cut with their channels."""
    found = {}
    for name, places in plan.stripes.items():
        alive = as_mask(places, plan.shapes[name]).numpy()
        found[name.rpartition(".")[0]] = alive[list(plan.kept.get(name, {}).get(0, range(len(alive))))]
    return found


def frequencies(mask: Array) -> list[tuple[Array, int]]:
    """Return a layer's filter shapes, (*kernel) of bools, and the number of filters with each, most frequent first."""
    shapes, counts = np.unique(mask, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(shapes[i], int(counts[i])) for i in order]


def norms(model: nn.Module, plan: Plan) -> dict[str, Array]:
    """Return, for each layer, the mean norm of its filters' stripes at each position, (*kernel). A missing stripe counts as
    zero. model: the network cut by the plan."""
    found = {}
    for name, places in plan.stripes.items():
        layer = name.rpartition(".")[0]
        module: Any = model.get_submodule(layer)
        module = module[1] if isinstance(module, nn.Sequential) else module
        weight = module.weight.detach().float().cpu()
        if not isinstance(module, StripeConv):  # the kept stripes form a block
            weight = weight.movedim(1, -1).flatten(0, -2)
        kernel = plan.shapes[name][2:]
        positions = math.prod(kernel)
        sums = np.bincount(np.array(places) % positions, weights=weight.norm(dim=1).numpy(), minlength=positions)
        found[layer] = (sums / module.out_channels).reshape(kernel)
    return found


def pictures(model: nn.Module, plan: Plan, folder: str | Path) -> list[Path]:
    """Plot `shapes.png` (each layer's filter shapes by frequency; PFF, fig. 6), `shares.png` (the fraction of kept
    stripes, by layer and position; fig. 9) and `norms.png` (mean norms by layer and position; fig. 1) into a folder.

    Raises ConfigError for a plan without stripes, or if matplotlib is not installed.
    """
    if not plan.stripes:
        raise ConfigError("There are no stripes to plot: the plan cuts channels only.")
    if not can_plot():
        raise ConfigError("Plots need matplotlib: pip install 'secateurs[report]'.")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    found = masks(plan)
    shares = {layer: mask.mean(0) for layer, mask in found.items()}
    return [
        _gallery(found, target / "shapes.png"),
        _maps(shares, target / "shares.png", "share of filters that keep the stripe", most=1.0),
        _maps(norms(model, plan), target / "norms.png", "mean norm of the stripes"),
    ]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _gallery(found: dict[str, Array], path: Path) -> Path:
    """Draw one row per layer, with its shapes from left to right. Kept stripes are dark."""
    figure = _figure(0.75 * MOST + 1.5, 0.8 * len(found) + 0.4)
    axes = figure.subplots(len(found), MOST, squeeze=False)
    for row, (layer, mask) in zip(axes, found.items(), strict=True):
        shown = frequencies(mask)[:MOST]
        for i, place in enumerate(row):
            place.set_axis_off()
            if i < len(shown):
                shape, count = sheet(shown[i][0]), shown[i][1]
                place.imshow(shape, cmap="Greys", vmin=0, vmax=1.25)
                place.add_patch(_frame(shape))
                place.set_title(f"{count / len(mask):.0%}", fontsize=7, pad=2)
        row[0].text(-0.3, 0.5, layer, transform=row[0].transAxes, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=120)
    return path


def sheet(kernel: Array) -> Array:
    """Lay out a kernel as an image, (rows, columns): a 1-d kernel as one row, the planes of a 3-d kernel side by side with a
    gap (NaN) between them."""
    planes = [np.atleast_2d(plane).astype(float) for plane in (kernel if kernel.ndim == 3 else [kernel])]
    gap = np.full((len(planes[0]), 1), np.nan)
    return np.concatenate([part for plane in planes for part in (gap, plane)][1:], 1)


def _frame(shape: Array) -> Any:
    from matplotlib.patches import Rectangle

    rows, columns = shape.shape
    return Rectangle((-0.5, -0.5), columns, rows, fill=False, edgecolor="gray", linewidth=0.5, clip_on=False)


def _maps(found: dict[str, Array], path: Path, title: str, most: float | None = None) -> Path:
    """Draw a small map for each layer. most: one scale for all, up to this value; otherwise, each has its own."""
    columns = min(len(found), 6)
    rows = math.ceil(len(found) / columns)
    figure = _figure(1.5 * columns + 0.4, 1.6 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place in axes:
        place.set_axis_off()
    for place, (layer, values) in zip(axes, found.items(), strict=False):
        top = float(values.max()) if most is None else most
        values = sheet(values)
        place.imshow(values, cmap="viridis", vmin=0, vmax=top or 1)
        place.set_title(layer, fontsize=7, pad=2)
        for (i, j), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            color = "black" if value > 0.6 * top else "white"
            place.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)
    return path
