"""Prune a segmentation network and recover it with a Dice loss: any loss, any metric.

python examples/segmentation_dice.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sc


class UNet(nn.Module):
    """Two scales and a skip connection: (N, 1, H, W) → logits (N, 1, H, W)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down, self.inner = block(1, width), block(width, 2 * width)
        self.up, self.head = block(3 * width, width), nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.down(x)
        deep = F.interpolate(self.inner(F.max_pool2d(wide, 2)), scale_factor=2.0)
        return self.head(self.up(torch.cat([wide, deep], 1)))


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def squares(count: int, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    """Batches of noisy images with a brighter square, and its mask: (N, 1, H, W), values 0 and 1."""
    masks = torch.zeros(count, 1, size, size)
    for mask, (x, y) in zip(masks, torch.randint(2, size - 14, (count, 2)).tolist(), strict=True):
        mask[:, y : y + 12, x : x + 12] = 1
    images = masks + 0.5 * torch.randn(count, 1, size, size)
    return list(zip(images.split(16), masks.split(16), strict=True))


def overlap(logits: Tensor, masks: Tensor) -> Tensor:
    """The soft Dice coefficient, mean over images: 1 for a perfect mask."""
    p, m = logits.sigmoid().flatten(1), masks.flatten(1)
    return ((2 * (p * m).sum(1) + 1) / (p.sum(1) + m.sum(1) + 1)).mean()


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    return 1 - overlap(logits, masks)


def main(count: int = 128, epochs: int = 8) -> sc.Result:
    """Train a U-Net, prune it to half of its MACs, recover it."""
    torch.manual_seed(0)
    data, model = sc.Data(train=squares(count), val=squares(32)), UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for images, masks in data.train:
            dice_loss(model(images), masks).backward()
            optimizer.step()
            optimizer.zero_grad()
    result = sc.prune(
        model, data.train[0][0][:1], "l2", sc.Budget(macs=0.5), data, loss=dice_loss, metrics={"Dice": overlap},
        recover=sc.Recover(epochs=epochs, optimizer="adam", lr=5e-3, ema=0.9), progress="silent",
    )  # fmt: skip
    figures = {name: getattr(result, name).metrics["Dice"] for name in ("before", "cut", "after")}
    print(
        f"{result.after.macs / result.before.macs:.0%} of the MACs; Dice "
        + str({k: round(v, 3) for k, v in figures.items()})
    )
    return result


if __name__ == "__main__":
    main()
