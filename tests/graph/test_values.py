"""Attention whose q, k and v are pieces of one projection, split by numbers that the block keeps: the values can be cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateurs.plans import PrunableGraph, trace
from secateurs.surgery import apply, verify
from secateurs.testing.networks import randomize
from tests.networks import conv, fraction, head, image


class Block(nn.Module):
    """Projections for 2 heads with 4 queries and keys and 6 values each, and a table with a row for each head."""

    heads = 2

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.key_dim, self.val_dim, self.val_attn_dim, self.scale = 4, 6, 12, 0.5
        self.qkv, self.proj = conv(c, 28, 1), conv(12, c, 1)
        self.table = nn.Parameter(torch.randn(self.heads, 144))


class HeadsFirst(Block):
    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        parts = self.qkv(x).view(n, self.heads, -1, h * w).split([self.key_dim, self.key_dim, self.val_dim], dim=2)
        q, k, v = (p.transpose(2, 3) for p in parts)
        weights = (q @ k.transpose(-2, -1) * self.scale + self.table[:, None]).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(n, h * w, self.val_attn_dim)
        return x + self.proj(y.transpose(1, 2).reshape(n, -1, h, w))


class PiecesFirst(Block):
    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        whole = self.heads * self.key_dim
        q, k, v = torch.split(self.qkv(x), [8, 8, self.val_attn_dim], dim=1)
        assert whole == 8
        q, k, v = q.reshape(n * 2, 4, -1), k.reshape(n * 2, 4, -1), v.reshape(n * self.heads, self.val_dim, -1)
        y = v @ (q.transpose(1, 2) @ k * self.scale).softmax(-1).transpose(1, 2)
        return x + self.proj(y.reshape(n, self.val_attn_dim, h, w))


class Cascade(Block):
    """Two heads with projections of their own, and one number for the values of both."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(conv(c, 14, 1) for c in (8, 6))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        found, y = [], x
        for layer in self.each:
            q, k, v = layer(y).flatten(2).split([self.key_dim, self.key_dim, self.val_dim], dim=1)
            y = (v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)).view(n, self.val_dim, h, w)
            found.append(y)
        return x + self.proj(torch.cat(found, 1))


class Computing(HeadsFirst):
    """It scales by the number of values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.val_dim**-0.5


class Gated(nn.Module):
    """Two pieces of one number, beside a single channel."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 6
        self.both, self.proj = conv(8, 13, 1), conv(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, gate, value = self.both(x).split([1, self.dim, self.dim], 1)
        return x + self.proj(one * torch.cat([value[:, :0], value.relu()], 1) + gate.tanh())


def traced(block: nn.Module) -> tuple[nn.Module, PrunableGraph]:
    torch.manual_seed(0)
    model = randomize(nn.Sequential(conv(3, 8), block, conv(8, 5), head(5))).eval()
    return model, trace(model, image())


@pytest.mark.parametrize("kind", [HeadsFirst, PiecesFirst, Cascade])
def test_values_can_be_cut(kind: type[Block]) -> None:
    model, graph = traced(kind())
    values = [g for g in graph.groups if g.prunable and "1.proj" in g.consumers]
    assert [g.size for g in values] == [6]  # the heads stay equal
    for share in (0.8, 0.5, 0.01):
        plan = graph.plan(fraction(graph, share))
        assert verify(model, plan, image()) <= 1e-5
        small = apply(model, plan)
        assert small[1].val_dim == small[1].proj.in_channels // 2 < 6
        assert small[1].key_dim == 4


def test_a_number_that_is_computed_with_keeps_the_values() -> None:
    model, graph = traced(Computing())
    assert not any(g.prunable for g in graph.groups if "1.proj" in g.consumers)
    assert verify(model, graph.plan(fraction(graph, 0.5)), image()) <= 1e-5


def test_pieces_of_one_number_stay_equal_and_a_constant_beside_them_whole() -> None:
    model, graph = traced(Gated())
    found = [g for g in graph.groups if "1.proj" in g.consumers]
    assert [(g.size, g.coupled, g.prunable) for g in found] == [(6, 2, True)]
    for share in (0.8, 0.01):
        assert verify(model, graph.plan(fraction(graph, share)), image()) <= 1e-5
