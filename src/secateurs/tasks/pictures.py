"""Pictures of predictions."""

from __future__ import annotations

import io
from collections.abc import Mapping
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
    figure(file, ["image", "mask", *networks], rows)


def figure(file: Path, titles: list[str], rows: list[list[Any]]) -> None:
    """A grid of images (H, W, 3) in [0, 1] and of masks (H, W) of class indices."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(1.8 * len(titles), 1.8 * len(rows) + 0.3), layout="constrained")
    for places, row in zip(drawn.subplots(len(rows), len(titles), squeeze=False), rows, strict=True):
        for place, array in zip(places, row, strict=True):
            place.set_axis_off()
            place.imshow(
                array if array.ndim == 3 else array % 20, cmap="tab20", vmin=0, vmax=19, interpolation="nearest"
            )
    for place, title in zip(drawn.axes, titles, strict=False):
        place.set_title(title, fontsize=9)
    content = io.BytesIO()
    drawn.savefig(content, format="png", dpi=110, metadata={"Software": None})
    write_whole(file, content.getvalue())


def _predicted(network: nn.Module, inputs: Tensor) -> Any:
    with torch.no_grad(), evaluating(network):
        return heads(call(network, inputs.to(device_of(network))))[0].argmax(1).cpu().numpy()


def _visible(image: Tensor) -> Any:
    """A normalized image (C, H, W) as (H, W, 3), stretched to [0, 1]."""
    low, high = float(image.min()), float(image.max())
    shown = ((image - low) / (high - low or 1))[: 3 if image.shape[0] == 3 else 1]
    return shown.expand(3, -1, -1).permute(1, 2, 0).numpy()
