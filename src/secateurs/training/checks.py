"""Check batches before they reach a model: convert them if that is unambiguous, and report what does not fit with the
split, the batch and its shapes.

Floating-point inputs are converted to the dtype of the model's parameters; of batches that are passed on whole, only half
precision to float32. Integers (`uint8` images) are not, because their scaling depends on the model's training. They are passed
unchanged, and DataError is raised if the model fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.data.structure import leaves
from secateurs.errors import DataError, SecateursError, Setting
from secateurs.graph.faults import called, culprit, described, dtypes, fault, reason
from secateurs.graph.structures import map_tensors
from secateurs.training import batches as B


class Check:
    """Checks the batches of one split for one model."""

    def __init__(self, model: nn.Module, split: str) -> None:
        self.model, self.split = model, split
        own = dtypes(model)
        self.dtype = own.pop() if len(own) == 1 else None  # mixed dtypes: inputs are not converted
        self._looked = False
        self._first: B.Batch | None = None

    def fit(self, batch: B.Batch, index: int, *, every: bool = False) -> B.Batch:
        """Return the batch with floating inputs in the model's dtype. Raises DataError if the first batch is not finite, or any
        if `every`."""
        inputs = map_tensors(self._widened if batch.whole else self._converted, batch.inputs)
        if every or not self._looked:
            self._looked = True
            for name, found in (("inputs", leaves(inputs)), ("targets", leaves(batch.targets))):
                B.check_finite(found, f"{self.where(index)}: ", f"its {name}")
        return batch._replace(inputs=inputs)

    def alike(self, batch: B.Batch, index: int) -> B.Batch:
        """Return the batch if it can be evaluated with the others. Raises DataError if it differs in the number, axes, channels
        or dtypes of its inputs or targets. The sizes of images may differ."""
        self._first = self._first or batch
        if _kind(batch) != _kind(self._first):
            raise DataError(
                f"{self.where(index)} has {_shapes(batch)}, but the first has {_shapes(self._first)}: examples of different "
                "shapes and dtypes cannot be evaluated together."
            )
        return batch

    def _converted(self, x: Tensor) -> Tensor:
        return x if self.dtype is None or not x.is_floating_point() else x.to(self.dtype)

    def _widened(self, x: Tensor) -> Tensor:
        """Of a batch that is passed on whole only what the float32 copy of a network in half precision cannot take."""
        return x.float() if self.dtype == torch.float32 and x.dtype in (torch.float16, torch.bfloat16) else x

    def where(self, index: int | None) -> str:
        """Return the name of the batch in messages or, without an index, of the whole split."""
        return f"The data of {self.split}" if index is None else f"Batch {index} of {self.split}"

    @contextmanager
    def running(self, batch: B.Batch, index: int | None = None) -> Iterator[None]:
        """Convert exceptions of the model and the loss within this context to a DataError that names the batch, its shapes and
        what the model expects. Out-of-memory errors and SecateursErrors are not converted."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from error
        except (SecateursError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # from the user's code, or from PyTorch called by it
            raise DataError(f"{self.where(index)} {self._explained(error, batch)}", hint=_hint(error, batch)) from error

    def _explained(self, error: Exception, batch: B.Batch) -> str:
        """Describe what does not fit. The text follows the name of the batch."""
        given = " and ".join(map(described, leaves(batch.inputs)))
        found = culprit(error.__traceback__, self.model)
        if found is None:
            if batch.whole:
                return f"does not fit the step, forward or loss, with {given}: {reason(error)}."
            targets = " and ".join(map(described, leaves(batch.targets)))
            return f"does not fit the loss, with inputs {given} and targets {targets}: {reason(error)}."
        name, layer, got = found
        if isinstance(layer, _BatchNorm) and layer.training and got is not None and _single(got):
            return (
                f"has a single image, and {called(name, layer)} gets {tuple(got.shape)}: batch norm cannot train on one "
                "value per channel. Use another batch size, or drop the last, incomplete batch (drop_last=True)."
            )
        return f"does not fit the model, with inputs {given}: {fault(error, self.model, batch.inputs)}"


def _hint(error: Exception, batch: B.Batch) -> tuple[object, ...]:
    """Return what to do about a dict whose keys are not the model's arguments."""
    if batch.whole or not isinstance(batch.inputs, Mapping) or not isinstance(error, TypeError):
        return ()
    return (
        "A dict is passed to the model by keyword. If it is the whole batch, with the targets, say what becomes of it: ",
        Setting("forward"), ", a function (model, batch) -> (outputs, targets), or ", Setting("step"),
        ", (model, batch) -> loss.",
    )  # fmt: skip


def _kind(batch: B.Batch) -> list[Any]:
    """Return the axes, channels and dtype of one example for each tensor."""
    given, targets = leaves(batch.inputs), leaves(batch.targets)

    def shape(x: Tensor) -> Any:
        return (x.ndim, x.shape[1:2]) if x.ndim > 2 else x.shape[1:]

    return [*((shape(x), x.dtype) for x in given), *((y.ndim, y.is_floating_point()) for y in targets)]


def _shapes(batch: B.Batch) -> str:
    inputs, targets = (" and ".join(map(described, leaves(part))) for part in (batch.inputs, batch.targets))
    return f"inputs {inputs} and targets {targets}"


def _single(x: Tensor) -> bool:
    """Whether the input has one value per channel."""
    return x.ndim > 1 and x[:, 0].numel() == 1


def unscaled(x: Tensor) -> bool:
    """Whether these look like unscaled images: whole numbers up to 255, as floats. x: (N, C, *) or (N, *, C), C ≤ 4."""
    if x.ndim < 4 or not x.is_floating_point() or not (x.shape[1] <= 4 or x.shape[-1] <= 4) or not x.numel():
        return False
    low, high = x.aminmax()
    return bool((low >= 0) & (high > 64) & (high <= 255) & (x == x.round()).all())
