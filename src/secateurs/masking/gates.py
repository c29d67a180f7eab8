"""Gates: multiply channels by soft or hard factors without changing the network's weights.

A gate acts on the consumer's view of a channel, so a zero gate equals a cut. A per-batch factor is applied
to the consumer's weights, which costs O(weights); a per-sample factor to the consumer's input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from secateurs.errors import ConfigError, a_or_an
from secateurs.graph.channels import ChannelGroup, parameter
from secateurs.graph.labels import LABEL
from secateurs.graph.tape import Labels
from secateurs.masking.folding import scale_
from secateurs.masking.holders import read_as_stored
from secateurs.masking.reading import Reading
from secateurs.masking.swaps import Swaps


class Gates:
    """Gates on channel groups of a model: `with Gates(model, groups) as gates: gates.set({name: factors}); model(x)`.

    factors: for each group a tensor of shape (size,), or of shape (N, size) with one row per sample. They may be on any
    device, of any floating dtype, with or without gradient. Groups that are left out are not gated. Every forward pass uses
    the factors until they are set again. When the context ends (or after `detach`), the network is restored, even after an
    exception.

    The parameters' names, values and identities do not change, so optimizers, checkpoints and plans are not affected.
    Works under autocast and torch.compile, and inside DistributedDataParallel. A copy of a gated model (for example its
    EMA) uses the same gates as the model, until they are detached.

    A weight that is computed (by a parametrization, weight norm, or the model's own code) is gated where it meets the
    activations, since gating its parameters would give another result. Such a weight raises ConfigError under torch.compile.

    Per-sample gates apply to consumers that are called as modules, not to weights that code reads directly. Recomputation of
    activations in the backward pass (torch.utils.checkpoint) supports per-sample gates, but not per-batch gates.
    """

    def __init__(self, model: nn.Module, groups: Iterable[ChannelGroup]) -> None:
        self.model = model
        self.groups = {g.name: g for g in groups}
        self.sizes = [g.size for g in self.groups.values()]
        self.channels = sum(self.sizes)
        self._consumers = [
            _Consumer(param, axis, source, self.sizes) for (param, axis), source in self._sources().items()
        ]
        self._places = self._find_places()
        names = {c.param for c in self._consumers}
        self._followed = names - read_as_stored(model, self._sources())  # weights may be computed from these
        self._reading: Reading | None = None
        self._flat: Tensor | None = None  # (channels,) or (N, channels)
        self._handles: list[RemovableHandle] = []
        self._swaps = Swaps()

    def _sources(self) -> dict[tuple[str, int], np.ndarray]:
        """Map each (parameter, axis) that consumes gated channels to the channel of each index, -1 if it is not gated."""
        sources: dict[tuple[str, int], np.ndarray] = {}
        start = 0
        for group in self.groups.values():
            at = start + np.arange(group.size)
            start += group.size
            for slot in group.slots:
                if slot.consumes:
                    n = parameter(self.model, slot.param).shape[slot.axis]
                    source = sources.setdefault((slot.param, slot.axis), np.full(n, -1, dtype=np.int64))
                    source[slot.index] = at[:, None]
        return sources

    def _find_places(self) -> dict[str, list[tuple[str, str]]]:
        """Return where each consuming parameter is stored, as (module, attribute). A tied parameter has several places."""
        names = {id(parameter(self.model, c.param)): c.param for c in self._consumers}
        places: dict[str, list[tuple[str, str]]] = {c.param: [] for c in self._consumers}
        for path, module in self.model.named_modules():
            for leaf, p in [*module._parameters.items(), *module._buffers.items()]:
                if id(p) in names:
                    places[names[id(p)]].append((path, leaf))
        return places

    def _layer(self, path: str, leaf: str) -> tuple[str, str]:
        """Return the (module, attribute) of the weight that is computed from a parameter, or of the parameter itself if it is
        used as it is."""
        owner, parametrized, attribute = path.rpartition(".parametrizations.")
        if parametrized or path.startswith("parametrizations."):
            return owner, attribute or path.partition(".")[2]
        for suffix in ("_g", "_v", "_orig", "_mask"):  # of weight norm, spectral norm, pruning masks
            computed = leaf.removesuffix(suffix)
            if computed != leaf and computed in self.model.get_submodule(path).__dict__:
                return path, computed
        return path, leaf

    def _weights(self) -> dict[tuple[str, str, int], _Consumer]:
        """Return the weights that consume gated channels, by (module, attribute, axis), each with one of its parameters."""
        found: dict[tuple[str, str, int], _Consumer] = {}
        for consumer in self._consumers:
            for place in self._places[consumer.param]:
                found.setdefault((*self._layer(*place), consumer.axis), consumer)
        return found

    # -- attaching ----------------------------------------------------------------------------------------------------

    def attach(self) -> Gates:
        """Start gating; `with` calls this."""
        if not self._handles:
            add = self._handles.append
            add(self.model.register_forward_pre_hook(_Enter(self), prepend=True))
            add(self.model.register_forward_hook(_Leave(self), always_call=True))
            for (path, leaf, _), consumer in self._weights().items():
                hook = _GateInput(self, consumer, leaf)
                add(self.model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
        return self

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def detach(self) -> None:
        """Stop gating and remove all hooks."""
        self._leave()
        self._flat = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Gates:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    # -- factors ------------------------------------------------------------------------------------------------------

    def set(self, factors: Mapping[str, Tensor] | None) -> None:
        """Set the factors; None opens all gates.

        Raises ConfigError for a group that is not gated, or factors of the wrong shape.
        """
        if not factors:
            self.flat(None)
            return
        for name, f in factors.items():
            if name not in self.groups:
                raise ConfigError(f"{name} is not among the gated groups.")
            size = self.groups[name].size
            if f.ndim not in (1, 2) or f.shape[-1] != size:
                raise ConfigError(f"Gates of {name} must have shape ({size},) or (N, {size}), not {tuple(f.shape)}.")
        rows = {f.shape[0] for f in factors.values() if f.ndim == 2}
        if len(rows) > 1:
            raise ConfigError(f"Per-sample gates disagree on the number of samples: {sorted(rows)}.")
        lead = tuple(rows)
        some = next(iter(factors.values()))
        parts = []
        for name, group in self.groups.items():
            own = factors.get(name)
            shape = (*lead, group.size)
            parts.append(some.new_ones(shape) if own is None else own.to(some.device).expand(shape))
        self.flat(torch.cat(parts, dim=-1))

    def flat(self, flat: Tensor | None) -> None:
        """Set the factors of all groups at once, in order: (channels,) or (N, channels). None opens all gates."""
        if flat is not None and (flat.ndim not in (1, 2) or flat.shape[-1] != self.channels):
            raise ConfigError(
                f"Gates of all groups must have shape ({self.channels},) or (N, {self.channels}), "
                f"not {tuple(flat.shape)}."
            )
        self._flat = flat
        if flat is not None:  # here and not in the forward pass, which may be compiled
            for consumer in self._consumers:
                consumer.to(flat.device)

    @property
    def gated(self) -> bool:
        """Whether any factors are set."""
        return self._flat is not None

    def fold_(self, factors: Mapping[str, Tensor]) -> None:
        """Fold per-batch factors into the consumers' weights. The plain network then computes the same as the
        gated one, and a channel with factor zero can be cut exactly.

        Raises ConfigError, and changes nothing, for per-sample factors, and for a weight whose computation does not scale
        channel by channel.
        """
        if any(f.ndim != 1 for f in factors.values()):
            raise ConfigError("Only per-batch gates can be folded into weights, one factor for each channel.")
        self.set({name: f.detach() for name, f in factors.items()})
        weights, before = self._weights(), {}
        for path, _, _ in weights:
            module = self.model.get_submodule(path)
            before.update({x: x.detach().clone() for x in (*module.parameters(), *module.buffers())})
        with torch.no_grad():
            try:
                self._fold(weights)
            except ConfigError:
                for x, old in before.items():
                    x.copy_(old)
                raise
            finally:
                self.set(None)

    def _fold(self, weights: Mapping[tuple[str, str, int], _Consumer]) -> None:
        assert self._flat is not None
        done = set()
        for (path, leaf, axis), consumer in weights.items():
            module, w = self.model.get_submodule(path), parameter(self.model, consumer.param)
            v = consumer.factors(self._flat).to(w)
            if (path, leaf) not in self._places[consumer.param]:
                scale_(module, leaf, v, axis)
            elif (id(w), axis) not in done:  # a tied parameter is in several places
                done.add((id(w), axis))
                w.mul_(consumer.along(w, v))

    # -- in the forward pass ------------------------------------------------------------------------------------------

    def _enter(self, model: nn.Module) -> None:
        if self._flat is None or self._flat.ndim != 1:
            return
        followed = self._followed
        if torch.compiler.is_compiling() and followed:
            raise ConfigError(
                f"The network's code reads attributes of the name of {sorted(followed)[0]}, and may compute weights from it: "
                "its gates do not work under torch.compile. Run the network as it is."
            )
        parts = self._flat.split(self.sizes)  # here, so that a compiled network gets the factors as one tensor
        gated: dict[str, Tensor] = {}
        for consumer in self._consumers:
            if consumer.param not in followed:
                w = gated.get(consumer.param)
                w = parameter(model, consumer.param) if w is None else w
                v = consumer.factors(self._flat) if consumer.part is None else parts[consumer.part]
                gated[consumer.param] = w * consumer.along(w, v.to(w))
        for param, w in gated.items():
            for path, leaf in self._places[param]:
                self._swaps.put(model.get_submodule(path), leaf, w)
        if followed and self._reading is None:
            axes = {(c.param, c.axis): c.labels for c in self._consumers if c.param in followed}
            factors = torch.cat([self._flat.new_ones(1), self._flat])  # by label
            self._reading = Reading(model, axes, partial(_times, factors=factors))
            self._reading.__enter__()

    def _leave(self) -> None:
        self._swaps.restore()
        if self._reading is not None:
            reading, self._reading = self._reading, None
            reading.__exit__(None, None, None)

    def _gate_input(
        self, consumer: _Consumer, leaf: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._flat is None or self._flat.ndim != 2:
            return None
        x = args[0] if args else kwargs.get("input")
        at = input_axis(module, leaf, consumer.axis)
        if at is None or not isinstance(x, Tensor):
            raise ConfigError(
                f"{consumer.param} is read by {a_or_an(type(module).__name__)}, which takes no per-sample gates: gate per "
                f"batch, or leave its group out."
            )
        at %= x.ndim
        v = consumer.factors(self._flat)
        if x.ndim < 2 or x.shape[0] != v.shape[0]:
            raise ConfigError(
                f"Gates of {v.shape[0]} samples do not match inputs of shape {tuple(x.shape)} at {consumer.param}: per-sample "
                f"gates need one row for each of the {x.shape[0]} samples."
            )
        turns = x.shape[at] // v.shape[1]  # the groups of a grouped convolution read the same channels in turn
        v = (v if turns == 1 else v.repeat(1, turns)).to(x)
        v = v.view([n if a == 0 else -1 if a == at else 1 for a, n in enumerate(x.shape)])
        x = x * v if x.ndim == 2 or torch.compiler.is_compiling() else _Scaled.apply(x, v)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})


def _times(w: Tensor, labels: Labels, factors: Tensor) -> Tensor:
    """Multiply a weight by the factors of the channels on its axes."""
    for axis, own in labels.items():
        v = factors[torch.from_numpy(own.astype(np.int64)).to(factors.device)].to(w)
        w = w * v.view([-1 if a == axis else 1 for a in range(w.ndim)])
    return w


def input_axis(module: nn.Module, leaf: str, axis: int) -> int | None:
    """Return the axis of the module's input that this axis of its parameter reads; None if it is not known."""
    if leaf == "weight" and isinstance(module, _ConvNd):
        return 1 if axis == (0 if isinstance(module, _ConvTransposeNd) else 1) else None
    if leaf == "weight" and isinstance(module, nn.Linear):
        return -1 if axis == 1 else None
    return None


class _Consumer:
    """One axis of one parameter, and which channels it reads."""

    def __init__(self, param: str, axis: int, source: np.ndarray, sizes: list[int]) -> None:
        self.param, self.axis = param, axis
        starts = np.cumsum([0, *sizes])
        # Usually this is one whole group, and no lookup is needed.
        part = int(np.searchsorted(starts, source[0], side="right")) - 1
        whole = (
            part >= 0 and len(source) == sizes[part] and bool((source == starts[part] + np.arange(sizes[part])).all())
        )
        self.part = part if whole else None
        self.start, self.size = (int(starts[part]), sizes[part]) if whole else (0, 0)  # of its part
        self.open = bool((source < 0).any())  # some indices have no gate
        self.source = torch.from_numpy(np.where(source < 0, starts[-1], source))
        self.labels = (source + 1).astype(LABEL)  # 0 where there is no gate

    def to(self, device: torch.device) -> None:
        if self.part is None and self.source.device != device:
            self.source = self.source.to(device)

    def factors(self, flat: Tensor) -> Tensor:
        """Select the factors of this axis, (n,) or (N, n), from those of all channels."""
        if self.part is not None:
            return flat.narrow(-1, self.start, self.size)
        if self.open:
            flat = torch.cat([flat, torch.ones_like(flat[..., :1])], dim=-1)
        return flat.index_select(-1, self.source)

    def along(self, w: Tensor, v: Tensor) -> Tensor:
        """Reshape factors (n,) to multiply this axis of w."""
        return v.view([-1 if a == self.axis else 1 for a in range(w.ndim)])


class _Scaled(torch.autograd.Function):
    """x · v, with a backward pass over the activations in blocks that fit in the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(x, v)
        return x * v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, v = ctx.saved_tensors
        need_x, need_v = ctx.needs_input_grad
        axes = [a for a, n in enumerate(v.shape) if a and n == 1]
        rows = max(1, _CACHED * len(g) // g.numel()) if g.device.type == "cpu" else len(g)
        gx, gv = torch.empty_like(g) if need_x else None, torch.empty_like(v) if need_v else None
        for i in range(0, len(g), rows):
            at = slice(i, i + rows)
            if gx is not None:
                torch.mul(g[at], v[at], out=gx[at])
            if gv is not None:
                torch.sum(g[at] * x[at], axes, keepdim=True, out=gv[at])
        return gx, gv


_CACHED = 1 << 16  # values


class _Hook:
    """A hook that copies of the model share, so that the same gates apply to them."""

    def __init__(self, gates: Gates) -> None:
        self.gates = gates

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class _Enter(_Hook):
    def __call__(self, model: nn.Module, args: Any) -> None:
        self.gates._enter(model)


class _Leave(_Hook):
    def __call__(self, model: nn.Module, args: Any, out: Any) -> None:
        self.gates._leave()


class _GateInput(_Hook):
    def __init__(self, gates: Gates, consumer: _Consumer, leaf: str) -> None:
        super().__init__(gates)
        self.consumer, self.leaf = consumer, leaf

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.gates._gate_input(self.consumer, self.leaf, module, args, kwargs)
