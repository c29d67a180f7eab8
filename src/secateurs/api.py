"""The Python face: prune a network with a method, within a budget, and get it back verified and recovered."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs import artifact, training
from secateurs.budget import Budget
from secateurs.channels import Cost
from secateurs.data import Data
from secateurs.errors import ArtifactError, ConfigError
from secateurs.methods.method import Method, Scope, Task, resolve
from secateurs.methods.pruner import Pruner, TrainingMethod
from secateurs.surgery import Plan, apply, trace, verify
from secateurs.training import CheckpointStore, Recipe
from secateurs.version import __version__
from secateurs.zoo import build as build_from_zoo


@dataclass(frozen=True)
class Figures:
    """What a network costs and, where there is validation data, how good it is (top-1 and top-5 in percent)."""

    macs: int
    params: int
    top1: float | None = None
    top5: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Result:
    """What `prune` answers."""

    model: nn.Module  # the smaller network
    plan: Plan  # what stays of the original
    before: Figures  # the original
    cut: Figures  # right after the cut
    after: Figures  # after recovery
    error: float  # relative difference between the sliced and the masked network
    method: Method
    history: list[dict[str, Any]] = field(default_factory=list)  # the method's record, then one entry per epoch
    source: dict[str, Any] | None = None  # how to build the unpruned model anew, where it came from `build`

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Save as an artifact: plan.json, model.safetensors, card.json. See `secateurs.load`.

        overwrite: replace an artifact that is in the folder; it stays whole until the new one is.

        Raises ArtifactError where something would be lost: an artifact without `overwrite`, files of these names that
        are no artifact in any case.
        """
        return artifact.save(folder, self.model, self.plan, self.card(), overwrite=overwrite)

    def card(self) -> dict[str, Any]:
        """The record that is saved beside the network, JSON-able."""
        return {
            "source": self.source,
            "method": {"name": self.method.name, **self.method.model_dump(mode="json")},
            "before": asdict(self.before),
            "cut": asdict(self.cut),
            "after": asdict(self.after),
            "error": self.error,
            "history": self.history,
            "versions": {
                "secateurs": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


def prune(
    model: nn.Module,
    example_inputs: Any,
    method: str | Method = "epruner",
    budget: Budget | None = None,
    data: Any = None,
    recover: Recipe | Sequence[Recipe] | None = None,
    scope: Scope | None = None,
    seed: int = 0,
    *,
    allow_inexact: bool = False,
    report: Callable[[str], None] = lambda line: None,
    folder: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Result:
    """Trace, select, cut, verify and (on request) recover. The given model is untouched.

    method: a name (see `methods()`) or a configured method, `EPruner(beta=0.7)` say.
    budget: what may stay; always met, never exceeded.
    data: batches of `(inputs, targets)`, or a `Data(train=…, val=…)`. Without validation data no accuracy is measured.
    recover: how to train the cut network: `Recover`, `Mimic`, `Distil`, or several of them one after another; None leaves
        it as cut. `Mimic` and `Distil` learn from the given model.
    scope: "internal" leaves channels that lie on a shortcut alone, "all" cuts them too; None is what the method's paper
        does ("internal" mostly).
    allow_inexact: also cut channels that a normalisation takes its statistics over (the proof does not hold for them:
        the error in the result is then nan).
    report: gets one line about each stage.
    folder: where training leaves its log and checkpoints, a folder for each phase.
    resume: go on from the last whole checkpoint in `folder`, if there is one.
    options: passed on to the training engine (device, progress, save_steps, track …).

    Raises BudgetError before any work for a budget that cannot be met, VerificationError for a cut that does not verify.
    """
    chosen = resolve(method)
    modes = {name: module.training for name, module in model.named_modules()}
    steps = training.phases(recover)
    if steps and data is None:
        raise ConfigError("Recovery needs data to train on: pass data=…, or recover=None.")
    training.check(recover, model)
    source = None if data is None else Data.of(data)
    original = model
    if isinstance(chosen, TrainingMethod):
        model = copy.deepcopy(model)
    task = _task(
        model, example_inputs, chosen, budget, scope, data=source, seed=seed, allow_inexact=allow_inexact,
        engine_options=_phase(folder, "prune", options), resume=resume,
    )  # fmt: skip
    graph, base = task.graph, task.graph.cost()
    report(f"traced {len(graph.groups)} channel groups, {len(task.groups)} to cut")
    before = _figures(base, model, source, options)
    selection = chosen.select(task)
    plan = graph.plan(selection, allow_inexact=allow_inexact)
    cost = graph.cost({name: len(kept) for name, kept in plan.groups.items()})
    report(
        f"{chosen.name} keeps {cost.macs / base.macs:.1%} of the MACs and {cost.params / base.params:.1%} of the parameters"
    )
    error = verify(model, plan, example_inputs) if plan.exact else float("nan")
    small = apply(model, plan)
    chosen.initialise(task, selection, small)
    report(
        f"cut and verified: masked and sliced differ by {error:.1e}" if plan.exact else "cut (inexact: not verified)"
    )
    cut = _figures(cost, small, source, options)
    history = list(task.history)
    after = cut
    for name, recipe in steps:
        history += training.recover(
            small, source, recipe, teacher=original, example_inputs=example_inputs, nodes=task.nodes, seed=seed,
            resume=resume, **_phase(folder, name, options),
        )  # fmt: skip
    if steps:
        after = _figures(cost, small, source, options)
    for name, module in small.named_modules():
        module.training = modes.get(name, modes[""])
    return Result(small, plan, before, cut, after, error, chosen, history, _source(model))


def build(spec: str, weights: str | Path | None = None, num_classes: int | None = None, **options: Any) -> nn.Module:
    model = build_from_zoo(spec, weights, num_classes, **options)
    model.secateurs_source = {"spec": spec, "num_classes": num_classes, **options}  # type: ignore[assignment]
    model.secateurs_shapes = _shapes(model)  # type: ignore[assignment]
    return model


build.__doc__ = build_from_zoo.__doc__


def attach(
    model: nn.Module,
    example_inputs: Any,
    method: str | TrainingMethod,
    budget: Budget | None = None,
    *,
    steps: int,
    epoch_steps: int,
    data: Any,
    scope: Scope | None = None,
    seed: int = 0,
    allow_inexact: bool = False,
) -> Pruner:
    """Prune in a training loop of your own, in place; see `Pruner` for the loop.

    steps, epoch_steps: optimizer steps that the loop will take, and how many of them make an epoch.
    data: the training batches once more, for what a method must measure before or after.
    """
    chosen = resolve(method)
    if not isinstance(chosen, TrainingMethod):
        raise ConfigError(f"{chosen.name} does not prune while training: call prune(…) instead.")
    task = _task(
        model, example_inputs, chosen, budget, scope, data=Data.of(data), seed=seed, allow_inexact=allow_inexact
    )
    pruner = chosen.attach(task)
    pruner.begin(steps, epoch_steps)
    return pruner


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The pruned network of a saved artifact, in eval mode.

    model: a fresh, unpruned model to cut; needed where the original did not come from `build`. It is left untouched.
    """
    if model is None:
        _, card = artifact.read(folder)
        source = card.get("source")
        if not source:
            raise ArtifactError(f"{folder} does not say how to build its network: pass load({str(folder)!r}, model=…).")
        model = build_from_zoo(**source)
    return artifact.load(folder, model)


def _source(model: nn.Module) -> dict[str, Any] | None:
    """How to build this network anew; None if it did not come from `build`, or is not what it was then."""
    source = getattr(model, "secateurs_source", None)
    if not isinstance(source, dict) or getattr(model, "secateurs_shapes", None) != _shapes(model):
        return None
    try:
        return source if json.loads(json.dumps(source)) == source else None
    except (TypeError, ValueError):  # an option that cannot be written down
        return None


def _shapes(model: nn.Module) -> str:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()


def _task(
    model: nn.Module, example_inputs: Any, method: Method, budget: Budget | None, scope: Scope | None, *,
    allow_inexact: bool, **rest: Any,
) -> Task:  # fmt: skip
    """Trace, and refuse before any work what cannot be done."""
    graph = trace(model, example_inputs, allow_inexact=allow_inexact)
    task = Task(model, graph, budget, scope or method.default_scope, example_inputs=example_inputs, **rest)
    method.check(task)
    task.widths.check()
    return task


def _phase(folder: str | Path | None, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The engine's options for one phase of a run."""
    if folder is None:
        return options
    own = Path(folder) / name
    return {**options, "folder": own, "checkpoints": CheckpointStore(own / "checkpoints")}


def _figures(cost: Cost, model: nn.Module, data: Data | None, options: dict[str, Any]) -> Figures:
    if data is None or data.val is None:
        return Figures(cost.macs, cost.params)
    device = options.get("device")
    if device is not None:
        model = copy.deepcopy(model).to(device)  # the given model stays where it is
    # Where processes have split the data each one looks at all of it: the figures are everyone's.
    images = data.val.whole() if hasattr(data.val, "whole") else data.val
    found = training.evaluate(model, images, device=device)
    return Figures(cost.macs, cost.params, found.top1, found.top5, found.loss)
