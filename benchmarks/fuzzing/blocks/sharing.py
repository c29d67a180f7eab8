"""One weight with several owners, one module with several callers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block, conv, norm, pool

ALL = (1, 2, 3)


@block(ALL, normed=("no", "each", "one"))
class SharedModule(Block):
    """One layer called twice, with a norm of its own for each call or the same."""

    passes, gives = True, ("conv",)

    def __init__(self, c: int, dim: int, normed: str) -> None:
        super().__init__(c)
        self.conv = conv(dim, c, c)
        norms = {"no": 0, "one": 1, "each": 2}[normed]
        self.norms = nn.ModuleList(norm(dim, c) for _ in range(norms))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = self.conv(x)
            x = F.relu(self.norms[i % len(self.norms)](x) if len(self.norms) else x)
        return x


@block(ALL, depthwise=(True, False), bias=(True, False))
class TiedWeights(Block):
    """One weight in two layers."""

    passes = True

    def __init__(self, c: int, dim: int, depthwise: bool, bias: bool) -> None:
        super().__init__(c)
        self.a, self.b = (conv(dim, c, c, groups=c if depthwise else 1) for _ in range(2))
        self.b.weight = self.a.weight
        if bias:
            self.b.bias = self.a.bias
        self.gives = () if depthwise else ("a",)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))))


@block(how=("conv", "linear"))
class TiedTranspose(Block):
    """An autoencoder that decodes by its encoder's weight."""

    passes = True

    def __init__(self, c: int, o: int, how: str) -> None:
        super().__init__(c)
        self.read = nn.Identity()
        self.a = nn.Conv2d(c, o, 3, padding=1) if how == "conv" else nn.Linear(c, o)
        self.inside = ("a",)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.a, nn.Linear):
            y = F.linear(self.read(F.relu(self.a(x.movedim(1, -1)))), self.a.weight.t())
            return x + y.movedim(-1, 1)
        return x + F.conv_transpose2d(self.read(F.relu(self.a(x))), self.a.weight, padding=1)

    def watched(self) -> list[tuple[str, int, str, int]]:
        return [("a.weight", 0, "read", -1 if isinstance(self.a, nn.Linear) else 1)]


@block(ALL)
class SharedHead(Block):
    """RetinaNet: one head for all levels, whose inputs have to be alike."""

    gives, inside = ("head.2",), ("head.0", "a", "b")

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.a, self.b = conv(dim, c, 5), conv(dim, c, 5)
        self.head = nn.Sequential(conv(dim, 5, 6), nn.ReLU(), conv(dim, 6, o))

    def forward(self, x: Tensor) -> Tensor:
        low = self.head(pool(self.b(x)).relu())
        return self.head(self.a(x).relu()) + F.interpolate(low, x.shape[2:])


@block(ALL)
class SharedNorm(Block):
    """One batch norm after two layers."""

    gives = ("a", "b")

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(2 * o)
        self.a, self.b, self.norm = conv(dim, c, o), conv(dim, c, o, 1), norm(dim, o)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(self.a(x)).relu(), self.norm(self.b(x)).tanh()], 1)


@block(aliased=(True, False))
class Routed(Block):
    """Layers in a dict by name; perhaps one of them under two names."""

    gives, inside = ("layers.last",), ("layers.first", "layers.left", "layers.right")

    def __init__(self, c: int, o: int, aliased: bool) -> None:
        super().__init__(o)
        left, right = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(4, 5, 1)
        first, last = nn.Conv2d(c, 4, 1), nn.Conv2d(5, o, 1)
        self.layers = nn.ModuleDict({"first": first, "left": left, "right": right, "last": last})
        if aliased:
            self.alias = self.layers["left"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers["first"](x)
        y = torch.stack([layer(x) for name, layer in self.layers.items() if name in ("left", "right")]).amax(0)
        return self.layers["last"](y)


@block()
class Bank(Block):
    """Raw parameters in lists and dicts, each the weight of a functional convolution."""

    gives, inside = ("last",), ("first",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.first, self.last = nn.Conv2d(c, 4, 1), nn.Conv2d(5, o, 1)
        self.weights = nn.ParameterList(torch.randn(5, 4, 3, 3) / 4 for _ in range(2))
        self.extra = nn.ParameterDict(
            {"bias": nn.Parameter(torch.randn(5)), "scale": nn.Parameter(torch.rand(5, 1, 1))}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y = sum(F.conv2d(x, w, self.extra["bias"], padding=1) for w in self.weights)
        return self.last(F.relu(y * self.extra["scale"]))


@block()
class SumOfWeights(Block):
    """A kernel that is the sum of two parameters: a base and what adapts it (LoRA)."""

    gives = ("conv",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.conv, self.read = nn.Conv2d(c, o, 1), nn.Identity()
        self.a, self.b = nn.Parameter(torch.randn(2, c) / 2), nn.Parameter(torch.randn(o, 2) / 2)

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight + (self.b @ self.a)[:, :, None, None]
        return F.relu(F.conv2d(self.read(x), w, self.conv.bias))

    def watched(self) -> list[tuple[str, int, str, int]]:
        return [("a", 1, "read", 1), ("conv.weight", 1, "read", 1)]
