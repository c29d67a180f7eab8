"""The Python that repeats what an artifact's card records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from secateurs.artifact import Card
from secateurs.artifact.history import Round
from secateurs.budget import stated
from secateurs.grammar import written
from secateurs.methods.registry import registered
from secateurs.methods.rounds import ONE_ROUND
from secateurs.presets import changed, spelled
from secateurs.recovery import KINDS
from secateurs.tasks import TASKS

FUNCTIONS = ("loss", "step", "forward", "metrics")
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
        given = _settings({name: value for name, value in options.items() if value is not None})
        first = f'model = sc.build({literal(spec)}, weights="{WEIGHTS}"{", " * bool(given)}{given})'
    arguments = ["model", _inputs(card), *_arguments(card)]
    body = "".join(f"    {argument},\n" for argument in arguments)
    data = "data = sc.Data(train=..., val=...)\n" if _has_data(card) else ""
    head = "import torch\nimport secateurs as sc\n" if "torch." in body else "import secateurs as sc\n"
    return f"{head}\n{first}\n{data}result = sc.prune(\n{body})"


def label(card: Card) -> str:
    """`l2 ranking=layer`: the method, and its settings that are not the default ones. Of a method that is not known here, whose
    defaults are not either, all settings."""
    name, settings = card.method.name, card.method.model_extra or {}
    made = registered(name)  # a name in a file is not followed
    return " ".join([name, *(written(settings) if made is None else spelled(made, settings))])


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
        yield f"budget=sc.Budget({', '.join(_budget(card.budget))})"
    if _has_data(card):
        yield f"data={DATA}"
    steps = [_step(step) for step in (card.recover if isinstance(card.recover, list) else [card.recover]) if step]
    if steps:
        yield f"recover={steps[0] if len(steps) == 1 else '[' + ', '.join(steps) + ']'}"
    if card.scope is not None:
        yield f"scope={literal(card.scope)}"
    yield from _purpose(card)
    if card.limits is not None:
        limits = {k: v for k, v in card.limits.model_dump(mode="json", exclude_unset=True).items() if v}
        yield from filter(None, [_settings({k: v}) for k, v in limits.items()])
    if rounds := [entry for entry in card.history if isinstance(entry, Round)]:
        yield f"rounds={rounds[-1].rounds}"
        if card.schedule not in (None, ONE_ROUND.schedule):
            yield f"schedule={literal(card.schedule)}"
    if not card.calibrate:
        yield "calibrate=False"
    if card.error is None:
        yield "allow_inexact=True"
    if card.seed is not None:
        yield f"seed={card.seed}"


def _purpose(card: Card) -> Iterator[str]:
    """The task, and `...` for functions of the user's own."""
    made = None if card.task is None else TASKS.get(card.task.name)
    if card.task is not None and made is not None:
        own = _settings(changed(made, card.task.model_extra or {}))
        yield f"task=sc.tasks.{made.__name__}({own})" if own else f"task={literal(card.task.name)}"
    for name in FUNCTIONS:
        if name in card.functions:
            yield f"{name}=..."


def _budget(record: Mapping[str, Any]) -> Iterator[str]:
    yield from filter(None, [_settings({k: v}) for k, v in stated(record).items() if k != "target"])
    if isinstance(target := record.get("target"), Mapping):
        others = {k: v for k, v in target.items() if k != "runtime"}
        own = ", ".join([literal(target.get("runtime")), *([_settings(others)] if others else [])])
        yield f"target=sc.Target({own})"


def _method(name: str, settings: Mapping[str, Any]) -> str:
    """`sc.AOFP(epochs=2.0)`, or its name alone with the usual settings."""
    made = registered(name)  # a name in a file is not followed
    own = {} if made is None else changed(made, settings)
    if made is None or not own:
        return literal(name)
    prefix = "sc." if made.__module__.startswith("secateurs.") else ""
    return f"{prefix}{made.__name__}({_settings(own)})"


def _step(step: Any) -> str:
    """A recipe of recovery."""
    if not isinstance(step, Mapping):
        return "..."
    kind = KINDS.get(str(step.get("mode")))
    return "..." if kind is None else f"sc.{kind.__name__}({_settings(changed(kind, step))})"


def _settings(values: Mapping[str, Any]) -> str:
    """Arguments by name. What is no name is left out: it comes from a file, and must not become code."""
    return ", ".join(f"{key}={literal(value)}" for key, value in values.items() if key.isidentifier())


def literal(value: Any) -> str:
    """A value in Python, with double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if value.isprintable() else repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(literal, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    return repr(value)
