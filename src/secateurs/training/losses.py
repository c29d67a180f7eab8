"""Outputs of any supported structure, and the default loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from secateurs.errors import DataError, TrainingError
from secateurs.training import batches as B
from secateurs.training.checks import described

AUX_WEIGHT = 0.3  # of an auxiliary classifier, as GoogLeNet's paper has it

Loss = Callable[[Any, Any], torch.Tensor]


def heads(outputs: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The logits (N, classes, *) and the auxiliary classifiers' logits of a tensor, tuple, dict or dataclass. A dict has the
    keys `logits` or, as torchvision's segmentation networks, `out`, and `aux…`."""
    if isinstance(outputs, torch.Tensor):
        return outputs, []
    if isinstance(outputs, Mapping) and not outputs.keys().isdisjoint(("logits", "out")):
        main = outputs["logits" if "logits" in outputs else "out"]
        rest = [v for k, v in outputs.items() if str(k).startswith("aux")]
    elif hasattr(outputs, "logits"):  # a dataclass or a named tuple
        names = getattr(outputs, "_fields", None) or vars(outputs)
        main, rest = outputs.logits, [getattr(outputs, n) for n in names if n.startswith("aux")]
    elif isinstance(outputs, (tuple, list)) and outputs:
        main, rest = outputs[0], list(outputs[1:])
    else:
        main, rest = None, []
    if not isinstance(main, torch.Tensor):
        raise TrainingError(
            f"The model returned a {type(outputs).__name__} without logits: expected a tensor, a tuple "
            "whose first item is one, an object or dict with 'logits', or a dict with 'out'. For other outputs pass your own "
            "loss."
        )
    return main, [r for r in rest if isinstance(r, torch.Tensor) and r.shape == main.shape]


class CrossEntropy:
    """Mean cross-entropy, auxiliary classifiers weighted by 0.3. Targets: (N, *) indices, of which -100 don't count, or
    (N, classes, *) shares.

    Raises DataError for other targets, and for class indices that are out of range.
    """

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing
        self.classes: int | None = None  # number of the model's classes, known after its first output

    def __call__(self, outputs: Any, targets: Any) -> torch.Tensor:
        main, aux = heads(outputs)
        if not isinstance(targets, torch.Tensor):
            raise DataError(
                f"The targets are a {type(targets).__name__}, and cross-entropy takes a tensor: pass your own loss, "
                "loss=fn(outputs, targets)."
            )
        if targets.is_floating_point():
            if targets.shape != main.shape:
                raise DataError(
                    f"The targets are {described(targets)}, for outputs of shape {tuple(main.shape)}: pass class indices "
                    "(integers, one per image) or class probabilities, or your own loss=…."
                )
            if not shares(targets):
                raise DataError(
                    f"The targets are {described(targets)}, like the outputs, but not class probabilities: a row must be "
                    "nonnegative and sum to 1. For regression and other tasks pass your own loss, such as "
                    "loss=torch.nn.functional.mse_loss."
                )
            if torch.float64 in (targets.dtype, main.dtype):
                targets = targets.to(torch.float64 if main.dtype == torch.float64 else torch.float32)
        else:
            if main.ndim < 2 or targets.shape != main.shape[:1] + main.shape[2:]:
                raise DataError(_indices(main, targets))
            targets = targets.long()
            if main.ndim > 1 and (targets.device.type == "cpu" or self.classes != main.shape[1]):
                self.classes = main.shape[1]
                self.check(targets)
        loss = self._mean(main, targets)
        for other in aux:
            loss = loss + AUX_WEIGHT * self._mean(other, targets)
        return loss

    def _mean(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        if logits.ndim == 2 or targets.is_floating_point():
            return loss
        return torch.where((targets != B.IGNORED).any(), loss, loss.new_zeros(()))  # of no pixel that counts, it is NaN

    def check(self, targets: torch.Tensor) -> None:
        """Raise DataError for class indices that are out of range. Checked before batches are on a GPU, where they cause a
        device-side assert, and without synchronizing it."""
        if self.classes is None or targets.is_floating_point():
            return
        found = targets.long()
        found = found[found != B.IGNORED]
        low, high = (int(v) for v in found.aminmax()) if found.numel() else (0, 0)
        if low < 0 or high >= self.classes:
            ignored = (
                " A target of -100 does not count: 255, where that is meant, must become -100." if high == 255 else ""
            )
            raise DataError(
                f"The data has a label {low if low < 0 else high}, but the model has {self.classes} classes "
                f"(0…{self.classes - 1}): build it for the data's number of classes, or fix the labels.{ignored}"
            )


def shares(targets: torch.Tensor) -> bool:
    """Whether each row, along axis 1, is a distribution over classes."""
    values = targets.float()
    return values.ndim > 1 and bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-2).all())


def _indices(outputs: torch.Tensor, targets: torch.Tensor) -> str:
    """The message about invalid shapes of class indices."""
    text = f"The targets are {described(targets)}, for outputs of shape {tuple(outputs.shape)}: "
    if outputs.ndim < 2:
        return f"{text}cross-entropy takes outputs of shape (N, classes). For other outputs pass your own loss."
    expected = outputs.shape[:1] + outputs.shape[2:]
    text += f"class indices must have shape {tuple(expected)}."
    if targets.shape == (*expected, 1):
        return f"{text} Use targets.squeeze(-1)."
    return f"{text} For one-hot rows use targets.argmax(1)." if targets.shape == outputs.shape else text


def to_device(batch: B.Batch, device: torch.device, channels_last: bool, loss: Loss) -> B.Batch:
    """The batch on the device; its labels are checked before they are moved."""
    if device.type != "cpu" and isinstance(loss, CrossEntropy) and isinstance(batch.targets, torch.Tensor):
        loss.check(batch.targets)
    return B.to_device(batch, device, channels_last)
