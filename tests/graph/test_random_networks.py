"""Random networks: whatever is built of the usual pieces is cut exactly, costed to the digit, and can be cut again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateurs.graph import count
from secateurs.graph.attributes import disagreements
from secateurs.plans import Plan, trace
from secateurs.surgery import apply, verify
from secateurs.testing.networks import randomize
from tests.networks import fraction

ACTIVATIONS = ("relu", "silu", "gelu", "tanh", "leaky_relu", "hardswish", "elu", "softplus")
SIZE = 8  # height and width


class Block(nn.Module):
    """(N, c, SIZE, SIZE) → (N, self.out, SIZE, SIZE)"""

    out: int

    def __init__(self, draw: Any, c: int) -> None:
        super().__init__()


def width(draw: Any, multiple: int = 1) -> int:
    return multiple * draw(st.integers(-(-2 // multiple), max(8 // multiple, 1)))


class Conv(Block):
    """Convolution, perhaps a batch norm, perhaps an activation."""

    def __init__(self, draw: Any, c: int, out: int | None = None) -> None:
        super().__init__(draw, c)
        self.out = out or width(draw)
        k = draw(st.sampled_from((1, 3)))
        norm = draw(st.booleans())
        self.conv = nn.Conv2d(c, self.out, k, padding=k // 2, bias=not norm)
        self.norm = nn.BatchNorm2d(self.out) if norm else None
        self.activation = draw(st.sampled_from(ACTIVATIONS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x)
        return getattr(F, self.activation)(x)


class Residual(Block):
    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        self.body = nn.Sequential(a := chain(draw, c, 1), Conv(draw, a.out, c))
        self.scale = nn.Parameter(torch.rand(c, 1, 1) + 0.5) if draw(st.booleans()) else None
        self.in_place, self.out = draw(st.booleans()), c

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y if self.scale is None else y * self.scale
        return y.add_(x) if self.in_place else x + y


class PaddedResidual(Block):
    """A parameter-free shortcut to more channels."""

    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        self.before, self.after = draw(st.integers(0, 2)), draw(st.integers(1, 2))
        self.out = c + self.before + self.after
        self.body = Conv(draw, c, self.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + F.pad(x, (0, 0, 0, 0, self.before, self.after))


class Branches(Block):
    """Inception, dense blocks: branches side by side, with the input itself perhaps."""

    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        self.branches = nn.ModuleList(Conv(draw, c) for _ in range(draw(st.integers(1, 3))))
        self.dense = draw(st.booleans())
        self.out = sum(b.out for b in self.branches) + c * self.dense
        self.norm = nn.BatchNorm2d(self.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([b(x) for b in self.branches] + [x] * self.dense, 1))


class Depthwise(Block):
    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        m = draw(st.sampled_from((1, 1, 2)))
        self.depthwise = nn.Conv2d(c, c * m, 3, padding=1, groups=c)
        self.norm = nn.BatchNorm2d(c * m)
        self.point = Conv(draw, c * m)
        self.out = self.point.out

    def forward(self, x: Tensor) -> Tensor:
        return self.point(F.relu6(self.norm(self.depthwise(x))))


class Grouped(Block):
    """ResNeXt, ShuffleNet: a grouped convolution, perhaps with a shuffle of one of three spellings behind it."""

    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        self.groups = draw(st.sampled_from((2, 3)))
        self.enter = Conv(draw, c, width(draw, self.groups))
        self.out = width(draw, self.groups)
        self.conv = nn.Conv2d(self.enter.out, self.out, 3, padding=1, groups=self.groups)
        self.shuffle = draw(st.sampled_from(("no", "view", "op", "unflatten")))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.enter(x))
        n, c, h, w = x.shape
        if self.shuffle == "view":
            x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        elif self.shuffle == "unflatten":
            x = x.unflatten(1, (self.groups, -1)).swapaxes(1, 2).flatten(1, 2)
        elif self.shuffle == "op":
            x = F.channel_shuffle(x, self.groups)
        return x


class Halves(Block):
    """ShuffleNet-v2, GLU: split in two, and together again."""

    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        self.enter = Conv(draw, c, width(draw, 2))
        self.how = draw(st.sampled_from(("chunk", "slice", "split", "every second")))
        self.join = draw(st.sampled_from(("cat", "swap", "gate")))
        self.body = Conv(draw, self.enter.out // 2, self.enter.out // 2)
        self.out = self.enter.out // 2 if self.join == "gate" else self.enter.out

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        c = x.shape[1] // 2
        if self.how == "chunk":
            a, b = x.chunk(2, 1)
        elif self.how == "slice":
            a, b = x[:, :c], x[:, c:]
        elif self.how == "split":
            a, b = x.split([c, c], 1)
        else:
            a, b = x[:, ::2], x[:, 1::2]
        b = self.body(b)
        return a * b.sigmoid() if self.join == "gate" else torch.cat([a, b] if self.join == "cat" else [b, a], 1)


class SqueezeExcite(Block):
    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        r = draw(st.integers(2, 4))
        self.linear = draw(st.booleans())
        self.a = nn.Linear(c, r) if self.linear else nn.Conv2d(c, r, 1)
        self.b = nn.Linear(r, c) if self.linear else nn.Conv2d(r, c, 1)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.b(F.relu(self.a(y)))).view(x.shape[0], -1, 1, 1)


class Shared(Block):
    """One module used twice, each time with a batch norm of its own perhaps."""

    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        self.conv = nn.Conv2d(c, c, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(2)) if draw(st.booleans()) else None
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = self.conv(x)
            x = F.relu(x if self.norms is None else self.norms[i](x))
        return x


class PixelShuffle(Block):
    """Up by two and down again."""

    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        self.enter = Conv(draw, c, width(draw, 4))
        self.down = draw(st.sampled_from(("conv", "pool", "unshuffle")))
        self.out = width(draw)
        into = self.enter.out // 4 * (4 if self.down == "unshuffle" else 1)
        self.conv = nn.Conv2d(into, self.out, 3, padding=1, stride=2 if self.down == "conv" else 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.enter(x), 2)
        if self.down == "pool":
            x = F.max_pool2d(x, 2)
        elif self.down == "unshuffle":
            x = F.pixel_unshuffle(x, 2)
        return self.conv(x)


class Resample(Block):
    """Pooled and enlarged, or a transposed convolution."""

    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        self.how = draw(st.sampled_from(("nearest", "bilinear", "transposed")))
        self.out = width(draw) if self.how == "transposed" else c
        self.up = nn.ConvTranspose2d(c, self.out, 2, stride=2) if self.how == "transposed" else None
        self.pool = draw(st.sampled_from((F.max_pool2d, F.avg_pool2d)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x, 2)
        return F.interpolate(x, scale_factor=2, mode=self.how) if self.up is None else self.up(x)


class Norm(Block):
    """Normalizations that are exact: per channel."""

    def __init__(self, draw: Any, c: int) -> None:
        super().__init__(draw, c)
        kind = draw(st.sampled_from(("batch", "plain batch", "instance", "prelu")))
        self.norm = {
            "batch": nn.BatchNorm2d,
            "plain batch": lambda c: nn.BatchNorm2d(c, affine=False),
            "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
            "prelu": lambda c: nn.PReLU(c),
        }[kind](c)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


BLOCKS = (
    Conv, Conv, Residual, PaddedResidual, Branches, Depthwise, Grouped, Halves, SqueezeExcite, Shared, PixelShuffle,
    Resample, Norm,
)  # fmt: skip


class Chain(nn.Sequential):
    out: int


def chain(draw: Any, c: int, length: int) -> Chain:
    blocks = []
    for _ in range(length):
        blocks.append(draw(st.sampled_from(BLOCKS))(draw, c))
        c = blocks[-1].out
    net = Chain(*blocks)
    net.out = c
    return net


class Head(nn.Module):
    """Pooled or flattened into one or two linear layers."""

    def __init__(self, draw: Any, c: int) -> None:
        super().__init__()
        self.pool = draw(st.sampled_from((1, 2)))
        hidden = draw(st.integers(0, 6))
        self.a = nn.Linear(c * self.pool**2, hidden) if hidden > 1 else nn.Identity()
        self.b = nn.Linear(hidden if hidden > 1 else c * self.pool**2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(F.adaptive_avg_pool2d(x, self.pool).flatten(1))))


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 99)))
    body = chain(draw, 3, draw(st.integers(1, 5)))
    return randomize(nn.Sequential(body, Head(draw, body.out))).eval()


@settings(
    max_examples=250, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)  # fmt: skip
@given(model=networks(), keep=st.floats(0.2, 0.9), seed=st.integers(0, 9))
def test_random_network(model: nn.Module, keep: float, seed: int) -> None:
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    for _ in range(2):  # the cut network is a network like any other
        graph = trace(model, x)
        assert graph.cost() == count(model, x)
        kept = fraction(graph, keep, seed)
        plan = graph.plan(kept)
        assert Plan.from_json(plan.to_json()) == plan
        assert verify(model, plan, x) <= 1e-5
        model = apply(model, plan)
        assert disagreements(model) == []
        assert graph.cost({g: len(k) for g, k in kept.items()}) == count(model, x)
        assert graph.cost(np.array([len(kept.get(g.name, range(g.size))) for g in graph.groups])) == count(model, x)
