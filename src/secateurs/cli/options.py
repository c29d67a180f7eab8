"""What several commands take, and how it becomes a network, data and a device."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token
from rich.console import Console

from secateurs.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateurs.data import Data


def _folder(_type: type, tokens: Sequence[Token]) -> Path:
    if not tokens[0].value.strip():  # as a path it would be the working directory
        raise ValueError("it is empty, name a folder.")
    return Path(tokens[0].value)


Folder = Annotated[Path, Parameter(converter=_folder)]


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
    data: str | None = None
    """`digits` (the default), `folder:PATH` with train/CLASS/… and test/CLASS/… (or val/), `hf:NAME_OR_PATH` or
    `wds:SHARDS,SHARDS`"""
    normalize: str | None = None
    """`imagenet` (the default), `cifar10`, `none`, or means/deviations: 0.5,0.5,0.5/0.2,0.2,0.2"""
    batch_size: int | None = None
    """images per step, 128 by default"""
    image_size: int | None = None
    """resize images to this side; without it all must be of one size"""

    def over(self, defaults: Mapping[str, Any]) -> DataOptions:
        """What is left open here, as it is there."""
        return replace(self, **{k: defaults.get(k) for k, v in asdict(self).items() if v is None})

    def complete(self) -> DataOptions:
        """What is still left open, as usual."""
        return self.over({"data": "digits", "normalize": "imagenet", "batch_size": 128})

    def load(self, seed: int, device: torch.device) -> Data:
        from secateurs import data

        o = self.complete()
        found = data.load(
            o.data or "digits",
            normalize=_normalization(o.normalize or "imagenet"),
            batch_size=128 if o.batch_size is None else o.batch_size,
            image_size=o.image_size,
            seed=seed,
            device=device,
            rank=int(os.environ.get("RANK", "0")),  # as torchrun and accelerate set them
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
        )
        # Every process validates on all images: figures are wanted before and after training, too.
        return replace(found, val=None if found.val is None else found.val.whole())


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    weights: Path | None = None
    """trained weights: a .safetensors, or a state dict that loads without pickle"""
    num_classes: int | None = None
    """outputs of the network; by default as many as the data has classes"""

    def check(self, spec: str) -> None:
        """Raise now for a model that cannot be built or weights that are not there: reading data may take a while."""
        import secateurs as sc
        from secateurs.zoo import load_state

        sc.build(spec, num_classes=self.num_classes)
        if self.weights is not None:
            load_state(self.weights)

    def build(self, spec: str, data: Data, device: torch.device, seed: int = 0) -> nn.Module:
        """The network for this data; DataError if it has another number of outputs than the data has classes."""
        import torch

        import secateurs as sc

        torch.manual_seed(seed)  # of initial weights
        classes = len(data.classes or ()) or None
        model = sc.build(spec, self.weights, self.num_classes or classes).to(device)
        suits(model, data, spec)
        return model


def example(data: Data) -> torch.Tensor:
    """One image as the network gets it, to trace with: (1, …)."""
    inputs, _ = next(iter(data.batches("train" if data.val is None else "val")))
    first: torch.Tensor = inputs[:1]
    return first


def rewind(data: Data) -> None:
    """Training batches from epoch 0 again: what a method reads of them must not depend on what was trained before."""
    if hasattr(data.train, "set_epoch"):
        data.train.set_epoch(0)


def suits(model: nn.Module, data: Data, name: str) -> None:
    """Raise DataError if the network does not take the data's images, or tells another number of classes apart."""
    import torch

    from secateurs.training.metrics import heads

    inputs, classes, training = example(data), len(data.classes or ()), model.training
    try:
        with torch.no_grad():
            logits, _ = heads(model.eval()(inputs))
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, inputs.shape[1:]))
        raise DataError(f"{name} does not run on images of {shape} (--image-size resizes them): {error}") from error
    finally:
        model.train(training)
    if classes and logits.ndim == 2 and logits.shape[1] != classes:
        raise DataError(
            f"{name} has {logits.shape[1]} outputs and the data {classes} classes: "
            f"pass --num-classes {classes}, or the data that the network is for."
        )


def pick(device: str | None) -> torch.device:
    """The device asked for, else an accelerator if there is one."""
    import torch

    try:
        if device is not None:
            return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"--device {device} cannot be used here: {reason}") from error
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def out() -> Console:
    """Where results go. Off a terminal lines are as wide as they need to be."""
    console = Console(highlight=False, markup=False)  # reasons and paths may hold brackets
    return console if console.is_terminal else Console(highlight=False, markup=False, width=1000)


def first() -> bool:
    """Whether this process is the one that prints and writes; of several, as torchrun and accelerate number them."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Progress, and whatever else is no result."""
    if not first():
        return
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(line, markup=False)


def _normalization(text: str) -> Any:
    """A name, or ((means), (deviations))."""
    if "/" not in text:
        return text
    try:
        mean, std = (tuple(float(v) for v in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise ConfigError(f"--normalize {text}: write means/deviations, such as 0.5,0.5,0.5/0.2,0.2,0.2.") from None
    return mean, std
