"""Tensors that the forward fills with activations: what they hold depends on the inputs, and is no weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from secateurs.plans import trace

SCORES = "aten.bmm sums over it in a product of two activations"
Fill = Callable[["Filled", Tensor], Tensor]


def a_slice(net: Filled, y: Tensor) -> Tensor:
    out = torch.zeros(len(y), 8, *y.shape[2:])
    out[:, :, 1:] = y[:, :, 1:]
    return out


def an_earlier_view(net: Filled, y: Tensor) -> Tensor:
    out = torch.zeros(len(y), 8, *y.shape[2:])
    view = out[:, :, 1:]
    out.copy_(y)
    return view


def a_view_of_a_view(net: Filled, y: Tensor) -> Tensor:
    out = torch.zeros(len(y), *y.shape[2:], 8)
    out[:1].movedim(-1, 1).add_(y[:1])
    return out.movedim(-1, 1)


def positions(net: Filled, y: Tensor) -> Tensor:
    out = torch.zeros(8, len(y), *y.shape[2:])
    return out.index_put((torch.arange(8),), out).index_add_(0, torch.arange(8), y.transpose(0, 1)).transpose(0, 1)


def a_buffer(net: Filled, y: Tensor) -> Tensor:
    net.cache[:, :, :4] = y[:, :, :4]
    return net.cache


class Filled(nn.Module):
    """Self-attention on what was written."""

    def __init__(self, fill: Fill) -> None:
        super().__init__()
        self.stem, self.queries, self.keys, self.values = (
            nn.Conv2d(c, o, 1) for c, o in ((3, 8), (8, 6), (8, 6), (8, 5))
        )
        self.leave, self.fill = nn.Conv1d(5, 4, 1), fill
        self.register_buffer("cache", torch.zeros(2, 8, 6, 6))

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) → (N, 4, H·W)
        y = self.fill(self, self.stem(x))
        q, k, v = (layer(y).flatten(2) for layer in (self.queries, self.keys, self.values))
        return self.leave(v @ (k.transpose(1, 2) @ q).softmax(1))


@pytest.mark.parametrize("fill", [a_slice, an_earlier_view, a_view_of_a_view, positions, a_buffer])
def test_a_product_of_two_activations_stays_one(fill: Fill) -> None:
    graph = trace(Filled(fill).eval(), torch.randn(2, 3, 6, 6))
    for name in ("queries", "keys"):
        assert str(graph[name].reason).startswith(SCORES)
    assert graph["values"].prunable


def test_a_cache_of_keys_is_no_weight() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.keys, self.leave = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(8, 4)
            self.register_buffer("cache", torch.zeros(8, 6))

        def forward(self, x: Tensor) -> Tensor:  # (8, 3) → (8, 4)
            self.cache[: len(x)] = self.keys(x)
            return self.leave(self.queries(x) @ self.cache.T)

    graph = trace(Cached().eval(), torch.randn(8, 3))
    assert "in a product of two activations" in str(graph["queries"].reason)
