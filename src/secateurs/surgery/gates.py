"""Gates: multiply channels by factors, softly or hard, without touching the network's weights.

A gate acts on the consumer's view of a channel, so a zero gate is exactly a cut. One factor for a whole batch is applied
to the consumer's weights, which costs O(weights); one factor for each sample to the consumer's input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from secateurs.channels.graph import ChannelGroup, parameter
from secateurs.errors import ConfigError


class Gates:
    """Gates on channel groups of a model: `with Gates(model, groups) as gates: gates.set({name: factors}); model(x)`.

    factors: per group a tensor of shape (size,), or of shape (N, size) with one row per sample; any device, any
    floating dtype, with or without gradient. Groups left out pass as they are. Factors stay until they are set anew,
    and the network computes with them in every forward in between; when the context ends (or after `detach`) the network
    is as it was, whatever happened in it.

    The parameters' names, values and identities do not change, so optimizers, checkpoints and plans don't notice.
    Works on copies of a gated model too (an average of its weights, say), under autocast and torch.compile, and inside
    DistributedDataParallel.
    """

    def __init__(self, model: nn.Module, groups: Iterable[ChannelGroup]) -> None:
        self.model = model
        self.groups = {g.name: g for g in groups}
        self._starts: dict[str, int] = {}
        width = 1  # a leading 1 stands for every channel that has no gate
        for name, group in self.groups.items():
            self._starts[name] = width
            width += group.size
        self._sources = self._find_sources()
        self._flat: Tensor | None = None  # (1 + channels,) or (N, 1 + channels)
        self._handles: list[RemovableHandle] = []
        self._swapped: list[tuple[nn.Module, str, Any]] = []

    def _find_sources(self) -> dict[tuple[str, int], np.ndarray]:
        """For each (parameter, axis) that reads gated channels: where in the flat vector each index finds its factor."""
        sources: dict[tuple[str, int], np.ndarray] = {}
        for name, group in self.groups.items():
            at = self._starts[name] + np.arange(group.size)
            for slot in group.slots:
                if slot.consumes:
                    n = parameter(self.model, slot.param).shape[slot.axis]
                    source = sources.setdefault((slot.param, slot.axis), np.zeros(n, dtype=np.int64))
                    source[slot.index] = at[:, None]
        return sources

    # -- attaching ----------------------------------------------------------------------------------------------------

    def attach(self) -> Gates:
        """Start gating; `with` does it for you."""
        if not self._handles:
            self._handles.append(self.model.register_forward_pre_hook(self._enter))
            self._handles.append(self.model.register_forward_hook(self._leave, always_call=True))
            for param, axis in self._sources:
                module = self.model.get_submodule(param.rpartition(".")[0])
                hook = _GateInput(self, param, axis)
                self._handles.append(module.register_forward_pre_hook(hook))
        return self

    def detach(self) -> None:
        """Stop gating and leave no trace."""
        self._restore()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Gates:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    # -- factors ------------------------------------------------------------------------------------------------------

    def set(self, factors: Mapping[str, Tensor] | None) -> None:
        """Gate with these factors from now on; None opens all gates.

        Raises ConfigError for a group that is not gated here, or factors of the wrong shape.
        """
        if not factors:
            self._flat = None
            return
        for name, f in factors.items():
            if name not in self.groups:
                raise ConfigError(f"{name} is not among the gated groups.")
            if f.ndim not in (1, 2) or f.shape[-1] != self.groups[name].size:
                raise ConfigError(
                    f"Gates of {name} must have shape ({self.groups[name].size},) or (N, {self.groups[name].size}), "
                    f"not {tuple(f.shape)}."
                )
        rows = {f.shape[0] for f in factors.values() if f.ndim == 2}
        if len(rows) > 1:
            raise ConfigError(f"Per-sample gates disagree on the number of samples: {sorted(rows)}.")
        lead = tuple(rows)
        some = next(iter(factors.values()))
        parts = [some.new_ones((*lead, 1))]
        for name, group in self.groups.items():
            own = factors.get(name)
            parts.append(some.new_ones((*lead, group.size)) if own is None else own.expand(*lead, group.size))
        self._flat = torch.cat(parts, dim=-1)

    def flat(self, flat: Tensor | None) -> None:
        """The same for all groups at once, in order: (channels,) or (N, channels)."""
        self._flat = None if flat is None else torch.cat([torch.ones_like(flat[..., :1]), flat], dim=-1)

    def fold_(self, factors: Mapping[str, Tensor]) -> None:
        """Multiply per-batch factors into the consumers' weights for good: the plain network then computes what the
        gated one did, and a channel with factor zero can be cut exactly."""
        self.set({name: f.detach() for name, f in factors.items()})
        with torch.no_grad():
            for param, axis in self._sources:
                w = parameter(self.model, param)
                w.mul_(self._factors(param, axis, w))
        self.set(None)

    # -- in the forward pass ------------------------------------------------------------------------------------------

    def _factors(self, param: str, axis: int, w: Tensor) -> Tensor:
        """Factors shaped to multiply w along one axis."""
        assert self._flat is not None
        source = torch.from_numpy(self._sources[param, axis]).to(self._flat.device)
        v = self._flat.index_select(0, source).to(w)
        return v.view([-1 if a == axis else 1 for a in range(w.ndim)])

    def _enter(self, model: nn.Module, args: Any) -> None:
        if self._flat is None or self._flat.ndim != 1:
            return
        gated: dict[str, Tensor] = {}
        for param, axis in self._sources:
            w = gated.get(param)
            w = parameter(model, param) if w is None else w
            gated[param] = w * self._factors(param, axis, w)
        for param, w in gated.items():
            path, _, leaf = param.rpartition(".")
            module = model.get_submodule(path)
            self._swapped.append((module, leaf, module._parameters[leaf]))
            module._parameters[leaf] = w  # type: ignore[assignment]

    def _leave(self, model: nn.Module, args: Any, out: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._swapped:
            module, leaf, w = self._swapped.pop()
            module._parameters[leaf] = w

    def _gate_input(self, module: nn.Module, args: tuple[Any, ...], param: str, axis: int) -> Any:
        if self._flat is None or self._flat.ndim != 2:
            return None
        x = args[0]
        at = 1 if isinstance(module, _ConvNd) else x.ndim - 1 if isinstance(module, nn.Linear) else None
        if at is None or param.rpartition(".")[2] != "weight":
            raise ConfigError(
                f"{param} is read by a {type(module).__name__}, which takes no per-sample gates: gate per batch, or leave "
                f"its group out."
            )
        source = torch.from_numpy(self._sources[param, axis]).to(x.device)
        v = self._flat[:, source.repeat(x.shape[at] // len(source))].to(
            x
        )  # (N, channels); a grouped conv reads them in turn
        shape = [n if a == 0 else -1 if a == at else 1 for a, n in enumerate(x.shape)]
        return (x * v.view(shape), *args[1:])


class _GateInput:
    """The hook on one consumer."""

    def __init__(self, gates: Gates, param: str, axis: int) -> None:
        self.gates, self.param, self.axis = gates, param, axis

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return self.gates._gate_input(module, args, self.param, self.axis)

    def __deepcopy__(self, memo: dict[int, Any]) -> _GateInput:
        return self  # a copy of the model is gated by the same gates
