"""Tiny data and networks for trainers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sc

CLASSES = 4
BUDGET = sc.Budget(macs=0.6)
METHOD = sc.NPN(lr=0.05)


def cnn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES)),
    )


def images(count: int = 32) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, 8, 8, generator=source), torch.randint(0, CLASSES, (count,), generator=source)


def reference(method: sc.NPN, budget: sc.Budget, *, epochs: int, accumulate: int = 1, batch: int = 8):
    """The same run in a plain loop: (cut network, plan)."""
    model, (x, y) = cnn(), images()
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    per_epoch = len(batches) // accumulate
    pruner = sc.attach(
        model, x[:1], method, budget, steps=epochs * per_epoch, epoch_steps=per_epoch, data=batches, scope="internal"
    )
    model.train()
    for _ in range(epochs):
        for i, (inputs, targets) in enumerate(batches, 1):
            loss = F.cross_entropy(model(inputs), targets) + pruner.penalty()
            (loss / accumulate).backward()
            if i % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                pruner.step()
    plan = pruner.plan()
    return sc.cut_(model, plan, optimizer), plan


def pruning(kind: Any, method: Any = METHOD, **options: Any) -> Any:
    """One of the callbacks, for the network that is `.model` of what is trained."""
    return kind(method, BUDGET, **{"network": "model", "scope": "internal", **options})


def same(found: nn.Module, due: nn.Module, **tolerance: float) -> None:
    for name, value in due.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, **tolerance)


def trained_by(optimizer: torch.optim.Optimizer, module: nn.Module) -> bool:
    """Whether the optimizer holds the module's parameters, and no others."""
    return {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in module.parameters()}
