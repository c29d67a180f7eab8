"""What is checked and put together before any work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.budget import Budget
from secateurs.errors import ConfigError, Setting, nearest, python
from secateurs.foreign import suggestion
from secateurs.graph.inputs import check_model
from secateurs.graph.wrappers import check_plain
from secateurs.methods.limits import Bounds
from secateurs.methods.method import Method, Scope, Task, check_budget, check_scope
from secateurs.plans import PrunableGraph, trace
from secateurs.surgery.verify import check_deterministic
from secateurs.timing import clocked


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
        if name in {f.name for f in fields(Budget) if f.init}:
            raise ConfigError(f"{name} is a setting of the budget: pass budget=sc.Budget({name}={value!r}).")
        if there := suggestion(name, _call):
            raise ConfigError(f"prune has no option {name!r}. {there}")
    check_options(unknown, prune, " Settings of a method are passed with it, for example method=sc.L1(ranking=…).")


def check_options(unknown: Iterable[str], function: Callable[..., Any], also: str = "") -> None:
    """Raise ConfigError for an argument that a function does not have. also: what else to say then."""
    known = inspect.signature(function).parameters.keys() - {"unknown"}
    for name in unknown:
        meant = suggestion(name, known=known) or nearest(name, known)
        raise ConfigError(
            f"{function.__name__} has no option {name!r}. {meant} Options: {', '.join(sorted(known))}.{also}"
        )


def _call(setting: Setting) -> str:
    """How an argument of `prune` gives a setting, which may be one of the budget or of the method."""
    if setting.name == "macs":
        return "budget=sc.Budget(macs=…)"
    if setting.name == "align":
        return "budget=sc.Budget(…, align=…)"
    return f"method=sc.L2({python(setting)})" if setting.name == "ranking" else python(setting)


def traced(
    model: nn.Module, inputs: Any, graph: PrunableGraph | None, *, allow_inexact: bool, example_targets: Any = None
) -> PrunableGraph:
    """The given graph, or else what a trace finds. Raises VerificationError for a model that is nondeterministic in eval mode,
    whose cuts cannot be verified."""
    if graph is None:
        graph = trace(model, inputs, allow_inexact=allow_inexact, example_targets=example_targets)
    if graph.random and not allow_inexact:
        check_deterministic(model, inputs)
    return graph


def task_for(
    method: Method, model: nn.Module, graph: PrunableGraph, inputs: Any, budget: Budget | None, scope: Scope | None,
    bounds: Bounds, *, seed: int = 0, device: torch.device | None = None, folder: Path | None = None,
    report: Callable[[str], None] = lambda line: None, **rest: Any,
) -> Task:  # fmt: skip
    """The task of a method, with the latency model that the budget needs. `Task.for_method` then checks it.

    scope: None for the method's default. bounds: `Limits.on(graph, scope)`. device, folder, report: as for `clocked`. rest: the
    other fields of the task.
    """
    scope = scope or method.default_scope
    graph = clocked(
        model, graph, inputs, budget, scope, bounds, report=report, seed=seed, device=device,
        stripes=method.cuts == "stripes", folder=folder,
    )  # fmt: skip
    return Task(model, graph, budget, scope, seed=seed, example_inputs=inputs, bounds=bounds, **rest)
