"""Blocks that compute something else in training mode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv, norm

ALL = (1, 2, 3)


@block(ALL)
class StochasticDepth(Block):
    passes, gives, inside = True, ("b",), ("a",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(c)
        self.a, self.b = conv(dim, c, o), conv(dim, o, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        if self.training:
            y = y * (torch.rand(len(x), *[1] * (x.ndim - 1), dtype=x.dtype) < 0.5)
        return x + y


@block(ALL, how=("gate", "concat"))
class TrainingBranch(Block):
    """A branch that only training runs, with parameters of its own."""

    gives, inside = ("b",), ("a",)

    def __init__(self, c: int, o: int, dim: int, how: str) -> None:
        super().__init__(o)
        self.a, self.b, self.aux, self.how = (
            conv(dim, c, 6),
            conv(dim, 6, o),
            conv(dim, 12 if how == "concat" else 6, 1),
            how,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        z = self.b(y)
        if self.training:
            z = z * self.aux(torch.cat([y, y * 2], 1) if self.how == "concat" else y).sigmoid()
        return z


@block(ALL, how=("add", "shared", "cat"))
class TrainingCoupling(Block):
    """Two maps that only training brings together: no parameter lies idle in eval mode, and still both must be cut alike."""

    gives, inside = ("a", "b"), ("p", "q")

    def __init__(self, c: int, o: int, dim: int, how: str) -> None:
        super().__init__(2 * o)
        self.p, self.q = conv(dim, c, 6), conv(dim, c, 6)
        self.a, self.b, self.how = conv(dim, 6, o), conv(dim, 6, o), how

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.p(x).relu(), self.q(x).tanh()
        if not self.training:
            return torch.cat([self.a(p), self.b(q)], 1)
        if self.how == "add":
            return torch.cat([self.a(p + q), self.b(q)], 1)
        if self.how == "shared":
            return torch.cat([self.a(p) + self.a(q), self.b(q)], 1)
        return torch.cat([self.a(p), self.b(q) + self.b(p)], 1)


@block(ALL)
class TwoNorms(Block):
    """Split batch norms: one for training on half of the batch, both in training only."""

    passes = True

    def __init__(self, c: int, dim: int) -> None:
        super().__init__(c)
        self.main, self.other = norm(dim, c), norm(dim, c)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.main(x).relu()
        a, b = x[: len(x) // 2], x[len(x) // 2 :]
        return torch.cat([self.main(a), self.other(b)]).relu()


@block()
class SelfDistilled(Block):
    """In training mode a second head, whose loss the block keeps in an attribute."""

    gives, inside = ("b",), ("a",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.a, self.b, self.head = nn.Conv2d(c, 6, 3, padding=1), nn.Conv2d(6, o, 1), nn.Linear(6, 2)
        self.loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.training:
            self.loss = self.head(y.mean((2, 3))).square().mean()
        return self.b(y)


@block(ALL)
class Reparameterized(Block):
    """VAE: the mean in eval mode, noise in training."""

    gives = ("leave",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.both, self.leave = conv(dim, c, 8, 1), conv(dim, 4, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        mu, log = self.both(x).chunk(2, 1)
        return self.leave(mu + torch.randn_like(mu) * log.exp() if self.training else mu * log.sigmoid())
