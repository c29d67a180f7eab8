"""Classification: one class for each image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from secateurs import data as D
from secateurs.data import Data
from secateurs.errors import DataError, TrainingError
from secateurs.tasks.task import Reading, VisionTask, resembling
from secateurs.training.losses import heads


class Classification(VisionTask):
    """One class for each image: cross-entropy, top-1 and top-5. The task where none is named."""

    name: ClassVar[str] = "classification"
    defaults: ClassVar[Mapping[str, Any]] = {"data": "digits", "normalize": "imagenet", "batch_size": 128}
    primary: ClassVar[str] = "top1"

    def load(self, spec: str, reading: Reading) -> Data:
        options = {name: value for name, value in vars(reading).items() if name != "classes"}
        return D.load(spec, **options)

    def check(self, outputs: Any, inputs: Any, classes: int, name: str, advice: tuple[object, ...]) -> None:
        try:
            logits, _ = heads(outputs)
        except TrainingError as error:
            text = f"{name} does not return the logits that classification needs: {error}"
            raise DataError(text, hint=resembling(outputs)) from None
        if classes and logits.ndim == 2 and logits.shape[1] != classes:
            raise DataError(f"{name} has {logits.shape[1]} outputs and the data {classes} classes: ", *advice)
