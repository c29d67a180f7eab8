"""The state in an engine's checkpoint. Everything that is read is validated before use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt
from torch import Tensor

from secateurs.errors import a_or_an

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


class Position(_Strict):
    """The position of the run: optimizer steps, complete epochs, batches of the current epoch."""

    step: NonNegativeInt
    epoch: NonNegativeInt
    batch: NonNegativeInt
    done: bool


class OptimizerState(_Strict):
    model_config = ConfigDict(extra="allow")  # fields that a hook's optimizer may add

    state: dict[Any, Any]
    param_groups: list[dict[str, Any]]


class PartState(_Strict):
    active: bool
    eval: list[str]
    frozen: list[str]
    module: dict[str, Any]
    optimizer: OptimizerState


class ScalerState(_Strict):
    """The state of a `GradScaler`."""

    scale: _Positive
    growth_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(gt=0)]
    growth_tracker: NonNegativeInt = Field(alias="_growth_tracker")


class State(_Strict):
    """The complete state of a run."""

    recipe: dict[str, Any]
    seed: int
    position: Position
    sums: Annotated[list[FiniteFloat], Field(min_length=3, max_length=4)]  # three of earlier versions
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    history: list[dict[str, Any]]
    plans: list[str]
    hooks: dict[str, dict[Any, Any]]
    parts: dict[str, PartState]
    ema: dict[str, Any] | None
    scaler: ScalerState | None


def misfit(saved: Any, expected: Any, field: str) -> str | None:
    """Return the reason that `saved` cannot replace `expected`, a state of the same kind; None if it can.

    Dicts must have the same keys, and tensors the same shape and dtype. Numbers must be numbers, and not NaN unless `expected`
    is. An expected empty dict matches any dict, None anything, and a list of anything except numbers any list: they are filled
    during a run.
    """
    if expected is None or (isinstance(expected, dict) and not expected and isinstance(saved, dict)):
        return None
    if isinstance(expected, Tensor):
        return _tensor_misfit(saved, expected, field)
    if isinstance(expected, Mapping):
        if not isinstance(saved, Mapping):
            return _kinds(saved, "a dict", field)
        within = f"{field}." if field else ""
        if missing := [key for key in expected if key not in saved]:
            return f"field '{within}{missing[0]}' is missing{_more(missing)}"
        if unknown := [key for key in saved if key not in expected]:
            return f"field '{within}{unknown[0]}' is not expected{_more(unknown)}"
        pairs = [(saved[key], value, f"{within}{key}") for key, value in expected.items()]
    elif isinstance(expected, (list, tuple)):
        if type(saved) is not type(expected):
            return _kinds(saved, f"{a_or_an(type(expected).__name__)}", field)
        if isinstance(expected, list) and not (expected and all(map(_is_number, expected))):
            return None
        if len(saved) != len(expected):
            return f"field '{field}' has {len(saved)} values, expected {len(expected)}"
        pairs = [(a, b, f"{field}.{i}") for i, (a, b) in enumerate(zip(saved, expected, strict=True))]
    elif _is_number(expected):
        whole = isinstance(expected, int)
        if not _is_number(saved) or (whole and not isinstance(saved, int)):
            return _kinds(saved, "an integer" if whole else "a number", field)
        return f"field '{field}' is NaN" if saved != saved and expected == expected else None
    else:
        same = type(saved) is type(expected)
        return None if same else _kinds(saved, f"{a_or_an(type(expected).__name__)}", field)
    return next((fault for pair in pairs if (fault := misfit(*pair))), None)


def optimizer_misfit(saved: OptimizerState, optimizer: torch.optim.Optimizer, field: str) -> str | None:
    """Return the reason that this optimizer cannot continue from the saved state; None if it can."""
    groups = optimizer.state_dict()["param_groups"]
    if len(saved.param_groups) != len(groups):
        return f"field '{field}.param_groups' has {len(saved.param_groups)} groups, expected {len(groups)}"
    for i, (group, expected) in enumerate(zip(saved.param_groups, groups, strict=True)):
        # Settings vary between PyTorch releases. Those that a schedule and a step read are required.
        needed = {"params", "lr", "initial_lr", *group} & expected.keys()
        where = f"{field}.param_groups.{i}"
        if fault := misfit({k: group[k] for k in needed if k in group}, {k: expected[k] for k in needed}, where):
            return fault
    names = _STATES.get(type(optimizer))
    if names is None:
        return None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in saved.state.items():
        where = f"{field}.state.{index}"
        if index not in range(len(parameters)):
            return f"field '{where}' is not expected: there are {len(parameters)} parameters"
        like = {name: torch.tensor(0.0) if name == "step" else parameters[index] for name in names}
        if fault := misfit(values, like, where):
            return fault
    return None


# The state that the recipe's optimizers keep for each parameter. A hook's optimizer is not checked.
_STATES: dict[type, tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
}


def _tensor_misfit(saved: Any, expected: Tensor, field: str) -> str | None:
    if not isinstance(saved, Tensor):
        return _kinds(saved, "a tensor", field)
    if saved.shape != expected.shape or saved.dtype != expected.dtype:
        return f"tensor '{field}' is {_form(saved)}, expected {_form(expected)}"
    if saved.is_floating_point() and bool(saved.isnan().any()) and not bool(expected.isnan().any()):
        return f"tensor '{field}' holds NaN"
    return None


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _kinds(saved: Any, expected: str, field: str) -> str:
    return f"field '{field}' is {_form(saved) if isinstance(saved, Tensor) else _named(saved)}, expected {expected}"


def _named(value: Any) -> str:
    return "null" if value is None else f"{a_or_an(type(value).__name__)}"


def _more(names: list[Any]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
