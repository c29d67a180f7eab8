"""What criteria of the loss's gradient say of channels that it does not depend on."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc

IMAGES, LABELS = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


class TwoHeads(nn.Module):
    """Classes, and an image that is made by a branch of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.image, self.classes = nn.Conv2d(8, 3, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x).relu()
        return {"classes": self.classes(x.mean((2, 3))), "image": self.image(self.branch(x).relu())}


def by_classes(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs["classes"], targets)


def by_both(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return by_classes(outputs, targets) + outputs["image"].square().mean()


@pytest.mark.parametrize("method", ["taylor", "fisher", "group-taylor"])
def test_channels_that_the_loss_does_not_depend_on_are_named(method: str, caplog: pytest.LogCaptureFixture) -> None:
    def told(loss: object) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "secateurs"):
            sc.prune(
                TwoHeads(), IMAGES, method, sc.Budget(macs=0.6), [(IMAGES, LABELS)], loss=loss, check_speed=False,
                progress="silent",
            )  # fmt: skip
        return [line for line in caplog.messages if "does not depend on" in line]

    assert told(by_classes) == [
        f"{method}: the loss does not depend on the channels of branch, so these may be cut first. If an output that the loss "
        "does not read matters, add it to the loss, or exclude them (exclude=…)."
    ]
    assert told(by_both) == []
