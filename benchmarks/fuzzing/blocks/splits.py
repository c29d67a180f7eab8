"""Channels split, shuffled, folded into space, and put together again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv

ALL = (1, 2, 3)


@block(
    ALL,
    how=("chunk", "slice", "split", "half", "second", "tensor_split", "view", "narrow"),
    join=("cat", "swap", "gate"),
)
class Halves(Block):
    """ShuffleNet v2, GLU: split in two by any spelling."""

    def __init__(self, c: int, o: int, dim: int, how: str, join: str) -> None:
        super().__init__(o if join == "gate" else 2 * o)
        self.enter, self.body = conv(dim, c, 2 * o, 1), conv(dim, o, o)
        self.how, self.join = how, join
        self.gives = ("enter", "body") if join != "gate" else ()

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        c = x.shape[1] // 2
        a, b = {
            "chunk": lambda: x.chunk(2, 1),
            "slice": lambda: (x[:, :c], x[:, c:]),
            "split": lambda: x.split([c, x.shape[1] - c], 1),
            "half": lambda: torch.split(x, x.size(1) // 2, dim=1),
            "second": lambda: (x[:, ::2], x[:, 1::2]),
            "tensor_split": lambda: x.tensor_split(2, 1),
            "view": lambda: x.view(x.shape[0], 2, -1, *x.shape[2:]).unbind(1),
            "narrow": lambda: (x.narrow(1, 0, c), x.narrow(1, c, c)),
        }[self.how]()
        b = self.body(b).relu()
        return a * b.sigmoid() if self.join == "gate" else torch.cat([a, b] if self.join == "cat" else [b, a], 1)


@block(ALL, how=("split", "slice", "view"))
class ConstantSplit(Block):
    """Sizes that are constants: what is split stays whole, and nothing else."""

    gives, inside = ("leave",), ("before",)

    def __init__(self, c: int, o: int, dim: int, how: str) -> None:
        super().__init__(o)
        self.sizes = (3, 5) if how == "split" else (2, 6) if how == "slice" else (4, 4)
        self.before, self.enter = conv(dim, c, o, 1), conv(dim, o, 8, 1)
        self.body, self.leave = conv(dim, self.sizes[1], 4), conv(dim, self.sizes[0] + 4, o, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.before(x).relu())
        if self.how == "split":
            a, b = x.split(list(self.sizes), 1)
        elif self.how == "slice":
            a, b = x[:, : self.sizes[0]], x[:, self.sizes[0] :]
        else:
            a, b = x.view(x.shape[0], 2, 4, *x.shape[2:]).unbind(1)
        return self.leave(torch.cat([a, self.body(b)], 1))


@block(how=("view", "op", "unflatten", "reshape", "einops"), groups=(2, 3))
class Shuffled(Block):
    gives, inside = ("leave",), ("enter",)

    def __init__(self, c: int, o: int, how: str, groups: int) -> None:
        super().__init__(o)
        self.enter = nn.Conv2d(c, groups * o, 3, padding=1)
        self.group = nn.Conv2d(groups * o, groups * 4, 3, padding=1, groups=groups)
        self.leave = nn.Conv2d(groups * 4, o, 1)
        self.how, self.groups = how, groups

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        n, c, h, w = x.shape
        g = self.groups
        if self.how == "view":
            x = x.view(n, g, c // g, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        elif self.how == "reshape":
            x = x.reshape(n, c // g, g, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)
        elif self.how == "unflatten":
            x = x.unflatten(1, (g, -1)).swapaxes(1, 2).flatten(1, 2)
        elif self.how == "einops":
            x = torch.einsum("ngchw->ncghw", x.view(n, g, -1, h, w)).reshape(n, -1, h, w)
        else:
            x = F.channel_shuffle(x, g)
        return self.leave(F.relu(self.group(x)))


@block(ALL)
class Ghost(Block):
    """A few filters, and a cheap depthwise copy of each beside them."""

    gives = ("main",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(2 * o)
        self.main, self.cheap = conv(dim, c, o, 1), conv(dim, o, o, groups=o)

    def forward(self, x: Tensor) -> Tensor:
        a = self.main(x).relu()
        return torch.cat([a, self.cheap(a).relu()], 1)


@block(ALL)
class Res2(Block):
    """Res2Net: each piece is added to what the piece before gave."""

    gives, inside = ("leave",), ("enter",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.enter, self.leave = conv(dim, c, 3 * o, 1), conv(dim, 3 * o, o, 1)
        self.convs = nn.ModuleList(conv(dim, o, o) for _ in range(2))
        self.width = o

    def forward(self, x: Tensor) -> Tensor:
        pieces = list(self.enter(x).chunk(3, 1))
        for i, layer in enumerate(self.convs, 1):
            pieces[i] = layer(pieces[i] if i == 1 else pieces[i] + pieces[i - 1]).relu()
        return self.leave(torch.cat(pieces, 1))


@block(how=("chunk", "constant"), deep=(1, 2))
class C2f(Block):
    """YOLOv8: split in two, bottlenecks after each other, all of it side by side."""

    gives, inside = ("cv2",), ("m.0.0",)

    def __init__(self, c: int, o: int, how: str, deep: int) -> None:
        super().__init__(o)
        self.h, self.how = o, how
        self.cv1, self.cv2 = nn.Conv2d(c, 2 * o, 1), nn.Conv2d((2 + deep) * o, o, 1)
        self.m = nn.ModuleList(
            nn.Sequential(nn.Conv2d(o, 5, 3, padding=1), nn.SiLU(), nn.Conv2d(5, o, 3, padding=1)) for _ in range(deep)
        )
        self.inside = ("m.0.0", "cv1") if how == "chunk" else ("m.0.0",)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y = list(x.chunk(2, 1) if self.how == "chunk" else x.split((self.h, self.h), 1))
        for m in self.m:
            y.append(y[-1] + m(y[-1]))
        return self.cv2(torch.cat(y, 1))


@block(ALL)
class Csp(Block):
    gives, inside = ("cv3",), ("cv1", "cv2", "m.0")

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.cv1, self.cv2, self.cv3 = conv(dim, c, 4, 1), conv(dim, c, 5, 1), conv(dim, 9, o, 1)
        self.m = nn.Sequential(conv(dim, 4, 6), nn.Mish(), conv(dim, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        a = self.cv1(x)
        return self.cv3(torch.cat((a + self.m(a), self.cv2(x)), 1))


@block(ALL, how=("glu", "swiglu", "maxout", "crelu"))
class Unit(Block):
    """Activations over pairs of channels."""

    def __init__(self, c: int, o: int, dim: int, how: str) -> None:
        super().__init__(2 * o if how == "crelu" else o)
        self.conv, self.how = conv(dim, c, o if how == "crelu" else 2 * o), how
        self.gives = ("conv",)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.how == "glu":
            return F.glu(x, 1)
        if self.how == "crelu":
            return F.relu(torch.cat([x, -x], 1))
        if self.how == "maxout":
            return x.view(x.shape[0], 2, -1, *x.shape[2:]).amax(1)
        a, b = x.chunk(2, 1)
        return F.silu(a) * b


@block(how=("op", "hand"), back=("conv", "pool", "unshuffle", "slices"))
class PixelShuffled(Block):
    """Up by two, and down again by several ways."""

    inside = ("enter",)
    gives = ("leave",)

    def __init__(self, c: int, o: int, how: str, back: str) -> None:
        super().__init__(o)
        self.enter = nn.Conv2d(c, 4 * o, 3, padding=1)
        self.leave = nn.Conv2d(4 * o if back in ("unshuffle", "slices") else o, o, 3, 2 if back == "conv" else 1, 1)
        self.how, self.back = how, back

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        n, c, h, w = x.shape
        if self.how == "op":
            x = F.pixel_shuffle(x, 2)
        else:
            x = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        if self.back == "pool":
            x = F.max_pool2d(x, 2)
        elif self.back == "unshuffle":
            x = F.pixel_unshuffle(x, 2)
        elif self.back == "slices":
            x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        return self.leave(x)


@block(ALL)
class Patched(Block):
    """A patch's positions as channels, in front of the channels, and back."""

    gives, inside = ("leave",), ("enter",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.enter, self.leave = conv(dim, c, o, 1), nn.Linear(2 * o, o)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = x.unflatten(-1, (-1, 2)).movedim(-1, 1).flatten(1, 2)  # (N, 2C, …, W/2)
        y = self.leave(y.movedim(1, -1)).movedim(-1, 1)
        return y.repeat_interleave(2, -1)


@block()
class Shifted(Block):
    """TSM, shift nets: a share of the channels is moved in space."""

    gives = ("conv",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.enter, self.conv = nn.Conv2d(c, 8, 1), nn.Conv2d(8, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        fold = x.shape[1] // 4
        y = torch.zeros_like(x)
        y[:, :fold, :, 1:] = x[:, :fold, :, :-1]
        y[:, fold : 2 * fold, :, :-1] = x[:, fold : 2 * fold, :, 1:]
        y[:, 2 * fold :] = x[:, 2 * fold :]
        return self.conv(y)
