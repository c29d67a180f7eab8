"""Weights that are computed: norms, masks, parametrizations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from fuzzing.kinds import block
from fuzzing.parts import Block, conv, up

ALL = (1, 2, 3)


@block(ALL, over=(0, 1), transposed=(False, True))
class WeightNormed(Block):
    """A norm for each output channel, or for each input channel: what the norm runs over stays whole, the rest does not."""

    def __init__(self, c: int, o: int, dim: int, over: int, transposed: bool) -> None:
        super().__init__(o)
        layer = up(dim, c, o) if transposed else conv(dim, c, o)
        self.conv, self.transposed = parametrizations.weight_norm(layer, dim=over), transposed
        outputs = over == (1 if transposed else 0)  # the norm is over the inputs then
        self.reads, self.gives = not outputs, ("conv",) if outputs else ()

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x[(..., *[slice(None, None, 2)] * (x.ndim - 2))] if self.transposed else x), 0.1)


@block(ALL)
class SpectralNormed(Block):
    """One norm for the whole weight."""

    reads = False

    def __init__(self, c: int, o: int, dim: int) -> None:
        super().__init__(o)
        self.conv = parametrizations.spectral_norm(conv(dim, c, o))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


@block()
class Orthogonal(Block):
    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.enter, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(6, o, 1)
        self.conv = parametrizations.orthogonal(nn.Conv2d(4, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.conv(self.enter(self.plain(x).relu())))


class Softplus(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return F.softplus(w)


class Cosine(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.cos()


@block(ALL, function=("softplus", "cosine"), transposed=(False, True))
class Parametrized(Block):
    """f(0) ≠ 0."""

    gives = ("conv",)

    def __init__(self, c: int, o: int, dim: int, function: str, transposed: bool) -> None:
        super().__init__(o)
        self.conv = (up if transposed else conv)(dim, c, o)
        parametrize.register_parametrization(self.conv, "weight", Softplus() if function == "softplus" else Cosine())
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        return F.tanh(self.conv(x[(..., *[slice(None, None, 2)] * (x.ndim - 2))] if self.transposed else x))


class PositiveConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, F.softplus(self.weight), self.bias, padding=1)


@block()
class ByHand(Block):
    """The same written in forward."""

    gives = ("conv",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.conv = PositiveConv2d(c, o, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).sin()


@block(ALL, how=("structured", "unstructured", "random"), where=("conv", "depthwise", "bias"))
class Masked(Block):
    """torch.nn.utils.prune keeps `weight_orig` and a mask."""

    gives, inside = ("leave",), ("a",)

    def __init__(self, c: int, o: int, dim: int, how: str, where: str) -> None:
        super().__init__(o)
        self.a, self.leave = conv(dim, c, 6), conv(dim, 6, o, 1)
        self.b = conv(dim, 6, 6, groups=6 if where == "depthwise" else 1)
        for layer in (self.a, self.b):
            name = "bias" if where == "bias" else "weight"
            if how == "structured" and where != "bias":
                prune.ln_structured(layer, name, 0.3, 2, 0)
            elif how == "random":
                prune.random_unstructured(layer, name, 0.3)
            else:
                prune.l1_unstructured(layer, name, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.b(F.relu(self.a(x)))))


class CausalConv2d(nn.Conv2d):
    """PixelCNN: a mask as large as the weight, in a buffer."""

    def __init__(self, c: int, o: int) -> None:
        super().__init__(c, o, 3, padding=1)
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 2:] = mask[:, :, 2:] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


@block()
class Causal(Block):
    gives = ("conv",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.conv = CausalConv2d(c, o)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class RoundedConv2d(nn.Conv2d):
    """Fake quantization with a straight-through estimator; the step is one for all, or one for each filter."""

    def __init__(self, c: int, o: int, each: bool) -> None:
        super().__init__(c, o, 3, padding=1)
        self.step = nn.Parameter(torch.full((o, 1, 1, 1) if each else (1,), 0.05))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight / self.step
        return F.conv2d(x, (w + (w.round() - w).detach()) * self.step, self.bias, padding=1)


@block(each=(True, False))
class Rounded(Block):
    gives = ("conv",)

    def __init__(self, c: int, o: int, each: bool) -> None:
        super().__init__(o)
        self.conv = RoundedConv2d(c, o, each)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class BinaryConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        return F.conv2d(x, w.sign() * w.abs().mean((1, 2, 3), keepdim=True), self.bias, padding=1)


@block()
class Binary(Block):
    """XNOR net: the mean over a filter's inputs scales it, so that none of them can go."""

    reads = False
    gives = ("conv",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.conv = BinaryConv2d(c, o, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class EqualizedConv2d(nn.Conv2d):
    def __init__(self, c: int, o: int) -> None:
        super().__init__(c, o, 3, padding=1)
        self.factor = (c * 9) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.factor, self.bias, padding=1)


@block()
class Equalized(Block):
    """StyleGAN: a factor that was computed from the width when the layer was made. It stays as it was, and a cut is exact."""

    gives = ("conv",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.conv = EqualizedConv2d(c, o)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))
