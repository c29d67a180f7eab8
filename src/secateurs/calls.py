"""The Python that repeats what an artifact's card records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from secateurs.artifact import Card
from secateurs.artifact.history import Round
from secateurs.budget import Budget
from secateurs.errors import SecateursError
from secateurs.methods.registry import resolve
from secateurs.recovery import MODES, Reconstruct

WEIGHTS, DATA = "trained.safetensors", "data"


def call(card: Card) -> str:
    """The call of `sc.prune` that an artifact came from, as far as its card says: `...` is left for what it does not record,
    such as the weights."""
    spec = None if card.source is None else card.source.spec
    plain = card.source is not None and not card.source.plans and not card.source.widen
    if spec is None or not plain or card.source is None:
        first = "model = ...  # the trained network"
    else:
        options = {"num_classes": card.source.num_classes, **card.source.options}
        given = "".join(f", {name}={value!r}" for name, value in options.items() if value is not None)
        first = f'model = sc.build({spec!r}, weights="{WEIGHTS}"{given})'
    arguments = ["model", _inputs(card), *_arguments(card)]
    body = "".join(f"    {argument},\n" for argument in arguments)
    data = "data = sc.Data(train=..., val=...)\n" if _has_data(card) else ""
    head = "import torch\nimport secateurs as sc\n" if "torch." in body else "import secateurs as sc\n"
    return f"{head}\n{first}\n{data}result = sc.prune(\n{body})"


def _inputs(card: Card) -> str:
    inputs = [] if card.signature is None else card.signature.inputs
    if len(inputs) == 1 and inputs[0].dtype == "float32":
        return f"torch.randn{tuple(inputs[0].shape)!r}"
    return "..."


def _has_data(card: Card) -> bool:
    trained = any("epoch" in (entry.model_extra or {}) or hasattr(entry, "epoch") for entry in card.history)
    return trained or card.data is not None or card.before.loss is not None or bool(card.before.metrics)


def _arguments(card: Card) -> Iterator[str]:
    yield f"method={_method(card.method.name, card.method.model_extra or {})}"
    if card.budget:
        usual = Budget.__dataclass_fields__
        changed = {k: v for k, v in card.budget.items() if v is not None and k in usual and v != usual[k].default}
        yield f"budget=sc.Budget({_settings(changed)})"
    if _has_data(card):
        yield f"data={DATA}"
    steps = [_step(step) for step in (card.recover if isinstance(card.recover, list) else [card.recover]) if step]
    if steps:
        yield f"recover={steps[0] if len(steps) == 1 else '[' + ', '.join(steps) + ']'}"
    if card.scope is not None:
        yield f"scope={card.scope!r}"
    if card.limits is not None:
        yield from (f"{k}={v!r}" for k, v in card.limits.model_dump(mode="json", exclude_unset=True).items() if v)
    if rounds := [entry for entry in card.history if isinstance(entry, Round)]:
        yield f"rounds={rounds[-1].rounds}"
    if card.seed is not None:
        yield f"seed={card.seed}"


def _method(name: str, settings: Mapping[str, Any]) -> str:
    """`sc.AOFP(epochs=2.0)`, or its name alone with the usual settings."""
    try:
        made = type(resolve(name))
    except SecateursError:  # of a package that is not installed here
        return repr(name)
    changed = _changed(made, settings)
    if not changed:
        return repr(name)
    prefix = "sc." if made.__module__.startswith("secateurs.") else ""
    return f"{prefix}{made.__name__}({_settings(changed)})"


def _step(step: Any) -> str:
    """A recipe of recovery."""
    if not isinstance(step, Mapping):
        return "..."
    kinds: dict[Any, type[BaseModel]] = {**MODES, Reconstruct.mode: Reconstruct}
    kind = kinds.get(step.get("mode"))
    return "..." if kind is None else f"sc.{kind.__name__}({_settings(_changed(kind, step))})"


def _changed(kind: type[BaseModel], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not the usual ones."""
    found = {}
    for key, field in kind.model_fields.items():
        usual = field.get_default(call_default_factory=True)
        value = settings.get(key, usual)
        value = tuple(value) if isinstance(value, list) else value
        if (value != usual and usual is not PydanticUndefined) or (usual is PydanticUndefined and key in settings):
            found[key] = value
    return found


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())
