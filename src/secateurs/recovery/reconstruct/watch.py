"""Follow a running network op by op: which layer or norm an op is, and a name for it that the cut network shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.data.structure import part
from secateurs.graph.channels import named_tensors
from secateurs.graph.dispatch import DispatchMode
from secateurs.graph.inputs import tensors
from secateurs.recovery.reconstruct.layers import LINEAR, Geometry

aten = torch.ops.aten
_TRANSPOSES = (aten.t.default, aten.transpose.int)


class Key(NamedTuple):
    """An op by its place in the run, which is the same in the original and in the cut network."""

    after: str  # the last tensor of the network that an op used, by name
    use: int  # how often that was used before
    nth: int  # ops since


class Layer(NamedTuple):
    """An op that is a convolution or a linear layer, with a parameter as its weight."""

    name: str  # of the weight
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry
    x: Tensor  # (N, C, *in)
    kept: Tensor | None = None  # (O, *kernel), of a stripe convolution


class Chunk(NamedTuple):
    """Inputs of the network, and the number of images that they are."""

    inputs: Any
    images: int

    @classmethod
    def of(cls, inputs: Any) -> Chunk:
        """As many images as the first axis of the first tensor says; a tensor without axes is of all of them."""
        return inputs if isinstance(inputs, cls) else cls(inputs, next((len(x) for x in tensors(inputs) if x.ndim), 1))

    def part(self, start: int, stop: int) -> Chunk:
        """Some of the images."""
        stop = min(stop, self.images)
        return Chunk(part(self.inputs, slice(start, stop), self.images), stop - start)


class Watch(DispatchMode):
    """A dispatch mode that names every op. Subclasses override `op`.

    names: of the original's parameters and buffers, by the names of the model's.
    """

    def __init__(self, model: nn.Module, original: Mapping[str, str]) -> None:
        super().__init__()
        self.names = {id(x): original[name] for name, x in named_tensors(model).items()}
        self._norms = {id(m.running_mean): m for m in model.modules() if isinstance(m, _BatchNorm)}
        self.images = 0

    def start(self, images: int) -> None:
        """Set the number of images of the next run."""
        self.images = images
        self._last, self._nth = "", 0
        self._seen: dict[str, int] = {}
        self._views: dict[int, tuple[Tensor, Tensor]] = {}  # transposed parameters, with these

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = next((n for a in args if isinstance(a, Tensor) and (n := self.names.get(id(a))) is not None), None)
        if name is None:
            self._nth += 1
        else:
            self._last, self._nth = name, 0
            self._seen[name] = self._seen.get(name, -1) + 1
        out = self.op(Key(self._last, self._seen.get(self._last, 0), self._nth), func, args, kwargs or {})
        if name is not None and func in _TRANSPOSES and args[0].ndim == 2:
            self._views[id(out)] = out, args[0]
        return out

    def op(self, key: Key, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def layer(self, func: Any, args: Any) -> Layer | None:
        """The layer that this op is, if it is one."""
        if func is aten.convolution.default:
            x, w, bias, stride, padding, dilation, transposed, _, groups = args
            s, p, d = (_all(v, w.ndim - 2) for v in (stride, padding, dilation))
            geometry = Geometry(groups, tuple(w.shape[2:]), s, p, d, transposed)
            return Layer(self.names[id(w)], w, bias, geometry, x) if id(w) in self.names and x.ndim == w.ndim else None
        if func is torch.ops.secateurs.stripe_conv.default:
            x, w, bias, kept, stride, padding, dilation = args
            geometry = Geometry(1, tuple(kept.shape[1:]), tuple(stride), tuple(padding[::2]), tuple(dilation))
            known = id(w) in self.names and x.ndim == kept.ndim + 1
            return Layer(self.names[id(w)], w, bias, geometry, x, kept=kept) if known else None
        if func is aten.linear.default:
            x, w, bias = (*args, None)[:3]
        elif func in (aten.addmm.default, aten.mm.default):
            bias, x, w = args[:3] if func is aten.addmm.default else (None, *args[:2])
            w = self._views.get(id(w), (None, None))[1]
        else:
            return None
        rows, left = divmod(x.numel() // x.shape[-1], self.images)
        if w is None or id(w) not in self.names or left:
            return None
        return Layer(self.names[id(w)], w, bias, LINEAR, x.reshape(self.images, rows, -1).transpose(1, 2))

    def norm(self, args: Any) -> _BatchNorm | None:
        """The batch norm that an op with these arguments is, if it has its own statistics."""
        return next((self._norms[id(a)] for a in args if isinstance(a, Tensor) and id(a) in self._norms), None)


def _all(values: Any, axes: int) -> tuple[int, ...]:
    return tuple(values) if len(values) == axes else tuple(values) * axes
