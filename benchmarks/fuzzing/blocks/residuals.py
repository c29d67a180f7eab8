"""Shortcuts, branches, concatenation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv, mean, norm, pool, spread, up

ALL = (1, 2, 3)


@block(ALL, in_place=(True, False))
class Basic(Block):
    passes, gives, inside = True, ("b",), ("a",)

    def __init__(self, c: int, o: int, dim: int, in_place: bool) -> None:
        super().__init__(c)
        self.a, self.n, self.b = conv(dim, c, o), norm(dim, o), conv(dim, o, c)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.n(self.a(x))))
        if self.in_place:
            y += x
            return F.relu_(y)
        return F.relu(x + y)


@block(ALL)
class Downsampled(Block):
    """A projection on the shortcut."""

    gives, inside = ("b", "short"), ("a",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.a, self.b, self.short = conv(dim, c, o + 2), conv(dim, o + 2, o), conv(dim, c, o, 1)
        self.norm = norm(dim, o)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))) + self.norm(self.short(x)))


@block(ALL, squeezed=(True, False))
class Inverted(Block):
    """MobileNet: expanded, depthwise, projected."""

    passes, gives, inside = True, ("project",), ("expand", "depth")

    def __init__(self, c: int, o: int, dim: int, squeezed: bool) -> None:
        super().__init__(c)
        self.expand, self.depth, self.project = conv(dim, c, o, 1), conv(dim, o, o, groups=o), conv(dim, o, c, 1)
        self.norm = norm(dim, o)
        self.down, self.up = (nn.Linear(o, 2), nn.Linear(2, o)) if squeezed else (None, None)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm(self.depth(F.relu6(self.expand(x)))))
        if self.down is not None:
            y = y * spread(torch.sigmoid(self.up(F.relu(self.down(mean(y))))), y)
        return x + self.project(y)


@block()
class PaddedShortcut(Block):
    """Channels padded with zeros on the shortcut: only those that meet the padding stay whole."""

    inside = ("a",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(c + 4)
        self.a, self.b = nn.Conv2d(c, o, 3, padding=1), nn.Conv2d(o, c + 4, 3, padding=1)
        self.reads = False

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))) + F.pad(x, (0, 0, 0, 0, 2, 2)))


@block(ALL)
class ConvNext(Block):
    """Depthwise, layer norm over channels that stand last, an MLP, a layer scale."""

    passes, inside = True, ("up",)
    reads = False

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(c)
        self.depth, self.norm = conv(dim, c, c, groups=c), nn.LayerNorm(c)
        self.up, self.down = nn.Linear(c, 2 * o), nn.Linear(2 * o, c)
        self.gamma = nn.Parameter(torch.rand(c) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).movedim(1, -1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).movedim(-1, 1)


@block(ALL)
class Highway(Block):
    passes, gives = True, ("body",)

    def __init__(self, c: int, dim: int) -> None:
        super().__init__(c)
        self.body, self.gate = conv(dim, c, c), conv(dim, c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        t = self.gate(x).sigmoid()
        return torch.lerp(x, self.body(x).relu(), t)


@block(ALL, order=("after", "before"))
class DenseLayer(Block):
    """DenseNet: what is new stands beside what was there."""

    passes, gives = True, ("conv",)

    def __init__(self, c: int, o: int, dim: int, order: str) -> None:
        super().__init__(c + o)
        self.norm, self.conv, self.order = norm(dim, c), conv(dim, c, o), order

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.relu(self.norm(x)))
        return torch.cat([x, y] if self.order == "after" else [y, x], 1)


@block(ALL, join=("cat", "sum", "max", "stack", "mul"))
class Inception(Block):
    gives, inside = ("a", "b.2"), ("b.0",)

    def __init__(self, c: int, o: int, dim: int, join: str) -> None:
        super().__init__(2 * o if join == "cat" else o)
        self.a, self.b = conv(dim, c, o, 1), nn.Sequential(conv(dim, c, 4, 1), nn.ReLU(), conv(dim, 4, o))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        if self.join == "cat":
            return torch.cat([a, b], 1)
        if self.join == "stack":
            return torch.stack([a, b], 0).sum(0)
        return {"sum": torch.add, "max": torch.maximum, "mul": torch.mul}[self.join](a, b)


@block(ALL)
class Reversible(Block):
    """Two halves that are added to each other in turn."""

    gives = ("leave",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.enter, self.leave = conv(dim, c, 2 * o, 1), conv(dim, 2 * o, o, 1)
        self.f, self.g = conv(dim, o, o), conv(dim, o, o)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.enter(x).chunk(2, 1)
        a = a + self.f(b).relu()
        b = b + self.g(a).relu()
        return self.leave(torch.cat([a, b], 1))


@block(ALL)
class Hourglass(Block):
    """U-Net: down, up, and beside the shortcut."""

    gives, inside = ("join",), ("down", "up")

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.down, self.up, self.join = conv(dim, c, o), up(dim, o, o + 1), conv(dim, c + o + 1, o)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(F.relu(self.down(pool(x))))
        return F.relu(self.join(torch.cat([x, y], 1)))


@block(how=("nearest", "bilinear", "bicubic", "max"))
class Resized(Block):
    passes = True

    def __init__(self, c: int, how: str) -> None:
        super().__init__(c)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(x, 3, 2, 1)
        if self.how == "max":
            return F.interpolate(y, x.shape[2:])
        return F.interpolate(y, size=x.shape[2:], mode=self.how)


@block()
class Pyramid(Block):
    """FPN: laterals of one width, added from the top down, each read by a layer of its own."""

    gives = ("out.0", "out.1")
    gives, inside = ("out_convs.0", "out_convs.1"), ("side.0", "side.1", "down")

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.down = nn.Conv2d(c, o + 2, 3, 2, 1)
        self.side = nn.ModuleList([nn.Conv2d(c, 5, 1), nn.Conv2d(o + 2, 5, 1)])
        self.out_convs = nn.ModuleList([nn.Conv2d(5, o, 3, padding=1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        levels = [x, self.down(x).relu()]
        levels = [side(level) for side, level in zip(self.side, levels, strict=True)]
        levels[0] = levels[0] + F.interpolate(levels[1], size=levels[0].shape[-2:])
        a, b = (out(level) for out, level in zip(self.out_convs, levels, strict=True))
        return a + F.interpolate(b, scale_factor=2.0)


@block()
class Pooled(Block):
    """SPPF: the same pooling several times, side by side."""

    gives, inside = ("b",), ("a",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.a, self.b = nn.Conv2d(c, 4, 1), nn.Conv2d(16, o, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.a(x)]
        y.extend(self.pool(y[-1]) for _ in range(3))
        return self.b(torch.cat(y, 1))


@block(ALL)
class Scaled(Block):
    """Raw parameters for each channel: a scale, a bias, a position embedding."""

    passes = True

    def __init__(self, c: int, dim: int, size: int) -> None:
        super().__init__(c)
        self.scale = nn.Parameter(torch.rand(1, c, *[1] * dim) + 0.5)
        self.position = nn.Parameter(torch.randn(1, c, *[size] * dim) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x * self.scale + self.position)
