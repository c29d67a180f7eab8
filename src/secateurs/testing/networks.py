"""Small networks and data for checks: a chain, two residual blocks, separable convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import secateurs as sc

CLASSES = 4


class Residual(nn.Module):
    """A stem and two residual blocks."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width + 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(width + 4),
                nn.ReLU(),
                nn.Conv2d(width + 4, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) → (N, classes)
        x = F.relu(self.bn1(self.conv1(x)))
        for block in self.blocks:
            x = F.relu(block(x) + x)
        return self.fc(x.mean((2, 3)))


def depthwise() -> nn.Module:
    """Two separable convolutions: a depthwise one is cut with the pointwise one before it."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 20, 1, bias=False), nn.BatchNorm2d(20), nn.ReLU()),
        *(nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False), nn.BatchNorm2d(20), nn.ReLU()),
        *(nn.Conv2d(20, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, CLASSES)),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "small_cnn": lambda: sc.build("zoo:small_cnn", num_classes=CLASSES),
    "residual": Residual,
    "depthwise": depthwise,
}


def network(name: str = "small_cnn", seed: int = 0) -> nn.Module:
    """One of `NETWORKS`, as if trained: no weight or statistic has its initial value."""
    torch.manual_seed(seed)
    return randomize(NETWORKS[name](), seed).eval()


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Randomize batch norms, and per-channel scales that start near zero, in place: a cut must not pass because of a
    zero."""
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            if m.running_mean is not None and m.running_var is not None:
                m.running_mean.normal_(0, 0.1, generator=g)
                m.running_var.uniform_(0.5, 1.5, generator=g)
            if m.weight is not None:
                m.weight.uniform_(0.5, 1.5, generator=g)
                m.bias.normal_(0, 0.1, generator=g)
    for name, p in model.named_parameters():
        if name.rpartition(".")[2] in ("layer_scale", "gamma"):
            p.uniform_(0.5, 1.5, generator=g)
    return model


def images(n: int = 2, seed: int = 0) -> Tensor:
    """(N, 3, 16, 16)"""
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def data(batches: int = 2, rows: int = 8) -> sc.Data:
    """Training batches of images and random classes, and one validation batch."""

    def made(seed: int) -> tuple[Tensor, Tensor]:
        return images(rows, seed), torch.randint(0, CLASSES, (rows,), generator=torch.Generator().manual_seed(seed))

    return sc.Data(train=[made(i) for i in range(batches)], val=[made(100)])
