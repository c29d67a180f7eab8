"""Prune a network with two inputs, an image and a table of numbers, on batches that are dicts.

python examples/two_inputs.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import secateurs as sc

Batch = dict[str, Tensor]


class Regressor(nn.Module):
    """An image (N, 3, 16, 16) and numbers (N, 5) → (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.table = nn.Sequential(nn.Linear(5, 16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(image), self.table(table)], 1))


def samples(count: int) -> list[Batch]:
    """Batches; the target is the image's mean plus the first number."""
    image, table = torch.randn(count, 3, 16, 16) + torch.randn(count, 1, 1, 1), torch.randn(count, 5)
    target = image.mean((1, 2, 3))[:, None] + table[:, :1]
    parts = zip(image.split(32), table.split(32), target.split(32), strict=True)
    return [{"image": a, "table": b, "target": c} for a, b, c in parts]


def run(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the network makes of a batch, and what it should."""
    return model(batch["image"], batch["table"]), batch["target"]


def main(count: int = 256, epochs: int = 10) -> sc.Result:
    """Train, prune to half of the MACs, recover."""
    torch.manual_seed(0)
    data, model = sc.Data(train=samples(count), val=samples(64)), Regressor()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in data.train:
            mse_loss(*run(model, batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
    example = {name: data.train[0][name][:1] for name in ("image", "table")}
    result = sc.prune(
        model, example, "l2", sc.Budget(macs=0.5), data, forward=run, loss=mse_loss,
        recover=sc.Recover(epochs=epochs, optimizer="adam", lr=3e-3), progress="silent",
    )  # fmt: skip
    print(
        f"{result.after.macs / result.before.macs:.0%} of the MACs; loss {result.before.loss:.3f}, now {result.after.loss:.3f}"
    )
    return result


if __name__ == "__main__":
    main()
