"""Pictures of predictions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.data import Data
from secateurs.data.masks import IGNORED
from secateurs.devices import device_of
from secateurs.files import write_whole
from secateurs.graph.inputs import call
from secateurs.graph.modes import evaluating
from secateurs.training.losses import heads

ROWS = 6  # images that are shown
LEGEND = 24  # classes that the legend shows
NAME = 18  # characters of a class's name there
SCORE = 0.5  # of boxes that are shown
SIDE = 320  # pixels of an image with boxes


def draw_masks(file: Path, networks: Mapping[str, nn.Module], data: Data) -> None:
    """One row for each of a few validation images: the image, its mask, and the mask that each network predicts. Pixels that
    don't count are white. Nothing is drawn without validation images, or for inputs that are no images."""
    if data.val is None:
        return
    rows: list[list[Any]] = []
    for inputs, targets in data.batches("val"):
        if not isinstance(inputs, Tensor) or inputs.ndim != 4:
            return
        x = inputs[: ROWS - len(rows)]
        predicted = [_predicted(network, x) for network in networks.values()]
        for i, image in enumerate(x.cpu()):
            mask = targets[i].cpu()
            seen = (mask != IGNORED).numpy()
            rows.append(
                [_visible(image), *(np.ma.masked_array(y, ~seen) for y in (mask.numpy(), *(p[i] for p in predicted)))]
            )
        if len(rows) == ROWS:
            break
    figure(file, ["image", "mask", *networks], rows, data.classes)


def draw_boxes(file: Path, networks: Mapping[str, nn.Module], data: Data) -> None:
    """One row for each of a few validation images: with its boxes, and with the boxes that each network finds with a score of
    at least a half. Nothing is drawn without validation images, or for inputs that are no list of images."""
    if data.val is None:
        return
    rows: list[list[Any]] = []
    for inputs, targets in data.batches("val"):
        if not isinstance(inputs, list | tuple) or not all(isinstance(x, Tensor) and x.ndim == 3 for x in inputs):
            return
        images = list(inputs[: ROWS - len(rows)])
        found = [_found(network, images) for network in networks.values()]
        for i, image in enumerate(images):
            rows.append([_boxed(image.cpu(), one, data.classes) for one in (targets[i], *(f[i] for f in found))])
        if len(rows) == ROWS:
            break
    figure(file, ["boxes", *networks], rows)


def _found(network: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    where = device_of(network)
    with torch.no_grad(), evaluating(network):
        outputs = call(network, ([x.to(where) for x in images],))
    return [{name: x[one["scores"] >= SCORE] for name, x in one.items() if len(x)} for one in outputs]


def _boxed(image: Tensor, found: Mapping[str, Tensor], classes: Sequence[str] | None) -> Any:
    """An image (C, H, W) with boxes in the colors of their classes, as (H, W, 3) in [0, 1], with a longer side of SIDE."""
    from matplotlib import colormaps
    from torchvision.utils import draw_bounding_boxes

    factor = SIDE / max(image.shape[-2:])
    pixels = torch.from_numpy(_visible(image)).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.interpolate(pixels, scale_factor=factor, mode="bilinear", antialias=True)[0]
    boxes, labels = found.get("boxes", torch.zeros(0, 4)).cpu() * factor, found.get("labels", torch.zeros(0)).tolist()
    if len(boxes):
        colors = [tuple(round(255 * c) for c in colormaps["tab20"](int(label) % 20)[:3]) for label in labels]
        names = [classes[int(label) - 1] if classes and 0 < label <= len(classes) else str(label) for label in labels]
        canvas = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = draw_bounding_boxes(canvas, boxes, names, colors, width=2).float() / 255
    return pixels.clamp(0, 1).permute(1, 2, 0).numpy()


def figure(file: Path, titles: list[str], rows: list[list[Any]], classes: Sequence[str] | None = None) -> None:
    """A grid of images (H, W, 3) in [0, 1] and of masks (H, W) of class indices, with a legend of the classes that are seen.
    classes: their names."""
    from matplotlib.figure import Figure

    seen = sorted(
        {int(i) for row in rows for array in row if array.ndim == 2 for i in np.unique(np.ma.compressed(array))}
    )
    lines = -(-min(len(seen), LEGEND) // len(titles))
    drawn = Figure(figsize=(1.8 * len(titles), 1.8 * len(rows) + 0.3 + 0.25 * lines), layout="constrained")
    for places, row in zip(drawn.subplots(len(rows), len(titles), squeeze=False), rows, strict=True):
        for place, array in zip(places, row, strict=True):
            place.set_axis_off()
            place.imshow(
                array if array.ndim == 3 else array % 20, cmap="tab20", vmin=0, vmax=19, interpolation="nearest"
            )
    for place, title in zip(drawn.axes, titles, strict=False):
        place.set_title(title, fontsize=9)
    if seen:
        _legend(drawn, seen, classes, len(titles))
    content = io.BytesIO()
    drawn.savefig(content, format="png", dpi=110, metadata={"Software": None})
    write_whole(file, content.getvalue())


def _legend(drawn: Any, seen: Sequence[int], classes: Sequence[str] | None, columns: int) -> None:
    """The color of each class, below the pictures."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    def name(index: int) -> str:
        named = classes is not None and index < len(classes) and classes[index] != str(index)
        return f"{index} {classes[index]}" if named and classes is not None else f"class {index}"

    shown = [Patch(color=colormaps["tab20"](index % 20), label=name(index)[:NAME]) for index in seen[:LEGEND]]
    if len(seen) > LEGEND:
        shown[-1].set_label(f"+{len(seen) - LEGEND + 1} more")
    drawn.legend(handles=shown, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _predicted(network: nn.Module, inputs: Tensor) -> Any:
    with torch.no_grad(), evaluating(network):
        return heads(call(network, inputs.to(device_of(network))))[0].argmax(1).cpu().numpy()


def _visible(image: Tensor) -> Any:
    """A normalized image (C, H, W) as (H, W, 3), stretched to [0, 1]."""
    low, high = float(image.min()), float(image.max())
    shown = ((image - low) / (high - low or 1))[: 3 if image.shape[0] == 3 else 1]
    return shown.expand(3, -1, -1).permute(1, 2, 0).numpy()
