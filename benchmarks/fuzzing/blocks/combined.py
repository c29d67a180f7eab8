"""Blocks around other blocks: what is around must change nothing about what is inside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fuzzing.kinds import block
from fuzzing.parts import Block, conv
from secateurs.devices import channels_last_

ALL = (1, 2, 3)


class Around(Block):
    """Everything as the one inside says."""

    def __init__(self, inner: Block) -> None:
        super().__init__(inner.out)
        self.inner = inner
        self.reads, self.passes, self.random = inner.reads, inner.passes, inner.random
        self.gives, self.inside = (tuple(f"inner.{name}" for name in names) for names in (inner.gives, inner.inside))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@block(ALL, inner=("block",))
class Residual(Around):
    """A shortcut around it, with a projection where it needs one."""

    def __init__(self, c: int, dim: int, inner: Block) -> None:
        super().__init__(inner)
        self.out = c
        self.project = None if inner.out == c else conv(dim, inner.out, c, 1)
        if self.project is not None:
            self.gives = ("project",)
        elif not inner.passes and not inner.gives:
            self.reads = False
        self.passes = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return x + (y if self.project is None else self.project(y))


@block(ALL, a=("block",), b=("block",))
class Parallel(Block):
    """Two side by side."""

    def __init__(self, a: Block, b: Block) -> None:
        super().__init__(a.out + b.out)
        self.a, self.b = a, b
        self.random, self.passes = a.random or b.random, a.passes or b.passes
        self.inside = (*(f"a.{name}" for name in a.inside), *(f"b.{name}" for name in b.inside))
        free = all(each.gives or each.passes for each in (a, b))
        self.reads = a.reads and b.reads and (free or not self.passes)
        self.gives = (*(f"a.{name}" for name in a.gives), *(f"b.{name}" for name in b.gives)) if free else ()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


@block(ALL, inner=("block",))
class Twice(Around):
    """One block called twice, after each other where it can be."""

    def __init__(self, c: int, inner: Block) -> None:
        super().__init__(inner)
        if inner.out == c and not inner.passes:  # what it gives is what it reads
            self.passes, self.reads = True, inner.reads and inner.gives != ()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.inner(y) if y.shape[1] == x.shape[1] and self.passes else y + self.inner(x.flip(-1)).flip(-1)


@block(ALL, inner=("block",))
class Checkpointed(Around):
    """Computed again in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False) if self.training and x.requires_grad else self.inner(x)


@block(ALL, inner=("block",))
class Hooked(Around):
    """The user's own hooks, on the block and on the way in."""

    def __init__(self, inner: Block) -> None:
        super().__init__(inner)
        inner.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))
        inner.register_forward_hook(self.after)

    def after(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return F.hardtanh(out, -4, 4)


@block((2,), inner=("block",))
class LastInMemory(Around):
    """Channels last in memory."""

    def __init__(self, inner: Block) -> None:
        super().__init__(inner)
        channels_last_(inner)  # `inner.to` raises for a tensor of five axes

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.contiguous(memory_format=torch.channels_last)).contiguous()


@block(ALL, inner=("block",))
class Frozen(Around):
    """Parameters that do not learn, and no gradients through it in eval mode."""

    def __init__(self, inner: Block) -> None:
        super().__init__(inner)
        for p in inner.parameters():
            p.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            return self.inner(x)


@block(ALL, inner=("block",))
class Functional(Around):
    """Called with a dict of its own parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.inner, dict(self.inner.named_parameters()), (x,))


@block(ALL, inner=("block",))
class Keyed(Around):
    """Called by keyword, through a dict of closures."""

    def forward(self, x: Tensor) -> Tensor:
        steps = {"run": lambda x: self.inner(x=x), "act": F.elu}
        for step in steps.values():
            x = step(x)
        return x


@block(ALL, inner=("block",))
class Gated(Around):
    """Scaled by a number that is a parameter, and mixed with itself turned in space."""

    def __init__(self, inner: Block) -> None:
        super().__init__(inner)
        self.alpha = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return torch.lerp(y, y.flip(-1), self.alpha.sigmoid())
