"""The normalization and non-linearity that follow a layer, as functions that can be applied to other outputs of it.

Eq. 7 compares the next layer's outputs after both. Any later op (addition, concatenation, pooling) is not
part of that layer: the last convolution of a residual block is compared before the addition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.graph.channels import parameter
from secateurs.graph.flow import Call, Flow, Op, Value
from secateurs.graph.inputs import rows
from secateurs.graph.trace import flow

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Following:
    """The ops that map a layer's output y to the compared output M: `then(norm(y))`."""

    norm: _BatchNorm | None = None  # a batch norm
    hooked: bool = False  # its module's output is exactly the normalized y
    then: tuple[Function, ...] = ()  # other norms, the non-linearity; each may work in place
    regular: bool = True  # the layer runs once, on as many rows as there are examples

    def finish(self, z: Tensor) -> Tensor:
        """Compute M from z, which may be overwritten."""
        for function in self.then:
            z = function(z)
        return z


def following(model: nn.Module, layers: Iterable[str], example_inputs: Any) -> dict[str, Following]:
    """The ops that follow each of these modules in its first run: at most a norm, then a non-linearity; in the order in which
    the modules run. A module that does not run on these inputs (in eval mode), or does not return a tensor, is left out. The
    model is not modified.

    Raises TraceError if the model does not run.
    """
    found, wanted, batch = flow(model, example_inputs), set(layers), rows(example_inputs)
    runs: dict[str, list[Call]] = {}
    for call in found.calls:
        if call.module in wanted:
            runs.setdefault(call.module, []).append(call)
    return {
        name: replace(
            _read(model, found, calls[0].output), regular=len(calls) == 1 and _rows(calls[0]) in (None, batch)
        )
        for name, calls in runs.items()
        if calls[0].output is not None
    }


def _rows(call: Call) -> int | None:
    return call.inputs[0].shape[0] if call.inputs and call.inputs[0].shape else None


def _read(model: nn.Module, found: Flow, value: Value) -> Following:
    after = found.after(value)
    norm, hooked, then = None, False, []
    if after.norm:
        op, made = after.norm[0], after.norm[-1].outputs[0]
        if _name(op) == "batch_norm":
            norm = _batch_norm(model, found.parameters(op))
            if norm is None:  # not a module: how it normalizes in training is unknown
                return Following()
            runs = found.runs(after.norm[-1].call.module)
            own = model.get_submodule(after.norm[-1].call.module) is norm
            hooked = own and _plain(norm) and any(c.output is made for c in runs)
        elif (function := _replay(model, op)) is not None:
            then.append(function)
        else:
            return Following()
    if after.activation and (function := _replay(model, after.activation[0])) is not None:
        then.append(function)
    return Following(norm, hooked, tuple(then))


def _name(op: Op) -> str:
    return "" if op.function is None else op.function.name


def _batch_norm(model: nn.Module, names: Iterable[str]) -> _BatchNorm | None:
    """The module with these parameters and statistics."""
    owners = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    return next((m for m in owners if isinstance(m, _BatchNorm)), None)


def _replay(model: nn.Module, op: Op) -> Function | None:
    """The call that an op belongs to, as a function of its first argument; None if that is not all that it depends on, but for
    parameters of the model, or if applying it again would update running statistics."""
    call = op.function
    if call is None:
        return None
    if call.name == "relu":
        return torch.relu
    given = {k: _plainly(v) for k, v in (*enumerate(call.args), *call.kwargs.items())}
    first = 0 if call.args else "input"
    fixed = {k: v for k, v in given.items() if isinstance(v, Value) and k != first}
    if not isinstance(given.get(first), Value) or any(not v.name for v in fixed.values()):
        return None
    tensors = {k: parameter(model, v.name) for k, v in fixed.items()}
    if call.name == "instance_norm" and any(not isinstance(x, nn.Parameter) for x in tensors.values()):
        return None

    def function(y: Tensor) -> Tensor:
        now = {**given, **tensors, first: y}  # PyTorch 2.6 does not compile `|`
        args = [now[i] for i in range(len(call.args))]
        out: Tensor = call.function(*args, **{k: v for k, v in now.items() if isinstance(k, str)})
        return out

    return function


def _plainly(value: Any) -> Any:
    """Sizes as ordinary integers: the traced ones know where they come from, and do not compile with PyTorch 2.6."""
    if isinstance(value, tuple | list):
        return type(value)(map(_plainly, value)) if type(value) in (tuple, list) else value
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


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
