"""Apply a plan: slice a copy, or cut the model and its optimizer in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from secateurs.errors import PlanError
from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.graph.state import State
from secateurs.plans.plan import Kept, Plan, check_plan
from secateurs.surgery import stripes as S
from secateurs.surgery.processes import retire_wrappers, sharded


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a new module with what the plan keeps. The given module is not modified. Raises PlanError if the plan is for
    another network."""
    check_plan(plan, model)
    small = remade(model, _slices(model, plan), plan.attributes)
    S.replace_(small, plan.stripes, plan.shapes, plan.kept)
    return small


def cut_(model: nn.Module, plan: Plan, optimizer: Optimizer | Iterable[Optimizer] | None = None) -> nn.Module:
    """Cut the model in place. Training can continue: gradients and the optimizers' state (momenta,
    moments) are sliced with their parameters, and the optimizers' references point at the new ones. New parameters have the
    attributes and gradient hooks of the old ones. Gradient scalers and learning-rate schedulers, which refer to the optimizers,
    need no change.

    optimizer: the optimizer of the model's parameters, or several.

    Update everything else that refers to the parameters: wrap the model in `DistributedDataParallel` again (an existing wrapper
    raises ConfigError when it is called), and cut an averaged copy by the same plan: `cut_(ema.module, plan)`.

    If something does not fit, raises PlanError (TraceError for a model that is wrapped or sharded) and changes nothing.
    """
    check_plan(plan, model)
    optimizers = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    params = named_tensors(model)
    new = {id(params[name]): _in_place_of(params[name], w) for name, w in _slices(model, plan).items()}
    states = [_sliced_states(o, plan, params) for o in optimizers]
    for name, p in params.items():
        if p.grad is not None and id(p) in new:
            new[id(p)].grad = take(p.grad, plan.kept[name])
    State(dict(model.named_modules())).replace(new)
    _rewrite(model, plan.attributes)
    _recompute(model)
    for each, sliced in zip(optimizers, states, strict=True):
        for group in each.param_groups:
            group["params"] = [new.get(id(p), p) for p in group["params"]]
        for p, state in sliced.items():
            del each.state[p]
            each.state[new[id(p)]] = state
    for old, made, taken in S.replace_(model, plan.stripes, plan.shapes, plan.kept):
        _carry(old, made)
        if old.grad is not None:
            made.grad = taken(old.grad)
        for each in optimizers:
            _hand_over(each, old, made, taken)
    if new or plan.stripes:
        retire_wrappers(model)
    return model


def _hand_over(optimizer: Optimizer, old: Tensor, new: Tensor, taken: Callable[[Tensor], Tensor]) -> None:
    """Replace a parameter in the optimizer; `taken` maps state of the old shape to the new shape."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        optimizer.state[new] = pytree.tree_map_only(Tensor, lambda v: taken(v) if v.shape == old.shape else v, state)


def remade(model: nn.Module, new: Mapping[str, Tensor], attributes: Mapping[tuple[str, str], Any]) -> nn.Module:
    """Return a copy of the model with these tensors and module attributes replaced. The given model is not modified."""
    params = named_tensors(model)
    # Replaced tensors are never copied: deepcopy finds the new tensors in the memo.
    memo: dict[int, Any] = {id(params[name]): _like(params[name], w) for name, w in new.items()}
    made = copied(model, memo)
    _rewrite(made, attributes)
    _recompute(made)
    return made


def take(w: Tensor, axes: Mapping[int, Kept], arrays: dict[int, np.ndarray] | None = None) -> Tensor:
    """Select the kept indices of a tensor, axis by axis. Returns a new tensor in the same memory format.

    arrays: a cache of index tuples as arrays, by id, for tensors that share a tuple.
    """
    arrays = {} if arrays is None else arrays
    channels_last = w.ndim == 4 and not w.is_contiguous() and w.is_contiguous(memory_format=torch.channels_last)
    out = w.detach()
    for axis, index in sorted(axes.items(), key=lambda item: (len(item[1]) / w.shape[item[0]], item[0])):
        if id(index) not in arrays:
            arrays[id(index)] = np.array(index)
        out = _select(out, axis, arrays[id(index)])
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out


_MANY = 4096  # length of an axis from which looking for blocks pays off


def _select(w: Tensor, axis: int, index: np.ndarray) -> Tensor:
    """Do an `index_select`, by whole blocks if the indices come in blocks (a channel's H·W inputs of a linear layer)."""
    if w.shape[axis] < _MANY:
        return w.index_select(axis, torch.from_numpy(index).to(w.device))
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    block = int(np.gcd.reduce([*index[np.r_[0, breaks]], *breaks, len(index), w.shape[axis]]))
    if block > 1:
        shape = w.shape
        blocks = w.unflatten(axis, (-1, block)).index_select(
            axis, torch.from_numpy(index[::block] // block).to(w.device)
        )
        return blocks.view(*shape[:axis], len(index), *shape[axis + 1 :])
    return w.index_select(axis, torch.from_numpy(index).to(w.device))


def _slices(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    params = named_tensors(model)
    arrays: dict[int, np.ndarray] = {}
    return {name: take(params[name], axes, arrays) for name, axes in plan.kept.items()}


def _like(old: Tensor, w: Tensor) -> Tensor:
    if not isinstance(old, nn.Parameter):
        return w
    made = nn.Parameter(w, old.requires_grad)
    return made if type(old) is nn.Parameter else w.as_subclass(type(old)).requires_grad_(old.requires_grad)


def _in_place_of(old: Tensor, w: Tensor) -> Tensor:
    made = _like(old, w)
    _carry(old, made)
    return made


def _carry(old: Tensor, made: Tensor) -> None:
    """Carry over the attributes and the gradient hooks that the user has set on a parameter."""
    made.__dict__.update(old.__dict__)
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if (own := getattr(old, hooks)) is not None:
            setattr(made, hooks, own)


def _sliced_states(optimizer: Optimizer, plan: Plan, params: Mapping[str, Tensor]) -> dict[Tensor, dict[str, Any]]:
    if kind := sharded(optimizer):
        raise PlanError(
            f"{kind} spreads its state over the processes, so that it cannot be cut: cut without the optimizer and create a "
            "new one."
        )
    own = {id(p) for p in params.values()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise PlanError(
            f"The optimizer ({type(optimizer).__name__}) has none of this model's parameters: pass the one that trains it, or "
            "create one from model.parameters() after the cut."
        )
    if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
        raise PlanError(
            "LBFGS keeps one history for all parameters, which cannot be cut: cut without the optimizer and create a new one."
        )
    states = {}
    for name, axes in plan.kept.items():
        p = params[name]
        if p in optimizer.state:
            states[p] = {k: _sliced_state(v, p, axes, name, k) for k, v in optimizer.state[p].items()}
    for name in plan.stripes:  # their state is converted later; this only checks that it can be
        for k, v in optimizer.state.get(params[name], {}).items():
            _sliced_state(v, params[name], {}, name, k)
    return states


def _sliced_state(value: Any, p: Tensor, axes: Mapping[int, Kept], name: str, key: str) -> Any:
    if isinstance(value, list | tuple | dict):
        return pytree.tree_map_only(Tensor, lambda x: _sliced_state(x, p, axes, name, key), value)
    if not isinstance(value, Tensor) or (value.numel() == 1 and value.shape != p.shape):
        return value
    if value.shape != p.shape:
        raise PlanError(
            f"The optimizer keeps {key!r} of shape {tuple(value.shape)} for {name} of shape {tuple(p.shape)}: "
            f"which cannot be cut. Cut without the optimizer and create a new one."
        )
    return take(value, axes)


def _rewrite(model: nn.Module, attributes: Mapping[tuple[str, str], Any]) -> None:
    for (name, attribute), value in attributes.items():
        module = model.get_submodule(name)
        is_list = isinstance(getattr(module, attribute, None), list)
        setattr(module, attribute, list(value) if is_list else value)


def _recompute(model: nn.Module) -> None:
    """Update what is derived from parameters: the weights that hooks compute before each forward pass (pruning masks, weight
    norm and spectral norm in the older style), and a recurrent layer's list of weights, on GPUs one block of memory."""
    with torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, BasePruningMethod):
                    setattr(module, hook._tensor_name, hook.apply_mask(module))
                elif isinstance(hook, WeightNorm):
                    setattr(module, hook.name, hook.compute_weight(module))
                elif isinstance(hook, SpectralNorm):
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()
