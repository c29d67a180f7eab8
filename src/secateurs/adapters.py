"""The functions of a model and a batch for well-known kinds of models: `sc.prune(…, **sc.adapters.huggingface())`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.errors import DataError, a_or_an


def huggingface(labels: str = "labels") -> dict[str, Any]:
    """For models of transformers, which take a batch by name and return their loss.

    Batches are dicts: the targets have the key `labels`, the rest are the model's other arguments.
    """

    def step(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        loss: Tensor | None = model(**_named(batch)).loss
        if loss is None:
            raise DataError(f"The model returns no loss: the batches need its labels, under the key {labels!r}.")
        return loss

    def forward(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        inputs = _named(batch)
        return model(**{name: value for name, value in inputs.items() if name != labels}), inputs.get(labels)

    def _named(batch: Any) -> dict[str, Any]:
        if not isinstance(batch, Mapping):
            raise DataError(
                f"A batch is {a_or_an(type(batch).__name__)}: this adapter takes dicts of the model's arguments."
            )
        return {**batch}

    return {"step": step, "forward": forward}


def detection() -> dict[str, Any]:
    """For torchvision's detectors, which take lists of images and, in training, of targets, and then return a dict of losses.

    Batches are pairs (images, targets) of lists or tuples: images (C, H, W) of any sizes, and for each a dict with `boxes`,
    `labels` and so on. In evaluation the outputs are the model's detections, as torchmetrics' MeanAveragePrecision takes them.
    """

    def step(model: nn.Module, batch: Any) -> Tensor:
        losses = model(*map(list, batch))
        if not isinstance(losses, Mapping):
            raise DataError("The model returned no dict of losses: torchvision's detectors do so in train mode only.")
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        images, targets = batch
        return model(list(images)), list(targets)

    return {"step": step, "forward": forward}
