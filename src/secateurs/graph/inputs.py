"""Example inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from torch import Tensor, nn

from secateurs.devices import device_of, moved
from secateurs.errors import TraceError, a_or_an
from secateurs.graph.leaves import materialized
from secateurs.graph.leaves import tensors as tensors
from secateurs.graph.structures import map_tensors as map_tensors
from secateurs.graph.structures import mapped
from secateurs.graph.wrappers import check_whole


def check_model(model: Any) -> None:
    """Raise TraceError for anything that is not a model, such as its name or its class, and for a sharded model."""
    if isinstance(model, nn.Module):
        check_whole(model)
        return
    if isinstance(model, type):
        raise TraceError(f"The model is a class: pass an instance of it, {model.__name__}(…).")
    kind = type(model).__name__
    hint = "pass the network itself"
    if isinstance(model, str):
        hint = f"sc.build({model!r}) builds one from a spec"
    elif kind == "Plan":
        hint = "the model comes first, and then the plan"
    elif isinstance(getattr(model, "model", None), nn.Module):  # what `prune` returns
        hint = "pass its network, result.model" if kind.endswith("Result") else "pass its attribute model"
    raise TraceError(f"The model must be a torch.nn.Module, not {a_or_an(kind)}: {hint}.")


def check_inputs(example_inputs: Any) -> None:
    """Raise TraceError for anything that cannot be the inputs of a network, such as the path of an image."""
    if example_inputs is None or isinstance(example_inputs, str | bytes | PurePath | int | float):
        kind = "a string" if isinstance(example_inputs, str) else a_or_an(type(example_inputs).__name__)
        what = "None" if example_inputs is None else f"{kind}, {example_inputs!r:.60}"
        raise TraceError(
            f"The example inputs are {what}: pass a tensor of the shape that the network takes, such as "
            "torch.randn(1, 3, 224, 224), or a tuple or dict of its arguments."
        )


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Run the model on its example inputs. Outputs that it computes lazily, in a generator, are computed. Raises TraceError for
    anything that cannot be inputs."""
    check_inputs(example_inputs)
    if isinstance(example_inputs, Mapping):
        return materialized(model(**example_inputs))
    if isinstance(example_inputs, tuple | list):
        return materialized(model(*example_inputs))
    return materialized(model(example_inputs))


def to_model_device(model: nn.Module, example_inputs: Any) -> Any:
    """Move the example inputs to the model's device. Tensors that are already there are not copied."""
    device = device_of(model)
    return map_tensors(lambda x: moved(x, device), example_inputs)


def rows(inputs: Any) -> int:
    """Return the length of the first axis of the first tensor that has one; 0 if none has."""
    return next((len(x) for x in tensors(inputs) if x.ndim), 0)


def fresh(tree: Any, meta: bool) -> Any:
    """Return the same structure with new tensors, on meta or copied, so that the caller's tensors are not written to."""
    return map_tensors(lambda x: x.to("meta").detach() if meta else x.detach().clone(), tree)


def untracked(tree: Any) -> list[Any]:
    """Return the objects in a structure that `map_tensors` passes on as they are."""
    found: list[Any] = []
    mapped(tree, lambda x: found.append(x) if not isinstance(x, Tensor) else None)
    return found
