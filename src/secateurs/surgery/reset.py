"""Reinitialize a network: the same architecture with fresh weights, to train from scratch."""

from __future__ import annotations

import torch
from torch import nn

from secateurs.errors import ConfigError
from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.graph.inputs import check_model
from secateurs.seeds import checked


def reinitialize(model: nn.Module, seed: int = 0, *, keep_raw: bool = False) -> nn.Module:
    """Return a copy of the module with fresh weights; the given one is not modified.

    Every module's `reset_parameters` initializes its weights and resets running statistics, as in PyTorch's layers;
    a network's is called after those of its submodules, so that its own initialization takes precedence (as in the
    zoo's networks). Random numbers are drawn on the CPU: the same seed gives the same weights on any device.

    keep_raw: keep parameters that no `reset_parameters` sets, instead of raising ConfigError. These are parameters that a
        network holds directly (`nn.Parameter` in a custom module) and those behind a parametrization.

    Raises ConfigError if a parameter is not set by any `reset_parameters`; the message names it.
    """
    check_model(model)
    drawn = copied(model).cpu()
    own = named_tensors(drawn)
    before = {name: x.detach().clone() for name, x in own.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(checked(seed))
        for x in own.values():
            if isinstance(x, nn.Parameter):
                x.fill_(float("nan"))  # a parameter that is still nan afterward was not set
        for module in reversed(list(drawn.modules())):  # submodules before their parents
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                reset()
        raw = [n for n, x in own.items() if isinstance(x, nn.Parameter) and bool(x.isnan().any())]
        if raw and not keep_raw:
            more = f" and {len(raw) - 3} more" if len(raw) > 3 else ""
            raise ConfigError(
                f"No reset_parameters() sets {', '.join(raw[:3])}{more}: define one in the module that holds it, or pass "
                f"keep_raw=True to keep such parameters."
            )
        fresh = copied(model)
        for name, x in named_tensors(fresh).items():
            unset = name in raw or (x.is_floating_point() and bool(own[name].isnan().any()))
            x.copy_(before[name] if unset else own[name])
    return fresh
