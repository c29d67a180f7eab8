"""torch-pruning as a peer: its selection of channels, with our recovery; or its own cut, fine-tuned on the labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateurs.data.bundle import fresh_pass
from secateurs.errors import BudgetError, ConfigError, PlanError, nearest
from secateurs.graph import count
from secateurs.graph.copies import copied
from secateurs.graph.modes import evaluating
from secateurs.graph.reasons import Kind
from secateurs.methods import Method, Selection, Task
from secateurs.methods.method import Scope
from secateurs.training import CrossEntropy
from secateurs.training import batches as B

FAMILY, OWN = "torch-pruning", "own"
STEPS = 10  # of the search for the ratio that meets a budget

Importance = Literal["group-l1", "group-l2", "l1", "l2", "lamp", "fpgm", "bn-scale", "taylor", "random"]


class TorchPruning(Method):
    """torch-pruning's selection (Fang et al., CVPR 2023): its dependency graph, importance and ranking. The pruning ratio is
    searched for the largest network within the budget."""

    name = FAMILY
    default_scope: ClassVar[Scope] = "all"

    importance: Importance = Field(default="group-l2", description="torch-pruning's importance")
    global_pruning: bool = Field(default=True, description="rank the channels of all layers together")
    isomorphic: bool = Field(default=False, description="rank the channels of like groups together")
    max_pruning_ratio: float = Field(default=1.0, gt=0, le=1, description="the largest share that a layer may lose")
    examples: int = Field(default=1024, ge=1, description="training images for the gradients of taylor")

    @property
    def reads_labels(self) -> bool:  # type: ignore[override]
        return self.importance == "taylor"

    def check(self, task: Task) -> None:
        library()
        super().check(task)
        if task.budget is not None and task.budget.limited and set(task.budget.limited) - {"macs", "params"}:
            raise ConfigError(f"{FAMILY} is compared under budgets of MACs and parameters, not {task.budget}.")
        if self.importance == "taylor" and task.data is None:
            raise ConfigError(f"{FAMILY}:taylor needs the gradients of training data: pass data=….")

    def select(self, task: Task) -> Selection:
        """Return the channels that its pruner keeps, found without cutting: the pruner names the channels to remove."""
        model = self._prepared(task)

        def at(ratio: float) -> tuple[Selection, Any]:
            gone: dict[str, set[int]] = {}
            names = {id(module): name for name, module in model.named_modules()}
            for group in self._pruner(model, task, ratio).step(interactive=True):
                for dependency, indices in group:
                    if group._DG.is_out_channel_pruning_fn(dependency.handler):
                        name = names.get(id(dependency.target.module))
                        gone.setdefault(name or "", set()).update(indices)
            selection = Selection(_kept(task, gone))
            return selection, task.graph.cost_of(selection.plan(task.graph))

        found: Selection = self._largest(task, at)
        return found

    def cut(self, task: Task) -> nn.Module:
        """Return the network as torch-pruning itself cuts it."""

        prepared = self._prepared(task)

        def at(ratio: float) -> tuple[nn.Module, Any]:
            model = copied(prepared)
            for own, parameter in zip(prepared.parameters(), model.parameters(), strict=True):
                parameter.grad = None if own.grad is None else own.grad.clone()
            with evaluating(model):
                self._pruner(model, task, ratio).step()
            return model, count(model, task.example_inputs)

        found: nn.Module = self._largest(task, at)
        given = dict(task.model.named_parameters())
        for name, parameter in found.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(given[name].requires_grad)
        return found

    def _largest(self, task: Task, at: Callable[[float], tuple[Any, Any]]) -> Any:
        """What the smallest ratio within the budget leaves."""
        assert task.budget is not None
        base, low, high = task.graph.cost(), 0.0, 1.0
        best = None
        for _ in range(STEPS):
            middle = (low + high) / 2
            try:
                found, cost = at(middle)
            except PlanError:  # a group without the channels that it needs
                high = middle
                continue
            if task.budget.allows(cost, base):
                high, best = middle, found
            else:
                low = middle
        if best is None:
            raise BudgetError(f"{FAMILY}:{self.importance} does not reach {task.budget}.")
        return best

    def _prepared(self, task: Task) -> nn.Module:
        """A copy, with gradients if its channels are scored by them."""
        model = copied(task.model)
        model.requires_grad_(True)
        if self.importance == "taylor":
            rows, objective = 0, task.objective
            with evaluating(model):
                for i, raw in enumerate(fresh_pass(task.data.train)):
                    batch = B.to_device(
                        B.as_batch(raw, i, whole=objective.whole), next(model.parameters()).device, False
                    )
                    objective.train(model, batch, CrossEntropy())[2].backward()
                    rows += batch.rows
                    if rows >= self.examples:
                        break
        return model

    def _pruner(self, model: nn.Module, task: Task, ratio: float) -> Any:
        tp = library()
        modules = dict(model.named_modules())
        outputs = [
            modules[name]
            for group in task.graph.groups if group.reason is not None and group.reason.kind is Kind.OUTPUT
            for name in group.producers if name in modules
        ]  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tp.pruner.BasePruner(
                model, task.example_inputs, _importance(tp, self.importance, task.seed), pruning_ratio=ratio,
                global_pruning=self.global_pruning, isomorphic=self.isomorphic, ignored_layers=outputs,
                max_pruning_ratio=self.max_pruning_ratio,
            )  # fmt: skip


def peer(name: str, settings: Mapping[str, Any]) -> tuple[Method, bool]:
    """Return `torch-pruning:group-l2` as a method, and whether its own cut is meant: `torch-pruning:group-l2:own`.

    Raises ConfigError if torch-pruning is not installed, or has no such importance.
    """
    _, _, rest = name.partition(":")
    importance, _, own = rest.partition(":")
    known = get_args(Importance)
    if importance not in known or own not in ("", OWN):
        raise ConfigError(
            f"There is no method {name!r}: write {FAMILY}:IMPORTANCE, or {FAMILY}:IMPORTANCE:{OWN} for its own cut and "
            f"fine-tuning. {nearest(importance, known)}"
        )
    library()
    return TorchPruning(**{"importance": importance, **settings}), own == OWN


def library() -> Any:
    """Return torch-pruning. Raises ConfigError if it is not installed."""
    if find_spec("torch_pruning") is None:
        raise ConfigError("torch-pruning is not installed: pip install torch-pruning, or leave this method out.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_pruning

    return torch_pruning


def _importance(tp: Any, name: str, seed: int) -> Any:
    kinds = tp.importance
    made: dict[str, Callable[[], Any]] = {
        "group-l1": lambda: kinds.GroupMagnitudeImportance(p=1),
        "group-l2": lambda: kinds.GroupMagnitudeImportance(p=2),
        "l1": lambda: kinds.MagnitudeImportance(p=1),
        "l2": lambda: kinds.MagnitudeImportance(p=2),
        "lamp": lambda: kinds.LAMPImportance(p=2),
        "fpgm": lambda: kinds.FPGMImportance(p=2),
        "bn-scale": kinds.BNScaleImportance,
        "taylor": kinds.GroupTaylorImportance,
        "random": kinds.RandomImportance,
    }
    torch.manual_seed(seed)  # of random: the same at every ratio
    return made[name]()


def _kept(task: Task, gone: Mapping[str, set[int]]) -> dict[str, np.ndarray]:
    """Our groups' channels of which torch-pruning cuts no output of a layer."""
    kept: dict[str, np.ndarray] = {}
    for group in task.groups:
        dead = np.zeros(group.size, dtype=bool)
        for slot in group.slots:
            if slot.produces and slot.axis == 0 and slot.module in gone:
                dead |= np.isin(slot.index, list(gone[slot.module])).any(1)  # index: (size, coupled)
        if dead.any():
            kept[group.name] = np.flatnonzero(~dead)
    return kept
