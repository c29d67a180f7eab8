"""Criteria that watch activations, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task
from secateurs.methods.registry import resolve
from secateurs.testing.networks import data, images, network

X = torch.tensor([[[1.0, -1], [2, -2]], [[3, 0.5], [-1, -1]]])[:, None]  # (2, 1, 2, 2)


def plain(*layers: nn.Module) -> nn.Sequential:
    """A 1×1 convolution with weights 1, -1, 3 and 0 that `layers` read."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), *layers)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1, 3, 0]).view(4, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, 0, -2, -1]))
    return model.eval()


def head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2)


def task(model: nn.Module, x: Tensor, y: Tensor | None = None, scope: str = "all") -> Task:
    y = torch.arange(len(x)) % 2 if y is None else y
    batches = [(x[:1], y[:1]), (x[1:], y[1:])]
    return Task(model, sc.trace(model, x), sc.Budget(macs=0.5), scope, data=sc.Data(train=batches))  # type: ignore[arg-type]


def scores(method: str | Criterion, t: Task, size: int = 4) -> list[float]:
    found = resolve(method).scores(t)  # type: ignore[union-attr]
    (group,) = (g for g in t.groups if g.size == size)
    return [round(float(s), 5) for s in found[group.name]]


# Channels of X: x, -x, 3x - 2, -1: above zero at 4 of 8 places, at 4, at 3 (1, 2, 3) and nowhere.
SHARES = [4 / 8, 4 / 8, 3 / 8, 0]


@pytest.mark.parametrize(
    "readers",
    [
        (nn.Conv2d(4, 3, 1), *head(3)),
        (nn.Conv2d(4, 6, 1, groups=2), *head(6)),
        (nn.Flatten(), nn.Linear(16, 2)),
    ],
    ids=["conv", "grouped", "flatten"],
)
def test_share_of_zeros(readers: tuple[nn.Module, ...]) -> None:
    t = task(plain(nn.ReLU(), *readers), X)
    if isinstance(readers[0], nn.Conv2d) and readers[0].groups == 2:  # channels 0 and 2, 1 and 3 are coupled
        assert scores("apoz", t, 2) == [(4 + 3) / 16, 4 / 16]
    else:
        assert scores("apoz", t) == SHARES


def test_examples_are_counted_alike_whatever_their_batch() -> None:
    model = plain(nn.ReLU(), nn.Conv2d(4, 3, 1), *head(3))
    x = torch.cat([X, X[:1], X[:1]])
    assert scores("apoz", task(model, x)) == [8 / 16, 8 / 16, (3 * 2 + 1) / 16, 0]
    assert scores(sc.APoZ(examples=1), task(model, x)) == [2 / 4, 2 / 4, 2 / 4, 0]


class Several(nn.Module):
    """Two layers read a channel, one of them pooled; a third reads it by code if asked to."""

    def __init__(self, code: str | None = None, act: str = "relu") -> None:
        super().__init__()
        self.a = plain()[0]
        self.b, self.c = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
        self.fc = nn.Linear(3, 2)
        self.code, self.act = code, act

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(F, self.act)(self.a(x))
        b = F.conv2d(x, self.b.weight, self.b.bias) if self.code else self.b(x)
        c = self.c.weight @ x.flatten(2) if self.code == "neither" else self.c(F.max_pool2d(x, 2))
        return self.fc(b.mean((2, 3)) + c.mean((2, 3)))


def test_readers_are_averaged() -> None:
    """After 2×2 pooling x is above zero in both images, -x too, 3x - 2 too."""
    assert scores("apoz", task(Several(), X)) == [(4 / 8 + 1) / 2, (4 / 8 + 1) / 2, (3 / 8 + 1) / 2, 0]
    assert scores("apoz", task(Several("one"), X)) == [1, 1, 1, 0]


def test_readers_that_are_no_modules() -> None:
    class Code(Several):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            return self.fc(F.conv2d(x, self.b.weight, self.b.bias).mean((2, 3)))

    with pytest.raises(sc.ConfigError, match=r"apoz: no consumer of a is called as a module"):
        scores("apoz", task(Code(), X))


def test_activations_that_are_never_zero() -> None:
    with pytest.raises(sc.ConfigError, match="is ever exactly zero"):
        scores("apoz", task(Several(act="silu"), X))
    mixed = plain(nn.SiLU(), nn.Conv2d(4, 3, 1), nn.ReLU(), *head(3))
    with torch.no_grad():
        mixed[2].weight[0], mixed[2].bias[0] = 0, -1
    record: list[dict[str, Any]] = []
    t = replace(task(mixed, X), log=record.append)
    found = sc.APoZ().scores(t)
    dense = next(g.name for g in t.groups if g.size == 4)
    assert found[dense].tolist() == [1, 1, 1, 1]
    assert record == [{"event": "apoz", "never_zero": [dense]}]


# -- taylor ------------------------------------------------------------------------------------------------------------


def by_hand(model: nn.Module, layers: list[str], x: Tensor, y: Tensor, each: bool = True) -> Tensor:
    """|Σ activation · gradient| over what the layers read, of each example by itself (or of all), averaged: (size,)."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (a,) = args
        seen.append(a.detach().requires_grad_())
        seen[-1].origin = a  # type: ignore[attr-defined]
        return (a + seen[-1] - a.detach(),)  # the same value, with a leaf that catches the gradient

    handles = [model.get_submodule(name).register_forward_pre_hook(watch) for name in layers]
    total = torch.zeros(())
    parts = [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))] if each else [(x, y)]
    for xs, ys in parts:
        seen.clear()
        grads = torch.autograd.grad(F.cross_entropy(model(xs), ys) * len(xs), seen)
        found = sum((a.detach() * g).transpose(0, 1).flatten(1).sum(1) for a, g in zip(seen, grads, strict=True))
        total = total + found.abs()
    for handle in handles:
        handle.remove()
    return total / total.norm()


def test_gradient_times_activation() -> None:
    model = network("residual")
    source = data()
    x, y = (torch.cat(parts) for parts in zip(*source.train, strict=True))
    record: list[dict[str, Any]] = []
    t = Task(model, sc.trace(model, images(1)), sc.Budget(macs=0.5), "all", data=source, log=record.append)
    found = sc.Taylor().scores(t)
    for layers in (["blocks.0.3"], ["blocks.1.3"], ["blocks.0.0", "blocks.1.0", "fc"]):
        (group,) = (g for g in t.groups if set(g.consumers) == set(layers))
        if len(layers) == 1:
            expected = by_hand(model, layers, x, y)
            torch.testing.assert_close(found[group.name].float(), expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(expected, by_hand(model, layers, x, y, each=False), atol=1e-3)
        else:  # a residual stream, read at three places
            torch.testing.assert_close(found[group.name].float(), by_hand(model, layers, x, y), rtol=1e-4, atol=1e-5)
    assert not record


@pytest.mark.parametrize("code", ["one"])
def test_channels_read_by_code_are_scored_by_batch(code: str) -> None:
    torch.manual_seed(0)
    model, plain_model = Several(code), Several()
    plain_model.load_state_dict(model.state_dict())
    x, y = torch.randn(6, 1, 4, 4), torch.tensor([0, 1, 0, 1, 1, 0])
    batches = [(x, y)]
    record: list[dict[str, Any]] = []
    t = Task(model, sc.trace(model, x), sc.Budget(macs=0.5), "all", data=sc.Data(train=batches), log=record.append)
    found = sc.Taylor().scores(t)
    name = next(g.name for g in t.groups if g.size == 4)
    expected = by_hand(plain_model, ["b", "c"], x, y, each=False)
    torch.testing.assert_close(found[name].float(), expected, rtol=1e-4, atol=1e-5)
    assert record == [{"event": "taylor", "by_batch": [name]}]
