"""Sizes and values that are borrowed from another tensor, a number of the module's own, or another layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv, mean

ALL = (1, 2, 3)


@block(ALL, how=("view_as", "reshape_as"), added=(False, True))
class ShapeOfAnother(Block):
    """A flat map takes the shape of another: both stay whole, unless they are added and so have the same channels."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, dim: int, how: str, added: bool) -> None:
        super().__init__(o)
        self.how, self.added = how, added
        self.plain, self.a, self.b = conv(dim, c, 4, 1), conv(dim, 4, 6, 1), conv(dim, 4, 6, 1)
        self.leave = conv(dim, 6 if added else 12, o, 1)
        self.inside = ("plain", "a", "b") if added else ("plain",)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(x).relu()
        a, b = self.a(x), self.b(x)
        b = getattr(b.flatten(1), self.how)(a).sigmoid()
        return self.leave(a + b if self.added else torch.cat([a.relu(), b], 1))


@block(ALL, how=("expand_as", "broadcast_tensors"))
class OneMapForAll(Block):
    """A map of one channel, expanded to those of another."""

    passes = True

    def __init__(self, c: int, dim: int, how: str) -> None:
        super().__init__(c)
        self.how, self.map = how, conv(dim, c, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.map(x).sigmoid()
        x, one = (x, one.expand_as(x)) if self.how == "expand_as" else torch.broadcast_tensors(x, one)
        return x * one


@block()
class UnpooledTo(Block):
    """SegNet, with the whole shape where only the space counts."""

    passes = True

    def __init__(self, c: int) -> None:
        super().__init__(c)

    def forward(self, x: Tensor) -> Tensor:
        y, at = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(y.relu(), at, 2, output_size=x.size())


@block()
class SpatialTransformer(Block):
    """A spatial transformer."""

    passes = True

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.locate = nn.Linear(c, 6)

    def forward(self, x: Tensor) -> Tensor:
        theta = 0.1 * self.locate(mean(x)).view(-1, 2, 3) + torch.eye(2, 3, device=x.device, dtype=x.dtype)
        return F.grid_sample(x, F.affine_grid(theta, x.size(), align_corners=False), align_corners=False)


@block()
class WaveletBands(Block):
    """Four fixed filters for each channel, in a buffer that is repeated."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.leave = nn.Conv2d(c, 5, 1), nn.Conv2d(20, o, 1)
        signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
        self.register_buffer("filters", signs.view(4, 1, 2, 2) / 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(x).relu()
        c = y.shape[1]
        y = F.conv2d(F.pad(y, (0, 1, 0, 1)), self.filters.repeat(c, 1, 1, 1), groups=c)
        return self.leave(y)


@block()
class Hypernetwork(Block):
    """One layer computes the weight of another."""

    gives = ("leave",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.read, self.z, self.layer = nn.Identity(), nn.Parameter(torch.randn(5, 4)), nn.Linear(4, c)
        self.leave = nn.Conv2d(5, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.conv2d(self.read(x), self.layer(self.z)[..., None, None]))  # weight: (5, C, 1, 1)

    def watched(self) -> list[tuple[str, int, str, int]]:
        return [("layer.weight", 0, "read", 1)]
