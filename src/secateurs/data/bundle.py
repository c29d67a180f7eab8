"""The data that methods take: training batches, and optionally validation batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateurs.data.preprocess import Preprocess
from secateurs.data.structure import examples, kind_of, leaves
from secateurs.errors import DataError, a_or_an
from secateurs.keywords import explained

# inputs: a tensor (N, …), or a tuple or dict of them; targets: (N,), (N, classes), or any structure
Batch = tuple[Any, Any]


@explained(DataError, {"test": "Pass val=…, the batches that accuracy is measured on."})
@dataclass(frozen=True)
class Data:
    """Training batches, and optionally validation batches, class names, the shape of one input, and how images become inputs.

    train, val: any iterable of `(inputs, targets)` batches that can be iterated repeatedly, or a function that returns
    one. Where labels are not used, training batches may be inputs only: a tensor, a tuple of one tensor, or a dict of
    keyword arguments. With functions of your own that read a batch (`step`, `forward`), batches may be anything that holds
    tensors. `batches()` checks each batch.
    classes, preprocess: are recorded on the card of what is pruned with the data, see `secateurs.card`.

    Raises DataError if `train` or `val` cannot be batches. Each batch is checked when it is used.
    """

    train: Any
    val: Any = None
    classes: tuple[str, ...] | None = None
    input_shape: tuple[int, ...] | None = None
    preprocess: Preprocess | None = None

    def __post_init__(self) -> None:
        if self.classes is not None and (isinstance(self.classes, str) or not isinstance(self.classes, Sequence)):
            raise DataError(f"classes={self.classes!r:.60} must be a sequence of names, one for each class.")
        if self.preprocess is not None and not isinstance(self.preprocess, Preprocess):
            raise DataError(f"preprocess must be a secateurs.Preprocess, not {kind_of(self.preprocess)}.")
        for split, source in (("train", self.train), ("val", self.val)):
            if source is None and split == "val":
                continue
            if isinstance(source, str):
                raise DataError(
                    f"{split}={source!r} is a name, not batches: pass the result of secateurs.data.load({source!r})."
                )
            if isinstance(source, Tensor) or _pair(source):
                shape = tuple((source if isinstance(source, Tensor) else source[0]).shape)
                raise DataError(
                    f"{split} is {'a tensor' if isinstance(source, Tensor) else 'a pair with a tensor'} of shape {shape}, not "
                    "a sequence of batches: put it in a list, [(inputs, targets)]."
                )
            if not hasattr(source, "__iter__") and not callable(source):
                raise DataError(f"{split} must be an iterable of (inputs, targets) batches, not {kind_of(source)}.")
            if isinstance(source, (list, tuple)):
                if not source:
                    raise DataError(f"{split} is empty: it has no batch.")
                with_tensors(source[0], 0, split)

    @classmethod
    def of(cls, data: Data | Iterable[Batch] | Any) -> Data:
        """Convert training batches to Data; Data is returned as is."""
        return data if isinstance(data, cls) else cls(train=data)

    def batches(self, split: str = "train") -> Iterator[Batch]:
        """Iterate over the batches of `train` or `val`, and check that each is a pair of inputs and targets."""
        for index, batch in enumerate(self._pass(split)):
            yield paired(batch, index, split)

    def inputs(self, split: str = "train") -> Iterator[Any]:
        """Yield the inputs of the same batches, with or without targets."""
        for index, batch in enumerate(self._pass(split)):
            yield checked(batch, index, split)[0]

    def _pass(self, split: str) -> Iterator[Any]:
        source = getattr(self, split)
        if source is None:
            raise DataError(f"This data has no {split} batches: pass Data(…, {split}=…).")
        empty = True
        for batch in fresh_pass(source):
            empty = False
            yield batch
        if empty:
            raise DataError(no_batch(source, split))


def no_batch(source: Any, split: str) -> str:
    """Return the message for a pass that yields no batch."""
    if isinstance(source, Iterator):
        return (
            f"{split} yields no batch: it is a one-shot iterator, which is used up after one pass. Pass a list, a "
            "DataLoader, or a function that returns a fresh iterator."
        )
    return f"{split} is empty: it has no batch."


def with_tensors(batch: Any, index: int, split: str) -> list[Tensor]:
    """Return the tensors of a batch of any structure. Raises DataError if there are none."""
    if found := leaves(batch):
        return found
    raise DataError(
        f"Batch {index} of {split} is {kind_of(batch)}, which holds no tensor: pass pairs (inputs, targets)."
    )


def held(batch: Any, index: int, split: str) -> Any:
    """Return a batch of any structure as it is. Raises DataError if it holds no tensors or no examples."""
    found = with_tensors(batch, index, split)
    if not examples(batch):
        raise DataError(
            f"Batch {index} of {split} is empty: its first tensor has shape {tuple(found[0].shape)}. Remove it."
        )
    return batch


def checked(batch: Any, index: int, split: str) -> tuple[Any, Tensor | None]:
    """Split a batch into inputs and targets. Targets are None if the batch is inputs only: a tensor, a dict, or a tuple
    with one item, which is a tensor, a dict or a tuple of tensors. Raises DataError for any other or an empty batch."""
    alone = isinstance(batch, (tuple, list)) and len(batch) == 1
    single = batch[0] if alone else batch
    if not isinstance(single, Tensor | Mapping) and not (alone and isinstance(single, (tuple, list))):
        return paired(batch, index, split)
    where, found = f"Batch {index} of {split}", leaves(single)
    if not found or any(x.ndim == 0 for x in found):
        raise DataError(
            f"{where}: inputs must be tensors with an axis of examples, or a tuple or dict of them, not {kind_of(single)}."
        )
    if not all(len(x) for x in found):
        raise DataError(f"{where} is empty: its inputs have shape {tuple(found[0].shape)}. Remove it.")
    return single, None


def paired(batch: Any, index: int, split: str) -> Batch:
    """Return the batch as a pair of inputs and targets. Raises DataError if it is anything else or empty."""
    where = f"Batch {index} of {split}"
    if isinstance(batch, Tensor):
        raise DataError(
            f"{where} is a tensor of shape {tuple(batch.shape)}, not a pair (inputs, targets). "
            "If the data is a single batch, put it in a list: [(inputs, targets)]."
        )
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise DataError(f"{where} is {kind_of(batch)}, not a pair (inputs, targets).")
    inputs, targets = batch
    found = leaves(inputs) if isinstance(inputs, Tensor | tuple | list | Mapping) else []
    if not found:
        raise DataError(f"{where}: inputs must be a tensor, or a tuple or dict of tensors, not {kind_of(inputs)}.")
    if not isinstance(targets, Tensor) and leaves(targets):  # for a custom loss
        return inputs, targets
    if not isinstance(targets, Tensor) or targets.ndim == 0:
        kind = f"a tensor of shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else kind_of(targets)
        raise DataError(f"{where}: targets must be a tensor of N classes, not {kind}.")
    shapes = f"{tuple(found[0].shape)} and {tuple(targets.shape)}"
    if found[0].ndim and len(found[0]) != len(targets):
        raise DataError(f"{where} has {len(found[0])} inputs and {len(targets)} targets: their shapes are {shapes}.")
    if not len(targets):
        raise DataError(f"{where} is empty: the shapes of its inputs and targets are {shapes}. Remove it.")
    return inputs, targets


def _pair(source: Any) -> bool:
    """Whether this is a single batch of inputs and targets rather than a sequence of batches."""
    return (
        isinstance(source, (tuple, list))
        and len(source) == 2
        and all(isinstance(x, Tensor) for x in source)
        and source[1].ndim < source[0].ndim
    )


def fresh_pass(source: Any) -> Iterable[Any]:
    """Return the iterable for one pass. A function is called to get it. Raises DataError if it is not iterable."""
    fresh = source() if callable(source) and not hasattr(source, "__iter__") else source
    if not hasattr(fresh, "__iter__") and not hasattr(fresh, "__getitem__"):
        raise DataError(f"Data must be an iterable of (inputs, targets) batches, not {a_or_an(type(fresh).__name__)}.")
    return fresh
