"""The signature of a network: what a card says about calling it, so that it can be served without guessing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from secateurs.artifact.fields import Count, Line, Open
from secateurs.data.preprocess import Preprocess
from secateurs.errors import ArtifactError
from secateurs.files import shown

_MOST = 2**31  # maximum elements of an input that an example is made of
_AXES = 64  # maximum axes of a tensor, as in PyTorch
_DEPTH = 16  # maximum depth of nested inputs


def _dtype(name: str) -> str:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"there is no dtype {shown(name)[:40]!r}")
    return name


class InputRecord(Open):
    """A tensor that the network takes.

    name: the position of a positional argument ("0"), or the name of a keyword argument. Within nested structures, a path
        ("0.boxes").
    shape: the shape of the example that the network was pruned with, including the batch.
    """

    name: Line
    shape: Annotated[list[Count], Field(max_length=_AXES)]
    dtype: Annotated[Line, AfterValidator(_dtype)]

    def __str__(self) -> str:
        axes = "x".join(map(str, self.shape)) or "a scalar"
        return f"{axes} {self.dtype}" if self.name.isdecimal() else f"{shown(self.name)}: {axes} {self.dtype}"


class Signature(Open):
    """How a network is called. inputs: the tensors that it takes. classes: the names of its outputs, in order; None if unknown.
    preprocess: how images become inputs; None if unknown."""

    inputs: list[InputRecord] = []
    classes: Annotated[list[Line], Field(max_length=1_000_000)] | None = None
    preprocess: Preprocess | None = None

    @classmethod
    def of(
        cls, example_inputs: Any, classes: Sequence[Any] | None = None, preprocess: Preprocess | None = None
    ) -> Signature:
        names = None if classes is None else [shown(str(name))[:1000] for name in classes]
        return cls(inputs=_records(example_inputs), classes=names, preprocess=preprocess)

    def examples(self) -> Any:
        """Return zeros of the recorded shapes and dtypes, as example inputs for `secateurs.trace` and other functions. Nested
        structures become lists and dicts, because other types are not on record.

        Raises ArtifactError if no inputs are on record, if they are too large, or if their names are not the
        paths of such a structure.
        """
        if large := [x for x in self.inputs if math.prod(x.shape) > _MOST]:
            raise ArtifactError(
                f"The card records an input of {math.prod(large[0].shape):,} elements, too large to make an example of it."
            )
        tree: dict[str, Any] = {}
        for x in self.inputs:
            *path, last = x.name.split(".")
            node: Any = tree
            for name in path[:_DEPTH]:
                node = node.setdefault(name, {}) if isinstance(node, dict) else None
            if len(path) > _DEPTH or not isinstance(node, dict) or last in node:
                raise _no_examples()
            node[last] = torch.zeros(x.shape, dtype=getattr(torch, x.dtype))
        found = _rebuilt(tree)
        if isinstance(found, list):
            return tuple(found)
        if found and all(name.isidentifier() for name in found):
            return found
        raise _no_examples()

    @property
    def batch(self) -> int:
        """The number of examples in the recorded inputs, from the first axis of the first input."""
        return self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else 1


def _rebuilt(tree: dict[str, Any]) -> Any:
    """Convert nested dicts whose keys are positions to lists."""
    found = {name: _rebuilt(x) if isinstance(x, dict) else x for name, x in tree.items()}
    if not any(name.isdecimal() for name in found):
        return found
    positions = [str(i) for i in range(len(found))]
    if set(found) != set(positions):  # a value that was not a tensor stood between them
        raise _no_examples()
    return [found[name] for name in positions]


def _no_examples() -> ArtifactError:
    return ArtifactError("The card does not record inputs that examples can be made of.")


def _records(example_inputs: Any) -> list[InputRecord]:
    if not isinstance(example_inputs, tuple | list | Mapping):
        example_inputs = (example_inputs,)
    return [
        InputRecord(name=shown(name)[:1000], shape=list(x.shape), dtype=str(x.dtype).removeprefix("torch."))
        for name, x in _named(example_inputs)
    ]


def _named(tree: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """Return the tensors of a structure, each with its path."""
    if isinstance(tree, Tensor):
        return [(path, tree)]
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif isinstance(tree, tuple | list):
        items = enumerate(tree)
    else:
        items = [] if not hasattr(tree, "__dict__") else vars(tree).items()
    return [found for name, x in items for found in _named(x, f"{path}.{name}" if path else str(name))]
