"""Where a run's network and data come from, and whether the two fit each other."""

from __future__ import annotations

import hashlib
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
from secateurs import data as D
from secateurs.data import Data
from secateurs.data.spec import absolute
from secateurs.errors import ConfigError, DataError, SecateursError, Setting
from secateurs.files import shown
from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.graph.faults import fault
from secateurs.models import build, is_artifact
from secateurs.placement import Placement
from secateurs.seeds import preserve_rng_state
from secateurs.training import CrossEntropy
from secateurs.training.batches import Batch
from secateurs.training.losses import heads
from secateurs.training.objective import Objective
from secateurs.zoo import find, load_state
from secateurs.zoo.weights import put

Builder = Callable[[Data, torch.device, int], nn.Module]  # data, where, seed of initial weights


@dataclass(frozen=True)
class DataSpec:
    """Data by name, and how its images are read.

    data: `digits` (the default), `folder:PATH`, `hf:NAME_OR_PATH` or `wds:SHARDS`.
    normalize: `imagenet` (the default), `cifar10`, `none`, or means/deviations: `0.5,0.5,0.5/0.2,0.2,0.2`.
    batch_size: images per step, 128 by default. image_size: resize images to this side.
    skip_unreadable: leave out images that can't be read, with a warning.
    """

    data: str | None = None
    normalize: str | None = None
    batch_size: int | None = None
    image_size: int | None = None
    skip_unreadable: bool | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.data or "digits"

    def over(self, defaults: Mapping[str, Any]) -> DataSpec:
        """Settings that are None here are taken from `defaults`."""
        return replace(self, **{k: defaults.get(k) for k, v in asdict(self).items() if v is None})

    def complete(self) -> DataSpec:
        """The same with the default of every setting that is None, and an absolute path."""
        filled = self.over({"data": "digits", "normalize": "imagenet", "batch_size": 128})
        return replace(filled, data=absolute(filled.name))

    def settings(self) -> dict[str, Any]:
        """The settings that must be the same in a resumed run. `skip_unreadable` may differ: a run that met an unreadable
        image can be resumed."""
        return {name: value for name, value in asdict(self).items() if name != "skip_unreadable"}

    def record(self, data: Data) -> dict[str, Any]:
        """The record on an artifact's card: how the data was read, and how many images were skipped."""
        skipped = {split: getattr(getattr(data, split), "skipped", 0) for split in ("train", "val")}
        return {**asdict(self), **({"skipped": skipped} if any(skipped.values()) else {})}

    def load(self, seed: int, device: torch.device) -> Data:
        """The images. Raises ConfigError for images of which not even a batch fits into memory, DataError and SpecError as
        `secateurs.data.load` does."""
        o = self.complete()
        o._check_memory()
        found = D.load(
            o.name,
            normalize=_normalization(o.normalize or "imagenet"),
            batch_size=128 if o.batch_size is None else o.batch_size,
            image_size=o.image_size,
            skip_unreadable=bool(o.skip_unreadable),
            seed=seed,
            device=device,
            rank=int(os.environ.get("RANK", "0")),  # as torchrun and accelerate set them
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
        )
        # Every process validates on all images: figures are wanted before and after training, too.
        return replace(found, val=None if found.val is None else found.val.whole())

    def _check_memory(self) -> None:
        if self.image_size is None or self.batch_size is None or not hasattr(os, "sysconf"):
            return
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        pixels = 3 * self.image_size**2
        digits = self.data == "digits"  # they are held whole
        need = max(4 * self.batch_size * pixels, 2 * 1797 * pixels if digits else 0)
        if need > memory:
            raise ConfigError(
                Setting("image_size", self.image_size),
                f": the images would take {need / 2**30:,.0f} GiB at once, and this machine has {memory / 2**30:,.0f}.",
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

    def load(self, seed: int, device: torch.device) -> Data:
        return self.data


def as_source(data: str | DataSpec | Data) -> DataSpec | DataObject:
    """Where a run's data comes from, as the run uses it."""
    if isinstance(data, Data):
        return DataObject(data)
    return (DataSpec(data) if isinstance(data, str) else data).complete()


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
            return _digest(self.model)
        return None if self.file is None else artifact.digest(self.file)

    def open(self) -> Builder:
        """What builds the network when the data is loaded. Raises now for a model that cannot be found and weights that
        cannot be read: reading data may take a while."""
        if isinstance(self.model, nn.Module):
            if self.weights is not None or self.num_classes is not None:
                name = "weights" if self.weights is not None else "num_classes"
                raise ConfigError(Setting(name), " is for a model that is named by a spec, not for a module.")
            return partial(_placed, self.model)
        if self.is_artifact:
            network = self.loaded
            if network is None:
                network = build(self.model, self.weights, self.num_classes, trust_code=self.trust_code)
            return partial(_placed, network, name=self.name)
        find(self.model)
        state = None if self.weights is None else load_state(self.weights)
        advice = None
        if self.num_classes is not None:  # a factory of the user's own need not take it
            advice = "give the data that the network is for, or a network that is made for so many classes."

        def made(data: Data, where: torch.device, seed: int) -> nn.Module:
            torch.manual_seed(seed)  # of initial weights
            model = build(self.name, None, self.num_classes or len(data.classes or ()) or None)
            if state is not None and self.weights is not None:
                put(model, state, self.weights, self.name)
            return _placed(model, data, where, seed, name=self.name, advice=advice)

        return made

    def build(self, data: Data, where: torch.device, seed: int = 0) -> nn.Module:
        """The network for this data; DataError if it does not fit."""
        return self.open()(data, where, seed)


def _placed(
    model: nn.Module, data: Data, where: torch.device, seed: int, name: str = "", advice: object = None
) -> nn.Module:
    network = Placement.of(model).working_copy(model, where)
    check_model_fits_data(network, data, name or type(model).__qualname__, advice)
    return network


def _digest(model: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers, names included."""
    found = hashlib.sha256()
    for name, tensor in sorted(named_tensors(model).items()):
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(content.numpy().tobytes())
    return found.hexdigest()


def example(data: Data) -> torch.Tensor:
    """One image as the network gets it, to trace with: (1, …)."""
    inputs = next(iter(data.inputs("train" if data.val is None else "val")))
    first: torch.Tensor = inputs[:1]
    return first


def rewind(data: Data) -> None:
    """Reset the training batches to epoch 0: what a method reads must not depend on earlier training."""
    if hasattr(data.train, "set_epoch"):
        data.train.set_epoch(0)


def check_model_fits_data(model: nn.Module, data: Data, name: str, advice: object = None) -> None:
    """Raise DataError if the network does not take the data's images, or has another number of classes.

    advice: what to do in the second case; by default to pass `num_classes`.
    """
    inputs, classes, training = example(data), len(data.classes or ()), model.training
    try:
        with torch.no_grad():
            logits, _ = heads(model.eval()(inputs))
    except SecateursError:
        raise
    except Exception as error:  # of the network's own code
        raise _misfit(model, name, "run", inputs, error) from error
    finally:
        model.train(training)
    if classes and logits.ndim == 2 and logits.shape[1] != classes:
        usual = ("pass ", Setting("num_classes", classes), ", or the data that the network is for.")
        hint = usual if advice is None else (advice,)
        raise DataError(f"{name} has {logits.shape[1]} outputs and the data {classes} classes: ", *hint)


def check_trains(model: nn.Module, inputs: torch.Tensor, name: str) -> None:
    """Raise DataError if the network, which runs on such images, cannot be trained on them. It is left as it is.

    inputs: (1, …), of which a batch of two is made.
    """
    probe = copied(model).train()
    batch = Batch(torch.cat([inputs, inputs]), torch.zeros(2, dtype=torch.long, device=inputs.device))
    try:
        with preserve_rng_state():
            Objective().train(probe, batch, CrossEntropy())[2].backward()
    except SecateursError:
        raise
    except Exception as error:  # of the network's own code
        raise _misfit(probe, name, "train", inputs, error) from error


def _misfit(model: nn.Module, name: str, what: str, inputs: torch.Tensor, error: Exception) -> DataError:
    """The error for a network that does not accept an image."""
    shape = "x".join(map(str, inputs.shape[1:]))
    return DataError(
        f"{name} does not {what} on images of {shape}: {fault(error, model, inputs)}",
        hint=(Setting("image_size"), " resizes them."),
    )


def _normalization(text: str) -> Any:
    """A name, or ((means), (deviations))."""
    if "/" not in text:
        return text
    given = Setting("normalize", text)
    try:
        mean, std = (tuple(float(v) for v in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise ConfigError(given, ": write means/deviations, such as 0.5,0.5,0.5/0.2,0.2,0.2.") from None
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ConfigError(
            given, ": give three means and three deviations above 0, such as 0.5,0.5,0.5/0.2,0.2,0.2."
        )  # fmt: skip
    return mean, std
