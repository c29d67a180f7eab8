"""Detection: a box and a class for each object."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from secateurs import adapters
from secateurs.data import Data
from secateurs.data.coco import open_coco
from secateurs.data.load import default_workers
from secateurs.errors import ConfigError, DataError, Setting, SpecError, a_or_an, nearest
from secateurs.graph.inputs import call
from secateurs.graph.modes import evaluating
from secateurs.tasks.boxes import Boxed
from secateurs.tasks.pictures import draw_boxes
from secateurs.tasks.task import Reading, VisionTask, bundle, resembling, torchmetrics
from secateurs.zoo.vision import torchvision

FIGURES = ("map", "map_50", "map_75")


class Detection(VisionTask):
    """A box and a class for each object. Networks are called as torchvision's detectors: with a list of images (3, H, W) in
    [0, 1] of any sizes, and in training with a list of dicts of `boxes` (B, 4) and `labels` (B,), from 1. Then they return a
    dict of losses, and in eval mode for each image a dict of `boxes`, `labels` and `scores`. The figure is the mean average
    precision.
    """

    name: ClassVar[str] = "detection"
    defaults: ClassVar[Mapping[str, Any]] = {"normalize": "none", "batch_size": 8}
    primary: ClassVar[str] = "mAP.map"
    pictures: ClassVar[bool] = True

    min_size: int | None = Field(
        default=None, ge=1, description="the shorter side to which torchvision's detectors resize images (default 800)"
    )
    max_size: int | None = Field(
        default=None, ge=1, description="the longest side that torchvision's detectors allow (default 1333)"
    )
    flip: bool = Field(default=True, description="flip training images horizontally with probability ½")
    photometric: bool = Field(default=True, description="change brightness, contrast, saturation and hue in training")
    jitter: float = Field(
        default=1.5, ge=1, description="enlarge or shrink training images by up to this factor, within their size"
    )

    def load(self, spec: str, reading: Reading) -> Data:
        """Batches of lists of images and of lists of dicts with boxes. `coco:PATH`; see `secateurs.data.coco.open_coco`.

        image_size: of the shorter side, to which images are resized before the network resizes them itself.
        """
        family, _, rest = spec.partition(":")
        if family != "coco" or not rest:
            raise SpecError(f"{spec!r} is not valid data for detection. {nearest(spec, ('coco:PATH',))}")
        workers = default_workers()
        train, val, names = open_coco(rest, workers, reading.skip_unreadable, reading.classes)
        transforms = Boxed(reading.image_size, self.flip, self.photometric, self.jitter)
        return bundle(train, val, transforms, reading, names)

    def options(self, spec: str, classes: int | None, state: Mapping[str, Tensor] | None) -> dict[str, Any]:
        """Detectors count the background as a class."""
        found = super().options(spec, None if classes is None else classes + 1, state)
        sizes = {name: size for name in ("min_size", "max_size") if (size := getattr(self, name)) is not None}
        family, _, name = spec.partition(":")
        if sizes and not (family == "torchvision" and _resizes(name)):
            first = next(iter(sizes))
            raise ConfigError(
                Setting(first, sizes[first], type(self)),
                f" is for torchvision's detectors that resize images, and {spec} is none.",
            )
        return {**found, **sizes}

    def functions(self) -> dict[str, Any]:
        return adapters.detection()

    def check(self, outputs: Any, inputs: Any, classes: int, name: str, advice: tuple[object, ...]) -> None:
        fields = ("boxes", "labels", "scores")
        if not isinstance(outputs, list | tuple) or not all(
            isinstance(one, Mapping) and all(isinstance(one.get(field), Tensor) for field in fields) for one in outputs
        ):
            raise DataError(
                f"{name} returns {a_or_an(type(outputs).__name__)}, and a detector must return a list of dicts of boxes, "
                "labels and scores, one for each image, as torchvision's do.",
                hint=resembling(outputs),
            )
        highest = max((int(one["labels"].max()) for one in outputs if len(one["labels"])), default=0)
        if classes and highest > classes:
            raise DataError(f"{name} found a class {highest}, and the data has {classes} classes: ", *advice)

    def misfit(self, network: nn.Module, inputs: Any) -> tuple[object, ...]:
        try:
            with torch.no_grad(), evaluating(network):
                outputs = call(network, inputs[0][0][None])
        except Exception:  # of the network's own code
            return ()
        return (
            "A detector takes a list of images, and this network a tensor: name a detector, such as "
            "torchvision:fasterrcnn_resnet50_fpn. ", *resembling(outputs),
        )  # fmt: skip

    def metrics(self, outputs: Any, ignored: int) -> dict[str, Any]:
        torchvision()  # what torchmetrics imports
        detection = torchmetrics(self.name, "torchmetrics.detection")
        if find_spec("faster_coco_eval") is None:
            raise ConfigError(
                "The metrics of detection need faster-coco-eval, which is not installed. Run: pip install 'secateurs[metrics]'"
            )
        return {"mAP": _brief(detection.MeanAveragePrecision)}

    def blank(self, shape: tuple[int, ...]) -> Any:
        return ([torch.zeros(shape)],)

    def draw(self, file: Path, networks: Mapping[str, nn.Module], data: Data) -> None:
        draw_boxes(file, networks, data)


def _resizes(name: str) -> bool:
    """Whether a detector of torchvision resizes images to a shorter and a longest side. SSDs have a size of their own."""
    models = torchvision().models
    if name not in models.list_models(module=models.detection) or name.startswith("ssd"):
        return False
    return "kwargs" in inspect.signature(models.get_model_builder(name)).parameters


def _brief(kind: type[Any]) -> Any:
    """torchmetrics' mean average precision, of whose 14 figures those that papers have are left."""

    class MeanAveragePrecision(kind):
        def compute(self) -> dict[str, Tensor]:
            found = super().compute()
            return {name: found[name] for name in FIGURES}

    metric = MeanAveragePrecision(backend="faster_coco_eval")
    metric.warn_on_many_detections = False  # COCO's 100 of highest score count
    return metric
