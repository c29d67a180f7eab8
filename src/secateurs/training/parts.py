"""A network and its optimizer, which the engine prepares, steps and saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from secateurs.training.recipe import Recipe


class Part:
    """`module` and `optimizer` are not wrapped; `net` is the callable (wrapped for several processes, compiled).

    While `active` is False the optimizer is not stepped. A main part's `refresh` synchronizes its optimizer with
    its module's parameters; hooks manage their own optimizers.
    """

    def __init__(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer):
        self.name, self.module, self.optimizer = name, module, optimizer
        self.active = True
        self.net: nn.Module = module
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def average_guests(self, total: Callable[[torch.Tensor], torch.Tensor], world: int) -> None:
        """Average the gradients of parameters that are not the wrapped module's own over processes.
        `total` sums a tensor over the `world` processes."""
        own = {id(p) for p in self.module.parameters()}
        for p in self.parameters():
            if id(p) not in own and p.grad is not None:
                p.grad = total(p.grad) / world

    def set_lr(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            if group.get("scheduled", True):
                group["lr"] = group["initial_lr"] * factor

    def refresh(self) -> None:
        """Update the optimizer to the module's parameters: remove old ones with their state, and add new ones by their kind.

        Parameters keep the module's order, so that a saved state matches them.
        """
        own = [g for g in self.optimizer.param_groups if "kind" in g]
        known = {id(p): g["kind"] for g in own for p in g["params"]}
        present = list(self.module.parameters())
        for group in own:
            group["params"] = [p for p in present if known.get(id(p), kind(p)) == group["kind"]]
        alive = {id(p) for p in self.parameters()}
        for p in [p for p in self.optimizer.state if id(p) not in alive]:
            del self.optimizer.state[p]


def kind(parameter: torch.Tensor) -> str:
    """Return 'norm' for biases, norm and scale parameters (one value per channel), and 'weight' for the rest."""
    return "norm" if parameter.ndim <= 1 else "weight"


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Make the recipe's optimizer, with weight decay on weights only, unless `decay_norm` is set."""
    params = list(parameters)
    decay = {"weight": recipe.weight_decay, "norm": recipe.weight_decay if recipe.decay_norm else 0.0}
    groups = [
        {"params": [p for p in params if kind(p) == name], "weight_decay": value, "kind": name}
        for name, value in decay.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    adam = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
