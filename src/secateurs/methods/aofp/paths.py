"""The scoring path: a layer's output without the ablated channels, computed in the model's own forward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateurs.graph.modes import evaluating
from secateurs.methods.aofp.ablation import EVERY, Ablation, Columns, Reader
from secateurs.methods.following import Following, batch_norm

_CACHED = 1 << 19  # values of an activation that are processed at a time on a CPU

Found = Callable[[Reader, Tensor, Tensor, Tensor | None], None]
"""(reader, ‖M − M′‖² (rows,), ‖M‖² (rows,), which channels each row ablated (rows, size) or None if all the same)."""


class Watch:
    """Forward hook of a layer: scores the groups that it consumes, now or after its batch norm has run."""

    def __init__(
        self, module: nn.Module, follows: Following, readers: list[Reader], ablation: Ablation, found: Found
    ) -> None:
        self.module, self.follows, self.readers = module, follows, readers
        self.ablation, self.found = ablation, found
        self.waiting: tuple[Tensor, Tensor] | None = None  # input and output, until the norm has run
        # Not a decorator, which would import the compiler for everybody.
        self._uncompiled = torch.compiler.disable(self._see)

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        return self  # on a copy of the model (for example its EMA) it does nothing

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> None:
        if self.ablation.active:
            x = args[0] if args else kwargs.get("input")
            (self._see if self.compiles(x) else self._uncompiled)(module, x, y)

    def compiles(self, x: Any) -> bool:
        """Whether all that is done for this input can be compiled."""
        return isinstance(x, Tensor) and all(self.ablation.drawn(r, x) for r in self.readers)

    def _see(self, module: nn.Module, x: Any, y: Any) -> None:
        self.waiting = None
        if module is not self.module or not isinstance(y, Tensor) or not isinstance(x, Tensor):
            return
        if not any(self.ablation.wants(r, x) for r in self.readers):
            return
        if self.follows.hooked:
            self.waiting = (x, y)
            return
        with torch.no_grad():
            z, factor = y.detach(), None
            if self.follows.norm is not None:
                z, factor = batch_norm(self.follows.norm, z)
            self.score(x, y, z, factor)

    def score(self, x: Tensor, y: Tensor, z: Tensor, factor: Tensor | None) -> None:
        """x: the layer's input (N, C, *). y: its output. z: that after batch norm. factor: (O,) of batch norm."""
        whole: tuple[Tensor, ...] = x.detach(), y.detach(), z.detach()
        some: tuple[Tensor, ...] = ()  # the examples that are scored if each has a half of its own
        for reader in self.readers:
            if not self.ablation.wants(reader, x):
                continue
            columns, masks = self.ablation.of(reader, x)
            if masks is None:
                seen, ablated = whole, None
            else:
                some = some or tuple(map(_every, whole))
                seen, ablated = some, columns.whole(masks)
            part = _Contribution(self.module, reader.linear, columns, masks, factor, seen[0], seen[1])
            self.found(reader, *self._compare(part, seen[0], seen[2]), ablated)

    def _compare(self, part: _Contribution, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances of each row, and squared norms: (rows,), float64."""
        n = len(x)
        sliced = z.device.type == "cpu" and not torch.compiler.is_compiling()
        rows = max(1, _CACHED * n // max(x.numel(), z.numel(), 1)) if sliced else n
        wide = {"dtype": torch.float32} if z.dtype == torch.float16 else {}  # float16's range is too small
        kept = self.ablation.kept.get(self.readers[0].layer)
        if kept is not None:
            kept = kept.to(z.dtype) if isinstance(self.module, nn.Linear) else _along(kept.to(z.dtype), z)
        above, below = [], []
        for i in range(0, n, rows):
            base = z[i : i + rows]
            other = self.follows.finish(part.without(base, slice(i, i + rows)))
            if self.follows.then:
                base = torch.relu(base) if self.follows.then == (torch.relu,) else self.follows.finish(base.clone())
            other -= base
            if kept is not None:
                other, base = other.mul_(kept), base * kept
            above.append(torch.linalg.vector_norm(_flat(other), dim=1, **wide))
            below.append(torch.linalg.vector_norm(_flat(base), dim=1, **wide))
        return torch.cat(above).double().square(), torch.cat(below).double().square()


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _every(x: Tensor) -> Tensor:
    """The examples to score, in the same memory format."""
    last = _LAST.get(x.ndim)
    kept = last if last is not None and x.is_contiguous(memory_format=last) else torch.contiguous_format
    return x[::EVERY].clone(memory_format=kept)


def _flat(x: Tensor) -> Tensor:
    """(N, …) → (N, everything else), in memory order."""
    if x.ndim in _LAST and x.is_contiguous(memory_format=_LAST[x.ndim]):
        x = x.movedim(1, -1)
    return x.reshape(len(x), -1)


class AfterNorm:
    """Forward hook of a batch norm, before its output is changed in place."""

    def __init__(self, watch: Watch, norm: nn.Module) -> None:
        self.watch, self.norm = watch, norm
        self._uncompiled = torch.compiler.disable(self._see)

    def __deepcopy__(self, memo: dict[int, Any]) -> AfterNorm:
        return self

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], z: Any) -> None:
        if self.watch.ablation.active and self.watch.waiting is not None:
            y = args[0] if args else kwargs.get("input")
            (self._see if self.watch.compiles(self.watch.waiting[0]) else self._uncompiled)(module, y, z)

    def _see(self, module: nn.Module, y: Any, z: Any) -> None:
        waiting, self.watch.waiting = self.watch.waiting, None
        if waiting is None or module is not self.norm or y is not waiting[1]:
            return
        with torch.no_grad():
            self.watch.score(*waiting, z.detach(), _factor(self.norm, waiting[1].detach(), z))


def _factor(norm: nn.Module, y: Tensor, z: Tensor) -> Tensor:
    """The factor by which the batch norm from y to z multiplied each channel: (C,)."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    if not norm.training and norm.running_var is not None:
        scale = torch.rsqrt(norm.running_var + norm.eps)
        return scale if norm.weight is None else scale * norm.weight
    axes = [0, *range(2, y.ndim)]
    compiled = torch.compiler.is_compiling()  # in one process; and PyTorch 2.6 does not compile `vars`
    if (compiled or "forward" not in vars(norm)) and not isinstance(norm, nn.SyncBatchNorm):
        # 1 / standard deviation, kept for the backward pass
        saved = None if compiled else getattr(z.grad_fn, "_saved_result2", None)
        if not isinstance(saved, Tensor) or saved.shape != (y.shape[1],):
            saved = torch.rsqrt(y.float().var(axes, unbiased=False) + norm.eps)
        return saved if norm.weight is None else saved * norm.weight
    # Statistics over all processes: in any case z = factor · y + constant in each channel.
    y, z = y.float(), z.detach().float()
    y = y - y.mean(axes, keepdim=True)
    spread = y.square().sum(axes)
    found = (y * z).sum(axes) / spread
    flat = spread <= 1e-12 * y.numel() / y.shape[1]
    still = torch.full_like(found, norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    return torch.where(flat, still, found)


class _Contribution:
    """The contribution of the ablated channels to a layer's output z, for any rows of the batch."""

    def __init__(
        self, module: nn.Module, linear: bool, columns: Columns, masks: Tensor | None, factor: Tensor | None,
        x: Tensor, y: Tensor,
    ) -> None:  # fmt: skip
        """linear: see `Reader`. masks: (rows, n), which of the columns' filters each row ablates; None: all of them."""
        self.module, self.linear, self.x, self.y = module, linear, x, y
        self.axis = (-1 if isinstance(module, nn.Linear) else 1) % x.ndim
        self.inputs = columns.inputs
        gone: Tensor | None = None  # (rows, inputs, 1, …): 1 for those that a row ablates
        if masks is not None:
            gone = masks[:, columns.owners].to(x.dtype)
        self.scale: Tensor | None = None  # of batch norm, where it is not in the weights
        if not self.linear:
            if factor is not None:
                self.scale = _along(factor.to(y.dtype), y)
            keep = torch.ones(1 if gone is None else len(gone), x.shape[self.axis], dtype=x.dtype, device=x.device)
            keep[:, self.inputs] = 0 if gone is None else 1 - gone
            self.rows: Tensor | None = _rowwise(keep, x, self.axis)
            return
        self.rows = None if gone is None else _rowwise(gone, x, self.axis)
        transposed = isinstance(module, _ConvTransposeNd)
        w = _select(module.weight.detach(), 0 if transposed else 1, columns.weights)  # type: ignore[operator]
        if factor is not None:
            other_axis = self.axis > 1  # a batch norm over the positions that a linear layer is applied to
            if other_axis or (w.numel() > y.numel() and not transposed and x.ndim > 2):
                self.scale = _along(factor.to(y.dtype), y)
            else:
                w = w * _beside(factor.to(w), w, module)
        if torch.is_autocast_enabled(x.device.type):  # once here, not for every slice of rows
            w = w.to(torch.get_autocast_dtype(x.device.type))
        self.weight = w

    def without(self, z: Tensor, rows: slice) -> Tensor:
        """z of these rows without the ablated channels."""
        part = self(rows)
        return z - part if self.scale is None else torch.addcmul(z, part, self.scale, value=-1)

    def __call__(self, rows: slice) -> Tensor:
        x = self.x[rows]
        if self.linear:
            x = _select(x, self.axis, self.inputs)
        if self.rows is not None:
            x = x * (self.rows if len(self.rows) == 1 else self.rows[rows])
        return _run(self.module, x, self.weight, self.y) if self.linear else self.y[rows] - _again(self.module, x)


def _rowwise(factors: Tensor, x: Tensor, axis: int) -> Tensor:
    """(rows, C) → (rows, 1, …, C, …, 1), to multiply x along an axis."""
    return factors.view([len(factors), *(factors.shape[1] if a == axis else 1 for a in range(1, x.ndim))])


def _select(t: Tensor, axis: int, index: Tensor) -> Tensor:
    """Some channels of an activation or a weight. If channels are contiguous in memory, as a selection of columns, which is ten
    times as fast on a CPU."""
    if t.device.type != "cpu" or axis != 1 or t.ndim != 4 or not t.is_contiguous(memory_format=torch.channels_last):
        return t.index_select(axis, index)
    n, c, h, w = t.shape
    flat = t.permute(0, 2, 3, 1).reshape(-1, c)
    return flat.gather(1, index.expand(len(flat), -1)).view(n, h, w, -1).permute(0, 3, 1, 2)


def _again(module: nn.Module, x: Tensor) -> Tensor:
    """Run the whole layer again; in eval mode, so that it does not update its state (spectral norm)."""
    with evaluating(module):
        return module.forward(x)


def _beside(factor: Tensor, w: Tensor, module: nn.Module) -> Tensor:
    """One factor per output channel, shaped to multiply the weight."""
    if not isinstance(module, _ConvTransposeNd):
        return factor.view(-1, *[1] * (w.ndim - 1))
    # (C, O / groups, *): rows of one input group produce that group's outputs
    each = factor.view(module.groups, -1).repeat_interleave(len(w) // module.groups, 0)
    return each.view(*each.shape, *[1] * (w.ndim - 2))


def _along(factor: Tensor, y: Tensor) -> Tensor:
    return factor.view(1, -1, *[1] * (y.ndim - 2))


def _run(module: nn.Module, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Run the layer, without its bias, on some of its input channels."""
    if isinstance(module, _ConvTransposeNd):
        size = list(y.shape[2:])
        extra = module._output_padding(
            x, size, module.stride, module.padding, module.kernel_size, x.ndim - 2, module.dilation  # type: ignore[arg-type]
        )  # fmt: skip
        run = getattr(nn.functional, f"conv_transpose{x.ndim - 2}d")
        return run(x, w, None, module.stride, module.padding, extra, module.groups, module.dilation)
    if isinstance(module, _ConvNd):
        return module._conv_forward(x, w, None)
    return nn.functional.linear(x, w)
