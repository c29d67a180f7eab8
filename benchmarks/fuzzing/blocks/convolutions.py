"""Convolutions: plain, depthwise, grouped, transposed, factorized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv, norm, pool, up

ALL = (1, 2, 3)


@block(ALL, k=(1, 3), normed=(True, False), act=("relu", "gelu", "hardswish", "elu"))
class Plain(Block):
    gives = ("conv",)

    def __init__(self, c: int, o: int, dim: int, k: int, normed: bool, act: str) -> None:
        super().__init__(o)
        self.conv = conv(dim, c, o, k, bias=not normed)
        self.norm = norm(dim, o) if normed else nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return getattr(F, self.act)(self.norm(self.conv(x)))


@block(ALL, mode=("zeros", "circular", "reflect", "replicate"))
class Padded(Block):
    gives = ("conv",)

    def __init__(self, c: int, o: int, dim: int, mode: str) -> None:
        super().__init__(o)
        self.conv = conv(dim, c, o, padding_mode="zeros" if dim == 3 and mode == "reflect" else mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh()


@block(ALL, multiplier=(1, 2, 3), normed=(True, False))
class Separable(Block):
    """A depthwise convolution, perhaps with several filters for each channel, and a pointwise one."""

    gives = ("point",)

    def __init__(self, c: int, o: int, dim: int, multiplier: int, normed: bool) -> None:
        super().__init__(o)
        self.depth = conv(dim, c, c * multiplier, groups=c, bias=False)
        self.norm = norm(dim, c * multiplier) if normed else nn.Identity()
        self.point = conv(dim, c * multiplier, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(F.relu(self.norm(self.depth(x))))


@block(ALL, groups=(2, 3), normed=(True, False))
class Grouped(Block):
    """A grouped convolution between two pointwise ones."""

    gives = ("leave",)
    inside = ("enter", "group")

    def __init__(self, c: int, o: int, dim: int, groups: int, normed: bool) -> None:
        super().__init__(o)
        self.enter = conv(dim, c, o * groups, 1)
        self.group = conv(dim, o * groups, 2 * o * groups, groups=groups)
        self.norm = norm(dim, 2 * o * groups) if normed else nn.Identity()
        self.leave = conv(dim, 2 * o * groups, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.norm(self.group(self.enter(x)))))


@block(ALL)
class PairsGrouped(Block):
    """Groups of two channels each: near to depthwise, and not."""

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(2 * o)
        self.enter = conv(dim, c, 2 * o, 1)
        self.group = conv(dim, 2 * o, 2 * o, groups=o)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.group(F.relu(self.enter(x))))


@block(ALL, depthwise=(True, False), normed=(True, False))
class Upsampled(Block):
    """Half the space, and back by a transposed convolution, perhaps a depthwise one."""

    def __init__(self, c: int, o: int, dim: int, depthwise: bool, normed: bool) -> None:
        super().__init__(c if depthwise else o)
        self.up = up(dim, c, self.out, groups=c if depthwise else 1)
        self.norm = norm(dim, self.out) if normed else nn.Identity()
        self.passes, self.gives = depthwise, () if depthwise else ("up",)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.up(pool(x))), 0.1)


@block(ALL, groups=(2, 3))
class UpsampledGrouped(Block):
    gives = ("leave",)
    inside = ("enter", "up")

    def __init__(self, c: int, o: int, dim: int, groups: int) -> None:
        super().__init__(o)
        self.enter = conv(dim, c, o * groups, 1)
        self.up = up(dim, o * groups, 2 * o * groups, groups=groups)
        self.leave = conv(dim, 2 * o * groups, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.up(pool(self.enter(x)))))


@block()
class Asymmetric(Block):
    gives = ("high",)
    inside = ("wide",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.wide = nn.Conv2d(c, o + 1, (1, 3), padding=(0, 1))
        self.high = nn.Conv2d(o + 1, o, (3, 1), padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return F.selu(self.high(self.wide(x)))


@block(ALL)
class Coordinates(Block):
    """CoordConv: the positions are two more input channels."""

    gives = ("conv",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.conv = conv(dim, c + 1, o)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype).expand(x.shape[0], 1, *x.shape[2:])
        return F.relu(self.conv(torch.cat([x, at], 1)))


@block(ALL)
class ChannelsLast(Block):
    """A linear layer over channels that stand last."""

    gives = ("linear",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.linear = nn.Linear(c, o)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.linear(x.movedim(1, -1))).movedim(-1, 1)


@block()
class LowRank(Block):
    """A kernel that is the product of two parameters."""

    gives = ("left",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.read = nn.Identity()
        self.left = nn.Parameter(torch.randn(o, 3) / 2)
        self.right = nn.Parameter(torch.randn(3, c) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.read(x), (self.left @ self.right)[:, :, None, None])

    def watched(self) -> list[tuple[str, int, str, int]]:
        return [("right", 1, "read", 1)]


@block()
class Unfolded(Block):
    """A convolution as a product with unfolded patches, by a raw parameter (O, C·9)."""

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.weight = nn.Parameter(torch.randn(o, c * 9) / 3)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return (self.weight @ F.unfold(x, 3, padding=1)).view(n, -1, h, w)


@block()
class Blurred(Block):
    """A fixed kernel in a buffer, expanded to the number of channels."""

    passes = True

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.register_buffer(
            "kernel", torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0]))[None, None] / 16
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])


@block(constant=(True, False))
class Sobel(Block):
    """The same kernel repeated in a buffer, for a number of groups that is a constant, or computed."""

    passes = True

    def __init__(self, c: int, constant: bool) -> None:
        super().__init__(c)
        self.register_buffer("kernel", torch.randn(1, 1, 3, 3).repeat(c, 1, 1, 1))
        self.c, self.constant = c, constant
        self.reads = not constant

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=self.c if self.constant else x.shape[1])
