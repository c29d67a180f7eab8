"""Small results of real runs, one for each method, and an artifact of each."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc

X = torch.zeros(1, 3, 8, 8)
METHODS: dict[str, Any] = {
    "aofp": lambda: sc.AOFP(epochs=2, search_cost=2, theta=0.2),
    "npn": lambda: sc.NPN(epochs=2),
    "pff": lambda: sc.PFF(epochs=2),
    "onestep": lambda: sc.OneStep(epochs=1),
    "epruner": sc.EPruner,
    "l1": sc.L1,
}


def network(first: str = "first", second: str = "second") -> nn.Module:
    """Two layers that can be cut, with names of the test's."""
    torch.manual_seed(0)
    parts = [
        (first, nn.Conv2d(3, 12, 3, padding=1)), ("bn", nn.BatchNorm2d(12)), ("act", nn.ReLU()),
        (second, nn.Conv2d(12, 16, 3, padding=1)), ("bn2", nn.BatchNorm2d(16)), ("act2", nn.ReLU()),
        ("last", nn.Conv2d(16, 16, 3, padding=1)), ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()),
        ("fc", nn.Linear(16, 4)),
    ]  # fmt: skip
    return nn.Sequential(OrderedDict(parts))


def data() -> sc.Data:
    torch.manual_seed(1)
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))) for _ in range(6)]
    return sc.Data(train=batches, val=batches[:2])


def pruned(method: str, model: nn.Module | None = None, **settings: Any) -> sc.Result:
    settings = {"recover": sc.Recover(epochs=2), "budget": sc.Budget(macs=0.5), **settings}
    return sc.prune(model or network(), X, METHODS[method](), data=data(), progress="silent", **settings)


@pytest.fixture(scope="session")
def results() -> dict[str, sc.Result]:
    return {name: pruned(name) for name in METHODS}


@pytest.fixture(scope="session")
def folders(results: dict[str, sc.Result], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Read only."""
    at = tmp_path_factory.mktemp("artifacts")
    return {name: result.save(at / name) for name, result in results.items()}
