"""Code that reads a width: its own, another tensor's, or a figure of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv

ALL = (1, 2, 3)


@block(ALL, wider=(0, 1, 4))
class Cropped(Block):
    """A wider map, cropped to another tensor's width and added to it."""

    gives = ()
    reads = False

    def __init__(self, c: int, dim: int, wider: int) -> None:
        super().__init__(c)
        self.conv = conv(dim, c, c + wider)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)[:, : x.shape[1]].relu()


@block(ALL, how=("slice", "new", "ones"))
class Borrowed(Block):
    """A width taken from another group's tensor: only cuts of the same size would do."""

    reads = False
    inside = ("plain",)

    def __init__(self, c: int, o: int, dim: int, how: str) -> None:
        super().__init__(o)
        self.plain, self.a, self.b = conv(dim, c, 4, 1), conv(dim, 4, 6), conv(dim, 4, 6)
        self.leave, self.how = conv(dim, 6, o, 1), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(x).relu()
        a, b = self.a(y), self.b(y)
        if self.how == "slice":
            b = b[:, : a.shape[1]]
        elif self.how == "new":
            b = b * b.new_ones(b.shape[0], a.shape[1], *b.shape[2:])
        else:
            b = b.reshape(b.shape[0], a.shape[1], *b.shape[2:])
        return self.leave(b.sigmoid()) + 0 * a.mean()


@block(ALL)
class PaddedTo(Block):
    """Padded with zeros to the width of the other."""

    inside = ("plain",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o + 3)
        self.plain, self.a, self.b = conv(dim, c, 4, 1), conv(dim, 4, o), conv(dim, 4, o + 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(x).relu()
        a, b = self.a(y), self.b(y)
        return b + F.pad(a, (0, 0) * (a.ndim - 2) + (0, b.shape[1] - a.shape[1]))


@block(ALL, test=("odd", "narrow", "six", "min"))
class Asks(Block):
    """Code that asks for the width, in a way that half of it may not show."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, dim: int, test: str) -> None:
        super().__init__(o)
        self.plain, self.a, self.leave, self.test = conv(dim, c, 4), conv(dim, 4, 8), conv(dim, 8, o), test

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.plain(x).relu())
        c = y.shape[1]
        if self.test == "min":
            return self.leave(y * min(c, 6))
        return self.leave(y.relu() if {"odd": c % 2 == 0, "narrow": c >= 4, "six": c != 6}[self.test] else y.tanh())


@block(ALL, how=("sqrt", "log", "mean", "len"))
class Computes(Block):
    """A number computed from the width enters the values: no cut of it is exact. What stands before can be cut."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, dim: int, how: str) -> None:
        super().__init__(o)
        self.plain, self.a, self.leave, self.how = conv(dim, c, 4), conv(dim, 4, 8), conv(dim, 8, o), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.plain(x).relu())
        c = y.shape[1]
        if self.how == "sqrt":
            y = y * c**-0.5
        elif self.how == "log":
            y = y + torch.log2(torch.tensor(float(c)))
        elif self.how == "mean":
            y = y - y.sum(1, keepdim=True) / c
        else:
            y = y / len(y[0])
        return self.leave(y.relu())


@block(ALL, how=("expand", "repeat", "zeros", "view"))
class Constants(Block):
    """Widths that the constructor kept: `expand(-1, self.width, …)`."""

    gives = ("leave",)
    inside = ("plain",)

    def __init__(self, c: int, o: int, dim: int, how: str) -> None:
        super().__init__(o)
        self.width, self.how = 6, how
        self.plain, self.a, self.leave = conv(dim, c, 4), conv(dim, 4, self.width), conv(dim, self.width, o)
        self.gate = conv(dim, 4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(x).relu()
        a, g = self.a(y), self.gate(y).sigmoid()
        n, _, *space = a.shape
        if self.how == "expand":
            a = a * g.expand(n, self.width, *space)
        elif self.how == "repeat":
            a = a * g.repeat(1, self.width, *[1] * len(space))
        elif self.how == "zeros":
            a = a + torch.zeros(n, self.width, *space, dtype=a.dtype) * g
        else:
            a = (a * g).view(n, self.width, -1).view(n, self.width, *space)
        return self.leave(a)


@block()
class OwnFigures(Block):
    """RepVGG, MobileOne: branches to be fused later by figures that the block keeps of its own."""

    passes = True

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.in_channels = self.out_channels = self.groups = c
        self.big = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.small = nn.Conv2d(c, c, 1, groups=c, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norms[0](self.big(x)) + self.norms[1](self.small(x)) + self.norms[2](x))

    def figures(self) -> list[tuple[str, int, int]]:
        c = len(self.big.weight)
        return [(a, getattr(self, a), c) for a in ("in_channels", "out_channels", "groups")]


@block()
class OwnSplit(Block):
    """A figure of its own that forward reads: what it splits stays whole, or the figure follows."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.hidden = o
        self.plain, self.enter, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 2 * o, 3, padding=1), nn.Conv2d(o, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(self.plain(x).relu())
        return self.leave(y[:, : self.hidden] * y[:, self.hidden :].sigmoid())


@block()
class Flattened(Block):
    """Through a linear layer over channels and positions, to a gate for each channel."""

    passes = True

    def __init__(self, c: int, size: int) -> None:
        super().__init__(c)
        self.a, self.b = nn.Linear(c * (size // 2) ** 2, 5), nn.Linear(5, c)
        self.inside = ("a",)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, x.shape[-1] // 2).flatten(1)
        return x * self.b(F.relu(self.a(y))).sigmoid().view(len(x), -1, 1, 1)


@block()
class Heads(Block):
    """(heads, width) by a view with constants on both sides."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.a, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 12, 1), nn.Conv2d(12, o, 1)
        self.scale = nn.Parameter(torch.rand(3, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.plain(x).relu())
        n, _c, h, w = y.shape
        return self.leave((y.view(n, 3, 4, h, w) * self.scale).reshape(n, 12, h, w))
