"""Read outputs of any supported structure, and compute the default loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from secateurs.errors import DataError, TrainingError, a_or_an
from secateurs.graph.faults import described
from secateurs.training import batches as B

AUX_WEIGHT = 0.3  # weight of an auxiliary classifier's loss, from the GoogLeNet paper

Loss = Callable[[Any, Any], torch.Tensor]


def heads(outputs: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the logits (N, classes, *) and the auxiliary classifiers' logits from a tensor, tuple, dict or dataclass. A dict
    has the key `logits` or, as in torchvision's segmentation networks, `out`. Keys of auxiliary logits begin with `aux`."""
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
            f"The model returned {a_or_an(type(outputs).__name__)} without logits: expected a tensor, a tuple "
            "whose first item is one, an object or dict with 'logits', or a dict with 'out'. For other outputs pass your own "
            "loss."
        )
    return main, [r for r in rest if isinstance(r, torch.Tensor) and r.shape == main.shape]


class CrossEntropy:
    """Mean cross-entropy, with auxiliary classifiers weighted by 0.3. Targets: (N, *) class indices, where -100 is ignored, or
    (N, classes, *) probabilities.

    Raises DataError for other targets, for class indices that are out of range, and for networks with a single output, because
    the cross-entropy over one class is always 0. If targets are on a GPU, indices out of range are ignored, and `settle`
    raises the error later, so that not every batch waits for the GPU.
    """

    ignore_index = B.IGNORED  # as PyTorch's own

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing
        self.classes: int | None = None  # number of the model's classes, known after its first output
        self._extremes: torch.Tensor | None = None  # (2,) on a GPU: the lowest and the highest index since `settle`
        self._shares = False  # whether float targets on a GPU were found to be probabilities

    def __call__(self, outputs: Any, targets: Any) -> torch.Tensor:
        main, aux = heads(outputs)
        if not isinstance(targets, torch.Tensor):
            raise DataError(
                f"The targets are {a_or_an(type(targets).__name__)}, and cross-entropy takes a tensor: pass your own loss, "
                "loss=fn(outputs, targets)."
            )
        if main.ndim > 1 and main.shape[1] == 1:
            raise DataError(
                f"The model has a single output for each {'image' if main.ndim == 2 else 'position'}, of shape "
                f"{tuple(main.shape)}, and the cross-entropy over one class is always 0. For two classes pass "
                "loss=torch.nn.functional.binary_cross_entropy_with_logits, for regression loss=torch.nn.functional.mse_loss, "
                f"with float targets of that shape (these are {described(targets)}), or build the model with two outputs."
            )
        if targets.is_floating_point():
            if targets.shape != main.shape:
                raise DataError(_floats(main, targets))
            if not self._shares and not shares(targets):
                several = bool(((targets >= 0) & (targets <= 1)).all())
                own, task = (
                    ("binary_cross_entropy_with_logits", "several labels for each image") if several
                    else ("mse_loss", "regression and other tasks")
                )  # fmt: skip
                raise DataError(
                    f"The targets are {described(targets)}, like the outputs, but not class probabilities: a row must be "
                    f"nonnegative and sum to 1. For {task} pass your own loss, such as loss=torch.nn.functional.{own}."
                )
            self._shares = targets.device.type != "cpu"
            if torch.float64 in (targets.dtype, main.dtype):
                targets = targets.to(torch.float64 if main.dtype == torch.float64 else torch.float32)
        else:
            if main.ndim < 2 or targets.shape != main.shape[:1] + main.shape[2:]:
                raise DataError(_indices(main, targets))
            targets = targets.long()
            if targets.device.type == "cpu" or self.classes != main.shape[1]:
                self.classes = main.shape[1]
                self.check(targets)
            else:
                targets = self._watched(targets, self.classes)
        loss = self._mean(main, targets)
        for other in aux:
            loss = loss + AUX_WEIGHT * self._mean(other, targets)
        return loss

    def _mean(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        if targets.is_floating_point():
            return loss
        return torch.where((targets != B.IGNORED).any(), loss, loss.new_zeros(()))  # NaN if all of them are ignored

    def check(self, targets: torch.Tensor) -> None:
        """Raise DataError for class indices that are out of range. They are checked before batches move to a GPU, where they
        would cause a device-side assert. This does not synchronize the GPU."""
        if self.classes is None or targets.is_floating_point():
            return
        found = targets.long()
        found = found[found != B.IGNORED]
        low, high = (int(v) for v in found.aminmax()) if found.numel() else (0, 0)
        self._refuse(low, high)

    def _watched(self, targets: torch.Tensor, classes: int) -> torch.Tensor:
        """Ignore class indices that are out of range, and record the extremes for `settle`."""
        if not targets.numel():
            return targets
        low, high = targets.where(targets != B.IGNORED, 0).aminmax()
        if self._extremes is not None:
            low, high = low.minimum(self._extremes[0]), high.maximum(self._extremes[1])
        self._extremes = torch.stack([low, high])
        return targets.where((targets >= 0) & (targets < classes), B.IGNORED)

    def settle(self) -> None:
        """Raise DataError for class indices that were out of range since the last call. Waits for the GPU."""
        if self._extremes is not None:
            (low, high), self._extremes = self._extremes.tolist(), None
            self._refuse(low, high)

    def _refuse(self, low: int, high: int) -> None:
        """Raise DataError if the lowest or highest class index is out of range."""
        if self.classes is None:
            return
        if low < 0 or high >= self.classes:
            raise DataError(
                f"The data has a label {low if low < 0 else high}, but the model has {self.classes} classes "
                f"(0…{self.classes - 1}): {_out_of_range(low, high, self.classes)}"
            )


def ignored_by(loss: Any) -> int:
    """Return the class index that a loss ignores, as far as it says."""
    found = getattr(loss, "ignore_index", None)
    return found if isinstance(found, int) else B.IGNORED


def labeled(targets: Any, rows: int, ignored: int, like: torch.Tensor) -> torch.Tensor:
    """Return how many of these examples have a label, or a pixel with one, that a loss does not ignore: a scalar like another
    tensor. All of them count if targets are not class indices."""
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or not targets.ndim:
        return like.new_full((), rows)
    counts = targets.long() != ignored
    return counts.reshape(len(counts), -1).any(1).sum().to(like)


def shares(targets: torch.Tensor) -> bool:
    """Whether each row is a probability distribution over classes, along axis 1."""
    values = targets.float()
    return values.ndim > 1 and bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-2).all())


def _out_of_range(low: int, high: int, classes: int) -> str:
    """Return what to do about class indices from `low` to `high`."""
    if high == 255 or low == -1:
        mark = -1 if low == -1 else 255
        return (
            f"if {mark} marks what is to be ignored, set it to {B.IGNORED}, or pass "
            f"loss=torch.nn.CrossEntropyLoss(ignore_index={mark}); otherwise fix the labels."
        )
    if low == 1 and high == classes:
        return "if labels are counted from 1, subtract 1; otherwise build it for the data's number of classes."
    return "build it for the data's number of classes, or fix the labels."


def _floats(outputs: torch.Tensor, targets: torch.Tensor) -> str:
    """Return the message for float targets whose shape differs from the outputs'."""
    text = f"The targets are {described(targets)}, for outputs of shape {tuple(outputs.shape)}: "
    if outputs.ndim > 1 and bool((targets == targets.round()).all()):
        expected = outputs.shape[:1] + outputs.shape[2:]
        fit = "" if targets.shape == expected else f", of shape {tuple(expected)}"
        return f"{text}pass class indices as integers{fit}, targets.long(), or your own loss=…."
    return (
        f"{text}pass class indices (integers: one per image, or per pixel) or class probabilities, or your own loss=…."
    )


def _indices(outputs: torch.Tensor, targets: torch.Tensor) -> str:
    """Return the message for class indices of an invalid shape."""
    text = f"The targets are {described(targets)}, for outputs of shape {tuple(outputs.shape)}: "
    if outputs.ndim < 2:
        return f"{text}cross-entropy takes outputs of shape (N, classes). For other outputs pass your own loss."
    expected = outputs.shape[:1] + outputs.shape[2:]
    text += f"class indices must have shape {tuple(expected)}."
    one_hot = (*expected, outputs.shape[1])  # one-hot masks, with the classes last
    if targets.shape == outputs.shape:
        return f"{text} For one-hot rows use targets.argmax(1)."
    if targets.shape == one_hot:
        return f"{text} For one-hot masks use targets.argmax(-1)."
    if targets.shape == (*expected, 1):
        return f"{text} Use targets.squeeze(-1)."
    if targets.shape == (*expected[:1], 1, *expected[1:]):
        return f"{text} Use targets.squeeze(1)."
    if outputs.ndim > 2 and targets.ndim == outputs.ndim - 1:
        return f"{text} Resize the outputs to the masks, or the masks to the outputs (by nearest neighbor)."
    return text


def to_device(batch: B.Batch, device: torch.device, channels_last: bool, loss: Loss) -> B.Batch:
    """Move the batch to the device. Its labels are checked before they are moved."""
    targets, moves = batch.targets, device.type != "cpu"
    if moves and isinstance(loss, CrossEntropy) and isinstance(targets, torch.Tensor) and targets.device.type == "cpu":
        loss.check(targets)
    return B.to_device(batch, device, channels_last)
