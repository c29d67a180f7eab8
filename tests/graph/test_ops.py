"""Ops that write to positions, torchvision's ops, and blocks whose weights are computed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.graph import count
from secateurs.plans import PrunableGraph, trace
from secateurs.surgery import apply, verify
from secateurs.zoo import vision
from tests.networks import Complex, Net, conv, half, head

Run = Callable[..., Any]


def sound(model: nn.Module, x: Tensor) -> PrunableGraph:
    """Its groups can be cut together, at the cost that the graph says."""
    graph = trace(model.eval(), x)
    kept = half(graph)
    assert verify(model, graph.plan(kept), x) < 1e-5
    assert graph.cost({g: len(index) for g, index in kept.items()}) == count(apply(model, graph.plan(kept)), x)
    return graph


def images() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def written(x: Tensor, *index: Any) -> Tensor:
    x = x.clone()
    x[index] = 0.5
    return x


ORDER = torch.tensor([2, 0, 1, 5, 4, 3])
KEEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "masked_fill": lambda y: y.masked_fill(y > 0.3, 0.0),
    "masked_fill_": lambda y: y.clone().masked_fill_(y > 0.3, 0.0),
    "a mask": lambda y: written(y, y < 0),
    "rows": lambda y: written(y, slice(None), slice(None), torch.tensor([0, 2])),
    "abs_": lambda y: y.clone().abs_(),
    "threshold_": lambda y: F.threshold(y.clone(), 0.1, 0.0, inplace=True),
    "floor_divide": lambda y: y.floor_divide(0.3),
    "nansum": lambda y: y.nansum((2, 3), keepdim=True) + y,
    "scatter": lambda y: y.scatter(3, ORDER.expand(2, y.shape[1], 6, 6), y.relu()),
    "scatter_add": lambda y: torch.zeros_like(y).scatter_add(2, ORDER[:, None].expand(2, y.shape[1], 6, 6), y),
    "index_add": lambda y: y.index_add(3, ORDER, y.relu()),
    "index_fill": lambda y: y.index_fill(2, torch.tensor([1]), 0.0),
    "index_copy": lambda y: y.index_copy(3, ORDER, y.relu()),
}


@pytest.mark.parametrize("name", KEEPS)
def test_channels_beside_the_positions_are_kept(name: str) -> None:
    model = Net(lambda s, x: s.h(KEEPS[name](s.a(x))), a=conv(3, 6), h=head(6))
    assert sound(model, images())["a"].prunable


@pytest.mark.parametrize(
    "change",
    [
        lambda y: written(y, slice(None), torch.tensor([0, 2])),
        lambda y: y.index_fill(1, torch.tensor([1]), 0.0),
        lambda y: y.scatter(1, ORDER[:, None, None].expand(2, 6, 6, 6), y.relu()),
        lambda y: torch.repeat_interleave(y, torch.tensor([1, 1, 2, 0, 1, 1]), 1),
    ],
)
def test_channels_that_are_the_positions_stay(change: Run) -> None:
    model = Net(lambda s, x: s.h(change(s.a(x))), a=conv(3, 6), h=head(6))
    reason = str(sound(model, images())["a"].reason)
    assert "positions" in reason or "by index" in reason


# -- torchvision ------------------------------------------------------------------------------------------------------


def roi_align(x: Tensor, boxes: Tensor, scale: float, height: int, width: int, *_: Any) -> Tensor:
    return F.adaptive_avg_pool2d(x[boxes[:, 0].long()], (height, width))


def deform_conv2d(
    x: Tensor, w: Tensor, offset: Tensor, mask: Tensor, b: Tensor, sh: int, sw: int, *rest: Any
) -> Tensor:
    ph, pw, dh, dw, groups, *_ = rest
    return F.conv2d(x, w, b, (sh, sw), (ph, pw), (dh, dw), groups) * (1 + offset.mean())


@pytest.fixture(scope="module")
def operators() -> Any:
    """torchvision's ops; where its extension does not load, ops of the same shapes."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    vision.torchvision()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in (roi_align, deform_conv2d):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{op.__name__}", "CPU"):
            library.impl(op.__name__, op, "CPU")
    yield torch.ops.torchvision
    library._destroy()


def test_regions_keep_channels(operators: Any) -> None:
    boxes = torch.tensor([[0.0, 0, 0, 4, 4], [1, 1, 1, 5, 5], [0, 2, 2, 5, 5]])
    model = Net(lambda s, x: s.h(operators.roi_align(s.a(x), boxes, 1.0, 2, 2, 1, False)), a=conv(3, 6), h=head(6))
    assert sound(model, images())["a"].prunable


@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_convolution(operators: Any, groups: int) -> None:
    none = torch.zeros(2, 1)
    model = Net(
        lambda s, x: s.h(
            operators.deform_conv2d(s.a(x), s.w, s.o(x), none, s.b, 1, 1, 1, 1, 1, 1, groups, 1, False).relu()
        ),
        a=conv(3, 8), o=conv(3, 18), h=head(6),
        w=nn.Parameter(torch.randn(6, 8 // groups, 3, 3)), b=nn.Parameter(torch.randn(6)),
    )  # fmt: skip
    graph = sound(model, images())
    a, w = graph["a"], graph["w"]
    assert (a.prunable, a.size, w.prunable, w.size) == (True, 8 // groups, True, 6 // groups)
    assert "reads it as positions" in str(graph["o"].reason)
    assert graph.cost().macs == 2 * 36 * 27 * (8 + 18) + 2 * 36 * 9 * 8 // groups * 6 + 2 * 6 * 5


# -- weights that are computed ----------------------------------------------------------------------------------------


class Conditional(nn.Module):
    """A convolution whose weight is a mixture of experts, with weights from the image (CondConv)."""

    def __init__(self, i: int, o: int, experts: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.experts = i, o, experts
        self.route = nn.Linear(i, experts)
        self.weight = nn.Parameter(torch.randn(experts, o * i * 9) / 9)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weight = torch.sigmoid(self.route(x.mean((2, 3)))) @ self.weight  # (N, O·I·9)
        weight = weight.view(n * self.out_channels, self.in_channels, 3, 3)
        y = F.conv2d(x.reshape(1, n * c, h, w), weight, padding=1, groups=n)
        return y.permute(1, 0, 2, 3).view(n, self.out_channels, h, w)


def test_experts_can_be_cut() -> None:
    model = Net(
        lambda s, x: s.h(s.b(s.c(s.a(x)).relu())), a=conv(3, 8), c=Conditional(8, 6, 4), b=conv(6, 7), h=head(7)
    )
    graph = sound(model, images())
    assert graph["c.route"].prunable
    assert graph["c.route"].consumers == ("c",)
    assert graph["b"].prunable


class EvoNorm(nn.Module):
    """Divides by the standard deviation over groups of channels (EvoNorm-S0)."""

    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight, self.bias, self.v = (nn.Parameter(torch.rand(c)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        std = (
            x.reshape(n, self.groups, c // self.groups, h, w)
            .var((2, 3, 4), unbiased=False, keepdim=True)
            .add(1e-5)
            .sqrt()
        )
        std = std.expand(n, self.groups, c // self.groups, h, w).reshape(n, c, h, w)
        weight, bias, v = (p.view(1, -1, 1, 1) for p in (self.weight, self.bias, self.v))
        return x * (x * v).sigmoid() / std * weight + bias


def test_norm_over_groups_of_channels() -> None:
    """Cut whole groups, or nothing: never channels out of a group's statistics."""
    model = Net(lambda s, x: s.h(s.b(s.n(s.a(x)))), a=conv(3, 16), n=EvoNorm(16, 4), b=conv(16, 6), h=head(6))
    graph = sound(model, images())
    group = graph["a"]
    if group.prunable:
        assert [sorted(i // 4 for i in channel) for channel in group.slots[0].index] == [[k] * 4 for k in range(4)]
    assert graph["b"].prunable


def test_complex_weights() -> None:
    """Real and imaginary parts of a weight are read apart."""

    class Parts(Complex):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x.to(torch.complex64))
            y = torch.complex(y.real.relu(), y.imag.relu())
            pairs = torch.view_as_real(self.b(y).mean((2, 3))) * 2
            return self.out(torch.view_as_complex(pairs.contiguous()).conj()).abs()

    model = Parts().eval()
    graph = trace(model, images())
    assert [g.prunable for g in graph.groups] == [True, True, False]
    plan = graph.plan({"a": [0, 3, 4], "b": [1, 5]})
    small = apply(model, plan)
    assert graph.cost({"a": 3, "b": 2}) == count(small, images())
    masked = apply(model, graph.plan({}))
    with torch.no_grad():
        for layer, kept in ((masked.b, [0, 3, 4]), (masked.out, [1, 5])):
            gone = [i for i in range(layer.weight.shape[1]) if i not in kept]  # type: ignore[union-attr, index]
            layer.weight[:, gone] = 0  # type: ignore[index, operator]
    assert torch.allclose(small(images()), masked(images()), atol=1e-5)


class MaxNorm(nn.Conv2d):
    """A convolution whose filters have a norm of at most 0.5 (EEGNet)."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
        return super().forward(x)


def test_filters_of_bounded_norm() -> None:
    model = nn.Sequential(conv(3, 6), MaxNorm(6, 12, 3, groups=6), nn.ELU(), head(12))
    graph = sound(model, images())
    assert graph["0"].prunable  # the norm is taken over the positions of one channel
    assert graph["0"].producers == ("0", "1")
    model = nn.Sequential(conv(3, 6), MaxNorm(6, 8, 1), nn.ELU(), head(8))
    graph = sound(model, images())
    assert str(graph["0"].reason).startswith("inexact: aten.renorm takes a norm over channels")
    assert graph["1"].prunable


def test_pooling_at_random_positions_of_each_channel_keeps_it() -> None:
    graph = sound(nn.Sequential(conv(3, 6), nn.FractionalMaxPool2d(2, 4), conv(6, 8), head(8)), images())
    assert str(graph["0"].reason) == "random numbers are drawn for each channel (in layer 1)"
    assert graph["2"].prunable
