"""Distributed wrappers and optimizers that refer to a network's parameters, which a cut in place replaces."""

from __future__ import annotations

import gc
import sys
from typing import Any, NoReturn

from torch import distributed as dist
from torch import nn
from torch.optim import Optimizer

from secateurs.errors import ConfigError


def retire_wrappers(model: nn.Module) -> None:
    """Make each `DistributedDataParallel` around the model raise ConfigError when it is called.

    The wrapper's reducer waits for gradients of the parameters that it was created with. With `find_unused_parameters=True` it
    treats them as unused and continues: the gradients would no longer be averaged, and the processes would drift apart without
    an error.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    kind = nn.parallel.DistributedDataParallel
    for wrapper in [x for x in gc.get_objects() if issubclass(type(x), kind)]:  # the model does not know what wraps it
        if any(module is model for module in wrapper.modules()) and not _retired(wrapper):
            wrapper.register_forward_pre_hook(_refuse, prepend=True)


def _retired(wrapper: nn.Module) -> bool:
    return _refuse in wrapper._forward_pre_hooks.values()


def _refuse(wrapper: nn.Module, args: Any) -> NoReturn:
    kind = type(wrapper).__name__
    raise ConfigError(
        f"This {kind} wraps a network that was cut in place, and would still average the gradients of the parameters from "
        f"before the cut. Wrap the network again: {kind}(model.module, …)."
    )


def sharded(optimizer: Optimizer) -> str | None:
    """Return the class name of an optimizer that shards its state across processes; None for other optimizers."""
    zero = getattr(sys.modules.get("torch.distributed.optim"), "ZeroRedundancyOptimizer", None)
    return type(optimizer).__name__ if zero is not None and isinstance(optimizer, zero) else None
