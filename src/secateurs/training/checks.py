"""Checks of batches before they reach a model: convert them if that is unambiguous, and report what does not fit by
the split, the batch and its shapes.

Inputs of another floating dtype than the model's parameters are converted to it. Integers (`uint8` images) are not: how
to scale them depends on the model's training, so they are passed unchanged, and DataError is raised if the model fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from secateurs.data.structure import apply, leaves
from secateurs.errors import DataError, SecateursError
from secateurs.training import batches as B


class Check:
    """Checks the batches of one split for one model."""

    def __init__(self, model: nn.Module, split: str) -> None:
        self.model, self.split = model, split
        dtypes = _dtypes(model)
        self.dtype = dtypes.pop() if len(dtypes) == 1 else None  # mixed dtypes: inputs are not converted
        self._looked = False
        self._first: B.Batch | None = None

    def fit(self, batch: B.Batch, index: int) -> B.Batch:
        """The batch, with floating inputs in the model's dtype. Raises DataError if the first batch is not finite."""
        inputs = batch.inputs if batch.whole else apply(self._converted, batch.inputs)
        if not self._looked:
            self._looked = True
            for name, found in (("inputs", leaves(inputs)), ("targets", leaves(batch.targets))):
                bad = sum(int((~x.isfinite()).sum()) for x in found if x.is_floating_point())
                if bad:
                    total = sum(x.numel() for x in found)
                    raise DataError(
                        f"{self.where(index)}: {bad:,} of {total:,} values of its {name} are NaN or infinite."
                    )
        return batch._replace(inputs=inputs)

    def alike(self, batch: B.Batch, index: int) -> B.Batch:
        """The batch, to be concatenated with the others. Raises DataError if it cannot be."""
        self._first = self._first or batch
        if _rows(batch) != _rows(self._first):
            raise DataError(
                f"{self.where(index)} has {_shapes(batch)}, but the first has {_shapes(self._first)}: examples of different "
                "shapes and dtypes cannot be evaluated together."
            )
        return batch

    def _converted(self, x: Tensor) -> Tensor:
        return x if self.dtype is None or not x.is_floating_point() else x.to(self.dtype)

    def where(self, index: int | None) -> str:
        """The name of the batch in messages; without an index, of the whole split."""
        return f"The data of {self.split}" if index is None else f"Batch {index} of {self.split}"

    @contextmanager
    def running(self, batch: B.Batch, index: int | None = None) -> Iterator[None]:
        """Context around the model and the loss. Converts their exceptions to a DataError that says which batch failed, its
        shapes and what the model expects; except for out-of-memory errors and SecateursErrors."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from error
        except (SecateursError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # of the user's code, and of PyTorch's on its behalf
            raise DataError(f"{self.where(index)} {self._explained(error, batch)}") from error

    def _explained(self, error: Exception, batch: B.Batch) -> str:
        """The description of what does not fit, after the name of the batch."""
        given = " and ".join(map(described, leaves(batch.inputs)))
        found = _culprit(error.__traceback__, self.model)
        if found is None:
            if batch.whole:
                return f"does not fit the step, forward or loss, with {given}: {_reason(error)}."
            targets = " and ".join(map(described, leaves(batch.targets)))
            return f"does not fit the loss, with inputs {given} and targets {targets}: {_reason(error)}."
        name, layer, got = found
        if isinstance(layer, _BatchNorm) and layer.training and got is not None and _single(got):
            return (
                f"has a single image, and {_called(name, layer)} gets {tuple(got.shape)}: batch norm cannot train on one "
                "value per channel. Use another batch size, or drop the last, incomplete batch (drop_last=True)."
            )
        return f"does not fit the model, with inputs {given}: {fault(error, self.model, batch.inputs)}"


def fault(error: Exception, model: nn.Module, inputs: Any) -> str:
    """What a model that raised an error on these inputs expects and got, if that can be determined; else the
    error itself. A sentence or two."""
    name, layer, got = _culprit(error.__traceback__, model) or ("", model, None)
    first = leaves(inputs)[0]
    what, seen = _called(name, layer), first if got is None else got
    dtypes = _dtypes(model)
    if len(dtypes) == 1 and not seen.is_floating_point():
        scale = "x.float() / 255 for images in [0, 1]" if seen.dtype == torch.uint8 else "x.float()"
        return f"it computes in {_short(dtypes.pop())}. Convert them as in its training, for example with {scale}."
    if isinstance(layer, _ConvNd) and got is not None and _misses(layer, got):
        return _conv(what, layer, got, first)
    if isinstance(layer, nn.Linear) and got is not None and got.shape[-1:] != (layer.in_features,):
        return (
            f"{what} expects {layer.in_features} features but gets {tuple(got.shape)}. The usual cause is images of another "
            "size than the model expects."
        )
    return f"{'' if layer is model else f'{what} raised '}{_reason(error)}."


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.is_floating_point()}


def _reason(error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    clear = reason and isinstance(error, RuntimeError | ValueError)  # other exceptions are not clear without their name
    return reason if clear else f"{type(error).__name__}: {reason}".rstrip(": ")


def _called(name: str, layer: nn.Module) -> str:
    return f"layer {name!r} ({type(layer).__name__})" if name else f"a {type(layer).__name__}"


def _single(x: Tensor) -> bool:
    """Whether the input has one value per channel."""
    return x.ndim > 1 and x[:, 0].numel() == 1


def _misses(layer: _ConvNd, got: Tensor) -> bool:
    """Whether the number of channels or the rank is wrong."""
    axes = len(layer.kernel_size)
    return got.ndim not in (axes + 1, axes + 2) or got.shape[-axes - 1] != layer.in_channels


def _conv(what: str, layer: _ConvNd, got: Tensor, given: Tensor) -> str:
    axes = len(layer.kernel_size)
    expected = f"({', '.join(['N', str(layer.in_channels), *'DHW'[-axes:]])})"
    text = f"{what} expects {expected} but gets {tuple(got.shape)}."
    if given.ndim == axes + 2 and given.shape[-1] == layer.in_channels != given.shape[1]:
        order = ", ".join(map(str, (0, axes + 1, *range(1, axes + 1))))
        return f"{text} Channels come first: x.permute({order})."
    return text


def _rows(batch: B.Batch) -> list[Any]:
    """The shape and dtype of one example, tensor by tensor."""
    given, targets = leaves(batch.inputs), leaves(batch.targets)
    return [*((x.shape[1:], x.dtype) for x in given), *((y.shape[1:], y.is_floating_point()) for y in targets)]


def _shapes(batch: B.Batch) -> str:
    inputs, targets = (" and ".join(map(described, leaves(part))) for part in (batch.inputs, batch.targets))
    return f"inputs {inputs} and targets {targets}"


def described(x: Tensor) -> str:
    """`(8, 3, 32, 32) float32`"""
    return f"{tuple(x.shape)} {_short(x.dtype)}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _culprit(trace: TracebackType | None, model: nn.Module) -> tuple[str, nn.Module, Tensor | None] | None:
    """The innermost module of the model whose forward raised the error: its name, the module, and its input. None if the
    model was not running."""
    names = {id(module): name for name, module in model.named_modules()}
    found: tuple[str, nn.Module, Tensor | None] | None = None
    for me, values in _frames(trace):
        if not isinstance(me, nn.Module):
            continue
        if found is None and not any(id(inner) in names for inner in me.modules()):
            continue  # for example the loss; but modules around the model, or called by it, count
        args = values.get("args") or ()
        given = values.get("input", args[0] if isinstance(args, tuple) and args else None)
        if isinstance(given, Tensor) or found is None or found[1] is not me:
            found = (names.get(id(me), ""), me, given if isinstance(given, Tensor) else None)
    return found


def _frames(trace: TracebackType | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    """For each function on the traceback: its `self`, and its variables."""
    while trace is not None:
        values = trace.tb_frame.f_locals
        yield values.get("self"), values
        trace = trace.tb_next
