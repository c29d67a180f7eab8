"""Forwards that write: caches, counters, buffers. And those that read values, or draw random numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv, mean

ALL = (1, 2, 3)


@block(where=("list", "dict", "attribute", "tuple", "class"))
class Grid(Block):
    """Positions that the first forward of each size keeps."""

    gives = ("conv",)
    kept: dict[Any, Tensor] = {}

    def __init__(self, c: int, o: int, where: str) -> None:
        super().__init__(o)
        self.conv, self.where = nn.Conv2d(c + 1, o, 1), where
        self.grids: list[Tensor] = [torch.zeros(1)]
        self.by_size: dict[Any, Any] = {"sizes": {}}
        self.grid: Tensor | None = None
        self.last: tuple[Any, ...] = (None, None)
        Grid.kept.clear()

    def make(self, x: Tensor) -> Tensor:
        return torch.linspace(0, 1, x.shape[-1], device=x.device, dtype=x.dtype).expand(1, 1, *x.shape[-2:])

    def positions(self, x: Tensor) -> Tensor:
        size = (tuple(x.shape[-2:]), x.dtype)
        if self.where == "list":
            if self.grids[0].shape[-2:] != x.shape[-2:] or self.grids[0].dtype != x.dtype:
                self.grids[0] = self.make(x)
            return self.grids[0]
        if self.where in ("dict", "class"):
            kept = self.by_size["sizes"] if self.where == "dict" else Grid.kept
            if size not in kept:
                kept[size] = self.make(x)
            return kept[size]
        if self.where == "attribute":
            if self.grid is None or self.grid.dtype != x.dtype:
                self.grid = self.make(x)
            return self.grid
        if self.last[0] != size:
            self.last = (size, self.make(x))
        return self.last[1]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, self.positions(x).expand(len(x), -1, -1, -1)], 1)))


@block(ALL, how=("attribute", "buffer", "list", "new buffer"))
class Counter(Block):
    """Counts its calls; reads the count."""

    passes = True

    def __init__(self, c: int, how: str) -> None:
        super().__init__(c)
        self.how, self.calls, self.log = how, 0, [0, []]
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "attribute":
            self.calls += 1
        elif self.how == "buffer":
            self.count += 1
        elif self.how == "list":
            self.log[0] += 1
            self.log[1].append(x.shape[-1])
        else:
            self.count = self.count + 1
        return x.sin()


@block(ALL, how=("mul", "copy", "lerp", "assign"))
class Running(Block):
    """Statistics for each channel that every forward updates, in eval mode too."""

    passes = True

    def __init__(self, c: int, how: str) -> None:
        super().__init__(c)
        self.register_buffer("mean", torch.zeros(c))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().transpose(0, 1).flatten(1).mean(1)
        if self.how == "mul":
            self.mean.mul_(0.9).add_(now, alpha=0.1)
        elif self.how == "copy":
            self.mean.copy_(0.9 * self.mean + 0.1 * now)
        elif self.how == "lerp":
            self.mean.lerp_(now, 0.1)
        else:
            self.mean = 0.9 * self.mean + 0.1 * now
        return x - self.mean[(..., *[None] * (x.ndim - 2))]


@block(where=("attribute", "list", "dict"))
class Remembers(Block):
    """Keeps its last features, for others to look at."""

    passes = True

    def __init__(self, c: int, where: str) -> None:
        super().__init__(c)
        self.where, self.features, self.seen, self.by_name = where, None, [], {"last": None}

    def forward(self, x: Tensor) -> Tensor:
        y = x.sigmoid()
        if self.where == "attribute":
            self.features = y.detach()
        elif self.where == "list":
            self.seen[:] = [y.detach()]
        else:
            self.by_name["last"] = y.detach()
        return y


@block(ALL, how=("item", "bool", "max", "mask"))
class Values(Block):
    """Control flow, or numbers, by values: there are none on meta tensors."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, dim: int, how: str) -> None:
        super().__init__(o)
        self.plain, self.leave, self.scale, self.how = (
            conv(dim, c, 4, 1),
            conv(dim, 4, o),
            nn.Parameter(torch.tensor(0.7)),
            how,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(x).relu()
        if self.how == "item":
            y = y * self.scale.item()
        elif self.how == "bool":
            y = y * 2 if bool(self.scale > 0) else y.tanh()
        elif self.how == "max":
            y = y * int(x.shape[0] + self.scale.detach().ceil())
        else:
            y = torch.where(y > 0.1, y, torch.zeros(()).to(y))
        return self.leave(y)


@block(ALL)
class Prepared(Block):
    """A tensor that is made from parameters in the first forward in eval mode, and kept until training."""

    passes = True

    def __init__(self, c: int, dim: int) -> None:
        super().__init__(c)
        self.scale = nn.Parameter(torch.rand(c, *[1] * dim) + 0.5)
        self.ready: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.ready = None
            return x * F.softplus(self.scale)
        if self.ready is None or self.ready.dtype != x.dtype:
            self.ready = F.softplus(self.scale).detach()
        return x * self.ready


@block(how=("space", "map", "each"))
class Noise(Block):
    """StyleGAN, VAE: random numbers in eval mode too, by space or for each channel."""

    passes = True

    def __init__(self, c: int, how: str) -> None:
        super().__init__(c)
        self.strength, self.how = nn.Parameter(torch.rand(1, c, 1, 1)), how
        self.random = how == "each"
        self.reads = how != "each"

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "each":
            return x + torch.randn_like(x) * self.strength
        n, _, h, w = x.shape
        noise = (
            torch.randn(n, 1, h, w, dtype=x.dtype, device=x.device)
            if self.how == "space"
            else torch.randn_like(x[:, :1])
        )
        return x + noise * self.strength


@block(p=(0.1, 0.5))
class Dropped(Block):
    passes = True

    def __init__(self, c: int, p: float) -> None:
        super().__init__(c)
        self.drop, self.rest = nn.Dropout2d(p), nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.drop(x)) * mean(x).tanh()[..., None, None]


@block(how=("attribute", "list", "object"))
class Hidden(Block):
    """A layer outside of the module tree: its weights stay, and so does what it reads and gives."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, how: str) -> None:
        super().__init__(o)
        self.plain, self.a, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, o, 1)
        layer = nn.Conv2d(5, 5, 1)
        if how == "list":
            self.layers = [layer]
        elif how == "attribute":
            object.__setattr__(self, "layers", (layer,))
        else:
            self.layers = {"fixed": torch.randn(5, 5, 1, 1)}

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.plain(x).relu())
        if isinstance(self.layers, dict):
            return self.leave(F.conv2d(y, self.layers["fixed"].to(y)).relu())
        layer = self.layers[0]
        return self.leave(F.conv2d(y, layer.weight.to(y), layer.bias.to(y)).relu())
