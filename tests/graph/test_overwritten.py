"""Weights that the forward overwrites: what a cut or a mask made of them does not last."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc


class Fused(nn.Module):
    """Fuses two convolutions into a third one in each forward, as networks for super-resolution do."""

    def __init__(self, write: Callable[[nn.Parameter, Tensor], object]) -> None:
        super().__init__()
        self.enter, self.wide, self.point = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(8, 6, 1)
        self.fused, self.middle, self.leave = nn.Conv2d(8, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 4, 1)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) → (N, 4, H - 6, W - 6)
        weight = self.wide.weight.data + nn.functional.pad(self.point.weight.data, (1, 1, 1, 1))
        self.write(self.fused.weight, weight)
        return self.leave(self.middle(self.fused(self.enter(x).relu())).relu())


def assign(weight: nn.Parameter, value: Tensor) -> None:
    weight.data = value


def copy_into_data(weight: nn.Parameter, value: Tensor) -> None:
    weight.data.copy_(value)


def copy(weight: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(value)


def images() -> Tensor:
    return torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("write", [assign, copy_into_data, copy])
def test_what_it_has_stays_whole_for_that_reason(write: Callable[[nn.Parameter, Tensor], object]) -> None:
    model = Fused(write).eval()
    graph = sc.trace(model, images())
    for layer in ("enter", "fused"):
        assert not graph[layer].prunable
        assert "the code overwrites a weight" in str(graph[layer].reason)
        assert "test_overwritten.py:" in str(graph[layer].reason)
    assert graph["middle"].prunable
    assert sc.verify(model, graph.plan({"middle": range(3)}), images()) <= 1e-5


def double(weight: nn.Parameter, value: Tensor) -> None:
    weight.data = weight.data * 0.5


def clamp(weight: nn.Parameter, value: Tensor) -> None:
    weight.data.copy_(weight.data.clamp(-0.1, 0.1))


@pytest.mark.parametrize("write", [double, clamp])
def test_a_weight_that_is_scaled_or_limited_is_still_itself(write: Callable[[nn.Parameter, Tensor], object]) -> None:
    model = Fused(write).eval()
    graph = sc.trace(model, images())
    plan = graph.plan({"enter": range(3), "fused": range(4), "middle": range(3)})
    assert sc.verify(model, plan, images()) <= 1e-5
