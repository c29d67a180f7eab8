"""Little networks, one for each structure that a CNN may be made of, and what tracing them must find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from secateurs.testing.networks import randomize

SPLIT = "split sizes are constants in the code"
SIZE = "a size is a constant in the code"
EXPANDED = "a tensor is expanded to a size that is a constant in the code"
PICKED = "selects single channels by index, a constant in the code"


def image(n: int = 2, size: int = 12, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def head(c: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes))


def half(graph: Any, seed: int = 0) -> dict[str, list[int]]:
    """A random half of each group that may be cut."""
    return fraction(graph, 0.5, seed)


def fraction(graph: Any, keep: float, seed: int = 0) -> dict[str, list[int]]:
    draw = np.random.default_rng(seed)
    return {
        g.name: sorted(draw.permutation(g.size)[: min(g.size, max(g.least, round(keep * g.size)))].tolist())
        for g in graph.groups
        if g.prunable
    }


@torch.library.custom_op("networks::reverse", mutates_args=())
def reverse(x: Tensor) -> Tensor:
    """An op that the tracer has never heard of, and which has no kernel for meta tensors."""
    return x.flip(1).clone()


class Net(nn.Module):
    """Modules and raw parameters by name, and a function of them and the inputs."""

    def __init__(self, run: Callable[..., Any], /, **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


@dataclass(frozen=True)
class Case:
    """A network and what its trace must answer, apart from the groups that reach its output."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    prunable: dict[str, int]  # group → channels
    stays: dict[str, tuple[int, str]]  # group → channels, how the reason begins
    shortcut: tuple[str, ...] | None = None  # the prunable groups that lie on a shortcut

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return randomize(self.build()).eval()


CASES: dict[str, Case] = {}


def case(
    prunable: dict[str, int] | None = None,
    stays: dict[str, tuple[int, str]] | None = None,
    inputs: Callable[[], Any] = image,
    shortcut: tuple[str, ...] | None = None,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def decorate(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        name = build.__name__.rstrip("_")
        assert name not in CASES
        CASES[name] = Case(name, build, inputs, prunable or {}, stays or {}, shortcut)
        return build

    return decorate


def inexact(size: int, what: str) -> tuple[int, str]:
    return size, f"inexact: {what}"


# -- the ordinary ----------------------------------------------------------------------------------------------------


@case({"a": 8, "b": 6}, shortcut=())
def chain() -> nn.Module:
    return Net(
        lambda s, x: s.h(F.relu(s.nb(s.b(F.relu(s.na(s.a(x))))))),
        a=conv(3, 8), na=nn.BatchNorm2d(8), b=conv(8, 6, bias=False), nb=nn.BatchNorm2d(6), h=head(6),
    )  # fmt: skip


@case({"a": 8, "b": 6}, shortcut=("a",))
def residual() -> nn.Module:
    return Net(
        lambda s, x: (lambda y: s.h(F.relu(y + s.c(F.relu(s.b(y))))))(s.a(x)),
        a=conv(3, 8),
        b=conv(8, 6),
        c=conv(6, 8),
        h=head(8),
    )


@case({"a": 8, "b": 8}, shortcut=("a",))
def in_place_residual() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        z = s.c(F.relu_(s.b(y)))
        z += y
        return s.h(z.relu_())

    return Net(run, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), h=head(8))


@case(
    {"a": 4}, {"b": (4, "combined elementwise with the model's input or a constant in aten.add")}, shortcut=("a", "b")
)
def padded_shortcut() -> nn.Module:
    """ResNet's parameter-free shortcut: what meets the padding stays, the rest may go."""
    return Net(
        lambda s, x: (lambda y: s.h(s.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))(s.a(x)),
        a=conv(3, 4), b=conv(4, 8, stride=2), h=head(8),
    )  # fmt: skip


@case({"a": 4, "b": 6, "c": 8})
def concatenation() -> nn.Module:
    return Net(
        lambda s, x: (lambda y: s.h(s.c(s.n(torch.cat([y, s.b(y), x], 1)))))(s.a(x)),
        a=conv(3, 4), b=conv(4, 6), n=nn.BatchNorm2d(13), c=conv(13, 8), h=head(8),
    )  # fmt: skip


@case({"a": 8, "b": 6})
def shared_batch_norm_after_concat_and_sum() -> nn.Module:
    return Net(
        lambda s, x: s.h(s.c(torch.cat([s.a(x), s.b(x)], 1) + torch.cat([s.d(x), s.e(x)], 1))),
        a=conv(3, 8), b=conv(3, 6), c=conv(14, 5), d=conv(3, 8), e=conv(3, 6), h=nn.Flatten(),
    )  # fmt: skip


@case({"a": 8, "c": 8})
def depthwise_separable() -> nn.Module:
    return Net(
        lambda s, x: s.h(s.c(F.relu6(s.n(s.b(s.a(x)))))),
        a=conv(3, 8), b=conv(8, 8, groups=8), n=nn.BatchNorm2d(8), c=conv(8, 8, 1), h=head(8),
    )  # fmt: skip


@case({"a": 8})
def depthwise_multiplier() -> nn.Module:
    return Net(lambda s, x: s.h(s.b(s.a(x))), a=conv(3, 8), b=nn.Conv2d(8, 16, 3, groups=8), h=head(16))


@case({"a": 4, "b": 3, "c": 6})
def grouped() -> nn.Module:
    """Four groups: the k-th channels of all groups go together."""
    return Net(
        lambda s, x: s.h(s.c(s.b(F.relu(s.a(x))))), a=conv(3, 16), b=conv(16, 12, groups=4), c=conv(12, 6), h=head(6)
    )


@case({"a": 2, "c": 4})
def channel_shuffle() -> nn.Module:
    """The shuffle deals 2 groups of 4 out to 2 groups of 4: k and k + 2 go together, and so do the two groups."""

    def run(s: Any, x: Tensor) -> Tensor:
        n, c, h, w = (y := s.a(x)).shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return s.h(s.c(y))

    return Net(run, a=conv(3, 8), c=conv(8, 8, groups=2), h=head(8))


@case({"a": 2, "c": 4})
def channel_shuffle_module() -> nn.Module:
    return Net(lambda s, x: s.h(s.c(F.channel_shuffle(s.a(x), 2))), a=conv(3, 8), c=conv(8, 8, groups=2), h=head(8))


@case({"a": 16})
def flatten() -> nn.Module:
    return Net(lambda s, x: s.l(torch.flatten(F.max_pool2d(s.a(x), 3), 1)), a=conv(3, 16), l=nn.Linear(16 * 16, 5))


@case(stays={"a": (16, SIZE)})
def flatten_to_a_constant() -> nn.Module:
    return Net(lambda s, x: s.l(F.max_pool2d(s.a(x), 3).view(-1, 16 * 16)), a=conv(3, 16), l=nn.Linear(16 * 16, 5))


@case({"a": 8, "b": 8})
def dense_head() -> nn.Module:
    return Net(
        lambda s, x: s.c(F.dropout(F.relu(s.b(s.a(x).flatten(2).mean(-1))), 0.5, s.training)),
        a=conv(3, 8),
        b=nn.Linear(8, 8),
        c=nn.Linear(8, 4),
    )


@case({"a": 8})
def channels_last() -> nn.Module:
    return chain_of_one().to(memory_format=torch.channels_last)


def chain_of_one() -> nn.Module:
    return Net(lambda s, x: s.h(s.b(s.a(x))), a=conv(3, 8), b=nn.BatchNorm2d(8), h=head(8))


@case({"a": 8})
def upsampling() -> nn.Module:
    return Net(
        lambda s, x: s.h(F.interpolate(s.a(x), scale_factor=2, mode="bilinear") + F.interpolate(s.b(x), size=(24, 24))),
        a=conv(3, 8), b=conv(3, 8), h=head(8),
    )  # fmt: skip


@case({"a": 8})
def antialiased_resizing() -> nn.Module:
    modes = ["bilinear", "bicubic", *(["lanczos"] if hasattr(torch.ops.aten, "_upsample_lanczos2d_aa") else [])]
    return Net(
        lambda s, x: s.h(sum(F.interpolate(s.a(x), (6, 6), mode=mode, antialias=True) for mode in modes)),
        a=conv(3, 8), h=head(8),
    )  # fmt: skip


@case({"a": 4})
def pixel_shuffle() -> nn.Module:
    return Net(lambda s, x: s.b(F.pixel_shuffle(s.a(x), 2)), a=conv(3, 16), b=conv(4, 3))


@case({"a": 6})
def pixel_unshuffle() -> nn.Module:
    return Net(lambda s, x: s.b(F.pixel_unshuffle(s.a(x), 2)).mean((2, 3)), a=conv(3, 6), b=conv(24, 3))


@case({"a": 4})
def pixel_shuffle_by_hand() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        n, c, h, w = (y := s.a(x)).shape
        return s.b(y.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, 2 * h, 2 * w))

    return Net(run, a=conv(3, 16), b=conv(4, 3))


@case({"a": 6, "b": 8})
def many_activations() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        y = F.gelu(F.silu(F.leaky_relu(F.elu(F.hardswish(s.a(x))), 0.1)))
        return s.h(torch.tanh(F.softplus(F.mish(s.b(torch.where(y > 0, y, y.abs().clamp(max=1)))))))

    return Net(run, a=conv(3, 6), b=conv(6, 8), h=head(8))


@case({"a": 8})
def prelu() -> nn.Module:
    return Net(lambda s, x: s.h(s.n(s.a(x))), a=conv(3, 8), n=nn.PReLU(8, 0.3), h=head(8))


@case({"a": 8, "b": 6})
def poolings() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        y = F.avg_pool2d(F.max_pool2d(F.relu(s.a(x)), 3, 1, ceil_mode=True), 2)
        return s.h(F.adaptive_max_pool2d(s.b(F.lp_pool2d(y, 2, 2)), 2))

    return Net(run, a=conv(3, 8), b=conv(8, 6), h=head(6))


@case({"a": 8, "b": 6, "c": 6})
def paddings() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        y = F.pad(F.pad(s.a(x), (1, 1, 1, 1), "reflect"), (1, 0, 0, 1), "replicate")
        return s.h(s.c(s.b(F.pad(y, (1, 1), value=2.0))))

    return Net(
        run, a=conv(3, 8), b=conv(8, 6, padding_mode="circular"), c=conv(6, 6, padding_mode="reflect"), h=head(6)
    )


@case({"a": 12, "b": 8})
def transposed() -> nn.Module:
    return Net(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))),
        a=conv(3, 12),
        b=nn.ConvTranspose2d(12, 8, 3, stride=2),
        c=conv(8, 2),
    )


@case({"a": 4, "b": 3})
def transposed_grouped() -> nn.Module:
    return Net(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))),
        a=conv(3, 16),
        b=nn.ConvTranspose2d(16, 12, 3, stride=2, groups=4),
        c=conv(12, 2),
    )


@case({"a": 8}, inputs=lambda: image()[:, :, 0])
def one_dimension() -> nn.Module:
    return Net(
        lambda s, x: s.b(F.max_pool1d(s.n(s.a(x)), 2)).mean(-1),
        a=nn.Conv1d(3, 8, 3),
        n=nn.BatchNorm1d(8),
        b=nn.Conv1d(8, 4, 3),
    )


@case({"a": 8}, inputs=lambda: image(3, 8)[None].expand(1, 3, 3, 8, 8).contiguous())
def three_dimensions() -> nn.Module:
    return Net(
        lambda s, x: s.b(F.max_pool3d(F.relu(s.n(s.a(x))), (1, 2, 2))).mean((2, 3, 4)),
        a=nn.Conv3d(3, 8, (1, 3, 3)), n=nn.BatchNorm3d(8), b=nn.Conv3d(8, 4, (3, 3, 3)),
    )  # fmt: skip


@case({"a": 8})
def unpooling() -> nn.Module:
    """SegNet: maxima go back to where they came from, so a channel of b takes its positions from one of a."""

    def run(s: Any, x: Tensor) -> Tensor:
        y, where = F.max_pool2d(s.a(x), 2, return_indices=True)
        return s.h(F.max_unpool2d(s.b(y), where, 2))

    return Net(run, a=conv(3, 8), b=conv(8, 8), h=head(8))


@case({"a": 4, "b": 3})
def gated_linear_units() -> nn.Module:
    return Net(lambda s, x: s.h(F.glu(s.b(F.glu(s.a(x), 1)), 1)), a=conv(3, 8), b=conv(4, 6), h=head(3))


@case({"a": 8})
def fixed_blur() -> nn.Module:
    """One filter, no parameter, for as many channels as there are."""

    def run(s: Any, x: Tensor) -> Tensor:
        x = s.a(x)
        c = x.shape[1]
        return s.h(
            F.conv2d(x, torch.full((1, 1, 3, 3), 1 / 9, dtype=x.dtype, device=x.device).expand(c, 1, 3, 3), groups=c)
        )

    return Net(run, a=conv(3, 8), h=head(8))


@case(stays={"a": (8, "the number of groups is a constant in the code")})
def fixed_blur_of_a_constant_width() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        return s.h(F.conv2d(s.a(x), torch.ones(1, 1, 3, 3, device=x.device).expand(8, 1, 3, 3), groups=8))

    return Net(run, a=conv(3, 8), h=head(8))


@case({"a": 2})
def temporal_shift() -> nn.Module:
    """A buffer filled piece by piece, as wide as the channels that go into it."""

    def run(s: Any, x: Tensor) -> Tensor:
        x = s.a(x)
        out, f = torch.zeros_like(x), x.shape[1] // 4
        out[:-1, :f] = x[1:, :f]
        out[1:, f : 2 * f] = x[:-1, f : 2 * f]
        out[:, 2 * f :] = x[:, 2 * f :]
        return s.h(out)

    return Net(run, a=conv(3, 8), h=head(8))


@case({"a": 6})
def fold_and_sort() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        x = F.fold(F.unfold(s.a(x), 2, stride=2), (12, 12), 2, stride=2)
        return s.h(x.gather(3, x.argsort(3)) + x.cumsum(2) + x.new_zeros(x.shape))

    return Net(run, a=conv(3, 6), h=head(6))


@case({"a": 8})
def axes_in_place() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        y = s.a(x).unsqueeze_(2).transpose_(1, 3)  # (N, H, 1, C, W)
        return s.h(y.squeeze_(2).transpose_(1, -2).clone().squeeze_(2))

    return Net(run, a=conv(3, 8), h=head(8))


# -- attention over channels -----------------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, r: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(c, c // r), nn.Linear(c // r, c)

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        return x * torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3)))))).view(n, c, 1, 1)


@case({"a": 8, "e.a": 2})
def squeeze_excite() -> nn.Module:
    return Net(lambda s, x: s.h(s.e(s.a(x))), a=conv(3, 8), e=SqueezeExcite(8), h=head(8))


@case(stays={"a": inexact(8, "aten.convolution slides over channels")})
def efficient_channel_attention() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        x = s.a(x)
        y = s.c(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return s.h(x * y.sigmoid())

    return Net(run, a=conv(3, 8), c=nn.Conv1d(1, 1, 3, padding=1, bias=False), h=head(8))


@case({"e.a": 2}, {"a": inexact(8, "aten.max over channels")})
def cbam() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        x = s.e(s.a(x))
        return s.h(x * torch.sigmoid(s.c(torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], 1))))

    return Net(run, a=conv(3, 8), e=SqueezeExcite(8), c=conv(2, 1, 7), h=head(8))


@case({"a": 8, "f": 4})
def selective_kernel() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        u = torch.stack([s.a(x), s.b(x)], 1)
        z = s.f(u.sum(1).mean((-1, -2)))
        w = torch.stack([g(z) for g in s.g], 1).softmax(1)
        return s.h((u * w[..., None, None]).sum(1))

    return Net(
        run,
        a=conv(3, 8),
        b=conv(3, 8, 5),
        f=nn.Linear(8, 4),
        g=nn.ModuleList([nn.Linear(4, 8), nn.Linear(4, 8)]),
        h=head(8),
    )


# -- weights that are computed, shared or raw ------------------------------------------------------------------------


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


@case({"b": 6}, {"a": inexact(8, "aten.mean over channels")})
def weight_standardization() -> nn.Module:
    return Net(lambda s, x: s.h(s.b(F.relu(s.a(x)))), a=Standardized(3, 8, 3), b=Standardized(8, 6, 3), h=head(6))


@case({"b": 6}, {"a": inexact(8, "weight norm takes a norm over channels")})
def weight_normalization() -> nn.Module:
    return Net(lambda s, x: s.h(s.b(F.relu(s.a(x)))), a=weight_norm(conv(3, 8)), b=weight_norm(conv(8, 6)), h=head(6))


@case({"b": 6}, {"a": inexact(8, "aten.vdot sums over it")})
def spectral_normalization() -> nn.Module:
    return Net(lambda s, x: s.h(s.b(F.relu(s.a(x)))), a=spectral_norm(conv(3, 8)), b=conv(8, 6), h=head(6))


@case({"w": 8})
def einsum() -> nn.Module:
    return Net(
        lambda s, x: torch.einsum("nchw,oc->nohw", F.relu(torch.einsum("nchw,oc->nohw", x, s.w)), s.v).mean((2, 3)),
        w=nn.Parameter(torch.randn(8, 3)), v=nn.Parameter(torch.randn(5, 8)),
    )  # fmt: skip


@case({"w": 8})
def raw_parameters() -> nn.Module:
    return Net(
        lambda s, x: F.linear(F.relu(F.conv2d(x, s.w, s.b) * s.g).mean((2, 3)), s.v),
        w=nn.Parameter(torch.randn(8, 3, 3, 3)), b=nn.Parameter(torch.randn(8)), g=nn.Parameter(torch.rand(8, 1, 1)),
        v=nn.Parameter(torch.randn(5, 8)),
    )  # fmt: skip


@case({"a": 8, "b": 6})
def layer_scale() -> nn.Module:
    return Net(
        lambda s, x: s.h(s.b(s.a(x) * s.gamma + s.position)), a=conv(3, 8), b=conv(8, 6), h=head(6),
        gamma=nn.Parameter(torch.rand(8, 1, 1)), position=nn.Parameter(torch.randn(1, 8, 12, 12)),
    )  # fmt: skip


@case({"a": 8})
def shared_module() -> nn.Module:
    """b reads its own output: its input and output channels are the same."""
    return Net(lambda s, x: s.h(s.b(F.relu(s.b(F.relu(s.a(x)))))), a=conv(3, 8), b=conv(8, 8), h=head(8))


@case({"a": 8, "b": 8})
def shared_module_two_inputs() -> nn.Module:
    """b reads a and c: their channels go together."""
    return Net(
        lambda s, x: s.h(torch.cat([s.b(s.a(x)), s.b(s.c(x))], 1)), a=conv(3, 8), b=conv(8, 8), c=conv(3, 8), h=head(16)
    )


@case({"a": 8})
def tied_weights() -> nn.Module:
    net = Net(lambda s, x: s.h(s.c(F.relu(s.b(F.relu(s.a(x)))))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), h=head(8))
    net.c.weight = net.b.weight
    return net


@case({"a": 8}, {"a#2": (3, "combined elementwise with the model's input")})
def tied_transpose() -> nn.Module:
    """An autoencoder whose decoder is the encoder's weight, transposed."""
    return Net(lambda s, x: F.conv_transpose2d(F.relu(s.a(x)), s.a.weight, padding=1), a=conv(3, 8))


# -- normalizations --------------------------------------------------------------------------------------------------


@case(stays={"a": inexact(2, "group norm computes its statistics over channels")})
def group_norm() -> nn.Module:
    return Net(lambda s, x: s.h(s.n(s.a(x))), a=conv(3, 8), n=nn.GroupNorm(4, 8), h=head(8))


@case({"a": 8})
def group_norm_per_channel() -> nn.Module:
    return Net(lambda s, x: s.h(F.relu(s.n(s.a(x)))), a=conv(3, 8), n=nn.GroupNorm(8, 8), h=head(8))


@case({"a": 8})
def instance_norm_without_affine() -> nn.Module:
    return Net(lambda s, x: s.h(F.relu(s.n(s.a(x)))), a=conv(3, 8), n=nn.InstanceNorm2d(8), h=head(8))


@case({"a": 8, "b": 6})
def norms_without_affine_after_concatenation() -> nn.Module:
    return Net(
        lambda s, x: s.h(s.m(F.relu(s.n(torch.cat([s.a(x), s.b(x)], 1))))),
        a=conv(3, 8), b=conv(3, 6), n=nn.GroupNorm(14, 14, affine=False),
        m=nn.BatchNorm2d(14, affine=False, track_running_stats=False), h=head(14),
    )  # fmt: skip


class Doubles(nn.Module):
    """Doubles each channel; knows how many there are."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.num_channels, -1, 2).mul(2).view_as(x)


@case({"a": 8})
def a_module_of_ones_own_that_records_its_channels() -> nn.Module:
    return Net(lambda s, x: s.h(F.relu(s.n(s.a(x)))), a=conv(3, 8), n=Doubles(8), h=head(8))


@case({"a": 8})
def instance_norm() -> nn.Module:
    return Net(lambda s, x: s.h(F.relu(s.n(s.a(x)))), a=conv(3, 8), n=nn.InstanceNorm2d(8, affine=True), h=head(8))


@case(stays={"a": inexact(8, "layer norm computes its statistics over channels")})
def layer_norm() -> nn.Module:
    return Net(
        lambda s, x: s.h(s.n(s.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        a=conv(3, 8),
        n=nn.LayerNorm(8),
        h=head(8),
    )


@case(stays={"a": inexact(8, "aten.mean over channels")})
def rms_norm() -> nn.Module:
    return Net(
        lambda s, x: s.h(s.n(s.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), a=conv(3, 8), n=nn.RMSNorm(8), h=head(8)
    )


@case(stays={"a": (8, "the normalized shape is a constant in the code")})
def layer_norm_to_a_constant() -> nn.Module:
    return Net(
        lambda s, x: s.h(F.layer_norm(s.a(x).permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)), a=conv(3, 8), h=head(8)
    )


@case({"a": 8})
def batch_norm_without_affine() -> nn.Module:
    return Net(lambda s, x: s.h(s.n(s.a(x))), a=conv(3, 8), n=nn.BatchNorm2d(8, affine=False), h=head(8))


@case(stays={"a": inexact(8, "aten.linalg_vector_norm over channels")})
def unit_length() -> nn.Module:
    return Net(lambda s, x: s.h(F.normalize(s.a(x), dim=1)), a=conv(3, 8), h=head(8))


@case(stays={"a": (8, "aten.avg_pool3d resamples an axis of channels")})
def local_response_norm() -> nn.Module:
    return Net(lambda s, x: s.h(F.local_response_norm(s.a(x), 3)), a=conv(3, 8), h=head(8))


# -- splits and views: constants of the author's, or computed? -------------------------------------------------------


@case({"a": 4})
def chunk() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        p, q = s.a(x).chunk(2, 1)
        return s.h(p * torch.sigmoid(q))

    return Net(run, a=conv(3, 8), h=head(4))


@case({"c": 8}, {"a": (2, SPLIT)})
def split_by_constants() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        p, q = s.a(x).split([6, 10], 1)
        return s.h(s.c(torch.cat([p, F.relu(q)], 1)))

    return Net(run, a=conv(3, 16), c=conv(16, 8), h=head(8))


@case({"a": 4, "c": 8})
def slice_by_a_fraction() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        quarter = (y := s.a(x)).shape[1] // 4
        return s.h(s.c(torch.cat([y[:, :quarter], F.relu(y[:, quarter:])], 1)))

    return Net(run, a=conv(3, 16), c=conv(16, 8), h=head(8))


@case({"a": 4})
def every_second() -> nn.Module:
    return Net(lambda s, x: (lambda y: s.h(y[:, ::2] * torch.sigmoid(y[:, 1::2])))(s.a(x)), a=conv(3, 8), h=head(4))


@case({"a": 12}, {"b": (4, SPLIT)})
def view_by_constants() -> nn.Module:
    return Net(
        lambda s, x: s.h(s.b(s.a(x)).view(2, 4, 4, 12, 12).transpose(1, 2).reshape(2, 16, 12, 12)),
        a=conv(3, 12), b=conv(12, 16), h=head(16),
    )  # fmt: skip


@case({"e": 4}, {"a": (8, SIZE)})
def view_adds_axes_by_a_constant() -> nn.Module:
    return Net(
        lambda s, x: (lambda y: s.h(y * s.f(F.relu(s.e(y.mean((2, 3))))).view(-1, 8, 1, 1)))(s.a(x)),
        a=conv(3, 8), e=nn.Linear(8, 4), f=nn.Linear(4, 8), h=head(8),
    )  # fmt: skip


@case(stays={"a": (8, SIZE)})
def view_drops_axes_by_a_constant() -> nn.Module:
    return Net(lambda s, x: s.h(s.a(x).mean((2, 3), keepdim=True).view(-1, 8)), a=conv(3, 8), h=nn.Linear(8, 5))


@case({"a": 2})
def view_groups_last() -> nn.Module:
    """(c / 4, 4): here the second axis is the author's constant."""
    return Net(
        lambda s, x: (lambda y: s.h(y.view(2, y.shape[1] // 4, 4, 12, 12).transpose(1, 2).reshape(y.shape)))(s.a(x)),
        a=conv(3, 8), h=head(8),
    )  # fmt: skip


@case(stays={"a": (8, EXPANDED)})
def expanded_to_a_constant() -> nn.Module:
    return Net(
        lambda s, x: s.h(s.a(x) * s.g.expand(2, 8, 12, 12)),
        a=conv(3, 8),
        g=nn.Parameter(torch.rand(8, 1, 1)),
        h=head(8),
    )


@case(stays={"a": (8, f"aten.index {PICKED}")})
def picked_by_index() -> nn.Module:
    return Net(lambda s, x: s.h(s.a(x)[:, [0, 3, 2, 1]]), a=conv(3, 8), h=head(4))


@case(stays={"a": (8, SIZE)})
def folded_into_the_batch() -> nn.Module:
    return Net(lambda s, x: s.h(s.a(x).reshape(-1, 1, 12, 12).mul(2).reshape(2, 8, 12, 12)), a=conv(3, 8), h=head(8))


@case({"a": 8, "b": 6})
def meets_coordinates() -> nn.Module:
    def run(s: Any, x: Tensor) -> Tensor:
        rows = torch.linspace(0, 1, 12, device=x.device).view(1, 1, 12, 1).expand(2, 1, 12, 12)
        return s.h(s.b(torch.cat([s.a(x), rows, torch.zeros(2, 2, 12, 12, device=x.device)], 1)))

    return Net(run, a=conv(3, 8), b=conv(11, 6), h=head(6))


@case({"a": 6})
def im2col() -> nn.Module:
    return Net(
        lambda s, x: torch.einsum("nkl,ok->nol", F.unfold(s.a(x), 3), s.w).mean(-1),
        a=conv(3, 6),
        w=nn.Parameter(torch.randn(5, 54)),
    )


@case({"b": 6}, {"a": (8, "op networks.reverse has no rule")})
def op_without_a_rule() -> nn.Module:
    return Net(lambda s, x: s.h(s.b(torch.ops.networks.reverse(s.a(x)))), a=conv(3, 8), b=conv(8, 6), h=head(6))


@case({"c": 6}, {"a": (8, "op networks.reverse has no rule")})
def op_without_a_rule_on_a_residual() -> nn.Module:
    """The frozen channels meet others: those stay with them."""
    return Net(
        lambda s, x: s.h(s.c(torch.ops.networks.reverse(s.a(x)) + s.a(x) + s.b(x))),
        a=conv(3, 8),
        b=conv(3, 8),
        c=conv(8, 6),
        h=head(6),
    )


@case(stays={"a": (8, "combined elementwise with the model's input or a constant")})
def meets_the_input() -> nn.Module:
    return Net(lambda s, x: s.h(s.a(x) + x), a=conv(8, 8), h=head(8))


CASES["meets_the_input"] = Case(
    "meets_the_input", meets_the_input, lambda: image(channels=8), {}, CASES["meets_the_input"].stays
)


# -- inputs, outputs, precision ----------------------------------------------------------------------------------------


@case({"a": 8}, inputs=lambda: {"picture": image(), "scale": torch.ones(1)})
def dict_in_dict_out() -> nn.Module:
    return Net(lambda s, picture, scale: {"logits": s.h(s.a(picture) * scale)}, a=conv(3, 8), h=head(8))


@case({"a": 8}, inputs=lambda: (image(), image(size=12)))
def two_inputs() -> nn.Module:
    return Net(lambda s, x, y: (s.h(s.a(x) + s.b(y)), [s.h(s.b(x))]), a=conv(3, 8), b=conv(3, 8), h=head(8))


@case({"b": 6})
def feature_maps_out() -> nn.Module:
    """What the model answers stays whole."""
    return Net(lambda s, x: (lambda y: (y, s.h(s.b(y))))(s.a(x)), a=conv(3, 8), b=conv(8, 6), h=head(6))


@case({"a": 8, "b": 6}, inputs=lambda: image().bfloat16())
def bfloat16() -> nn.Module:
    return Net(
        lambda s, x: s.h(s.b(F.relu(s.n(s.a(x))))), a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 6), h=head(6)
    ).bfloat16()


@case({"a": 8, "b": 6}, inputs=lambda: image().half())
def float16() -> nn.Module:
    return Net(
        lambda s, x: s.h(s.b(F.relu(s.n(s.a(x))))), a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 6), h=head(6)
    ).half()


@case({"a": 8})
def reads_values() -> nn.Module:
    """Control flow that depends on the data."""
    return Net(lambda s, x: s.h(s.a(x)) if x.sum() > -1e9 else s.h(s.b(x)), a=conv(3, 8), b=conv(3, 8), h=head(8))


class Complex(nn.Module):
    """Complex convolutions run as three real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(i, o, 3, dtype=torch.complex64) for i, o in ((3, 8), (8, 6)))
        self.out = nn.Linear(6, 4, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x.to(torch.complex64))).mean((2, 3))).abs()
