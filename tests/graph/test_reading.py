"""Widths that code reads from attributes, and uses where Python shows nothing of them: `range`, an index, `math.log2`."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.graph import claims
from secateurs.plans import trace
from secateurs.surgery import verify
from tests.networks import Net, conv, fraction, head, image

Use = Callable[[Any, Tensor], Tensor]


def again(n: int, x: Tensor) -> Tensor:
    for _ in range(n):
        x = x.relu()
    return x


# What each reads, and the group that it keeps whole.
KEEPS: dict[str, tuple[Use, str]] = {
    "a loop": (lambda s, x: again(s.b.out_channels, x), "b"),
    "a loop over its own number": (lambda s, x: again(s.width, x), "b"),
    "a sum": (lambda s, x: x * sum(1 for _ in range(s.b.out_channels)), "b"),
    "the number of other channels": (lambda s, x: x * math.log2(s.a.out_channels), "a"),
    "a logarithm": (lambda s, x: x * math.log2(s.b.out_channels), "b"),
    "a window": (lambda s, x: F.max_pool2d(x, 2 * int(math.log2(s.c.in_channels)) - 1, 1, 2), "b"),
    "an item of a list": (lambda s, x: x * [0.1 * i for i in range(20)][s.b.out_channels], "b"),
    "a parameter by its number": (lambda s, x: x * s.scales[s.b.out_channels], "b"),
    "a parameter by the number of others": (lambda s, x: x * s.scales[s.a.out_channels], "a"),
    "a parameter by its own number": (lambda s, x: x * s.scales[s.width], "b"),
}
RIGHT: dict[str, Use] = {
    "as many": lambda s, x: x[:, : len(range(s.b.out_channels))],
    "a size": lambda s, x: x.view(len(x), s.b.out_channels, -1).view(len(x), s.width, *x.shape[2:]),
    "read, and not used": lambda s, x: x.relu() if s.b.out_channels is not None else x,
}


def net(use: Use) -> nn.Module:
    torch.manual_seed(0)
    scales = nn.ParameterList(nn.Parameter(torch.rand(1)) for _ in range(20))
    return Net(
        lambda s, x: s.h(s.c(use(s, s.b(s.a(x).relu()))).relu()),
        a=conv(3, 8), b=conv(8, 12), c=conv(12, 9), h=head(9), scales=scales, width=12,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", KEEPS)
def test_what_fits_one_width_keeps_it_and_no_other(name: str) -> None:
    use, kept = KEEPS[name]
    model = net(use)
    graph = trace(model, image())
    assert [n for n in "abc" if not graph[n].prunable] == [kept]
    assert str(graph[kept].reason).startswith((claims.DEPENDS, claims.NUMBER))
    assert "test_reading.py:" in str(graph[kept].reason)
    assert verify(model, graph.plan(fraction(graph, 0.5)), image()) <= 1e-5


@pytest.mark.parametrize("name", RIGHT)
def test_what_follows_is_prunable(name: str) -> None:
    model = net(RIGHT[name])
    graph = trace(model, image())
    assert all(graph[n].prunable and graph[n].least == 1 for n in "abc")
    assert verify(model, graph.plan(fraction(graph, 0.5)), image()) <= 1e-5


def test_classes_are_as_before() -> None:
    """Also where a forward fails, sets the attribute, or traces another network of the same class."""
    before = dict(vars(nn.Conv2d))

    def fails(s: Any, x: Tensor) -> Tensor:
        s.b.out_channels = s.b.out_channels
        s.b.fresh = 1
        del s.b.fresh
        assert not hasattr(s.b, "nothing")
        trace(net(RIGHT["a size"]), image())
        raise RuntimeError

    with pytest.raises(Exception, match="does not run"):
        trace(net(fails), image())
    assert dict(vars(nn.Conv2d)) == before


class _Base(nn.Module):
    width = 12


class _Block(_Base):
    """The default width is the class's; a block may have its own."""

    def __init__(self, c: int, width: int | None = None) -> None:
        super().__init__()
        if width is not None:
            self.width = width
        self.conv = conv(c, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).view(len(x), self.width, -1).view(len(x), self.width, *x.shape[2:]).relu()


def test_a_default_of_the_class_is_still_read() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_Block(3, 8), _Block(8), _Block(12, 12), head(12)).eval()
    graph = trace(model, image())
    verify(model, graph.plan(fraction(graph, 0.5)), image())
    assert model[1].width == _Base.width == _Block.width == 12
    assert "width" not in vars(_Block)


def test_threads_do_not_disturb_each_other() -> None:
    """Two traces of one class of layers: the first to end leaves the other's notes alone."""
    before, inside, done = dict(vars(nn.Conv2d)), threading.Event(), threading.Event()

    def waits(s: Any, x: Tensor) -> Tensor:
        inside.set()
        done.wait(20)
        return x * math.log2(s.b.out_channels)

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(trace(net(waits), image())))
    thread.start()
    assert inside.wait(20)
    assert trace(net(RIGHT["a size"]), image())["b"].prunable
    done.set()
    thread.join()
    assert not found[0]["b"].prunable
    assert dict(vars(nn.Conv2d)) == before
