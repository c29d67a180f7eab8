"""Batches of any structure: tensors in tuples, lists, mappings and dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from secateurs.errors import a_or_an
from secateurs.graph.structures import Done, map_tensors, mapped


def part(value: Any, rows: Any, n: int) -> Any:
    """Select rows of a batch of n examples, from each tensor whose first axis is n and each list of length n.

    A list of n tensors of n rows is ambiguous. It holds one item per example if another list in the batch does, such as the
    targets of a detector's images. rows: a slice, or a tensor of indices.
    """
    listed = _listed(value, n)

    def of_sequence(sequence: Any) -> Any:
        rows_of_their_own = not listed and any(isinstance(x, Tensor) and x.ndim and len(x) == n for x in sequence)
        if not isinstance(sequence, list) or len(sequence) != n or rows_of_their_own:
            return sequence
        return Done(sequence[rows] if isinstance(rows, slice) else [sequence[i] for i in rows.tolist()])

    def of_tensor(x: Tensor) -> Tensor:
        if not x.ndim or len(x) != n:
            return x
        return x[rows] if isinstance(rows, slice) else x[rows.to(x.device, non_blocking=True)]

    return mapped(value, lambda x: of_tensor(x) if isinstance(x, Tensor) else x, of_sequence)


def kind_of(value: Any) -> str:
    """Describe a value for a message: `a list of 3`, `a dict with 1 entry`, `a tensor of shape (4,)`."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a numpy.ndarray of shape {value.shape}"
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    if isinstance(value, dict):
        size = " with 1 entry" if len(value) == 1 else f" with {len(value)} entries"
    return a_or_an(type(value).__name__) + size


def leaves(value: Any) -> list[Tensor]:
    """Return all tensors of a batch, in order."""
    found: list[Tensor] = []
    map_tensors(lambda x: found.append(x) or x, value)  # type: ignore[func-returns-value]
    return found


def examples(batch: Any) -> int:
    """Return the number of examples in a batch of any structure, from its last part (targets come last): the first axis of a
    tensor, or the length of a list of dicts, pairs or dataclasses, one for each example. 1 if it cannot be determined."""
    if isinstance(batch, Tensor):
        return int(batch.shape[0]) if batch.ndim else 1
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif is_dataclass(batch) and not isinstance(batch, type):
        parts = [getattr(batch, f.name) for f in fields(batch)]
    elif isinstance(batch, tuple | list):
        parts = list(batch)
        if isinstance(batch, list) and parts and all(_is_example(x) for x in parts):
            return len(parts)
    else:
        return 1
    with_tensors = [x for x in parts if leaves(x)]
    return examples(with_tensors[-1]) if with_tensors else 1


def _listed(value: Any, n: int) -> bool:
    """Whether a list in this batch has one item for each of n examples."""
    if isinstance(value, list) and len(value) == n and all(_is_example(x) for x in value):
        return True
    if isinstance(value, Mapping):
        return any(_listed(x, n) for x in value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return any(_listed(getattr(value, f.name), n) for f in fields(value))
    return isinstance(value, tuple | list) and any(_listed(x, n) for x in value)


def _is_example(value: Any) -> bool:
    return isinstance(value, Mapping | tuple) or (is_dataclass(value) and not isinstance(value, type))
