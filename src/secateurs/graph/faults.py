"""Explain why a network does not run on its inputs, in terms of its layers and their shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from secateurs.errors import SecateursError, TraceError, a_or_an
from secateurs.graph.frames import raised_at
from secateurs.graph.leaves import tensors


def fault(error: Exception, model: nn.Module, inputs: Any) -> str:
    """Return a sentence or two: what a model that raised an error on these inputs expects and got, if that can be
    determined; else the error itself."""
    name, layer, got = culprit(error.__traceback__, model) or ("", model, None)
    first = next(iter(tensors(inputs)), None)
    what, seen, own = called(name, layer), first if got is None else got, dtypes(model)
    if len(own) == 1 and seen is not None and not (seen.is_floating_point() or seen.is_complex()):
        if seen.dtype == torch.uint8:
            return (
                "it gets bytes (uint8). Scale them as in its training, such as by x.float() / 255 for images in [0, 1]."
            )
        return f"it computes in {_short(own.pop())}. Convert them as in its training, for example with x.float()."
    if isinstance(layer, _ConvNd) and got is not None and _misses(layer, got):
        return _conv(what, layer, got, got if first is None else first)
    if isinstance(layer, nn.Linear) and got is not None and got.shape[-1:] != (layer.in_features,):
        return (
            f"{what} expects {layer.in_features} features but gets {tuple(got.shape)}. The usual cause is images of another "
            "size than the model expects."
        )
    line = raised_at(error.__traceback__)
    return f"{'' if layer is model else f'{what} raised '}{reason(error)}{f' ({line})' if line else ''}."


def dtypes(model: nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.is_floating_point()}


def reason(error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    reason = re.sub(r",? but expected one of:?$", "", reason)  # the lines that follow
    clear = reason and isinstance(error, RuntimeError | ValueError)  # other exceptions are not clear without their name
    return reason if clear else f"{type(error).__name__}: {reason}".rstrip(": ")


def called(name: str, layer: nn.Module) -> str:
    return f"layer {name!r} ({type(layer).__name__})" if name else f"{a_or_an(type(layer).__name__)}"


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


def described(x: Tensor) -> str:
    """Describe a tensor, as in `(8, 3, 32, 32) float32`."""
    return f"{tuple(x.shape)} {_short(x.dtype)}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def culprit(trace: TracebackType | None, model: nn.Module) -> tuple[str, nn.Module, Tensor | None] | None:
    """Return the innermost module of the model whose forward raised the error: its name, the module, and its input. None if
    the model was not running."""
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
    """Yield the `self` and the variables of each function on the traceback."""
    while trace is not None:
        values = trace.tb_frame.f_locals
        yield values.get("self"), values
        trace = trace.tb_next


def refused(error: Exception, model: nn.Module, example_inputs: Any) -> TraceError:
    """Return the TraceError for a model that raised this error on its example inputs."""
    return TraceError(
        f"The model does not run on these example inputs: {fault(error, model, example_inputs)} "
        f"{advice(model, example_inputs)}"
    )


@contextmanager
def running(model: nn.Module, example_inputs: Any) -> Iterator[None]:
    """Context in which a model runs on its example inputs. An exception that its code raises becomes a TraceError that says
    what does not fit."""
    try:
        yield
    except SecateursError:
        raise
    except Exception as error:
        raise refused(error, model, example_inputs) from error


def advice(model: nn.Module, example_inputs: Any) -> str:
    """Return a sentence that says what to pass instead of example inputs that a model does not run on."""
    x, kind = example_inputs, type(example_inputs).__name__
    if isinstance(x, tuple | list) and x and all(isinstance(n, int) for n in x):
        return f"{tuple(x)} is a shape: pass a tensor, such as torch.randn{tuple(x)}."
    if isinstance(x, tuple | list) and x and all(isinstance(one, tuple | list) and len(one) == 2 for one in x):
        return f"It is {a_or_an(kind)} of pairs: pass the inputs of one batch alone."
    if isinstance(x, tuple | list) and len(x) == 2 and isinstance(x[1], Tensor) and x[1].ndim == 1:
        return "If the second is the targets, pass the inputs alone."
    if not isinstance(x, Tensor) and hasattr(x, "__array__"):
        return f"It is {a_or_an(type(x).__module__)}.{kind}: pass a tensor, for example torch.from_numpy(x)."
    if not isinstance(x, Tensor | tuple | list | Mapping | str) and hasattr(x, "__iter__") and hasattr(x, "__len__"):
        return f"It is {a_or_an(kind)}: pass the inputs of one batch, such as next(iter(loader))[0]."
    first = next((m for m in model.modules() if isinstance(m, _ConvNd)), None)
    if (
        isinstance(x, Tensor)
        and first is not None
        and x.ndim == len(first.kernel_size) + 1
        and len(x) == first.in_channels
    ):
        return f"{described(x)} has no batch axis: pass x[None]."
    if not tensors(x):
        return f"It is {a_or_an(kind)} without a tensor: pass inputs of the shape and type that it expects."
    return "Pass inputs of the shape and type that it expects, as a tensor, a tuple or a dict."
