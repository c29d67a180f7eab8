"""The exponential moving average of a network's weights and statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def decay_at(decay: float, step: int) -> float:
    """Return the decay at an optimizer step. It grows to the given decay, so that a short run does not average its initial
    weights. At step t, the average covers about the last t / 9 steps, and at most 1 / (1 − decay)."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def average_(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema ← decay · ema + (1 − decay) · model, over parameters and buffers such as the statistics of batch norms.

    Tensors that are not floating-point (counters, masks), and buffers that a checkpoint does not hold, are copied. Buffers
    that the model's forward has added, removed, or replaced by ones of another shape or dtype, are changed in the same way.
    """
    _follow(ema, model)
    saved, old, new = ema.state_dict().keys(), _tensors(ema), _tensors(model, each_once=False)
    kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, value in old.items():
        if decay and name in saved and (value.is_floating_point() or value.is_complex()):
            kinds.setdefault((value.dtype, value.device), []).append(name)
        else:
            value.copy_(new[name])
    update = get_ema_multi_avg_fn(decay)
    for names in kinds.values():
        update([old[name] for name in names], [new[name] for name in names], 0)


def _follow(ema: nn.Module, model: nn.Module) -> None:
    """Give the average the model's current buffers where their shapes or dtypes differ."""
    for path, module in model.named_modules():
        averaged = ema.get_submodule(path)
        own, current = averaged._buffers, module._buffers
        for leaf in [*own]:
            if leaf not in current:
                del own[leaf]
        for leaf, x in current.items():
            if leaf not in own or _form(own[leaf]) != _form(x):
                persistent = leaf not in module._non_persistent_buffers_set
                averaged.__dict__.pop(leaf, None)  # a plain attribute that has become a buffer
                averaged.register_buffer(leaf, None if x is None else x.detach().clone(), persistent=persistent)


def _form(x: Tensor | None) -> tuple[torch.Size, torch.dtype] | None:
    return None if x is None else (x.shape, x.dtype)


def _tensors(model: nn.Module, each_once: bool = True) -> dict[str, Tensor]:
    """Return parameters and buffers by name. each_once: include shared ones under their first name only."""
    named = (*model.named_parameters(remove_duplicate=each_once), *model.named_buffers(remove_duplicate=each_once))
    return {name: x.detach() for name, x in named}
