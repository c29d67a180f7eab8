"""The masked network of a plan: the original shape, with zeros where channels and stripes are cut."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.plans.plan import Kept, Plan
from secateurs.plans.stripes import as_mask


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a new module of the original shape in which the consumers' weights for the cut channels are zero, and so are the
    cut stripes."""
    plan.check(model)
    masked = copied(model)
    params = named_tensors(masked)
    with torch.no_grad():
        for name, axis in plan.consumes:
            w = params[name]
            alive = torch.zeros(w.shape[axis], dtype=torch.bool, device=w.device)
            alive[list(plan.kept[name][axis])] = True
            w.mul_(alive.view([-1 if a == axis else 1 for a in range(w.ndim)]))
    mask_(params, plan.stripes)
    return masked


def mask_(weights: Mapping[str, Tensor], stripes: Mapping[str, Kept]) -> None:
    """Zero the cut stripes."""
    with torch.no_grad():
        for name, places in stripes.items():
            w = weights[name]
            w.mul_(as_mask(places, tuple(w.shape)).to(w.device)[:, None])
