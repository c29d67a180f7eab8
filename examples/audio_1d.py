"""Prune a 1-d network on raw audio.

python examples/audio_1d.py
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateurs as sc

RATE, SAMPLES = 8000, 1024


def network(width: int = 16) -> nn.Sequential:
    """(N, 1, samples) → (N, 3)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv1d(inputs, outputs, 9, stride=4, padding=4, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, 3))


def tones(count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of noisy tones, low, middle or high: (N, 1, samples) and 0…2."""
    pitch = torch.arange(count) % 3
    hertz = torch.tensor([200.0, 600.0, 1800.0])[pitch] * (1 + 0.1 * torch.rand(count))
    time = torch.arange(SAMPLES) / RATE
    waves = torch.sin(2 * math.pi * (hertz[:, None] * time + torch.rand(count, 1)))
    return list(zip((waves + 0.5 * torch.randn_like(waves))[:, None].split(24), pitch.split(24), strict=True))


def main(count: int = 192, epochs: int = 4) -> sc.Result:
    """Train, prune to half of the MACs, recover."""
    torch.manual_seed(0)
    data, model = sc.Data(train=tones(count), val=tones(48)), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for waves, pitch in data.train:
            cross_entropy(model(waves), pitch).backward()
            optimizer.step()
            optimizer.zero_grad()
    result = sc.prune(
        model,
        torch.zeros(1, 1, SAMPLES),
        "l2",
        sc.Budget(macs=0.5),
        data,
        recover=sc.Recover(epochs=epochs),
        progress="silent",
    )
    print(
        f"{result.after.macs / result.before.macs:.0%} of the MACs; top-1 {result.before.top1:.1f}, now {result.after.top1:.1f}"
    )
    return result


if __name__ == "__main__":
    main()
