"""Prune while training, in a loop of your own: NPN learns which channels to keep, and the optimizer follows the cut.

python examples/plain_loop.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import secateurs as sc


def images(count: int) -> TensorDataset:
    """Noise with a brighter quarter, which is the class: (3, 16, 16) and 0…3."""
    classes = torch.arange(count) % 4
    x = torch.randn(count, 3, 16, 16)
    for i, c in enumerate(classes.tolist()):
        x[i, :, 8 * (c // 2) :, 8 * (c % 2) :][:, :8, :8] += 1.5
    return TensorDataset(x, classes)


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    x, y = data.tensors
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())


def main(count: int = 512, epochs: int = 4) -> tuple[nn.Module, float]:
    """Train, prune to half of the MACs, train on. Returns the small network and its accuracy."""
    torch.manual_seed(0)
    data, example = images(count), torch.zeros(1, 3, 16, 16)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    model = sc.build("zoo:small_cnn", num_classes=4)
    before = sc.count(model, example).macs
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = sc.attach(
        model, example, "npn", sc.Budget(macs=0.5), data=loader, steps=epochs * len(loader), epoch_steps=len(loader)
    )
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            loss = cross_entropy(model(x), y) + pruner.penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
    sc.cut_(model, pruner.plan(), optimizer)
    model.train()
    for x, y in loader:  # one more epoch, of the small network, with the same optimizer
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = accuracy(model, data)
    print(f"{sc.count(model, example).macs / before:.0%} of the MACs, accuracy {found:.1%}")
    return model, found


if __name__ == "__main__":
    main()
