"""Where a network came from: the spec, the widenings and the cuts by which it can be built anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from secateurs.surgery import Plan, apply
from secateurs.surgery.grow import resized
from secateurs.zoo import build


def rebuilt(source: Mapping[str, Any]) -> nn.Module:
    """The unpruned network of an artifact's card: built from its spec, and as wide and as narrow as it was."""
    model = build(**{k: v for k, v in source.items() if k not in ("widen", "plans")})
    cuts = source.get("plans", [])
    for i, record in enumerate([*source.get("widen", []), None]):
        for cut in cuts:
            if cut["after"] == i:
                model = apply(model, Plan.from_json(json.dumps(cut["plan"])))
        model = model if record is None else resized(model, record)
    return model


def after_cut(source: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """How to build a network that was cut so; plans and widenings are told apart by what came after how many of those."""
    record = {"after": len(source.get("widen", [])), "plan": json.loads(plan.to_json())}
    return {**source, "plans": [*source.get("plans", []), record]}


def remember(model: nn.Module, source: dict[str, Any]) -> None:
    """Note on a network how it is built."""
    model.secateurs_source = source  # type: ignore[assignment]
    model.secateurs_built = _structure(model)  # type: ignore[assignment]


def source_of(model: nn.Module) -> dict[str, Any] | None:
    """How to build this network anew; None if it did not come from `build`, or is not what it was then."""
    source = getattr(model, "secateurs_source", None)
    if not isinstance(source, dict) or getattr(model, "secateurs_built", None) != _structure(model):
        return None
    try:
        return source if json.loads(json.dumps(source)) == source else None
    except (TypeError, ValueError):  # an option that cannot be written down
        return None


def _structure(model: nn.Module) -> str:
    """Tells a network from one that was edited since: another stride, another module in the place of one, a forward of
    its own. Weights may differ, their shapes not."""
    parts: list[Any] = []
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if _is_plain(v) and k not in _PASSING}
        own = sorted(k for k, v in vars(module).items() if callable(v) and not isinstance(v, type))
        parts.append((name, type(module).__module__, type(module).__qualname__, sorted(plain.items()), own))
    parts.append(sorted((name, tuple(p.shape)) for name, p in model.named_parameters()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


_PASSING = {"training", "secateurs_source", "secateurs_built"}  # says nothing of how a module was built


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)
