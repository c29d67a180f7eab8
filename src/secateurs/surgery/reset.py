"""A structure to be trained from scratch: the same network, with the weights it might have been born with."""

from __future__ import annotations

import copy

import torch
from torch import nn

from secateurs.errors import ConfigError
from secateurs.graph.channels import named_tensors


def reinitialise(model: nn.Module, seed: int = 0, *, keep_raw: bool = False) -> nn.Module:
    """A new module of the same structure with fresh weights; the given one is untouched.

    Every module's own `reset_parameters` draws its weights and sets running statistics back, as PyTorch's layers do;
    a network's comes after those of its parts, so that one with an initialization of its own has the last word (the
    zoo's networks do). Drawn on the CPU: the same seed gives the same weights on any device.

    keep_raw: leave parameters that no `reset_parameters` sets as they are, instead of refusing. They are those that a
        network holds directly (`nn.Parameter` in a module of one's own) and those behind a parametrization.

    Raises ConfigError that names them.
    """
    drawn = copy.deepcopy(model).cpu()
    own = named_tensors(drawn)
    before = {name: x.detach().clone() for name, x in own.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for x in own.values():
            if isinstance(x, nn.Parameter):
                x.fill_(float("nan"))  # what is nan afterwards nobody has set
        for module in reversed(list(drawn.modules())):  # the parts before the whole
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                reset()
        raw = [n for n, x in own.items() if isinstance(x, nn.Parameter) and bool(x.isnan().any())]
        if raw and not keep_raw:
            more = f" and {len(raw) - 3} more" if len(raw) > 3 else ""
            raise ConfigError(
                f"No reset_parameters() sets {', '.join(raw[:3])}{more}: give the module that holds it one, or pass "
                f"keep_raw=True to leave such parameters as they are."
            )
        fresh = copy.deepcopy(model)
        for name, x in named_tensors(fresh).items():
            spoilt = name in raw or (x.is_floating_point() and bool(own[name].isnan().any()))
            x.copy_(before[name] if spoilt else own[name])
    return fresh
