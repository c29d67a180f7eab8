"""The layers of a network in the order in which they run, with what follows each: found in one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.graph.context import NO_CALL
from secateurs.graph.families import Family
from secateurs.graph.flow import Flow, Op, Value
from secateurs.graph.inputs import call, tensors
from secateurs.graph.recorder import Recorder
from secateurs.recovery.reconstruct.layers import Geometry
from secateurs.recovery.reconstruct.watch import Chunk, Key, Watch

_ORDERS = ("topk", "sort", "argsort", "nonzero", "nonzero_numpy", "masked_select", "nms", "unique_dim", "_unique2")
_TAKES = ("index", "gather", "index_select", "take", "take_along_dim", "roi_align", "roi_pool")  # by activations
_VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias")


@dataclass(frozen=True)
class Step:
    """A layer that runs once, and what follows it."""

    key: Key
    weight: str  # by its name in the original
    geometry: Geometry
    norm: str | None = None  # the running mean of the batch norm that its output goes to, and nowhere else
    other: Key | None = None  # what is then added to it, where only the norm lies between and it is computed before

    def laid(self, out: Any, images: int) -> Tensor:
        """The output of the layer's op, or of the op that makes what is added to it, as (N, O, *)."""
        out = out if isinstance(out, Tensor) else out[0]  # a batch norm also returns statistics
        return out.reshape(images, -1, out.shape[-1]).transpose(1, 2) if self.geometry.linear else out


@dataclass(frozen=True)
class Structure:
    """The layers that run once, in order, and the batch norms that do, by name of the running mean; and which arguments of
    each op are activations that nothing reads afterward, as indices into `tensors((args, kwargs))`."""

    steps: tuple[Step, ...]
    norms: Mapping[str, _BatchNorm]
    spent: Mapping[Key, tuple[int, ...]]

    @classmethod
    def of(cls, model: nn.Module, chunk: Chunk, names: Mapping[str, str]) -> Structure:
        """Run the model, in its mode, on a few images. names: see `Watch`."""
        run, inputs = _Recording(model, names), chunk.inputs
        run.start(chunk.images)
        run.recorder.start(tensors(inputs))
        with torch.no_grad(), run:
            out = call(model, inputs)
        run.recorder.stop(out)
        norms = {n: norm for n, norm in run.norms.items() if run.ran[n] == 1}
        held = [
            x for module in model.modules() for x in tensors(list(vars(module).values()))
        ]  # parameters, and what it stores
        return cls(tuple(run.steps()), norms, run.spent([*tensors(inputs), *held, *tensors(out)]))


class _Recording(Watch):
    def __init__(self, model: nn.Module, names: Mapping[str, str]) -> None:
        super().__init__(model, names)
        self.recorder = Recorder(False, self.names, {})
        self.norms: dict[str, _BatchNorm] = {}
        self.ran: Counter[str] = Counter()  # layers and norms
        self._keys: list[Key] = []
        self._layers: dict[Key, tuple[str, Geometry]] = {}
        self._norm_at: dict[Key, str] = {}
        # Storage → the last op that reads it; kept, so that ids are not reused.
        self._read: dict[int, tuple[Key, int, torch.UntypedStorage]] = {}

    def op(self, key: Key, func: Any, args: Any, kwargs: Any) -> Any:
        self._keys.append(key)
        if (layer := self.layer(func, args)) is not None:
            self._layers[key] = layer.name, layer.geometry
            self.ran[layer.name] += 1
        if (norm := self.norm(args)) is not None:
            name = self._norm_at[key] = self.names[id(norm.running_mean)]
            self.norms[name] = norm
            self.ran[name] += 1
        self.recorder.prepare(func)
        out = func(*args, **kwargs)
        self.recorder.op(func, args, kwargs, out, NO_CALL)
        for i, x in enumerate(tensors((args, kwargs))):
            if (data := storage(x)) is not None:
                self._read[data._cdata] = key, i, data
        return out

    def spent(self, needed: Iterable[Tensor]) -> dict[Key, tuple[int, ...]]:
        """The arguments of each op whose storage it is the last to read, but those of tensors needed after the run."""
        others = {data._cdata for x in needed if (data := storage(x)) is not None}
        found: dict[Key, tuple[int, ...]] = {}
        for known, (key, i, _) in self._read.items():
            if known not in others:
                found[key] = (*found.get(key, ()), i)
        return found

    def steps(self) -> Iterator[Step]:
        flow = self.recorder.flow()
        keys = dict(zip((op for op in flow.ops if op.target is not None), self._keys, strict=True))
        picked = _picked(flow)
        for op, key in keys.items():
            name, geometry = self._layers.get(key, ("", None))
            if geometry is not None and self.ran[name] == 1 and picked.isdisjoint(op.outputs):
                norm, other = self._following(flow, op, geometry, keys)
                yield Step(key, name, geometry, norm, other)

    def _following(
        self, flow: Flow, layer: Op, geometry: Geometry, keys: Mapping[Op, Key]
    ) -> tuple[str | None, Key | None]:
        """The batch norm after a layer, and what makes the other summand of the sum after both."""
        value, norm = layer.outputs[0], None
        while len(uses := flow.uses(value)) == 1 and value not in flow.outputs:
            op = uses[0]
            if norm is None and keys.get(op) in self._norm_at:
                norm = self._norm_at[keys[op]]
            elif op.family is Family.ADDITION:
                others = [v for v in op.live if v is not value]
                if len(others) != 1 or others[0].shape != value.shape or others[0].made >= layer.index:
                    break
                made = flow.maker(others[0])
                return norm, None if made is None else keys.get(made)
            elif not (op.family is Family.IDENTITY or (geometry.linear and _keeps_last(op))):
                break
            value = op.outputs[0]
        return norm, None


def _picked(flow: Flow) -> set[Value]:
    """The values that are computed from rows which a network picks or orders by values, such as boxes that it finds. In the cut
    network they are other rows, or in another order: outputs of the original are no targets there."""
    found: set[Value] = set()
    for op in flow.ops:
        name = "" if op.target is None else op.target.overloadpacket.__name__
        taken = name in _TAKES and bool(op.live) and op.live[0] is op.inputs[0] and len(op.live) > 1
        if taken or (name in _ORDERS and op.live) or not found.isdisjoint(op.inputs):
            found.update(op.outputs)
    return found


def storage(x: Tensor) -> torch.UntypedStorage | None:
    """The memory of a tensor, which its views share; None for a sparse tensor."""
    return x.untyped_storage() if x.layout is torch.strided else None


def _keeps_last(op: Op) -> bool:
    """Whether an op only rearranges the axes before the last."""
    view = op.family is Family.MOVEMENT and op.target.overloadpacket.__name__ in _VIEWS
    return view and op.inputs[0].shape[-1:] == op.outputs[0].shape[-1:]
