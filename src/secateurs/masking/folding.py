"""Fold channel factors into the parameters that a layer's weight is computed from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from secateurs.errors import ConfigError, a_or_an


@torch.no_grad()
def scale_(module: nn.Module, attribute: str, factors: Tensor, axis: int) -> None:
    """Multiply a computed weight by factors along one of its axes, in place. The factors go into a parameter that the weight
    scales with, such as the magnitudes of weight norm or the weight under a pruning mask.

    Raises ConfigError, and changes nothing, if no such parameter exists.
    """
    due = _computed(module, attribute).clone()
    shape = [-1 if a == axis else 1 for a in range(due.ndim)]
    due *= factors.to(due).view(shape)
    for part in _parts(module, attribute):
        if part.ndim == due.ndim and part.shape[axis] == due.shape[axis]:
            old = part.detach().clone()
            part.mul_(factors.to(part).view(shape))
            if torch.allclose(_computed(module, attribute), due, rtol=1e-4, atol=1e-6):
                return
            part.copy_(old)
    _computed(module, attribute)  # restores the weight that a hook stores
    raise ConfigError(
        f"The {attribute} of {a_or_an(type(module).__name__)} is computed by what does not scale channel by channel: gates "
        "cannot be folded into its parameters. Make it an ordinary parameter first "
        "(torch.nn.utils.parametrize.remove_parametrizations)."
    )


def _computed(module: nn.Module, attribute: str) -> Tensor:
    if not is_parametrized(module, attribute):
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):
                hook(module, ())
    found = getattr(module, attribute)
    assert isinstance(found, Tensor)
    return found.detach()


def _parts(module: nn.Module, attribute: str) -> list[Tensor]:
    if is_parametrized(module, attribute):
        return list(module.parametrizations[attribute].parameters())  # type: ignore[index, union-attr]
    return [p for name, p in module._parameters.items() if p is not None and name.startswith(f"{attribute}_")]
