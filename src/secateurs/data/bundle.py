"""What every method takes as data: batches to train on, and perhaps batches to validate on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateurs.errors import DataError

Batch = tuple[Any, Tensor]  # inputs: a tensor (N, …), or a tuple or dict of them; targets: (N,) or (N, classes)


@dataclass(frozen=True)
class Data:
    """Training batches, and optionally validation batches, class names and the shape of one input.

    train, val: any iterable of `(inputs, targets)` batches that can be gone through again, or a function that returns
    one. A list is checked at once, by its first batch; `batches()` checks each batch. DataError if one is not a pair
    of tensors.
    """

    train: Any
    val: Any = None
    classes: tuple[str, ...] | None = None
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for split, source in (("train", self.train), ("val", self.val)):
            if source is None and split == "val":
                continue
            if isinstance(source, str):
                raise DataError(f"{split}={source!r} is a name, not batches: pass what data.load({source!r}) returns.")
            if not hasattr(source, "__iter__") and not callable(source):
                raise DataError(f"{split} must be an iterable of (inputs, targets) batches, not {_kind(source)}.")
            if isinstance(source, (list, tuple)):
                if not source:
                    raise DataError(f"{split} is empty: there is no batch in it.")
                _check(source[0], 0, split)

    @classmethod
    def of(cls, data: Data | Iterable[Batch] | Any) -> Data:
        """Data as it is; anything else as the training batches."""
        return data if isinstance(data, cls) else cls(train=data)

    def batches(self, split: str = "train") -> Iterator[Batch]:
        """The batches of `train` or `val`, each checked to be a pair of inputs and targets."""
        source = getattr(self, split)
        if source is None:
            raise DataError(f"There are no {split} batches in this data: pass Data(…, {split}=…).")
        fresh = source() if callable(source) and not hasattr(source, "__iter__") else source
        for index, batch in enumerate(fresh):
            yield _check(batch, index, split)


def _check(batch: Any, index: int, split: str) -> Batch:
    where = f"Batch {index} of {split}"
    if isinstance(batch, Tensor):
        raise DataError(
            f"{where} is a tensor of shape {tuple(batch.shape)}, not a pair (inputs, targets). "
            "If the data is a single batch, put it in a list: [(inputs, targets)]."
        )
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise DataError(f"{where} is {_kind(batch)}, not a pair (inputs, targets).")
    inputs, targets = batch
    leaves = list(inputs.values()) if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else [inputs]
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise DataError(f"{where}: inputs must be a tensor, or a tuple or dict of tensors, not {_kind(leaf)}.")
    if not isinstance(targets, Tensor) or targets.ndim == 0:
        raise DataError(f"{where}: targets must be a tensor of N classes, not {_kind(targets)}.")
    if leaves and leaves[0].ndim and len(leaves[0]) != len(targets):
        raise DataError(f"{where} has {len(leaves[0])} inputs and {len(targets)} targets.")
    return inputs, targets


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"a {name} of {len(value)}" if isinstance(value, (tuple, list, dict)) else f"a {name}"
