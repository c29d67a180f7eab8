"""Recurrent layers after convolutions, and convolutions that recur."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv

ALL = (1, 2, 3)


@block(kind=("LSTM", "GRU", "RNN"), both=(True, False), layers=(1, 2), first=(True, False))
class Recurrent(Block):
    """CRNN: columns of a map are a sequence. What it reads can be cut."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, kind: str, both: bool, layers: int, first: bool) -> None:
        super().__init__(o)
        self.plain, self.leave = nn.Conv2d(c, 4, 1), nn.Linear(5 * (1 + both), o)
        self.rnn = getattr(nn, kind)(4, 5, layers, batch_first=first, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(x).relu()
        t = x.mean(2)  # (N, C, W)
        y, _ = self.rnn(t.transpose(1, 2) if self.rnn.batch_first else t.permute(2, 0, 1))
        y = self.leave(y)
        y = y.transpose(1, 2) if self.rnn.batch_first else y.permute(1, 2, 0)
        return y[:, :, None].expand(-1, -1, x.shape[2], -1)


@block(kind=("LSTMCell", "GRUCell"))
class Cell(Block):
    """A cell called in a loop of the user's."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, kind: str) -> None:
        super().__init__(o)
        self.plain, self.leave, self.cell = nn.Conv2d(c, 4, 1), nn.Linear(5, o), getattr(nn, kind)(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(x).relu()
        state, steps = None, []
        for column in x.mean(2).unbind(-1):
            state = self.cell(column, state)
            steps.append(self.leave(state[0] if isinstance(state, tuple) else state))
        return torch.stack(steps, -1)[:, :, None].repeat(1, 1, x.shape[2], 1)


@block(ALL)
class ConvGru(Block):
    """The gates read the map beside the state; two are split from one convolution. The state starts as zeros, as wide as a
    number of the module's own."""

    gives, inside = ("leave",), ("plain", "gates", "new")

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        h = self.hidden = 4
        self.plain, self.gates, self.new, self.leave = (
            conv(dim, c, 5, 1), conv(dim, 5 + h, 2 * h), conv(dim, 5 + h, h), conv(dim, h, o, 1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(x).relu()
        h = x.new_zeros(x.shape[0], self.hidden, *x.shape[2:])
        for _ in range(2):
            r, z = self.gates(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
            h = (1 - z) * h + z * self.new(torch.cat([x, r * h], 1)).tanh()
        return self.leave(h)


@block(ALL)
class ConvLstm(Block):
    """Four gates from one convolution; the state starts as zeros like a gate, so that its width can follow."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.plain, self.x, self.h, self.leave = (
            conv(dim, c, 5, 1),
            conv(dim, 5, 16),
            conv(dim, 4, 16),
            conv(dim, 4, o, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.x(self.plain(x).relu())
        h = c = torch.zeros_like(x.chunk(4, 1)[0])
        for _ in range(2):
            i, f, o, g = (x + self.h(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.leave(h)


@block(ALL)
class Unrolled(Block):
    """The same layers several times, with a norm of its own each time."""

    passes, gives = True, ("conv",)

    def __init__(self, c: int, dim: int) -> None:
        super().__init__(c)
        self.conv, self.scale = conv(dim, c, c), nn.ParameterList(torch.rand(c, *[1] * dim) + 0.5 for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for scale in self.scale:
            y = x + F.relu(self.conv(y)) * scale
        return y
