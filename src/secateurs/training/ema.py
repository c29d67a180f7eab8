"""The exponential moving average of a network's weights and statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def decay_at(decay: float, step: int) -> float:
    """The decay after so many optimizer steps: it grows to the one asked for, so that a short run is not an average of the
    weights that it started from. At step t it averages over about the last t / 9 steps, and at most 1 / (1 − decay)."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def average_(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema ← decay · ema + (1 − decay) · model, over parameters and buffers such as the statistics of batch norms.

    What is no floating-point number (counters, masks), and buffers that a checkpoint does not hold, are copied.
    """
    saved, old, new = ema.state_dict().keys(), _tensors(ema), _tensors(model)
    kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, value in old.items():
        if decay and name in saved and (value.is_floating_point() or value.is_complex()):
            kinds.setdefault((value.dtype, value.device), []).append(name)
        else:
            value.copy_(new[name])
    update = get_ema_multi_avg_fn(decay)
    for names in kinds.values():
        update([old[name] for name in names], [new[name] for name in names], 0)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Each parameter and buffer once, also those that several modules share."""
    return {name: x.detach() for name, x in (*model.named_parameters(), *model.named_buffers())}
