"""What a task of computer vision says about its data, networks, training and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateurs.data import Data, Preprocess
from secateurs.data.load import OneOfEach, Statistics, checked_channels, default_workers, statistics
from secateurs.data.samples import SampleLoader, Samples, Transforms
from secateurs.devices import device_of
from secateurs.errors import ConfigError, Setting, SpecError, TrainingError
from secateurs.graph.faults import running
from secateurs.graph.inputs import call
from secateurs.graph.modes import evaluating
from secateurs.presets import Settings
from secateurs.seeds import preserve_rng_state
from secateurs.training import Objective
from secateurs.training import batches as B
from secateurs.training.checks import Check
from secateurs.training.losses import heads
from secateurs.zoo.vision import torchvision


@dataclass(frozen=True)
class Reading:
    """How the images of a data spec are read.

    batch_size: of all processes together. image_size: as the task understands it. classes: their number, if it was given.
    The rest is as for `secateurs.data.load`.
    """

    batch_size: int = 128
    normalize: str | Statistics | OneOfEach = "imagenet"
    image_size: int | None = None
    channels: int = 3
    skip_unreadable: bool = False
    classes: int | None = None
    seed: int = 0
    device: torch.device | str = "cpu"
    rank: int = 0
    world_size: int = 1


class VisionTask(Settings):
    """Base class of tasks. Its fields are the task's settings.

    name: that of `--task`. defaults: of the settings of a `DataSpec`. primary: the figure that says how good a network is.
    pictures: whether it draws predictions.

    Raises ConfigError for invalid settings.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {"normalize": "imagenet", "batch_size": 16}
    primary: ClassVar[str]
    pictures: ClassVar[bool] = False

    def load(self, spec: str, reading: Reading) -> Data:
        """The batches of a data spec, training batches augmented.

        Raises SpecError for an invalid spec, DataError for data that is not valid or cannot be read.
        """
        raise NotImplementedError

    def options(self, spec: str, classes: int | None, state: Mapping[str, Tensor] | None) -> dict[str, Any]:
        """Options of the constructor that a model spec names, for a network of so many classes.

        state: the weights that it will be given, if any.
        """
        return {} if classes is None else {"num_classes": classes}

    def functions(self) -> dict[str, Any]:
        """How a model meets a batch: the `loss`, `step` and `forward` of an `Objective`, where the task has its own."""
        return {}

    def check(self, outputs: Any, inputs: Any, classes: int, name: str, advice: tuple[object, ...]) -> None:
        """Raise DataError for outputs that are not this task's, or not of so many classes (0: not known).

        inputs: what the network was called with. name: what messages call it. advice: what to do about another number of
        classes.
        """

    def misfit(self, network: nn.Module, inputs: Any) -> tuple[object, ...]:
        """What to do about a network that does not run on its inputs, if this task knows."""
        return ()

    def metrics(self, outputs: Any, ignored: int) -> dict[str, Any]:
        """What is measured beside the loss and top-1, by name. outputs: of the network, for one example, in eval mode. ignored:
        the class index that the loss ignores.

        Raises ConfigError if a package is missing.
        """
        return {}

    def fitted(self, objective: Objective, network: nn.Module, inputs: Any, measured: bool) -> Objective:
        """The objective with this task's metrics, if they are `measured`. inputs: of one example. Raises DataError for a
        network of another task, TraceError for one that does not run on the inputs."""
        with running(network, inputs), torch.no_grad(), evaluating(network), preserve_rng_state():
            outputs = call(network, inputs)
        self.check(outputs, inputs, 0, "The network", ())
        if not measured:
            return objective
        metrics = self.metrics(outputs, objective.ignored)
        if metrics and objective.step is not None and objective.forward is None:
            objective = replace(objective, forward=_pairs)
        return replace(objective, metrics=metrics)

    def card(self) -> dict[str, Any]:
        """What an artifact's card says: the name and the settings."""
        return {"name": self.name, **self.model_dump(mode="json")}

    def blank(self, shape: tuple[int, ...]) -> Any:
        """Example inputs for a network of this task: one image (C, H, W)."""
        return torch.zeros(1, *shape)

    def draw(self, file: Path, networks: Mapping[str, nn.Module], data: Data) -> None:
        """Draw what each network predicts for some validation images to a PNG file, if `pictures`; needs matplotlib."""


def resembling(outputs: Any) -> tuple[object, ...]:
    """The advice to name another task, if the outputs are like those of one."""
    kind, what = "", ""
    if (
        isinstance(outputs, list | tuple)
        and outputs
        and all(isinstance(one, Mapping) and "boxes" in one for one in outputs)
    ):
        kind, what = "detection", "a detector's"
    else:
        with suppress(TrainingError):
            kind, what = {2: ("classification", "a classifier's"), 4: ("segmentation", "a segmentation network's")}.get(
                heads(outputs)[0].ndim, ("", "")
            )
    return (f"Its outputs are {what}: did you mean ", Setting("task", kind), "?") if kind else ()


def of_example(network: nn.Module, data: Data, objective: Objective, how: Callable[[nn.Module, B.Batch], Any]) -> Any:
    """What a function of the network and a batch gives for one example of validation, or else of training, on the network's
    device."""
    split = "train" if data.val is None else "val"
    check = Check(network, split)
    batch = B.as_batch(B.first(getattr(data, split), split), 0, split, labels=False, whole=objective.whole)
    batch = B.to_device(check.fit(B.rows_of(batch, 0, 1), 0), device_of(network))
    with check.running(batch, 0):
        return how(network, batch)


def _pairs(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Evaluation on pairs of inputs and targets."""
    inputs, targets = batch
    return call(model, inputs), targets


def bundle(
    train: Samples,
    val: Samples | None,
    transforms: Transforms,
    reading: Reading,
    names: tuple[str, ...],
    shape: tuple[int, ...] | None = None,
) -> Data:
    """Loaders of samples, those of training in random order and augmented. names: of the classes. shape: of one input, where
    all have the same."""
    mean, std = statistics(reading.normalize)

    def loader(samples: Samples, **more: Any) -> SampleLoader:
        return SampleLoader(
            samples, transforms, workers=default_workers(), skip=reading.skip_unreadable, batch_size=reading.batch_size,
            mean=mean, std=std, rank=reading.rank, world_size=reading.world_size, device=reading.device,
            channels=checked_channels(reading.channels), **more,
        )  # fmt: skip

    how = Preprocess.of_whole(mean, std, reading.channels, reading.image_size)
    batches = loader(train, augment=True, shuffle=True, seed=reading.seed)
    return Data(batches, None if val is None else loader(val), names, shape, how)


def torchmetrics(task: str, module: str = "torchmetrics") -> ModuleType:
    """A module of torchmetrics. Raises ConfigError if it is not installed. task: what needs it."""
    with suppress(SpecError):  # where its operators don't load, torchmetrics cannot import it by itself
        torchvision()
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"The metrics of {task} need torchmetrics, which is not installed. Run: pip install 'secateurs[metrics]'"
        ) from error
