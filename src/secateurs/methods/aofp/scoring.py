"""Isolated damage (eq. 7): how much the next layer's output changes when channels that it reads are ablated.

A convolution is linear, so its output without some input channels is its output minus a convolution over those
channels only; batch norm with the base path's statistics is affine, so the same holds after it, with its factors
folded into the weights. No second forward pass is needed, and the cost is proportional to the number of ablated channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from secateurs.graph.channels import ChannelGroup, parameter
from secateurs.graph.modes import evaluating
from secateurs.methods.following import Following, batch_norm, following

Ratio = Literal["example", "batch"]
_CACHED = 1 << 19  # values of an activation that are processed at a time on a CPU


class Damage:
    """Measures the isolated damage of ablating channels of many groups at once, each as if it were the only one, in the model's
    ordinary forward passes:

        damage = Damage(model, groups, example_inputs).attach()
        damage.ablate({group.name: indices})
        model(x)
        t = damage.take()          # {group.name: t}

    The damage of a group with several consumers is the mean over them. `ratio` "example" is eq. 6: the mean over examples of
    each example's ratio; "batch" is the ratio of the batch's sums. Batch norm is as in the model's own pass: batch statistics
    in train mode, running statistics in eval mode; neither is updated. Works under autocast; computes no gradients.

    `reasons` maps each group that cannot be scored to the reason; such groups are not in `names`.
    """

    def __init__(
        self, model: nn.Module, groups: Iterable[ChannelGroup], example_inputs: Any, ratio: Ratio = "example"
    ) -> None:
        self.ratio = ratio
        self.reasons: dict[str, str] = {}
        self.names: list[str] = []
        self._readers: list[_Reader] = []
        owners = _owners(model)
        for group in groups:
            found, reason = _readers(model, group, owners)
            if found:
                self.names.append(group.name)
                self._readers += found
            else:
                self.reasons[group.name] = reason
        self._follows = following(model, [r.layer for r in self._readers], example_inputs)
        self._model = model
        self._sums: dict[str, list[Tensor]] = {}
        self._ablated: dict[str, np.ndarray] = {}
        self._handles: list[RemovableHandle] = []
        self.active = True  # whether forward passes are measured

    def attach(self) -> Damage:
        """Start measuring forward passes; `with` calls this."""
        if self._handles:
            return self
        by_layer: dict[str, list[_Reader]] = {}
        for reader in self._readers:
            by_layer.setdefault(reader.layer, []).append(reader)
        for layer, readers in by_layer.items():
            module = self._model.get_submodule(layer)
            follows = self._follows.get(layer, Following())
            watch = _Watch(self, module, follows, readers)
            self._handles.append(module.register_forward_hook(watch, with_kwargs=True))
            if follows.hooked:
                assert follows.norm is not None
                self._handles.append(follows.norm.register_forward_hook(_AfterNorm(watch, follows.norm)))
        return self

    def detach(self) -> None:
        """Stop measuring, and remove all hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sums.clear()

    def __enter__(self) -> Damage:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def ablate(self, channels: Mapping[str, np.ndarray]) -> None:
        """Set the channels of each group to ablate from now on; groups left out are not scored."""
        self._ablated = {name: np.asarray(c, dtype=np.int64) for name, c in channels.items() if len(c)}
        self._sums.clear()

    def sums(self) -> Tensor:
        """The sums over the passes since the last `ablate` (or `sums`), for each consumer of each group: (consumers, 2),
        float64. The damage is the first column over the second; both may be summed over processes first."""
        rows = [torch.stack(self._sums[r.key]).sum(0) if r.key in self._sums else None for r in self._readers]
        self._sums.clear()
        device = next((r.device for r in rows if r is not None), torch.device("cpu"))
        nothing = torch.zeros(2, dtype=torch.float64, device=device)
        return torch.stack([nothing if r is None else r for r in rows]) if rows else torch.zeros(0, 2).double()

    def take(self, sums: Tensor | None = None) -> dict[str, float]:
        """The damage of each group that was ablated and measured: {name: t}. sums: as `sums` returned them."""
        rows = (self.sums() if sums is None else sums).tolist()
        found: dict[str, list[float]] = {}
        for reader, (above, below) in zip(self._readers, rows, strict=True):
            if below != 0:
                found.setdefault(reader.group, []).append(above / below)
        return {name: sum(t) / len(t) for name, t in found.items()}

    def _add(self, reader: _Reader, sums: Tensor) -> None:
        self._sums.setdefault(reader.key, []).append(sums)


@dataclass(frozen=True, eq=False)
class _Reader:
    """A layer that consumes a group's channels on an axis of its weight."""

    group: str
    layer: str
    index: np.ndarray  # (size, m): indices on the weight's axis
    inputs: np.ndarray  # (size, m'): indices on the input's channel axis
    linear: bool  # its forward is linear in its input, and it can be called on fewer channels

    @property
    def key(self) -> str:
        return f"{self.group}\n{self.layer}"


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The modules that hold each parameter, by its id: a tied parameter is in several."""
    found: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for p in module._parameters.values():
            if p is not None:
                found.setdefault(id(p), []).append(path)
    return found


def _readers(model: nn.Module, group: ChannelGroup, owners: dict[int, list[str]]) -> tuple[list[_Reader], str]:
    """A group's consumers that can be scored; and the reason if there are none."""
    found: dict[tuple[str, int], _Reader] = {}
    reason = "no layer reads it"
    for slot in group.slots:
        if not slot.consumes:
            continue
        holders = owners.get(id(parameter(model, slot.param)), [slot.module])
        for path in holders:
            layer = path.partition(".parametrizations.")[0]
            module = model.get_submodule(layer)
            inputs = _inputs(module, slot.axis, slot.index)
            if inputs is None:
                kind = type(module).__name__
                reason = f"{layer or slot.param}, which reads it, is a {kind}, not a convolution or linear layer"
                continue
            plain = layer == path and slot.param.rpartition(".")[2] == "weight" and _is_plain(module)
            found[layer, slot.axis] = _Reader(group.name, layer, slot.index, inputs, plain)
    return list(found.values()), reason


def _inputs(module: nn.Module, axis: int, index: np.ndarray) -> np.ndarray | None:
    """Which channels of the module's input the indices on this axis of its weight read: (size, m'). None if unknown."""
    if isinstance(module, _ConvTransposeNd):
        return index if axis == 0 else None
    if isinstance(module, _ConvNd):
        if axis != 1:
            return None
        each = module.in_channels // module.groups  # each group of a grouped convolution reads its own slice
        steps = np.arange(module.groups)[:, None] * each
        return (steps[None] + index[:, None, :]).reshape(len(index), -1)
    if isinstance(module, nn.Linear):
        return index if axis == 1 else None
    return None


_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def _is_plain(module: nn.Module) -> bool:
    """Whether its forward is PyTorch's own, not overridden by a subclass."""
    if "forward" in vars(module):
        return False
    return any(
        type(module).forward is kind.forward
        and getattr(type(module), "_conv_forward", None) is getattr(kind, "_conv_forward", None)
        for kind in _PLAIN
        if isinstance(module, kind)
    )


class _Watch:
    """Forward hook of a layer: scores the groups that it consumes, now or after its batch norm has run."""

    def __init__(self, damage: Damage, module: nn.Module, follows: Following, readers: list[_Reader]) -> None:
        self.damage, self.module, self.follows, self.readers = damage, module, follows, readers
        self.waiting: tuple[Tensor, Tensor] | None = None  # input and output, until the norm has run

    def __deepcopy__(self, memo: dict[int, Any]) -> _Watch:
        return self  # on a copy of the model (for example its EMA) it does nothing

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> None:
        self.waiting = None
        if module is not self.module or not self.damage.active or not isinstance(y, Tensor):
            return
        x = args[0] if args else kwargs.get("input")
        if not any(r.group in self.damage._ablated for r in self.readers) or not isinstance(x, Tensor):
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
        for reader in self.readers:
            ablated = self.damage._ablated.get(reader.group)
            if ablated is not None:
                part = _Contribution(self.module, reader, ablated, factor, x, y)
                self.damage._add(reader, self._compare(part, x, z))

    def _compare(self, part: _Contribution, x: Tensor, z: Tensor) -> Tensor:
        """(sum of ratios, examples) or (sum of squared distances, of squares): float64."""
        n = len(x)
        rows = max(1, _CACHED * n // max(x.numel(), z.numel(), 1)) if z.device.type == "cpu" else n
        wide = {"dtype": torch.float32} if z.dtype == torch.float16 else {}  # float16's range is too small
        above, below = [], []
        for i in range(0, n, rows):
            base = z[i : i + rows].detach()
            other = self.follows.finish(part.without(base, slice(i, i + rows)))
            if self.follows.then:
                base = torch.relu(base) if self.follows.then == (torch.relu,) else self.follows.finish(base.clone())
            other -= base
            above.append(torch.linalg.vector_norm(_flat(other), dim=1, **wide))
            below.append(torch.linalg.vector_norm(_flat(base), dim=1, **wide))
        a, b = torch.cat(above).double().square(), torch.cat(below).double().square()
        if self.damage.ratio == "batch":
            return torch.stack([a.sum(), b.sum()])
        # The relative damage of a zero output is infinite, unless the output does not change.
        known = (b > 0) | (a == 0)
        ratio = torch.where(known, a / b.clamp(min=torch.finfo(b.dtype).tiny), 0.0)
        return torch.stack([ratio.sum(), known.double().sum()])


def _flat(x: Tensor) -> Tensor:
    """(N, …) → (N, everything else), in memory order."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    elif x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        x = x.permute(0, 2, 3, 4, 1)
    return x.reshape(len(x), -1)


class _AfterNorm:
    """Forward hook of a batch norm, before its output is changed in place."""

    def __init__(self, watch: _Watch, norm: nn.Module) -> None:
        self.watch, self.norm = watch, norm

    def __deepcopy__(self, memo: dict[int, Any]) -> _AfterNorm:
        return self

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Any, ...], z: Any) -> None:
        waiting, self.watch.waiting = self.watch.waiting, None
        if waiting is None or module is not self.norm or args[0] is not waiting[1]:
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
    if "forward" not in vars(norm) and not isinstance(norm, nn.SyncBatchNorm):
        saved = getattr(z.grad_fn, "_saved_result2", None)  # 1 / standard deviation, kept for the backward pass
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
        self, module: nn.Module, reader: _Reader, ablated: np.ndarray, factor: Tensor | None, x: Tensor, y: Tensor
    ) -> None:
        self.module, self.x, self.y = module, x.detach(), y.detach()
        self.axis = -1 if isinstance(module, nn.Linear) else 1
        inputs = torch.from_numpy(np.sort(reader.inputs[ablated].reshape(-1)))
        self.linear = reader.linear
        self.scale: Tensor | None = None  # of batch norm, where it is not in the weights
        if not self.linear:
            if factor is not None:
                self.scale = _along(factor.to(y.dtype), y)
            self.keep = torch.ones(x.shape[self.axis], dtype=x.dtype)
            self.keep[inputs] = 0
            self.keep = self.keep.to(x.device).view([-1 if a == self.axis % x.ndim else 1 for a in range(x.ndim)])
            return
        self.inputs = inputs.to(x.device)
        transposed = isinstance(module, _ConvTransposeNd)
        index = torch.from_numpy(np.sort(reader.index[ablated].reshape(-1))).to(x.device)
        w = _select(module.weight.detach(), 0 if transposed else 1, index)  # type: ignore[operator]
        if factor is not None:
            if w.numel() > y.numel() and not transposed and x.ndim > 2:
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
        if not self.linear:
            return self.y[rows] - _again(self.module, x * self.keep)
        x = _select(x, self.axis, self.inputs)
        return _run(self.module, x, self.weight, self.y)


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
