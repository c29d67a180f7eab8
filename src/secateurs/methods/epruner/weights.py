"""Alternative initial weights for recovery, instead of the exemplars' own (EPruner, sec. III-C and Table V)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.methods.method import Task
from secateurs.methods.selection import Selection


def project(task: Task, selection: Selection, small: nn.Module) -> None:
    """Sparse random projection: map each filter's weights to the smaller number of input channels with a random
    matrix, which preserves distances, instead of dropping the cut channels (Li et al., KDD 2006)."""
    generator = task.generator()
    old, modules = dict(task.model.named_parameters()), dict(small.named_modules())
    alive, reads = _alive(task, selection.channels)
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


def _alive(task: Task, channels: Mapping[str, Iterable[int]]) -> tuple[dict[str, dict[int, Tensor]], dict[str, int]]:
    """For each parameter that is cut the kept indices, by axis; and the axis on which it consumes channels."""
    stay: dict[str, dict[int, np.ndarray]] = {}
    reads: dict[str, int] = {}
    for name, kept in channels.items():
        group = task.graph[name]
        gone = np.setdiff1d(np.arange(group.size), np.asarray(kept))
        for slot in group.slots if len(gone) else ():
            n = task.graph.shapes[slot.param][slot.axis]
            mask = stay.setdefault(slot.param, {}).setdefault(slot.axis, np.ones(n, dtype=bool))
            mask[slot.index[gone].ravel()] = False
            if slot.consumes:
                reads[slot.param] = slot.axis
    return {p: {a: torch.from_numpy(np.flatnonzero(m)) for a, m in axes.items()} for p, axes in stay.items()}, reads
