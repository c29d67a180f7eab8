"""Filters as large as they were before the skeleton: what batch norm does not mind, and a learning rate does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.graph.channels import parameter
from secateurs.graph.copies import copied
from secateurs.methods.following import following
from secateurs.surgery.verify import TOLERANCE, disagreement, outputs


def sizes(model: nn.Module, kernels: Iterable[str], kept: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """For each weight the norms of its filters: (O,). kept: (O, KH, KW) bool for weights of which stripes go."""
    found = {}
    for name in kernels:
        squares = parameter(model, name).detach().float().square().sum(1)  # (O, KH, KW)
        if kept is not None and name in kept:
            squares = squares * kept[name].to(squares.device)
        found[name] = squares.sum((1, 2)).sqrt()
    return found


def restore_(model: nn.Module, first: Mapping[str, Tensor], kept: Mapping[str, Tensor], inputs: Any) -> list[str]:
    """Scale filters so that what stays of them has its first norm again, where a batch norm follows and nothing else sees
    their output. Returns the weights that were scaled. The network computes what it did: in eval mode, and in training as
    far as a batch has the statistics that run along.

    A batch norm takes any factor k out again, so the gradient of a filter k times as large is 1/k of what it was, and a
    step of the same learning rate turns the filter k² times less. Filters that the skeleton made small would be torn
    apart by a learning rate that suited them before.

    first: for each weight (O,), see `sizes`. kept: (O, KH, KW) bool for weights of which stripes go. inputs: examples.
    """
    layers = {name.rpartition(".")[0]: name for name in first}
    norms = {layers[layer]: f.norm for layer, f in following(model, layers, inputs).items() if f.norm is not None}
    norms = {name: norm for name, norm in norms.items() if norm.weight is not None and norm.running_var is not None}
    now = sizes(model, norms, kept)
    before = outputs(copied(model), inputs, torch.float32)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for name, norm in norms.items():
        k = first[name].to(now[name]) / now[name]
        _scale_(model.get_submodule(name.rpartition(".")[0]), norm, torch.where(k.isfinite() & (k > 0), k, 1.0))
    if disagreement(outputs(copied(model), inputs, torch.float32), before, "pruned") > TOLERANCE:
        model.load_state_dict(state)  # a norm that is shared, say
        return []
    return list(norms)


@torch.no_grad()
def _scale_(conv: nn.Module, norm: _BatchNorm, k: Tensor) -> None:
    """Filters and their outputs' statistics by k: (O,). The scale makes up for what the norm's eps was worth."""
    for w in conv.parameters(recurse=False):
        w.mul_(k.view(-1, *[1] * (w.ndim - 1)).to(w))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    var = norm.running_var.float()
    norm.weight.mul_(((k**2 * var + norm.eps) / (var + norm.eps)).sqrt().to(norm.weight) / k.to(norm.weight))
    norm.running_mean.mul_(k.to(norm.running_mean))
    norm.running_var.mul_((k**2).to(norm.running_var))
