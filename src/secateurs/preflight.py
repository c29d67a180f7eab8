"""What is checked of the arguments before any work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from secateurs.errors import ConfigError, nearest
from secateurs.graph.inputs import check_model
from secateurs.graph.wrappers import check_plain
from secateurs.methods.method import Method, check_budget, check_scope


def check(model: Any, budget: Any, scope: Any) -> None:
    """Raise ConfigError for arguments that are not valid, and for a model that a pruner is attached to."""
    check_model(model)
    check_plain(model)
    check_budget(budget)
    check_scope(scope)
    for name, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            home = getattr(hook, "__module__", None) or type(hook).__module__
            if home.startswith("secateurs."):
                raise ConfigError(
                    f"A pruner is already attached to this model{f' (at {name})' if name else ''}: call its "
                    f"finish() or plan() first, or use a fresh model."
                )


def check_unknown(unknown: Mapping[str, Any], method: Method, prune: Callable[..., Any]) -> None:
    """Raise ConfigError for an argument that `prune` does not have."""
    for name, value in unknown.items():
        if name in type(method).model_fields:
            call = f"sc.{type(method).__name__}({name}={value!r})"
            raise ConfigError(f"{name} is a setting of the method {method.name}: pass method={call}.")
        known = inspect.signature(prune).parameters.keys() - {"unknown"}
        raise ConfigError(
            f"prune has no option {name!r}. {nearest(name, known)} Options: {', '.join(sorted(known))}. Settings of a method "
            "are passed with it, for example method=sc.L1(ranking=…)."
        )
