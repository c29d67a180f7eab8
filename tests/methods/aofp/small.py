"""A small network with a residual block, and AOFP attached to it, in a loop of one's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods.aofp.pruner import AOFPPruner
from secateurs.testing.networks import randomize


def images(n: int = 8, seed: int = 0, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batches(count: int = 4, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [(images(rows, i), torch.arange(rows) % 4) for i in range(count)]


class Net(nn.Module):
    """A residual block, with dropout: it draws random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.bn3 = nn.Conv2d(8, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))) + x)
        x = F.relu(self.bn3(self.wide(x)))
        return self.fc(self.drop(x.mean((2, 3))))


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return randomize(Net(), seed)


def attached(budget: sc.Budget | None = None, steps: int = 40, **settings: Any) -> tuple[nn.Module, AOFPPruner]:
    model = network()
    pruner = sc.attach(
        model, images(1), sc.AOFP(**settings), budget, steps=steps, epoch_steps=4, data=batches(), scope="all"
    )
    assert isinstance(pruner, AOFPPruner)
    return model.train(), pruner


def train(model: nn.Module, pruner: AOFPPruner, steps: int, first: int = 0) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = batches()
    for i in range(first, first + steps):
        torch.manual_seed(i)
        x, y = data[i % len(data)]
        (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        if pruner.done:
            break
    return optimizer


def events(history: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [h for h in history if h.get("event") == kind]


def bare(model: nn.Module) -> nn.Module:
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    return fresh
