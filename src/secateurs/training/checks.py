"""Batches on their way to a model: they are made to fit where that is unambiguous, and what does not fit is told in terms
of the split, the batch and its shapes.

Inputs of another floating dtype than the model's parameters are converted to it. Integers (`uint8` images) are not: how
they are scaled is the model's and its training's business, so they are passed on, and refused if the model fails on them.
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

from secateurs.errors import DataError, SecateursError
from secateurs.graph.inputs import tensors
from secateurs.training import batches as B


class Check:
    """Of the batches of one split, for one model."""

    def __init__(self, model: nn.Module, split: str) -> None:
        self.model, self.split = model, split
        dtypes = _dtypes(model)
        self.dtype = dtypes.pop() if len(dtypes) == 1 else None  # of mixed dtypes: the model knows what it takes
        self._looked = False
        self._first: B.Batch | None = None

    def fit(self, batch: B.Batch, index: int) -> B.Batch:
        """The batch, floating inputs in the model's dtype. Raises DataError if the first one holds NaN or infinities."""
        inputs = B.apply(self._converted, batch.inputs)
        if not self._looked:
            self._looked = True
            for name, found in (("inputs", tensors(inputs)), ("targets", [batch.targets])):
                bad = sum(int((~x.isfinite()).sum()) for x in found if x.is_floating_point())
                if bad:
                    total = sum(x.numel() for x in found)
                    raise DataError(
                        f"{self.where(index)}: {bad:,} of {total:,} values of its {name} are NaN or infinite."
                    )
        return B.Batch(inputs, batch.targets)

    def alike(self, batch: B.Batch, index: int) -> B.Batch:
        """The batch, whose rows are going to be joined with those of the others. DataError if they can't be."""
        self._first = self._first or batch
        if _rows(batch) != _rows(self._first):
            raise DataError(
                f"{self.where(index)} has {_shapes(batch)}, and the first one {_shapes(self._first)}: examples of different "
                "shapes and kinds can't be measured together."
            )
        return batch

    def _converted(self, x: Tensor) -> Tensor:
        return x if self.dtype is None or not x.is_floating_point() else x.to(self.dtype)

    def where(self, index: int | None) -> str:
        """What the batch is called; without an index, all those that are looked at."""
        return f"The data of {self.split}" if index is None else f"Batch {index} of {self.split}"

    @contextmanager
    def running(self, batch: B.Batch, index: int | None = None) -> Iterator[None]:
        """Around the model and the loss. Whatever they raise becomes a DataError that says which batch it was, what it
        has and what the model expects; but for running out of memory, and for errors that are clear already."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from error
        except (SecateursError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # of the user's code, and of PyTorch's on its behalf
            raise DataError(f"{self.where(index)} {self._explained(error, batch)}") from error

    def _explained(self, error: Exception, batch: B.Batch) -> str:
        """What does not fit, after the name of the batch."""
        given = " and ".join(map(described, tensors(batch.inputs)))
        found = _culprit(error.__traceback__, self.model)
        if found is None:
            targets = described(batch.targets)
            return f"does not fit the loss, with inputs {given} and targets {targets}: {_reason(error)}."
        name, layer, got = found
        if isinstance(layer, _BatchNorm) and layer.training and got is not None and _single(got):
            return (
                f"has a single image, of which {_called(name, layer)} gets {tuple(got.shape)}: batch norm can't train on one "
                "value per channel. Take another batch size, or leave the last, incomplete batch out (drop_last=True)."
            )
        return f"does not fit the model, with inputs {given}: {fault(error, self.model, batch.inputs)}"


def fault(error: Exception, model: nn.Module, inputs: Any) -> str:
    """What a model that raised an error on these inputs expects, and what it got, as far as that can be told; else the
    error itself. A sentence or two."""
    name, layer, got = _culprit(error.__traceback__, model) or ("", model, None)
    first = tensors(inputs)[0]
    what, seen = _called(name, layer), first if got is None else got
    dtypes = _dtypes(model)
    if len(dtypes) == 1 and not seen.is_floating_point():
        scale = "x.float() / 255 for images in [0, 1]" if seen.dtype == torch.uint8 else "x.float()"
        return f"it computes in {_short(dtypes.pop())}. Convert them as in its training, for example by {scale}."
    if isinstance(layer, _ConvNd) and got is not None and _misses(layer, got):
        return _conv(what, layer, got, first)
    if isinstance(layer, nn.Linear) and got is not None and got.shape[-1:] != (layer.in_features,):
        return (
            f"{what} expects {layer.in_features} features and gets {tuple(got.shape)}. Mostly that means images of another "
            "size than the model is for."
        )
    return f"{'' if layer is model else f'{what} raised '}{_reason(error)}."


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.is_floating_point()}


def _reason(error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    told = reason and isinstance(error, RuntimeError | ValueError)  # others say too little without their name
    return reason if told else f"{type(error).__name__}: {reason}".rstrip(": ")


def _called(name: str, layer: nn.Module) -> str:
    return f"layer {name!r} ({type(layer).__name__})" if name else f"a {type(layer).__name__}"


def _single(x: Tensor) -> bool:
    """Whether there is one value per channel."""
    return x.ndim > 1 and x[:, 0].numel() == 1


def _misses(layer: _ConvNd, got: Tensor) -> bool:
    """Whether it is the channels or the rank that are wrong."""
    axes = len(layer.kernel_size)
    return got.ndim not in (axes + 1, axes + 2) or got.shape[-axes - 1] != layer.in_channels


def _conv(what: str, layer: _ConvNd, got: Tensor, given: Tensor) -> str:
    axes = len(layer.kernel_size)
    expected = f"({', '.join(['N', str(layer.in_channels), *'DHW'[-axes:]])})"
    text = f"{what} expects {expected} and gets {tuple(got.shape)}."
    if given.ndim == axes + 2 and given.shape[-1] == layer.in_channels != given.shape[1]:
        order = ", ".join(map(str, (0, axes + 1, *range(1, axes + 1))))
        return f"{text} Channels come first: x.permute({order})."
    return text


def _rows(batch: B.Batch) -> list[Any]:
    """What one example is, tensor by tensor."""
    given, targets = tensors(batch.inputs), batch.targets
    return [*((x.shape[1:], x.dtype) for x in given), (targets.shape[1:], targets.is_floating_point())]


def _shapes(batch: B.Batch) -> str:
    return f"inputs {' and '.join(map(described, tensors(batch.inputs)))} and targets {described(batch.targets)}"


def described(x: Tensor) -> str:
    """`(8, 3, 32, 32) float32`"""
    return f"{tuple(x.shape)} {_short(x.dtype)}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _culprit(trace: TracebackType | None, model: nn.Module) -> tuple[str, nn.Module, Tensor | None] | None:
    """The innermost module of the model in whose forward an error was raised: its name, itself, and its input. None if the
    model was not running."""
    names = {id(module): name for name, module in model.named_modules()}
    found: tuple[str, nn.Module, Tensor | None] | None = None
    for me, values in _frames(trace):
        if not isinstance(me, nn.Module):
            continue
        if found is None and not any(id(inner) in names for inner in me.modules()):
            continue  # the loss, say; but what the model has wrapped around it, or runs within it, counts
        args = values.get("args") or ()
        given = values.get("input", args[0] if isinstance(args, tuple) and args else None)
        if isinstance(given, Tensor) or found is None or found[1] is not me:
            found = (names.get(id(me), ""), me, given if isinstance(given, Tensor) else None)
    return found


def _frames(trace: TracebackType | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Of each function that was running: its `self`, and its variables."""
    while trace is not None:
        values = trace.tb_frame.f_locals
        yield values.get("self"), values
        trace = trace.tb_next
