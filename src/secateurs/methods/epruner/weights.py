"""Other weights than the exemplars' own to begin recovery from (EPruner, sec. III-C and Table V)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.methods.method import Task


def project(task: Task, selection: Mapping[str, np.ndarray], small: nn.Module) -> None:
    """Sparse random projection: each filter's weights are mapped to the smaller number of input channels by a random
    matrix, which keeps distances, instead of dropping the channels that are gone (Li et al., KDD 2006)."""
    generator = task.generator()
    old = dict(task.model.named_parameters())
    filters = _kept_filters(task, selection)
    with torch.no_grad():
        for name, w in small.named_parameters():
            before = old[name]
            if w.ndim < 2 or w.shape[1] == before.shape[1] or name not in filters:
                continue
            # (O, C, *kernel) of the filters that stay → (O, C·k) @ (C·k, c·k) → (O, c, *kernel)
            full = before.detach()[filters[name].to(before.device)].flatten(1).float().cpu()
            small_dim = math.prod(w.shape[1:])
            w.copy_((full @ sparse_projection(full.shape[1], small_dim, generator)).view(w.shape))


def sparse_projection(n: int, k: int, generator: torch.Generator) -> Tensor:
    """(n, k): entries ±√(s/k) with probability 1/2s each and 0 otherwise, where s = √n."""
    s = math.sqrt(n)
    draw = torch.rand(n, k, generator=generator)
    sign = (draw < 0.5 / s).float() - (draw > 1 - 0.5 / s).float()
    return sign * math.sqrt(s / k)


def reset(task: Task, small: nn.Module) -> None:
    """Every layer that the cut touched starts anew: Gaussian weights (He et al., ICCV 2015), fresh batch norms."""
    generator = task.generator()
    shapes = {n: p.shape for n, p in task.model.named_parameters()}
    touched = {n.rpartition(".")[0] for n, p in small.named_parameters() if p.shape != shapes[n]}
    with torch.no_grad():
        for name, module in small.named_modules():
            if name not in touched:
                continue
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_parameters()
                continue
            for p in module.parameters(recurse=False):
                fan_in = math.prod(p.shape[1:]) if p.ndim > 1 else 0
                p.copy_(torch.randn(p.shape, generator=generator) * math.sqrt(2 / fan_in)) if fan_in else p.zero_()


def _kept_filters(task: Task, selection: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """For each weight that reads or makes channels: the rows (filters) of it that stay."""
    rows: dict[str, np.ndarray] = {
        n: np.ones(p.shape[0], dtype=bool) for n, p in task.model.named_parameters() if p.ndim > 1
    }
    for name, kept in selection.items():
        group = next(g for g in task.graph.groups if g.name == name)
        gone = np.setdiff1d(np.arange(group.size), kept)
        for slot in group.slots:
            if slot.axis == 0 and slot.param in rows:
                rows[slot.param][slot.index[gone].ravel()] = False
    return {n: torch.from_numpy(np.flatnonzero(v)) for n, v in rows.items()}
