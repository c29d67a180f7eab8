"""Where a run's network and data come from, and whether the two fit each other."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs import artifact
from secateurs.data import Data
from secateurs.data.spec import absolute, remote
from secateurs.devices import memory
from secateurs.errors import ConfigError, Setting
from secateurs.files import shown
from secateurs.keywords import explained
from secateurs.models import build, is_artifact
from secateurs.placement import Placement
from secateurs.tasks import Classification, Reading, VisionTask
from secateurs.tasks.purpose import OTHER, Purpose
from secateurs.zoo import load_state, takes_classes
from secateurs.zoo.weights import put

Builder = Callable[[Data, torch.device, int], nn.Module]  # data, where, seed of initial weights


@explained(ConfigError)
@dataclass(frozen=True)
class DataSpec:
    """Data by name, and how its images are read.

    data: `digits` (the default of classification), `folder:PATH`, `hf:NAME_OR_PATH` or `wds:SHARDS`.
    normalize: `imagenet` (the default), `cifar10`, `none`, or means/deviations: `0.5,0.5,0.5/0.2,0.2,0.2`, or `0.5/0.2`.
    batch_size: images per step, 128 by default, 16 where each pixel or object has a label. image_size: resize images to this
        side. channels: 3 (RGB, the default) or 1 (grayscale).
    skip_unreadable: leave out images that can't be read, with a warning.
    """

    data: str | None = None
    normalize: str | None = None
    batch_size: int | None = None
    image_size: int | None = None
    channels: int | None = None
    skip_unreadable: bool | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.data or "digits"

    def over(self, defaults: Mapping[str, Any]) -> DataSpec:
        """Settings that are None here are taken from `defaults`."""
        return replace(self, **{k: defaults.get(k) for k, v in asdict(self).items() if v is None})

    def complete(self, task: VisionTask | None = None, network: NetworkSpec | None = None) -> DataSpec:
        """The same with the task's default of every setting that is None, and an absolute path. Raises ConfigError without
        data, where the task has no default.

        network: if it is an artifact, its data and how its images are read come before the task's defaults."""
        task = task or Classification()
        filled = (self if network is None else self.over(network.reads(self.data is None))).over(task.defaults)
        if filled.data is None:
            raise ConfigError(f"{task.name} needs data: give ", Setting("data"), ", such as folder:PATH.")
        return replace(filled, data=absolute(filled.data))

    def settings(self) -> dict[str, Any]:
        """The settings that must be the same in a resumed run. `skip_unreadable` may differ: a run that met an unreadable
        image can be resumed."""
        found = {name: value for name, value in asdict(self).items() if name != "skip_unreadable"}
        return {name: value for name, value in found.items() if name != "channels" or value is not None}

    def record(self, data: Data) -> dict[str, Any]:
        """The record on an artifact's card: how the data was read, and how many images were skipped."""
        skipped = {split: getattr(getattr(data, split), "skipped", 0) for split in ("train", "val")}
        return {
            **self.settings(),
            "skip_unreadable": self.skip_unreadable,
            **({"skipped": skipped} if any(skipped.values()) else {}),
        }

    def load(self, seed: int, device: torch.device, task: VisionTask | None = None, classes: int | None = None) -> Data:
        """The images. classes: their number, if the user gave it. Raises ConfigError for images of which not even a batch fits
        into memory, DataError and SpecError as the task does (`secateurs.data.load` for classification)."""
        task = task or Classification()
        o = self.complete(task)
        o._check_memory()
        reading = Reading(
            normalize=_normalization(o.normalize or "imagenet"),
            batch_size=128 if o.batch_size is None else o.batch_size,
            image_size=o.image_size,
            channels=3 if o.channels is None else o.channels,
            skip_unreadable=bool(o.skip_unreadable),
            classes=classes,
            seed=seed,
            device=device,
            rank=int(os.environ.get("RANK", "0")),  # as torchrun and accelerate set them
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
        )
        found = task.load(o.name, reading)
        # Every process validates on all images: figures are wanted before and after training, too.
        return replace(found, val=None if found.val is None else found.val.whole())

    def _check_memory(self) -> None:
        have = memory()
        if self.image_size is None or self.batch_size is None or have is None:
            return
        pixels = 3 * self.image_size**2
        digits = self.data == "digits"  # they are held whole
        need = max(4 * self.batch_size * pixels, 2 * 1797 * pixels if digits else 0)
        if need > have:
            raise ConfigError(
                Setting("image_size", self.image_size),
                f": the images would take {need / 2**30:,.0f} GiB at once, and this machine has {have / 2**30:,.0f}.",
                hint=(
                    "Make ",
                    Setting("image_size"),
                    *(() if digits else (" or ", Setting("batch_size"))),
                    " smaller.",
                ),
            )


@dataclass(frozen=True)
class DataObject:
    """Data that is already loaded. A resumed run cannot check whether it is the same."""

    data: Data
    name = "the given data"

    def settings(self) -> dict[str, Any]:
        return DataSpec().settings()

    def record(self, data: Data) -> None:
        return None

    def load(self, seed: int, device: torch.device, task: VisionTask | None = None, classes: int | None = None) -> Data:
        return self.data


def as_source(data: str | DataSpec | Data, task: VisionTask, network: NetworkSpec) -> DataSpec | DataObject:
    """Where the data of a run of this network comes from, as the run uses it."""
    if isinstance(data, Data):
        return DataObject(data)
    return (DataSpec(data) if isinstance(data, str) else data).complete(task, network)


def recorded(card: artifact.Card) -> dict[str, Any]:
    """What a card says of the data: settings of a `DataSpec`."""
    found: dict[str, Any] = {}
    how = None if card.signature is None else card.signature.preprocess
    if how is not None:
        side = how.size[0] if how.size and how.resize is not None and how.size[0] == how.size[1] else None
        normalize = "/".join(",".join(map(repr, values)) for values in (how.mean, how.std))
        found = {"normalize": normalize, "image_size": side, **({"channels": 1} if how.channels == "L" else {})}
    return found | ({} if card.data is None else card.data.model_dump(exclude_none=True))


def check_fetched(named: str, trusted: bool) -> None:
    """Raise ConfigError for data that a card names and that would be fetched from the network."""
    if not trusted and remote(named):
        raise ConfigError(
            f"{shown(named)} would be fetched from the network: give it as ", Setting("data"), " if you mean it (or ",
            Setting("trust_code", True), ").",
        )  # fmt: skip


@dataclass(frozen=True)
class NetworkSpec:
    """A network to prune: a spec (or an artifact's folder) and weights, or a module with its own.

    num_classes: outputs of the network; by default as many as the data has classes.
    trust_code: import and run the code, and fetch the data, that an artifact's card names.
    loaded: the network of the artifact, where it is in memory already; it is not read again.
    """

    model: str | nn.Module
    weights: Path | None = None
    num_classes: int | None = None
    trust_code: bool = False
    loaded: nn.Module | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.model if isinstance(self.model, str) else type(self.model).__qualname__

    @property
    def is_artifact(self) -> bool:
        return isinstance(self.model, str) and is_artifact(self.model)

    def reads(self, data: bool) -> dict[str, Any]:
        """How an artifact's card says that images are read; empty for another network. data: also which data."""
        if not self.is_artifact:
            return {}
        found = recorded(artifact.read(self.name)[1])
        if data and found.get("data"):
            check_fetched(found["data"], self.trust_code)
        return {name: found.get(name) for name in (*(["data"] * data), "normalize", "image_size", "channels")}

    @property
    def file(self) -> Path | None:
        """The file that its weights are in."""
        if self.weights is None and self.is_artifact:
            return artifact.place(self.name, artifact.MODEL)
        return self.weights

    @property
    def file_of(self) -> str | None:
        """What `file` belongs to, for messages; None if the setting `weights` names it."""
        return None if self.weights is not None else f"The artifact {shown(self.name)}"

    @property
    def has_weights(self) -> bool:
        """Whether it can be pruned without being trained first."""
        return self.file is not None or isinstance(self.model, nn.Module)

    def digest(self) -> str | None:
        """A digest of its weights; None if it has none yet."""
        if isinstance(self.model, nn.Module):
            return artifact.weights_digest(self.model)
        return None if self.file is None else artifact.digest(self.file)

    def open(self, purpose: Purpose | None = None) -> Builder:
        """What builds the network when the data is loaded. Raises now for a model that cannot be found and weights that
        cannot be read: reading data may take a while."""
        purpose = purpose or Purpose()
        if isinstance(self.model, nn.Module):
            if self.weights is not None or self.num_classes is not None:
                name = "weights" if self.weights is not None else "num_classes"
                raise ConfigError(Setting(name), " is for a model that is named by a spec, not for a module.")
            return partial(_placed, purpose, self.model)
        if self.is_artifact:
            network = self.loaded
            if network is None:
                network = build(self.model, self.weights, self.num_classes, trust_code=self.trust_code)
            return partial(_placed, purpose, network, name=self.name)
        advice: tuple[object, ...] = OTHER
        if not takes_classes(self.model):  # a factory of the user's own
            own = (
                "the factory has no parameter num_classes, so that ",
                Setting("num_classes"),
                " does not reach it. Give it one",
            )
            advice = (*own, ", or give the data that the network is for.")
        state = None if self.weights is None else load_state(self.weights)

        def made(data: Data, where: torch.device, seed: int) -> nn.Module:
            torch.manual_seed(seed)  # of initial weights
            classes = self.num_classes or len(data.classes or ()) or None
            model = build(self.name, **purpose.task.options(self.name, classes, state))
            if state is not None and self.weights is not None:
                put(model, state, self.weights, self.name)
            return _placed(purpose, model, data, where, seed, name=self.name, advice=advice)

        return made

    def build(self, data: Data, where: torch.device, seed: int = 0) -> nn.Module:
        """The network for this data; DataError if it does not fit."""
        return self.open()(data, where, seed)


def _placed(
    purpose: Purpose, model: nn.Module, data: Data, where: torch.device, seed: int, name: str = "",
    advice: tuple[object, ...] = OTHER,
) -> nn.Module:  # fmt: skip
    network = Placement.of(model).working_copy(model, where)
    purpose.check_fits(network, data, name or type(model).__qualname__, advice)
    return network


def rewind(data: Data) -> None:
    """Reset the training batches to epoch 0: what a method reads must not depend on earlier training."""
    if hasattr(data.train, "set_epoch"):
        data.train.set_epoch(0)


def _normalization(text: str) -> Any:
    """A name, or ((means), (deviations))."""
    if "/" not in text:
        return text
    given = Setting("normalize", text)
    try:
        mean, std = (tuple(float(v) for v in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise ConfigError(given, ": write means/deviations, such as 0.5,0.5,0.5/0.2,0.2,0.2.") from None
    if len(mean) != len(std) or len(mean) not in (1, 3) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ConfigError(
            given, ": give three means and three deviations above 0, such as 0.5,0.5,0.5/0.2,0.2,0.2, or one of each."
        )  # fmt: skip
    return mean, std
