"""Normalizations: per channel, which is exact, and over channels, which is not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv, norm, spread

ALL = (1, 2, 3)


@block(ALL, affine=(True, False), tracked=(True, False))
class Batch(Block):
    passes = True

    def __init__(self, c: int, dim: int, affine: bool, tracked: bool) -> None:
        super().__init__(c)
        self.norm = norm(dim, c, affine=affine, track_running_stats=tracked, momentum=None if affine else 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


@block(ALL, affine=(True, False), tracked=(True, False))
class Instance(Block):
    passes = True

    def __init__(self, c: int, dim: int, affine: bool, tracked: bool) -> None:
        super().__init__(c)
        kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dim - 1]
        self.norm = kind(c, affine=affine, track_running_stats=tracked)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x))


@block(ALL, groups=("one", "two", "each"), affine=(True, False))
class Group(Block):
    """Exact with one channel for each group only."""

    gives = ("leave",)

    def __init__(self, c: int, o: int, dim: int, groups: str, affine: bool) -> None:
        super().__init__(o)
        self.a = conv(dim, c, 2 * o)
        self.norm = nn.GroupNorm({"one": 1, "two": 2, "each": 2 * o}[groups], 2 * o, affine=affine)
        self.leave = conv(dim, 2 * o, o, 1)
        self.inside = ("a",) if groups == "each" else ()

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.norm(self.a(x))))


@block(ALL, how=("last", "functional", "whole", "rms", "hand"))
class Layer(Block):
    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, dim: int, size: int, how: str) -> None:
        super().__init__(o)
        self.plain, self.a, self.leave, self.how = conv(dim, c, 4, 1), conv(dim, 4, 6), conv(dim, 6, o, 1), how
        shape = [6, *[size] * dim] if how == "whole" else [6]
        self.norm = nn.RMSNorm(6) if how == "rms" else nn.LayerNorm(shape, elementwise_affine=how != "hand")

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.plain(x).relu())
        if self.how == "whole":
            y = self.norm(y)
        elif self.how == "functional":
            y = F.layer_norm(y.movedim(1, -1), y.shape[1:2], self.norm.weight, self.norm.bias).movedim(-1, 1)
        elif self.how == "hand":
            y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        else:
            y = self.norm(y.movedim(1, -1)).movedim(-1, 1)
        return self.leave(y.relu())


@block(ALL, groups=(1, 2, 4))
class EvoNormS0(Block):
    """x · sigmoid(v·x) over the deviation of each group, by a view (N, groups, C/groups, …)."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, dim: int, groups: int) -> None:
        super().__init__(o)
        self.plain, self.a, self.leave, self.groups = conv(dim, c, 4, 1), conv(dim, 4, 8), conv(dim, 8, o, 1), groups
        self.v, self.gamma, self.beta = (nn.Parameter(torch.rand(8) + 0.5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.plain(x).relu())
        z = y.reshape(y.shape[0], self.groups, -1, *y.shape[2:])
        std = (z.var(dim=tuple(range(2, z.ndim)), keepdim=True) + 1e-5).sqrt().expand(z.shape).reshape(y.shape)
        y = y * torch.sigmoid(spread(self.v, y) * y) / std
        return self.leave(y * spread(self.gamma, y) + spread(self.beta, y))


@block()
class EvoNormB0(Block):
    """The larger of the batch's deviation (running, in eval mode) and the instance's: exact."""

    passes = True

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.v, self.gamma, self.beta = (nn.Parameter(torch.rand(1, c, 1, 1) + 0.5) for _ in range(3))
        self.register_buffer("running_var", torch.rand(c) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        var = self.running_var
        if self.training:
            var = x.var((0, 2, 3), unbiased=False)
            self.running_var.mul_(0.9).add_(var.detach(), alpha=0.1)
        left = (var.view(1, -1, 1, 1) + 1e-5).sqrt()
        right = self.v * x + (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x / torch.max(left, right) * self.gamma + self.beta


@block(ALL)
class FilterResponse(Block):
    """FRN and TLU: the mean square over space."""

    passes = True

    def __init__(self, c: int, dim: int) -> None:
        super().__init__(c)
        self.gamma, self.tau = (nn.Parameter(torch.rand(1, c, *[1] * dim)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        square = x.square().mean(tuple(range(2, x.ndim)), keepdim=True)
        return torch.max(self.gamma * x * torch.rsqrt(square + 1e-6), self.tau)


@block(how=("response", "l2", "softmax"))
class Across(Block):
    """Over channels."""

    passes, reads = True, False

    def __init__(self, c: int, how: str) -> None:
        super().__init__(c)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "response":
            return F.local_response_norm(x, 3)
        return F.normalize(x, dim=1) if self.how == "l2" else x.softmax(1)


@block(ALL, shared=(True, False))
class Prelu(Block):
    passes = True

    def __init__(self, c: int, shared: bool) -> None:
        super().__init__(c)
        self.act = nn.PReLU(1 if shared else c, init=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class StandardizedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


@block(depthwise=(True, False))
class Standardized(Block):
    """Weight standardization: over the inputs of each filter, so that none of these can go; a depthwise one has one."""

    def __init__(self, c: int, o: int, depthwise: bool) -> None:
        super().__init__(c if depthwise else o)
        self.conv = StandardizedConv2d(c, self.out, 3, padding=1, groups=c if depthwise else 1)
        self.passes = self.reads = depthwise
        self.gives = () if depthwise else ("conv",)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


@block()
class Whitened(Block):
    """The covariance of the channels, and its inverse root by Newton's steps: all depend on all."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.a, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.plain(x).relu())
        n, c, h, w = y.shape
        t = y.transpose(0, 1).reshape(c, -1)
        s = t @ t.t() / t.shape[1] + torch.eye(c, dtype=y.dtype)
        s, p = s / s.diagonal().sum(), torch.eye(c, dtype=y.dtype)
        for _ in range(2):
            p = 1.5 * p - 0.5 * p @ p @ p @ s
        return self.leave((p @ t).view(c, n, h, w).transpose(0, 1))
