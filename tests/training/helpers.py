"""Small networks and data that the training tests share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import secateurs.recovery as R
import secateurs.training as T


def net(dropout: float = 0.2, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


def batches(n: int = 6, rows: int = 8, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(rows, 3, 8, 8, generator=g), torch.randint(0, 4, (rows,), generator=g)) for _ in range(n)]


def data(n: int = 6) -> Any:
    return SimpleNamespace(train=batches(n), val=batches(2, seed=1))


class Noisy:
    """A list whose batches are augmented with the global generators, as a user's DataLoader would."""

    def __init__(self, items: list[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Any:
        for i in torch.randperm(len(self.items)):
            x, y = self.items[int(i)]
            yield x + 0.1 * torch.randn_like(x), y


class Ours:
    """What our own loaders look like: a batch is a function of the epoch and its index."""

    def __init__(self, items: list[Any]):
        self.items, self.epoch = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def iter_from(self, batch_index: int) -> Any:
        for i in range(batch_index, len(self.items)):
            x, y = self.items[(i * 5 + self.epoch) % len(self.items)]
            yield x + self.epoch, y

    def __iter__(self) -> Any:
        return self.iter_from(0)


def engine(model: nn.Module, source: Any, recipe: T.Recipe | None = None, **options: Any) -> T.Engine:
    options = {"progress": "silent", "device": "cpu", **options}
    return T.Engine(model, source, recipe or R.Recover(epochs=2, precision="fp32"), **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Equal to the bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
