"""Gates, and kernels that depend on the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv, mean, norm, spread

ALL = (1, 2, 3)


@block(ALL, linear=(True, False))
class SqueezeExcite(Block):
    passes, inside = True, ("down",)

    def __init__(self, c: int, dim: int, linear: bool) -> None:
        super().__init__(c)
        self.down, self.up = (nn.Linear(c, 3), nn.Linear(3, c)) if linear else (conv(dim, c, 3, 1), conv(dim, 3, c, 1))
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        y = mean(x) if self.linear else spread(mean(x), x)
        y = torch.sigmoid(self.up(F.relu(self.down(y))))
        return x * (spread(y, x) if self.linear else y)


@block(ALL)
class Selective(Block):
    """SK net: a softmax over branches for each channel."""

    gives, inside = ("a", "b"), ("down",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.a, self.b = conv(dim, c, o, 1), conv(dim, c, o, 3)
        self.down, self.ups = nn.Linear(o, 4), nn.ModuleList(nn.Linear(4, o) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        each = torch.stack([self.a(x), self.b(x)], 1)  # (N, 2, C, …)
        z = F.relu(self.down(mean(each.sum(1))))
        w = torch.stack([up(z) for up in self.ups], 1).softmax(1)
        return (each * w[(..., *[None] * (x.ndim - 2))]).sum(1)


@block()
class SplitAttention(Block):
    """ResNeSt: radix 2, one grouped convolution, a softmax over a view (N, 1, 2, C)."""

    inside = ("down",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.conv, self.bn = nn.Conv2d(c, 2 * o, 3, padding=1, bias=False), nn.BatchNorm2d(2 * o)
        self.down, self.up = nn.Conv2d(o, 4, 1), nn.Conv2d(4, 2 * o, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        n, rc, h, w = x.shape
        x = x.reshape(n, 2, rc // 2, h, w)
        a = self.up(F.relu(self.down(x.sum(1).mean((2, 3), keepdim=True))))
        a = a.view(n, 1, 2, -1).transpose(1, 2).softmax(1).reshape(n, -1, 1, 1)
        return (x * a.reshape(n, 2, rc // 2, 1, 1)).sum(1).contiguous()


@block()
class Cbam(Block):
    """The spatial gate reads the mean and the maximum over channels."""

    passes, reads = True, False

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


@block()
class Eca(Block):
    """A convolution that slides over channels."""

    passes, reads = True, False

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(mean(x)[:, None]).sigmoid().transpose(1, 2)[..., None]


@block(ALL, how=("chunk", "two", "view"))
class Film(Block):
    """Scale and shift of one map from another."""

    gives, inside = ("body",), ("first",)

    def __init__(self, c: int, o: int, dim: int, how: str) -> None:
        super().__init__(o)
        self.body, self.norm = conv(dim, c, o), norm(dim, o, affine=False)
        self.first, self.how = nn.Linear(c, 5), how
        self.both = nn.Linear(5, 2 * o)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.body(x))
        z = self.both(F.silu(self.first(mean(x))))
        if self.how == "chunk":
            scale, shift = z.chunk(2, 1)
        elif self.how == "view":
            scale, shift = z.view(len(z), 2, -1).unbind(1)
        else:
            scale, shift = z[:, : y.shape[1]], z[:, y.shape[1] :]
        return y * (1 + spread(scale, y)) + spread(shift, y)


@block()
class GlobalContext(Block):
    """GC net: a softmax over positions, a product with the map, a bottleneck with a layer norm over (C, 1, 1)."""

    passes, gives = True, ("up",)

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.key, self.down, self.norm, self.up = (
            nn.Conv2d(c, 1, 1),
            nn.Conv2d(c, 4, 1),
            nn.LayerNorm([4, 1, 1]),
            nn.Conv2d(4, c, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        a = self.key(x).view(n, 1, h * w).softmax(-1).unsqueeze(-1)  # (N, 1, T, 1)
        y = torch.matmul(x.view(n, c, h * w).unsqueeze(1), a).view(n, c, 1, 1)
        return x + self.up(F.relu(self.norm(self.down(y))))


@block()
class Coordinate(Block):
    """Coordinate attention: rows and columns pooled, side by side in space, split again."""

    passes, inside = True, ("down",)

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.down, self.bn, self.h, self.w = (
            nn.Conv2d(c, 4, 1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, c, 1),
            nn.Conv2d(4, c, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        _n, _c, h, w = x.size()
        y = torch.cat([F.adaptive_avg_pool2d(x, (h, 1)), F.adaptive_avg_pool2d(x, (1, w)).permute(0, 1, 3, 2)], 2)
        a, b = torch.split(F.hardswish(self.bn(self.down(y))), [h, w], 2)
        return x * self.h(a).sigmoid() * self.w(b.permute(0, 1, 3, 2)).sigmoid()


@block(groups=(1, 2))
class CondConv(Block):
    """A kernel for each sample, mixed from experts, run as one grouped convolution."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, groups: int) -> None:
        super().__init__(o)
        self.plain, self.enter = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 4, 1)
        self.leave, self.route = nn.Conv2d(2 * o, o, 1), nn.Linear(4, 3)
        self.shape, self.groups = (2 * o, 4 // groups, 3, 3), groups
        self.experts = nn.Parameter(torch.randn(3, 2 * o * 4 // groups * 9) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.plain(x).relu())
        n, c, h, w = x.shape
        kernels = (self.route(mean(x)).sigmoid() @ self.experts).view(n * self.shape[0], *self.shape[1:])
        y = F.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n * self.groups)
        return self.leave(y.view(n, self.shape[0], h, w))


@block()
class DynamicFilter(Block):
    """A kernel for each sample by `einsum` over experts that keep their shape (E, O, I, k, k)."""

    reads, gives = False, ("leave",)  # samples and channels share an axis

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.route, self.leave = nn.Linear(c, 3), nn.Conv2d(o, o, 1)
        self.experts = nn.Parameter(torch.randn(3, o, c, 3, 3) / 4)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernels = torch.einsum("ne,eoihw->noihw", self.route(mean(x)).softmax(1), self.experts)
        y = F.conv2d(x.reshape(1, n * c, h, w), kernels.flatten(0, 1), padding=1, groups=n)
        return self.leave(y.view(n, -1, h, w).relu())


@block()
class Involution(Block):
    """A kernel for each position, over unfolded patches, shared by a group of channels."""

    inside = ("down",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(2 * o)
        self.enter, self.down, self.span = nn.Conv2d(c, 2 * o, 1), nn.Conv2d(2 * o, 4, 1), nn.Conv2d(4, 2 * 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        n, c, h, w = x.shape
        kernel = self.span(F.relu(self.down(x))).view(n, 2, 1, 9, h, w)
        return (kernel * F.unfold(x, 3, padding=1).view(n, 2, c // 2, 9, h, w)).sum(3).view(n, c, h, w)


@block()
class Modulated(Block):
    """StyleGAN 2: the kernel is scaled for each sample, and its norm over the inputs divided out."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.enter = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 4, 1)
        self.style, self.leave = nn.Linear(4, 4), nn.Conv2d(5, o, 1)
        self.weight = nn.Parameter(torch.randn(1, 5, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.plain(x).relu())
        n, c, h, w = x.shape
        kernel = self.weight * (self.style(mean(x)) + 1)[:, None, :, None, None]
        kernel = kernel * (kernel.square().sum([2, 3, 4], keepdim=True) + 1e-8).rsqrt()
        y = F.conv2d(x.reshape(1, -1, h, w), kernel.view(-1, c, 3, 3), padding=1, groups=n)
        return self.leave(F.relu(y.view(n, -1, h, w)))


@block()
class HyperKernel(Block):
    """A linear layer makes the kernel of a depthwise convolution."""

    passes = True

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.z, self.make = nn.Parameter(torch.randn(1, 4)), nn.Linear(4, 9 * c)
        self.reads = False

    def forward(self, x: Tensor) -> Tensor:
        return x + F.conv2d(x, self.make(self.z).view(-1, 1, 3, 3), padding=1, groups=x.shape[1])
