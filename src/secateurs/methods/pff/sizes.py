"""Restore the norms of filters after the skeleton: batch norm is invariant to them, the effective learning rate is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.graph.channels import parameter
from secateurs.graph.copies import copied
from secateurs.methods.following import following
from secateurs.surgery.compare import disagreement
from secateurs.surgery.verify import TOLERANCE, outputs


def squares(model: nn.Module, kernels: Iterable[str]) -> dict[str, Tensor]:
    """For each weight the squared norms of its stripes: (O, *kernel)."""
    return {name: parameter(model, name).detach().float().square().sum(1) for name in kernels}


def sizes(found: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each weight the norms of its filters: (O,). found: see `squares`. kept: (O, *kernel) bool for weights that lose
    stripes."""
    left = {name: s * kept[name].to(s.device) if name in kept else s for name, s in found.items()}
    return {name: s.flatten(1).sum(1).sqrt() for name, s in left.items()}


def restore_(model: nn.Module, first: Mapping[str, Tensor], kept: Mapping[str, Tensor], inputs: Any) -> list[str]:
    """Scale filters so that the kept part of each has the norm that it had, if a batch norm follows and nothing else uses
    their output, and neither is frozen. Returns the weights that were scaled. The network's function does not change: in eval
    mode, and in training up to the difference between batch and running statistics.

    A batch norm cancels any factor k, so the gradient of a filter k times as large is 1/k of what it was, and a
    step of the same learning rate rotates the filter k² times less. Filters that the skeleton made small would change far
    too much at the learning rate that was right before. With the norm of all their stripes they would change too little:
    the more of a filter is cut, the more the rest has to change.

    first: see `squares`. kept: (O, *kernel) bool for weights that lose stripes. inputs: examples.
    """
    layers = {name.rpartition(".")[0]: name for name in first}
    norms = {layers[layer]: f.norm for layer, f in following(model, layers, inputs).items() if f.norm is not None}
    norms = {name: norm for name, norm in norms.items() if norm.weight is not None and norm.running_var is not None}
    own = {name: model.get_submodule(name.rpartition(".")[0]).parameters(recurse=False) for name in norms}
    norms = {name: n for name, n in norms.items() if all(p.requires_grad for p in (*own[name], n.weight))}
    then, now = sizes({name: first[name] for name in norms}, kept), sizes(squares(model, norms), kept)
    before = outputs(copied(model), inputs, torch.float32)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for name, norm in norms.items():
        k = then[name].to(now[name]) / now[name]
        _scale_(model.get_submodule(name.rpartition(".")[0]), norm, torch.where(k.isfinite() & (k > 0), k, 1.0))
    if disagreement(outputs(copied(model), inputs, torch.float32), before, "pruned") > TOLERANCE:
        model.load_state_dict(state)  # for example, a shared norm
        return []
    return list(norms)


@torch.no_grad()
def _scale_(conv: nn.Module, norm: _BatchNorm, k: Tensor) -> None:
    """Scale filters and their outputs' statistics by k: (O,). The norm's scale compensates for the effect of eps."""
    for w in conv.parameters(recurse=False):
        w.mul_(k.view(-1, *[1] * (w.ndim - 1)).to(w))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    var = norm.running_var.float()
    norm.weight.mul_(((k**2 * var + norm.eps) / (var + norm.eps)).sqrt().to(norm.weight) / k.to(norm.weight))
    norm.running_mean.mul_(k.to(norm.running_mean))
    norm.running_var.mul_((k**2).to(norm.running_var))
