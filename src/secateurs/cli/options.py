"""What several commands take, and how it becomes a network, data and a device."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token
from cyclopts.validators import Number
from rich.console import Console

from secateurs.errors import ConfigError, DataError, SecateursError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateurs.data import Data
    from secateurs.methods import Method, Task


def _folder(_type: type, tokens: Sequence[Token]) -> Path:
    if not tokens[0].value.strip():  # as a path it would be the working directory
        raise ValueError("it is empty, name a folder.")
    return Path(tokens[0].value)


Folder = Annotated[Path, Parameter(converter=_folder)]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**63))]


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
    data: str | None = None
    """`digits` (the default), `folder:PATH` with train/CLASS/… and test/CLASS/… (or val/), `hf:NAME_OR_PATH` or
    `wds:SHARDS,SHARDS`"""
    normalize: str | None = None
    """`imagenet` (the default), `cifar10`, `none`, or means/deviations: 0.5,0.5,0.5/0.2,0.2,0.2"""
    batch_size: Count | None = None
    """images per step, 128 by default"""
    image_size: Count | None = None
    """resize images to this side; without it all must be of one size"""
    skip_unreadable: Annotated[bool | None, Parameter(negative="", show_default=False)] = None
    """leave out images that can't be read, with a warning; without it they are an error"""

    def over(self, defaults: Mapping[str, Any]) -> DataOptions:
        """What is left open here, as it is there."""
        return replace(self, **{k: defaults.get(k) for k, v in asdict(self).items() if v is None})

    def complete(self) -> DataOptions:
        """What is still left open, as usual; paths are absolute from here on."""
        from secateurs.data.spec import absolute

        filled = self.over({"data": "digits", "normalize": "imagenet", "batch_size": 128})
        return replace(filled, data=absolute(filled.data or "digits"))

    def settings(self) -> dict[str, Any]:
        """What a resumed run has to agree in. That images which can't be read are left out is no part of it: a run that
        met one is resumed without it."""
        return {name: value for name, value in asdict(self).items() if name != "skip_unreadable"}

    def record(self, data: Data) -> dict[str, Any]:
        """What an artifact's card says of the data: how it was read, and how much of it could not be."""
        skipped = {split: getattr(getattr(data, split), "skipped", 0) for split in ("train", "val")}
        return {**asdict(self), **({"skipped": skipped} if any(skipped.values()) else {})}

    def load(self, seed: int, device: torch.device) -> Data:
        from secateurs import data

        o = self.complete()
        self._check_memory()
        found = data.load(
            o.data or "digits",
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
        """Raise ConfigError for images of which not even a batch fits into the machine."""
        o = self.complete()
        if o.image_size is None or o.batch_size is None or not hasattr(os, "sysconf"):
            return
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        pixels = 3 * o.image_size**2
        need = max(4 * o.batch_size * pixels, 2 * 1797 * pixels if o.data == "digits" else 0)  # digits are held whole
        if need > memory:
            raise ConfigError(
                f"--image-size {o.image_size}: the images would take {need / 2**30:,.0f} GiB at once, and this machine has "
                f"{memory / 2**30:,.0f}. Give a smaller --image-size"
                + ("." if o.data == "digits" else " or --batch-size.")
            )


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    weights: Path | None = None
    """trained weights: a .safetensors, or a state dict that loads without pickle"""
    num_classes: Count | None = None
    """outputs of the network; by default as many as the data has classes"""
    trust_code: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """of an artifact: import and run the code, and fetch the data, that its card names"""

    def check(self, spec: str) -> None:
        """Raise now for a model that cannot be built or weights that are not there: reading data may take a while."""
        import secateurs as sc
        from secateurs.zoo import load_state

        sc.build(spec, num_classes=self.num_classes, trust_code=self.trust_code)
        if self.weights is not None:
            load_state(self.weights)

    def build(self, spec: str, data: Data, device: torch.device, seed: int = 0) -> nn.Module:
        """The network for this data; DataError if it has another number of outputs than the data has classes."""
        import torch

        import secateurs as sc

        torch.manual_seed(seed)  # of initial weights
        classes = len(data.classes or ()) or None
        model = sc.build(spec, self.weights, self.num_classes or classes, trust_code=self.trust_code).to(device)
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


def suits(model: nn.Module, data: Data, name: str, advice: str = "") -> None:
    """Raise DataError if the network does not take the data's images, or tells another number of classes apart.

    advice: what to do in the second case; by default --num-classes.
    """
    import torch

    from secateurs.training.metrics import heads

    inputs, classes, training = example(data), len(data.classes or ()), model.training
    try:
        with torch.no_grad():
            logits, _ = heads(model.eval()(inputs))
    except SecateursError:
        raise
    except Exception as error:  # of the network's own code
        raise DataError(_unfit(model, name, "run", inputs, error)) from error
    finally:
        model.train(training)
    if classes and logits.ndim == 2 and logits.shape[1] != classes:
        advice = advice or f"pass --num-classes {classes}, or the data that the network is for."
        raise DataError(f"{name} has {logits.shape[1]} outputs and the data {classes} classes: {advice}")


def trains(model: nn.Module, inputs: torch.Tensor, name: str) -> None:
    """Raise DataError if the network, which runs on such images, cannot be trained on them. It is left as it is.

    inputs: (1, …), of which a batch of two is made.
    """
    import torch

    from secateurs.training import CrossEntropy
    from secateurs.training.batches import Batch
    from secateurs.training.metrics import forward
    from secateurs.training.seeds import preserve_rng_state

    probe = copy.deepcopy(model).train()
    batch = Batch(torch.cat([inputs, inputs]), torch.zeros(2, dtype=torch.long, device=inputs.device))
    try:
        with preserve_rng_state():
            forward(probe, batch, CrossEntropy())[1].backward()
    except SecateursError:
        raise
    except Exception as error:  # of the network's own code
        raise DataError(_unfit(probe, name, "train", inputs, error)) from error


def _unfit(model: nn.Module, name: str, what: str, inputs: torch.Tensor, error: Exception) -> str:
    """Why a network does not take an image."""
    from secateurs.training.checks import fault

    shape = "x".join(map(str, inputs.shape[1:]))
    return f"{name} does not {what} on images of {shape}: {fault(error, model, inputs)} --image-size resizes them."


def feasible(method: Method, task: Task, prefix: str = "") -> None:
    """Raise now if the method lacks something, or if the budget cannot be met. prefix: of its settings, as they are
    written."""
    try:
        method.check(task)
    except ConfigError as error:  # the method's own settings, as they are written here
        names = "|".join(type(method).model_fields)
        raise ConfigError(re.sub(rf"(?<![-\w.])({names})=", rf"--set {prefix}\1=", str(error))) from error
    method.feasible(task)


def pick(device: str | None) -> torch.device:
    """The device asked for, else an accelerator if one can be used. ConfigError for one that cannot be used, or for more
    processes than this machine has GPUs."""
    from secateurs.devices import usable
    from secateurs.training.processes import check

    check(device)
    return usable(device, "--device ")


class _Plain(Console):
    """Off a terminal: lines as wide as they need to be, and no wider."""

    def print(self, *objects: Any, **style: Any) -> None:
        with self.capture() as captured:
            super().print(*objects, **style)
        self.file.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def out() -> Console:
    """Where results go."""
    console = Console(highlight=False, markup=False)  # reasons and paths may hold brackets
    return console if console.is_terminal else _Plain(highlight=False, markup=False, width=1000)


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
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ConfigError(
            f"--normalize {text}: give three means and three deviations above 0, such as 0.5,0.5,0.5/0.2,0.2,0.2."
        )
    return mean, std
