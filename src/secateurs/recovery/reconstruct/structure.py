"""The layers of a network in the order in which they run, with what follows each: found in one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from secateurs.graph.inputs import tensors
from secateurs.recovery.reconstruct.watch import Key, Layer, Watch

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default)
_ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Step:
    """A layer that runs once, and what follows it."""

    key: Key
    weight: str  # by its name in the original
    norm: str | None = None  # the running mean of the batch norm that its output goes to, and nowhere else
    other: Key | None = None  # what is then added to it, where only the norm lies between and it is computed before
    linear: bool = False  # a matrix product
    transposed: bool = False  # a transposed convolution
    groups: int = 1

    def laid(self, out: Tensor, images: int) -> Tensor:
        """The layer's output, or what is added to it, as (N, O, *)."""
        return out.reshape(images, -1, out.shape[-1]).transpose(1, 2) if self.linear else out


class _Op(NamedTuple):
    key: Key
    func: Any
    args: Any
    inputs: tuple[Key, ...]  # the ops that made them


class Structure(Watch):
    """Records one run: `with Structure(model, names) as s: model(x)`, then `s.steps()`."""

    def __init__(self, model: nn.Module, original: Mapping[str, str]) -> None:
        super().__init__(model, original)
        self._at: dict[Key, int] = {}
        self._made: dict[int, Key] = {}  # by id of the tensor
        self._uses: dict[Key, list[_Op]] = {}
        self._layers: list[tuple[Key, Layer]] = []
        self._ran: Counter[_BatchNorm] = Counter()
        self._kept: list[Any] = []  # so that ids are not reused

    def op(self, key: Key, func: Any, args: Any, kwargs: Any) -> Any:
        self._at[key] = len(self._at)
        made = [self._made[id(x)] for x in pytree.tree_leaves((args, kwargs)) if id(x) in self._made]
        for i in dict.fromkeys(made):
            self._uses.setdefault(i, []).append(_Op(key, func, args, tuple(made)))
        if (layer := self.layer(func, args)) is not None:
            self._layers.append((key, layer))
        if (norm := self.norm(args)) is not None:
            self._ran[norm] += 1
        out = func(*args, **kwargs)
        self._made.update((id(x), key) for x in tensors(out))
        self._kept.append((args, kwargs, out))
        return out

    def steps(self) -> list[Step]:
        """The layers in order, without those that run several times."""
        runs = Counter(layer.name for _, layer in self._layers)
        return [self._step(key, layer) for key, layer in self._layers if runs[layer.name] == 1]

    def norms(self) -> dict[str, _BatchNorm]:
        """The batch norms that run once and have statistics of their own, by the name of the running mean."""
        return {self.names[id(norm.running_mean)]: norm for norm, runs in self._ran.items() if runs == 1}

    def _step(self, key: Key, layer: Layer) -> Step:
        norm, other, last, uses = None, None, key, self._uses.get(key, [])
        while layer.geometry.linear and len(uses) == 1 and uses[0].func in _VIEWS:
            last, uses = uses[0].key, self._uses.get(uses[0].key, [])
        if len(uses) == 1 and (found := self.norm(uses[0].args)) is not None:
            norm, last = self.names[id(found.running_mean)], uses[0].key
            uses = self._uses.get(last, [])
        if len(uses) == 1 and uses[0].func in _ADDITIONS and uses[0].args[0].shape == uses[0].args[1].shape:
            others = [k for k in uses[0].inputs if k != last]
            if len(others) == 1 and self._at[others[0]] < self._at[key]:
                other = others[0]
        geometry = layer.geometry
        return Step(key, layer.name, norm, other, geometry.linear, geometry.transposed, geometry.groups)
