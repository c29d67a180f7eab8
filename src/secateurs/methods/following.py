"""The normalization and non-linearity that follow a layer, found by running the network once.

Eq. 7 compares the next layer's outputs after both. Any later op (addition, concatenation, pooling) is not
part of that layer: the last convolution of a residual block is compared before the addition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from secateurs.errors import ConfigError
from secateurs.graph.inputs import call, tensors, to_model_device
from secateurs.graph.modes import evaluating

ACTIVATIONS = {
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "elu", "selu", "celu", "leaky_relu", "prelu",
    "rrelu", "mish", "softplus", "softsign", "sigmoid", "tanh", "hardshrink", "softshrink", "tanhshrink", "logsigmoid",
    "threshold", "clamp", "clamp_min", "clamp_max",
}  # fmt: skip
NORMS = {"group_norm", "layer_norm", "rms_norm", "instance_norm"}

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Following:
    """The ops that map a layer's output y to the compared output M: `then(norm(y))`."""

    norm: _BatchNorm | None = None  # a batch norm
    hooked: bool = False  # its module's output is exactly the normalized y
    then: tuple[Function, ...] = ()  # other norms, the non-linearity; each may work in place

    def finish(self, z: Tensor) -> Tensor:
        """Compute M from z, which may be overwritten."""
        for function in self.then:
            z = function(z)
        return z


@dataclass
class _Value:
    """An activation downstream of an observed layer: the op that made it, and the ops applied to it."""

    tensor: Tensor  # kept, so that its id is not reused
    made: _Call | None = None
    uses: list[_Call] = field(default_factory=list)
    output_of: list[nn.Module] = field(default_factory=list)


@dataclass
class _Call:
    kind: str  # "batch", "norm", "act" or "other"
    function: Function
    norm: _BatchNorm | None = None
    out: _Value | None = None


class _Watch(TorchFunctionMode):
    """Records every function that takes the output of an observed layer, or a value derived from it."""

    def __init__(self, norms: dict[int, _BatchNorm]) -> None:
        super().__init__()
        self.norms = norms  # by the ids of their parameters and statistics
        self.values: dict[int, _Value] = {}

    def enter(self, x: Tensor) -> _Value:
        value = _Value(x)
        self.values[id(x)] = value
        return value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = [self.values[id(x)] for x in tensors((args, kwargs)) if id(x) in self.values]
        out = func(*args, **kwargs)
        if found and isinstance(out, Tensor | tuple | list):
            step = self._call(func, args, kwargs)
            for value in found:
                value.uses.append(step)
            if step.kind != "other" and isinstance(out, Tensor):
                step.out = self.enter(out)
                step.out.made = step
        return out

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        name = getattr(func, "__name__", "").rstrip("_")
        x = args[0] if args else kwargs.get("input")
        rest = {k: v for k, v in kwargs.items() if k != "input"}
        first = isinstance(x, Tensor) and id(x) in self.values
        others = any(id(v) in self.values for v in (*args[1:], *rest.values()) if isinstance(v, Tensor))

        def function(y: Tensor) -> Tensor:
            return func(y, *args[1:], **rest)

        if not first or others:
            return _Call("other", function)
        if name == "batch_norm":
            norm = next((self.norms[id(v)] for v in (*args[1:], *rest.values()) if id(v) in self.norms), None)
            return _Call("batch" if norm is not None else "other", function, norm)
        if name == "instance_norm" and any(isinstance(v, Tensor) and not isinstance(v, nn.Parameter) for v in args[1:]):
            return _Call("other", function)  # running statistics, which applying it again would update
        kind = "norm" if name in NORMS else "act" if name in ACTIVATIONS else "other"
        return _Call(kind, torch.relu if name == "relu" else function)


def following(model: nn.Module, layers: Iterable[str], example_inputs: Any) -> dict[str, Following]:
    """The ops that follow each of these modules: at most a norm, then a non-linearity. A module that does not run on these
    inputs (in eval mode) is left out. The model is not modified.

    Raises ConfigError if the model does not run.
    """
    norms = {
        id(x): m
        for m in model.modules()
        if isinstance(m, _BatchNorm)
        for x in (m.weight, m.running_mean)
        if x is not None
    }
    watch = _Watch(norms)
    starts: dict[str, list[_Value]] = {}
    handles = []

    def entering(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                starts.setdefault(name, []).append(watch.enter(out))

        return hook

    def leaving(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor) and id(out) in watch.values:
            watch.values[id(out)].output_of.append(module)

    for name in dict.fromkeys(layers):
        handles.append(model.get_submodule(name).register_forward_hook(entering(name)))
    for norm in set(norms.values()):
        handles.append(norm.register_forward_hook(leaving))
    try:
        with evaluating(model), torch.no_grad(), watch:
            call(model, to_model_device(model, example_inputs))
    except Exception as error:
        raise ConfigError(f"The model does not run on the example inputs: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return {name: _read(values[0]) for name, values in starts.items()}


def _read(value: _Value) -> Following:
    norm: _BatchNorm | None = None
    hooked, then = False, []
    stage = 0  # 0: a norm may come, 1: a non-linearity may
    while len(value.uses) == 1:
        step = value.uses[0]
        if step.out is None or (stage == 1 and step.kind != "act"):
            break
        value = step.out
        if step.kind == "batch":
            norm = step.norm
            hooked = norm is not None and any(m is norm for m in value.output_of) and _plain(norm)
        else:
            then.append(step.function)
        if step.kind == "act":
            break
        stage = 1
    return Following(norm, hooked, tuple(then))


def _plain(norm: _BatchNorm) -> bool:
    return type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def batch_norm(norm: _BatchNorm, y: Tensor) -> tuple[Tensor, Tensor]:
    """(normalized y, the factor on each channel) with the norm's current mode and statistics, which are not updated."""
    weight = norm.weight
    if norm.training or norm.running_mean is None or norm.running_var is None:
        z, _, invstd = torch.native_batch_norm(y, weight, norm.bias, None, None, True, 0.0, norm.eps)
    else:
        z = F.batch_norm(y, norm.running_mean, norm.running_var, weight, norm.bias, False, 0.0, norm.eps)
        invstd = torch.rsqrt(norm.running_var + norm.eps)
    return z, invstd if weight is None else invstd * weight
