"""Fourier transforms, complex numbers, sampling at positions, orders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.kinds import block
from fuzzing.parts import Block

COMPLEX = torch.complex64


@block(stored=("complex", "real"))
class FourierGate(Block):
    """GFNet: a complex weight for each channel and frequency."""

    passes = True

    def __init__(self, c: int, size: int, stored: str) -> None:
        super().__init__(c)
        w = torch.randn(c, size, size // 2 + 1, 2)
        self.weight = nn.Parameter(torch.view_as_complex(w) if stored == "complex" else w)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight.contiguous())
        return torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * w, x.shape[-2:], norm="ortho")


@block(stored=("complex", "real"))
class FourierMix(Block):
    """FNO: a complex matrix over channels for each low frequency."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, stored: str) -> None:
        super().__init__(o)
        self.plain, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(5, o, 1)
        w = torch.randn(4, 5, 3, 3, 2) / 4
        self.weight = nn.Parameter(torch.view_as_complex(w) if stored == "complex" else w)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.rfft2(self.plain(x).relu())
        w = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        low = torch.einsum("nihw,iohw->nohw", f[:, :, :3, :3], w)
        out = torch.zeros(len(x), 5, *f.shape[2:], dtype=f.dtype, device=f.device)
        out[:, :, :3, :3] = low
        return self.leave(torch.fft.irfft2(out, x.shape[-2:]))


@block()
class ComplexConv(Block):
    """A complex layer, and its magnitude."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(5, o, 1)
        self.conv = nn.Conv2d(4, 5, 1, dtype=COMPLEX)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(x)
        return self.leave(self.conv(torch.complex(y, y.flip(-1)).to(self.conv.weight.dtype)).abs())


@block()
class Rotary(Block):
    """Pairs of channels turned as complex numbers."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.a, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.plain(x).relu()).movedim(1, -1)
        z = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous())
        angle = torch.outer(
            torch.arange(x.shape[-1], dtype=y.dtype), torch.linspace(1, 0.1, z.shape[-1], dtype=y.dtype)
        )
        z = z * torch.polar(torch.ones_like(angle), angle)
        return self.leave(torch.view_as_real(z).flatten(-2).movedim(-1, 1))


@block()
class Spectrum(Block):
    """Real and imaginary parts side by side."""

    gives = ("leave",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.leave = nn.Conv2d(2 * c, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.fft2(x, norm="ortho")
        return self.leave(torch.cat([f.real, f.imag], 1))


@block()
class ChannelSpectrum(Block):
    """FNet mixes channels by a transform: all of them stay."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.a, self.leave = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.fft.fft(self.a(self.plain(x).relu()), dim=1).real)


@block()
class Unpooled(Block):
    """SegNet."""

    passes = True

    def __init__(self, c: int) -> None:
        super().__init__(c)

    def forward(self, x: Tensor) -> Tensor:
        y, at = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(y.relu(), at, 2, output_size=x.shape[2:])


@block()
class Sampled(Block):
    """Spatial transformer: a grid that the input determines."""

    passes = True

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.theta = nn.Conv2d(c, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        _n, _, h, w = x.shape
        v, u = torch.meshgrid(
            torch.linspace(-1, 1, h, dtype=x.dtype), torch.linspace(-1, 1, w, dtype=x.dtype), indexing="ij"
        )
        grid = torch.stack([u, v], -1) + self.theta(x).tanh().permute(0, 2, 3, 1) / 4
        return F.grid_sample(x, grid, align_corners=True)


@block(how=("sort", "topk", "cumsum", "roll", "pick", "flip"))
class Ordered(Block):
    """What depends on where a channel stands; space may be turned."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int, how: str) -> None:
        super().__init__(o)
        self.plain, self.a, self.how = nn.Conv2d(c, 4, 1), nn.Conv2d(4, 6, 1), how
        self.leave = nn.Conv2d({"topk": 3, "pick": 2}.get(how, 6), o, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.plain(x).relu())
        if self.how == "pick":
            y = y[:, [0, 3]]
        elif self.how == "topk":
            y = y.topk(3, 1).values
        else:
            y = {
                "sort": lambda: y.sort(1)[0],
                "cumsum": lambda: y.cumsum(1),
                "roll": lambda: y.roll(1, 1),
                "flip": lambda: y.flip(-1),
            }[self.how]()
        return self.leave(y)


@block()
class Bilinear(Block):
    """Second-order pooling: products of all channels with all, as a gate."""

    passes, gives = True, ()

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.a, self.gate = nn.Conv2d(c, 4, 1), nn.Linear(16, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).flatten(2)
        return x * self.gate((y @ y.transpose(1, 2)).flatten(1)).sigmoid()[..., None, None]


@block()
class Codebook(Block):
    """VQ-VAE: the nearest of some vectors, with a straight-through estimator."""

    gives, inside = ("leave",), ("plain",)

    def __init__(self, c: int, o: int) -> None:
        super().__init__(o)
        self.plain, self.a, self.leave, self.codes = (
            nn.Conv2d(c, 4, 1),
            nn.Conv2d(4, 5, 1),
            nn.Conv2d(5, o, 1),
            nn.Embedding(7, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.plain(x).relu()).permute(0, 2, 3, 1)
        flat = y.reshape(-1, y.shape[-1])
        far = flat.square().sum(1, keepdim=True) - 2 * flat @ self.codes.weight.t() + self.codes.weight.square().sum(1)
        q = self.codes(far.argmin(1)).view(y.shape)
        return self.leave((y + (q - y).detach()).permute(0, 3, 1, 2))
