"""The interface of an export format."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.devices import moved
from secateurs.graph.inputs import tensors

METADATA = "secateurs"  # the key under which a file stores the network's metadata, as JSON

Shapes = dict[str, Any] | tuple[Any, ...] | None  # of the inputs: {axis: its name, or a Dim} in place of tensors


class ExportedFile(Protocol):
    """A file that is ready to run, on the CPU."""

    def run(self, inputs: Any) -> list[Tensor]:
        """Return the file's outputs for example inputs of the network."""

    def bound(self, inputs: Any) -> Callable[[], object]:
        """Return a function that runs the file on these inputs and does nothing else."""

    def metadata(self) -> dict[str, Any]:
        """Return the metadata stored in the file."""


class Writer(Protocol):
    def __call__(
        self, network: nn.Module, path: Path, inputs: Any, shapes: Shapes, outputs: Sequence[str], metadata: str
    ) -> None: ...


class Opener(Protocol):
    def __call__(self, path: Path, threads: int | None = None, precision: str = "fp32") -> ExportedFile: ...


@dataclass(frozen=True)
class Format:
    """An export format. suffix: of its files. packages: what it needs, which `extra` installs. write: exports a network in eval
    mode, on the CPU, with names for its outputs. open: opens a file in its own runtime. beside: the suffix of a second file
    that holds the weights. structured: whether it keeps the tuples and dicts that a network returns."""

    name: str
    suffix: str
    packages: tuple[str, ...]
    extra: str
    write: Writer
    open: Opener
    beside: str = ""
    structured: bool = False

    @property
    def missing(self) -> str | None:
        """Why the format cannot be used here, and what to do about it; None if it can."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if not absent:
            return None
        return f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed: pip install 'secateurs[{self.extra}]'"


def as_in_files(x: Tensor) -> Tensor:
    """Return a tensor as files take it: on the CPU, and in float32 whatever floating-point format the network is in."""
    x = moved(x.detach(), torch.device("cpu"))
    return x.float() if x.is_floating_point() else x


def arrays(inputs: Any) -> list[np.ndarray]:
    """Return the tensors of example inputs, in order, as arrays that files take."""
    return [as_in_files(x).numpy() for x in tensors(inputs)]


def called(network: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of a call with these example inputs."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def dims(shapes: Any) -> Any:
    """Convert shapes for `torch.export`, which infers how dynamic axes are related and does not take names for them."""
    if isinstance(shapes, Mapping):
        return {key: dims(value) for key, value in shapes.items()}
    if isinstance(shapes, tuple | list):
        return type(shapes)(dims(value) for value in shapes)
    return torch.export.Dim.DYNAMIC if isinstance(shapes, str) else shapes
