"""Alternative initial weights for recovery, instead of the exemplars' own (EPruner, sec. III-C and Table V)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.graph import ChannelGroup
from secateurs.graph.channels import parameter
from secateurs.methods.method import Task
from secateurs.methods.selection import Selection


def project(task: Task, selection: Selection, small: nn.Module) -> None:
    """Sparse random projection: map each filter's weights to the smaller number of input channels with a random
    matrix, which preserves distances, instead of dropping the cut channels (Li et al., KDD 2006)."""
    generator = task.generator()
    old, modules = dict(task.model.named_parameters()), dict(small.named_modules())
    alive, reads = _alive(task, selection)
    with torch.no_grad():
        for name, w in small.named_parameters():
            axis = reads.get(name)
            grouped = axis == 0 and getattr(modules[name.rpartition(".")[0]], "groups", 1) > 1
            if axis is None or axis > 1 or w.ndim < 2 or grouped:
                continue
            full = old[name].detach()
            for a, index in alive[name].items():
                full = full if a == axis else full.index_select(a, index.to(full.device))
            # (O, C, *kernel) of the kept filters → (O, C·k) @ (C·k, c·k) → (O, c, *kernel); transposed: (C, O, …)
            shape = w.shape if axis == 1 else (w.shape[1], w.shape[0], *w.shape[2:])
            full = (full if axis == 1 else full.transpose(0, 1)).flatten(1).float().cpu()
            projected = (full @ sparse_projection(full.shape[1], math.prod(shape[1:]), generator)).view(shape)
            w.copy_(projected if axis == 1 else projected.transpose(0, 1))


def merge(task: Task, selection: Selection, small: nn.Module) -> None:
    """Exemplars stand in for the filters that they represent: each consumer's weights for a removed channel are added to those
    for its exemplar, scaled by the multiple of the exemplar that is nearest to the removed filter.

    The multiple is found on the weights after batch norm's scale, γ/σ, if one batch norm follows the only layer that
    produces the channels; nothing is added for a filter that no exemplar resembles.
    """
    new = dict(small.named_parameters())
    alive, _ = _alive(task, selection)
    with torch.no_grad():
        for name, kept in selection.channels.items():
            group, stay = task.graph[name], torch.from_numpy(np.asarray(kept))
            gone = torch.from_numpy(np.setdiff1d(np.arange(group.size), stay))
            if not len(gone):
                continue
            share = _multiples(_points(group, task.model).double().cpu(), stay, gone)  # (gone, kept)
            for slot in group.slots:
                if not slot.consumes or slot.param not in new:
                    continue
                w = parameter(task.model, slot.param).detach()
                for axis, index in alive[slot.param].items():
                    w = w if axis == slot.axis else w.index_select(axis, index.to(w.device))
                rows = torch.from_numpy(slot.index)  # (size, m): the m inputs of each channel
                lost = w.movedim(slot.axis, 0)[rows[gone].to(w.device)]  # (gone, m, …)
                gain = torch.tensordot(share.T.to(lost), lost, dims=1)  # (kept, m, …)
                place = torch.searchsorted(alive[slot.param][slot.axis], rows[stay])
                target = new[slot.param].movedim(slot.axis, 0)
                target[place.to(w.device)] += gain.to(target.dtype)


def _points(group: ChannelGroup, model: nn.Module) -> Tensor:
    """The filters of a group, (size, weights per channel), as their batch norm scales them."""
    filters = group.filters(model, bias=False)
    modules = dict(model.named_modules())
    norms = [m for name in {s.module for s in group.slots} if isinstance(m := modules.get(name), _BatchNorm)]
    if len(group.producers) != 1 or len(norms) != 1:
        return filters
    (norm,) = norms
    if not norm.affine or norm.running_var is None or norm.num_features != group.size:
        return filters
    return filters * (norm.weight.detach() / (norm.running_var + norm.eps).sqrt()).unsqueeze(1)


def _multiples(points: Tensor, stay: Tensor, gone: Tensor) -> Tensor:
    """For each removed point the multiple of its nearest exemplar that is nearest to it; (gone, kept), one entry a row."""
    kept = points[stay]
    norms = kept.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    dot = (points[gone] @ kept.T).clamp_min(0)  # (gone, kept)
    nearest = (dot.square() / norms).argmax(1, keepdim=True)
    return torch.zeros_like(dot).scatter_(1, nearest, (dot / norms).gather(1, nearest))


def sparse_projection(n: int, k: int, generator: torch.Generator) -> Tensor:
    """(n, k): entries ±√(s/k) with probability 1/2s each and 0 otherwise, where s = √n."""
    s = math.sqrt(n)
    draw = torch.rand(n, k, generator=generator)
    sign = (draw < 0.5 / s).float() - (draw > 1 - 0.5 / s).float()
    return sign * math.sqrt(s / k)


def reset(task: Task, small: nn.Module) -> None:
    """Reinitialize every layer that the cut changed: Gaussian weights (He et al., ICCV 2015), fresh batch norms."""
    generator = task.generator()
    shapes = {n: p.shape for n, p in task.model.named_parameters()}
    touched = {n.rpartition(".")[0] for n, p in small.named_parameters() if p.shape != shapes[n]}
    with torch.no_grad():
        for name, module in small.named_modules():
            if name not in touched:
                continue
            own = list(module.parameters(recurse=False))
            if not any(p.ndim > 1 for p in own):  # a norm or a PReLU: its initial values
                if callable(getattr(module, "reset_parameters", None)):
                    module.reset_parameters()
                continue
            for p in own:
                fan_in = math.prod(p.shape[1:]) if p.ndim > 1 else 0
                p.copy_(torch.randn(p.shape, generator=generator) * math.sqrt(2 / fan_in)) if fan_in else p.zero_()


def _alive(task: Task, selection: Selection) -> tuple[dict[str, dict[int, Tensor]], dict[str, int]]:
    """For each parameter that is cut the kept indices, by axis; and the axis on which it consumes channels."""
    plan = selection.plan(task.graph, allow_inexact=True)
    kept = {param: {axis: torch.tensor(index) for axis, index in axes.items()} for param, axes in plan.kept.items()}
    return kept, dict(plan.consumes)
