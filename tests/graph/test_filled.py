"""Tensors of one value, as wide as a number says that a module keeps: the state that a recurrent layer begins with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from tests.networks import fraction


class Cell(nn.Module):
    """A convolutional LSTM, as it is usually written."""

    def __init__(self, computes: bool = False) -> None:
        super().__init__()
        self.hidden_dim, self.computes = 6, computes
        self.first, self.conv, self.out = nn.Conv2d(3, 5, 1), nn.Conv2d(11, 24, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        h = c = torch.zeros(b, self.hidden_dim, height, width, device=x.device)
        for _ in range(2):
            gates = self.conv(torch.cat([self.first(x), h], 1))
            i, f, o, g = torch.split(gates, self.hidden_dim, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh() * (self.hidden_dim if self.computes else 1)
        return self.out(h)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = 6, 2
        self.conv, self.lstm, self.out = nn.Conv2d(3, 5, 3), nn.LSTM(5, 6, 2, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.conv(x).mean(2).mT
        h = torch.zeros(self.num_layers, x.size(0), self.hidden_size).to(x.device)
        c = steps.new_zeros(self.num_layers, x.size(0), self.hidden_size)
        return self.out(self.lstm(steps, (h, c))[0][:, -1])


def inputs() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Cell, Recurrent])
@pytest.mark.parametrize("share", [0.7, 0.5, 0.01])
def test_the_number_follows_the_channels(kind: Any, share: float) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    graph = sc.trace(model, inputs())
    assert [g.name for g in graph.groups if not g.prunable] == ["out"]
    plan = graph.plan(fraction(graph, share))
    assert sc.verify(model, plan, inputs()) <= 1e-5
    small = sc.apply(model, plan)
    layer = small.out
    width = layer.weight.shape[1]
    assert width < 6
    assert width == getattr(small, "hidden_dim", None) or width == small.hidden_size
    assert sc.count(small, inputs()) == graph.cost_of(plan)
    small.train()(inputs()).sum().backward()


def test_a_number_that_the_code_computes_with_stays() -> None:
    torch.manual_seed(0)
    model = Cell(computes=True).eval()
    graph = sc.trace(model, inputs())
    assert not graph["conv"].prunable
    assert graph["first"].prunable
    assert sc.verify(model, graph.plan(fraction(graph, 0.5)), inputs()) <= 1e-5


def test_what_it_fills_may_be_no_channels() -> None:
    """The number counts something else, too."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels = 8
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y = y + torch.zeros(self.channels, 1, 1)
            return self.b(y + torch.ones(self.channels)) + F.pad(x[:, :1], (0, 0, 0, 0, 0, 3))

    torch.manual_seed(0)
    model = Net().eval()
    graph = sc.trace(model, inputs())
    assert not graph["a"].prunable


@pytest.mark.parametrize("how", ["product", "linear", "convolution"])
def test_what_sums_over_channels_without_a_weight_keeps_them(how: str) -> None:
    """Values that are the same for all channels are no weight, in which a channel could be masked."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
            self.one = nn.Parameter(torch.rand(1, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if how == "product":
                s = torch.einsum("qc,nchw->nqhw", torch.ones(1, y.shape[1], device=y.device), y)
            elif how == "linear":
                s = F.linear(y.movedim(1, -1), y.new_ones(1, y.shape[1])).movedim(-1, 1)
            else:
                s = F.conv2d(y, self.one.expand(1, y.shape[1], 1, 1))
            return self.out(self.b(y) * s)

    torch.manual_seed(0)
    model = Net().eval()
    graph = sc.trace(model, inputs())
    assert "sums over it" in str(graph["a"].reason)
    assert graph["b"].prunable
    assert sc.verify(model, graph.plan(fraction(graph, 0.5)), inputs()) <= 1e-5
