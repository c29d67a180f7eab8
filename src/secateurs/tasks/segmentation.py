"""Segmentation: one class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from secateurs.data import Data
from secateurs.data.load import default_workers
from secateurs.data.masks import IGNORED, Pairs, found_classes, open_folder, open_table
from secateurs.errors import DataError, SpecError, TrainingError, nearest
from secateurs.graph.faults import described
from secateurs.tasks.masks import Masked, crop_of, up
from secateurs.tasks.pictures import draw_masks
from secateurs.tasks.task import Reading, VisionTask, bundle, resembling, torchmetrics
from secateurs.training import CrossEntropy
from secateurs.training.losses import heads


class Segmentation(VisionTask):
    """One class for each pixel. Networks return logits (N, classes, H, W), alone or as `{"out": …, "aux": …}`; targets are
    class indices (N, H, W), with -100 where a pixel does not count. The loss is cross-entropy, the figures are mIoU and the
    share of pixels that are right.
    """

    name: ClassVar[str] = "segmentation"
    primary: ClassVar[str] = "mIoU"
    pictures: ClassVar[bool] = True

    dice: float = Field(default=0.0, ge=0, description="weight of the Dice loss, which is added to cross-entropy")
    scale: float = Field(default=0.25, gt=0, le=1, description="the least share of an image that a training crop shows")
    flip: bool = Field(default=True, description="flip training images horizontally with probability ½")

    def load(self, spec: str, reading: Reading) -> Data:
        """Training batches of random crops, and whole validation images, each batch of one size.

        `folder:PATH` with `train/images`, `train/masks`, `val/images` and `val/masks`, and `hf:NAME_OR_PATH` with a column of
        images and one of masks. image_size: the side of crops, and the shorter side of whole images; by default crops have the
        median size, and whole images their own. Crops and padded images have sides that are multiples of 32.
        """
        family, _, rest = spec.partition(":")
        workers = default_workers()
        train: Pairs
        val: Pairs | None
        if family == "folder" and rest:
            train, val, names = open_folder(Path(rest).expanduser(), workers, reading.skip_unreadable)
        elif family == "hf" and rest:
            train, val, names = open_table(rest, workers)
        else:
            known = ("folder:PATH", "hf:NAME_OR_PATH")
            raise SpecError(f"{spec!r} is not valid data for segmentation. {nearest(spec, known)}")
        if reading.classes is not None and (names is None or len(names) != reading.classes):
            names = tuple(map(str, range(reading.classes)))
        classes, splits = None if names is None else len(names), [train, *([] if val is None else [val])]
        highest = max(split.check(classes, skip=reading.skip_unreadable) for split in splits)
        if names is None:
            names = tuple(map(str, range(found_classes(highest))))
        side = reading.image_size
        crop = (up(side), up(side)) if side else crop_of(train.some_sizes())
        transforms = Masked(crop, side, self.scale, self.flip)
        return bundle(train, val, transforms, reading, names, (reading.channels, *crop))

    def options(self, spec: str, classes: int | None, state: Mapping[str, Tensor] | None) -> dict[str, Any]:
        found = super().options(spec, classes, state)
        if spec.startswith("torchvision:") and any(name.startswith("aux_classifier.") for name in state or ()):
            found["aux_loss"] = True  # the weights have that head
        return found

    def check(self, outputs: Any, inputs: Any, classes: int, name: str, advice: tuple[object, ...]) -> None:
        try:
            logits, _ = heads(outputs)
        except TrainingError as error:
            text = f"{name} does not return the logits that segmentation needs: {error}"
            raise DataError(text, hint=resembling(outputs)) from None
        if logits.ndim != 4 or (isinstance(inputs, Tensor) and logits.shape[-2:] != inputs.shape[-2:]):
            given = f" for images {described(inputs)}" if isinstance(inputs, Tensor) else ""
            raise DataError(
                f"{name} returns {described(logits)}{given}. Segmentation needs logits of shape (N, classes, H, W), of the "
                "images' height and width: let the network resize them, for example with torch.nn.functional.interpolate.",
                hint=() if logits.ndim == 4 else resembling(outputs),
            )
        if logits.shape[1] < max(classes, 2):
            raise DataError(f"{name} has {logits.shape[1]} outputs and the data {max(classes, 2)} classes: ", *advice)

    def functions(self) -> dict[str, Any]:
        return {"loss": DiceCrossEntropy(self.dice)} if self.dice else {}

    def metrics(self, outputs: Any, ignored: int) -> dict[str, Any]:
        classification = torchmetrics(self.name, "torchmetrics.classification")
        classes = heads(outputs)[0].shape[1]  # the network may have more than occur in the data
        options = {"num_classes": classes, "ignore_index": ignored, "validate_args": False}
        return {
            "mIoU": classification.MulticlassJaccardIndex(**options),
            "pixel_accuracy": classification.MulticlassAccuracy(**options, average="micro"),
        }

    def draw(self, file: Path, networks: Mapping[str, nn.Module], data: Data) -> None:
        draw_masks(file, networks, data)


class DiceCrossEntropy:
    """Cross-entropy, and the Dice loss with a weight: 1 - the mean Dice coefficient of the classes that occur in a batch
    (Milletari et al., 2016). Pixels with the target -100 count in neither."""

    ignore_index = IGNORED

    def __init__(self, weight: float) -> None:
        self.weight, self.entropy = weight, CrossEntropy()

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        return self.entropy(outputs, targets) + self.weight * dice_loss(heads(outputs)[0], targets)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """logits: (N, classes, *). targets: (N, *), class indices."""
    counts = (targets != IGNORED).unsqueeze(1)  # (N, 1, *)
    share = logits.float().softmax(1) * counts
    hot = F.one_hot(targets.clamp(min=0), logits.shape[1]).movedim(-1, 1) * counts  # (N, classes, *)
    axes = (0, *range(2, logits.ndim))
    both, size, occurs = (share * hot).sum(axes), share.sum(axes) + hot.sum(axes), hot.sum(axes) > 0  # (classes,)
    coefficients = (2 * both + 1) / (size + 1)
    return 1 - (coefficients * occurs).sum() / occurs.sum().clamp(min=1)
