"""The stripe convolution as a module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from secateurs.errors import ConfigError
from secateurs.stripes import op
from secateurs.stripes.kernels import KERNELS, convolved
from secateurs.stripes.layout import Layout, Size, dense, pairs, shrunk
from secateurs.stripes.prepared import Prepared

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


class StripeConv(nn.Module):
    """A convolution over one to three axes in which each filter keeps some positions of its kernel: the output of the dense
    masked convolution, at the cost of the kept stripes only (PFF, Meng et al., NeurIPS 2020, sec. 3.2).

    weight: (S, C), the kept stripes in the order of `kept.nonzero()`: filter, then position. kept: (O, *kernel), bool.
    padding: one number, one for each axis of the kernel (vertical, horizontal), or two for each: before and after (top,
    bottom, left, right). Negative values crop.

    Without gradients, a layer uses the kernel that `tune` found fastest for inputs of that size. With gradients, under
    torch.compile, in exports, over one or three axes, and for a size that was not tuned, it computes the dense convolution
    with zeros. Kernels agree up to rounding, so the last digits depend on `kernels`, a plain dict that is saved with the
    network.

    `StripeConv1d`, `StripeConv2d` and `StripeConv3d` are the classes for each number of axes.
    """

    kept: Tensor
    axes: ClassVar[int]  # of the kernel
    convolve: ClassVar[Callable[..., Tensor]]  # the dense convolution
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        kept: Tensor,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if kept.ndim != self.axes + 1 or kept.dtype != torch.bool:
            wanted = ", ".join(("filters", *("planes", "rows", "columns")[-self.axes :]))
            raise ConfigError(f"kept must be a bool tensor ({wanted}), not {kept.dtype} {tuple(kept.shape)}.")
        self.in_channels, self.out_channels = in_channels, kept.shape[0]
        self.kernel_size = tuple(kept.shape[1:])
        self.stride, self.dilation = _each(stride, self.axes), _each(dilation, self.axes)
        self.padding = _sides(padding, self.axes)
        self.register_buffer("kept", kept.to(device))
        like = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(int(kept.sum()), in_channels, **like))
        self.register_parameter("bias", nn.Parameter(torch.zeros(len(kept), **like)) if bias else None)
        self.kernels: dict[str, str] = {}  # input size → the fastest kernel
        self._prepared: Prepared | None = None
        nn.init.kaiming_uniform_(self.weight, a=5**0.5) if self.weight.numel() else None

    @staticmethod
    def of(conv: Conv, kept: Tensor) -> StripeConv:
        """Create a stripe convolution that has these stripes of `conv`, an `nn.Conv1d`, `Conv2d` or `Conv3d`. Outer rows and
        columns of the kernel that no filter uses are removed.

        kept: (O, *kernel), bool. Raises ConfigError for a grouped convolution, or one whose padding mode is not zeros.
        """
        if not isinstance(conv, Conv):
            raise ConfigError(f"Stripes require an nn.Conv1d, nn.Conv2d or nn.Conv3d, got {type(conv).__name__}.")
        shape = (conv.out_channels, *conv.kernel_size)
        if conv.groups != 1:
            raise ConfigError(f"Stripes require groups=1, got a convolution with groups={conv.groups}.")
        if conv.padding_mode != "zeros":
            raise ConfigError(f"Stripes require padding_mode='zeros', got padding_mode={conv.padding_mode!r}.")
        if tuple(kept.shape) != shape or kept.dtype != torch.bool:
            raise ConfigError(f"kept must be bool and of shape {shape}, not {kept.dtype} {tuple(kept.shape)}.")
        kept = kept.to(conv.weight.device)
        small, padding = shrunk(kept, _padding(conv), conv.dilation)
        made = _KINDS[kept.ndim - 2](
            conv.in_channels, small.contiguous(), stride=conv.stride, padding=padding, dilation=conv.dilation,
            bias=conv.bias is not None, device=conv.weight.device, dtype=conv.weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            made.weight.copy_(conv.weight.movedim(1, -1)[kept])
            if conv.bias is not None:
                made.bias.copy_(conv.bias)  # type: ignore[union-attr]
        made.weight.requires_grad_(conv.weight.requires_grad)
        return made.train(conv.training)

    @property
    def layout(self) -> Layout:
        return Layout(self.kept, self.stride, self.padding, self.dilation)

    def dense_weight(self) -> Tensor:
        """Return the dense weight, (O, C, *kernel), with zeros for missing stripes. It is differentiable."""
        held = self._buffers.get("held")
        return dense(self.kept, self.weight) if held is None else held

    def hold_(self) -> None:
        """Hold the current dense weight as a constant. Otherwise an exported network would compute it in every run."""
        self.register_buffer("held", self.dense_weight().detach(), persistent=False)

    def to_dense(self) -> nn.Module:
        """Return the equivalent dense convolution with its weights. If the padding is negative or differs between sides, a
        module that pads with zeros comes first."""
        before = self.padding[::2]
        even = before == self.padding[1::2] and min(before) >= 0
        kind, pad = _DENSE[self.axes - 1]
        conv = kind(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, before if even else 0, self.dilation,
            bias=self.bias is not None, device=self.weight.device, dtype=self.weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            conv.weight.copy_(self.dense_weight())
            if self.bias is not None:
                conv.bias.copy_(self.bias)
        conv.train(self.training)
        return conv if even else nn.Sequential(pad([p for pair in reversed(pairs(self.padding)) for p in pair]), conv)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution: (N, C, *in) → (N, O, *out)."""
        # is_compiling is also true while exporting. PyTorch 2.6 has no is_exporting.
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return convolved(x, self.dense_weight(), self.bias, self.layout)
        ready = self._prepared
        if ready is not None and (weight := ready.dense(self, x)) is not None:
            try:
                bias = self._parameters["bias"]
                return self.convolve(x, weight, bias, self.stride, ready.sides, self.dilation)
            except (RuntimeError, KeyError):
                pass  # the code below raises an error that says what does not fit
        # For a FLOP counter or torch.fx, for example: one op that they can recognize.
        if _get_current_dispatch_mode() is not None or not isinstance(x, Tensor):
            return op.stripe_conv(x, self.weight, self.bias, self.kept, self.stride, self.padding, self.dilation)
        if x.is_meta or (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *self.parameters()))):
            return convolved(x, self.dense_weight(), self.bias, self.layout)
        x = self.as_computed(x)
        return self.run(self.kernels.get(size_of(x), "dense"), x)

    def as_computed(self, x: Tensor) -> Tensor:
        """Cast the input to autocast's precision. Without autocast, check that it has the weights' precision."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
            return x.to(torch.get_autocast_dtype(kind))
        if x.dtype != self.weight.dtype:
            raise ConfigError(
                f"A stripe convolution with {self.weight.dtype} weights got an input of {x.dtype}: convert one of them."
            )
        return x

    def run(self, kernel: str, x: Tensor) -> Tensor:
        """Run this kernel without gradients. (C, *in) is one image, as in nn.Conv2d."""
        if x.ndim == self.axes + 1:
            return self.run(kernel, x[None])[0]
        if x.ndim != self.axes + 2 or x.shape[1] != self.in_channels:
            raise ConfigError(
                f"A stripe convolution with {self.in_channels} input channels got an input of shape {tuple(x.shape)}."
            )
        ready = self._ready(x.dtype)
        bias: Tensor | None = self.bias
        if bias is not None and (bias.dtype != x.dtype or torch.is_grad_enabled()):
            bias = bias.detach().to(x.dtype)
        known = KERNELS.get(kernel)
        if known is None or not known.usable(x):
            known = KERNELS["dense"]
        return known.run(ready.layout, ready.weight, bias, x, ready.cached)

    def _ready(self, dtype: torch.dtype) -> Prepared:
        """Return the weights in this dtype, with what kernels computed from them as long as they do not change."""
        ready, weight, kept, layout = self._prepared, self.weight, self.kept, self.layout
        if ready is None or ready.dtype != dtype or not ready.holds(weight, kept) or not ready.layout.like(layout):
            self._prepared = ready = Prepared(weight, kept, layout, dtype)
        return ready

    def train(self, mode: bool = True) -> StripeConv:
        self._prepared = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # moves and casts may keep a tensor's address
        self._prepared = None
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        stripes, of = self.weight.shape[0], self.kept.numel()
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}, stripes={stripes}/{of}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}  # copies create their own


class StripeConv1d(StripeConv):
    """See `StripeConv`. kept: (O, K), bool."""

    axes = 1
    convolve = torch.conv1d


class StripeConv2d(StripeConv):
    """See `StripeConv`. kept: (O, KH, KW), bool."""

    axes = 2
    convolve = torch.conv2d


class StripeConv3d(StripeConv):
    """See `StripeConv`. kept: (O, KD, KH, KW), bool."""

    axes = 3
    convolve = torch.conv3d


_KINDS = (StripeConv1d, StripeConv2d, StripeConv3d)
_DENSE: tuple[tuple[Any, Any], ...] = (
    (nn.Conv1d, nn.ZeroPad1d), (nn.Conv2d, nn.ZeroPad2d), (nn.Conv3d, nn.ZeroPad3d),
)  # fmt: skip


def size_of(x: Tensor) -> str:
    """Return the key for the choice of a kernel, such as 'cpu float32 1x64x56x56'."""
    return _size(x.device.type, x.dtype, x.shape)


@functools.lru_cache
def _size(device: str, dtype: torch.dtype, shape: torch.Size) -> str:
    return f"{device} {str(dtype).removeprefix('torch.')} {'x'.join(map(str, shape))}"


def _each(value: int | Sequence[int], axes: int) -> Size:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _sides(padding: int | Sequence[int], axes: int) -> Size:
    padding = _each(padding, axes)
    return tuple(p for p in padding for _ in range(2)) if len(padding) == axes else padding


def _padding(conv: Conv) -> Size:
    if conv.padding == "valid":
        return (0,) * (2 * len(conv.kernel_size))
    if conv.padding == "same":  # the remainder is padded at the end: at the bottom and right
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return tuple(side for t in total for side in (t // 2, t - t // 2))
    return _sides([p for p in conv.padding if isinstance(p, int)], len(conv.kernel_size))
