"""Isolated damage (eq. 7): how much the next layer's output changes when channels that it reads are ablated.

A convolution is linear, so its output without some input channels is its output minus a convolution over those
channels only; batch norm with the base path's statistics is affine, so the same holds after it, with its factors
folded into the weights. No second forward pass is needed, and the cost is proportional to the number of ablated channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from secateurs.devices import device_of
from secateurs.graph.channels import ChannelGroup, parameter
from secateurs.methods.aofp.ablation import Ablated, Ablation, Reader
from secateurs.methods.aofp.halves import Halves
from secateurs.methods.aofp.paths import AfterNorm, Watch
from secateurs.methods.following import Following, following

Array = np.ndarray
Ratio = Literal["example", "batch"]


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

    With `Halves` in place of indices, each example ablates channels of its own, and `samples` tells what was found for each
    channel. One example in two is then scored, at the same cost.

    `reasons` maps each group that cannot be scored to the reason; such groups are not in `names`.
    """

    def __init__(
        self, model: nn.Module, groups: Collection[ChannelGroup], example_inputs: Any, ratio: Ratio = "example"
    ) -> None:
        self.ratio = ratio
        self.reasons: dict[str, str] = {}
        self.names: list[str] = []
        readers: list[Reader] = []
        owners = _owners(model)
        for group in groups:
            found, reason = _readers(model, group, owners)
            if found:
                self.names.append(group.name)
                readers += found
            else:
                self.reasons[group.name] = reason
        self._follows = following(model, [r.layer for r in readers], example_inputs)
        order = {layer: i for i, layer in enumerate(self._follows)}
        self._readers = sorted(readers, key=lambda r: order.get(r.layer, len(order)))
        self.ablation = Ablation(self._readers)
        self._outputs = _outputs(model, groups, {r.layer for r in readers})
        self._model = model
        self._sums: dict[str, list[Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def irregular(self) -> list[str]:
        """The layers that run several times in a pass, or on other rows than the batch's: for them no halves can be drawn
        before a pass."""
        return [name for name, follows in self._follows.items() if not follows.regular]

    def attach(self) -> Damage:
        """Start measuring forward passes; `with` calls this."""
        if self._handles:
            return self
        by_layer: dict[str, list[Reader]] = {}
        for reader in self._readers:
            by_layer.setdefault(reader.layer, []).append(reader)
        for layer, readers in by_layer.items():
            module = self._model.get_submodule(layer)
            follows = self._follows.get(layer, Following())
            watch = Watch(module, follows, readers, self.ablation, self._add)
            self._handles.append(module.register_forward_hook(watch, with_kwargs=True))
            if follows.hooked:
                assert follows.norm is not None
                self._handles.append(
                    follows.norm.register_forward_hook(AfterNorm(watch, follows.norm), with_kwargs=True)
                )
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

    def ablate(self, channels: Mapping[str, Ablated | Iterable[int]]) -> None:
        """Set the channels of each group to ablate from now on, the same for all examples or `Halves`; groups left out are
        not scored."""
        self.ablation.set(channels)
        self._sums.clear()

    def keep(self, alive: Mapping[str, Array] | None) -> None:
        """Set which channels of each group are left, (size,) bool; groups left out are whole, and with None all are. Outputs
        that are none of these are not compared: they will be cut, whatever becomes of them."""
        masks: dict[str, Array] = {}
        if alive is not None:
            for layer, (size, parts) in self._outputs.items():
                mask = masks[layer] = np.ones(size, dtype=np.float32)
                for group, index in parts:
                    mask[index[~alive[group]] if group in alive else []] = 0
        self.ablation.keep(masks, device_of(self._model))

    def sums(self) -> Tensor:
        """The sums over the passes since the last `ablate` (or `sums`), flat, float64: for each consumer of each group that
        is scored (3, 1), or (3, size) with halves. The damage is the first row over the second, and the third is the number
        of examples; all may be summed over processes before `take`, `samples` and `halves`."""
        scored = self._scored(self.ablation.channels)
        rows = [torch.stack(self._sums[r.key]).sum(0) if r.key in self._sums else None for r, _ in scored]
        self._sums.clear()
        device = next((r.device for r in rows if r is not None), torch.device("cpu"))
        nothing = [torch.zeros(3, w, dtype=torch.float64, device=device) for _, w in scored]
        parts = [n if r is None else r for r, n in zip(rows, nothing, strict=True)]
        return torch.cat([p.flatten() for p in parts]) if parts else torch.zeros(0).double()

    def take(self, sums: Tensor | None = None, ablated: Mapping[str, Ablated] | None = None) -> dict[str, float]:
        """The damage of each group that was ablated by indices and measured: {name: t}. sums: as `sums` returned them, while
        `ablated` was, by default what is now."""
        found: dict[str, list[float]] = {}
        ablated = self.ablation.channels if ablated is None else ablated
        for reader, (above, below, _) in self._split(sums, ablated):
            if not isinstance(ablated[reader.group], Halves) and below[0] != 0:
                found.setdefault(reader.group, []).append(float(above[0] / below[0]))
        return {name: sum(t) / len(t) for name, t in found.items()}

    def samples(
        self, sums: Tensor | None = None, ablated: Mapping[str, Ablated] | None = None
    ) -> dict[str, tuple[Array, Array]]:
        """For each group that was ablated by halves and measured, the sum of each channel's samples, and their number:
        {name: ((size,), (size,))}. With the ratio of a batch's sums, a channel has one sample for each consumer. sums, ablated:
        see `take`."""
        found: dict[str, tuple[Array, Array]] = {}
        ablated = self.ablation.channels if ablated is None else ablated
        for reader, (above, below, _) in self._split(sums, ablated):
            if isinstance(ablated[reader.group], Halves) and below.any():
                if self.ratio == "batch":
                    above, below = np.divide(above, below, out=np.zeros_like(above), where=below > 0), (below > 0) * 1.0
                before = found.get(reader.group, (0.0, 0.0))
                found[reader.group] = before[0] + above, before[1] + below
        return found

    def halves(self, sums: Tensor | None = None, ablated: Mapping[str, Ablated] | None = None) -> dict[str, int]:
        """For each group that was ablated by halves and measured, the number of halves: one for each scored example, whatever
        the ratio and the number of consumers. sums, ablated: see `take`."""
        found: dict[str, list[float]] = {}
        ablated = self.ablation.channels if ablated is None else ablated
        for reader, (_, _, times) in self._split(sums, ablated):
            halves = ablated[reader.group]
            if isinstance(halves, Halves) and times.any():
                found.setdefault(reader.group, []).append(float(times.sum()) / halves.size)
        return {name: round(sum(n) / len(n)) for name, n in found.items()}

    def _scored(self, ablated: Mapping[str, Ablated]) -> list[tuple[Reader, int]]:
        """The consumers that are scored, with the columns of their sums."""
        return [(r, r.size if isinstance(ablated[r.group], Halves) else 1) for r in self._readers if r.group in ablated]

    def _split(self, sums: Tensor | None, ablated: Mapping[str, Ablated]) -> Iterator[tuple[Reader, Array]]:
        """Each scored consumer with its (3, columns) sums."""
        flat = (self.sums() if sums is None else sums).cpu().numpy()
        at = 0
        for reader, columns in self._scored(ablated):
            yield reader, flat[at : at + 3 * columns].reshape(3, columns)
            at += 3 * columns

    def _add(self, reader: Reader, above: Tensor, below: Tensor, masks: Tensor | None) -> None:
        """above, below: (rows,). masks: (rows, size) bool, or None if all rows ablate the same channels."""
        parts = [above, below]
        if self.ratio == "example":
            # The relative damage of a zero output is infinite, unless the output does not change.
            ratio = above / below.clamp(min=torch.finfo(below.dtype).tiny)
            known = ((below > 0) | (above == 0)) & ratio.isfinite()
            parts = [torch.where(known, ratio, 0.0), known.double()]
        rows = torch.stack([*parts, torch.ones_like(above)])
        sums = rows.sum(1, keepdim=True) if masks is None else rows @ masks.double()
        self._sums.setdefault(reader.key, []).append(sums)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The modules that hold each parameter, by its id: a tied parameter is in several."""
    found: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for p in module._parameters.values():
            if p is not None:
                found.setdefault(id(p), []).append(path)
    return found


def _outputs(
    model: nn.Module, groups: Iterable[ChannelGroup], layers: set[str]
) -> dict[str, tuple[int, list[tuple[str, Array]]]]:
    """For each of these layers that makes channels of the groups, the number of its outputs, and which ones are a group's
    channels: (group, (size, m))."""
    found: dict[str, tuple[int, list[tuple[str, Array]]]] = {}
    for group in groups:
        for slot in group.slots:
            for layer in layers.intersection(slot.owners) if slot.produces else ():
                module, index = model.get_submodule(layer), slot.index
                if isinstance(module, _ConvTransposeNd):
                    index = _in_each(module.groups, module.out_channels // module.groups, index)
                size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
                assert isinstance(size, int)
                found.setdefault(layer, (size, []))[1].append((group.name, index))
    return found


def _readers(model: nn.Module, group: ChannelGroup, owners: dict[int, list[str]]) -> tuple[list[Reader], str]:
    """A group's consumers that can be scored; and the reason if there are none."""
    found: dict[tuple[str, int], Reader] = {}
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
            found[layer, slot.axis] = Reader(group.name, layer, slot.index, inputs, plain)
    return list(found.values()), reason


def _inputs(module: nn.Module, axis: int, index: np.ndarray) -> np.ndarray | None:
    """Which channels of the module's input the indices on this axis of its weight read: (size, m'). None if unknown."""
    if isinstance(module, _ConvTransposeNd):
        return index if axis == 0 else None
    if isinstance(module, _ConvNd):
        if axis != 1:
            return None
        return _in_each(module.groups, module.in_channels // module.groups, index)
    if isinstance(module, nn.Linear):
        return index if axis == 1 else None
    return None


def _in_each(groups: int, each: int, index: Array) -> Array:
    """Channels of a grouped convolution, each of whose groups has its own slice of so many: (size, m) → (size, groups · m)."""
    return (np.arange(groups)[:, None] * each + index[:, None, :]).reshape(len(index), -1)


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
