"""Detect models that are wrapped or sharded: they hold a network's parameters in their own way."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from secateurs.errors import TraceError

_WHOLE = (
    "Prune before you shard: load the weights into a plain model (get_model_state_dict of torch.distributed.checkpoint with "
    "full_state_dict=True returns them), call secateurs.prune(…), and shard the result. To prune during training on several "
    "GPUs, use DistributedDataParallel."
)


def check_plain(model: nn.Module) -> None:
    """Raise TraceError for a wrapper. The message says what to pass instead, and what to do with the result."""
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise TraceError(
            f"The model was compiled ({kind}): pass the network that it was made from (model._orig_mod), and call "
            "torch.compile on what you get."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise TraceError(
            f"{kind} is a wrapper, which keeps the parameters that it was made with: pass the network inside it "
            f"(model.module), and wrap the pruned network again, {kind}(…)."
        )
    if isinstance(model, nn.DataParallel):
        raise TraceError(f"{kind} is a wrapper: pass the network inside it (model.module).")


def check_whole(model: nn.Module) -> None:
    """Raise TraceError for a model whose parameters are sharded: FSDP, `fully_shard`, tensor parallelism."""
    sharded, module_of, tensor = _kinds()
    if not (sharded or module_of or tensor):
        return
    for name, module in model.named_modules():
        where = f" (at {name})" if name else ""
        if sharded and isinstance(module, sharded):
            raise TraceError(
                f"The model is wrapped in FSDP's {type(module).__name__}{where}: no process holds its weights whole, so "
                f"that they cannot be cut. {_WHOLE}"
            )
        if module_of and isinstance(module, module_of):
            raise TraceError(
                f"The model is sharded by fully_shard (FSDP2){where}: no process holds its weights whole, so that they "
                f"cannot be cut. {_WHOLE}"
            )
        if tensor and any(isinstance(p, tensor) for p in module.parameters(recurse=False)):
            raise TraceError(
                f"The model's parameters are DTensors{where}, which are distributed over processes and cannot be cut. {_WHOLE}"
            )


def _kinds() -> tuple[Any, Any, Any]:
    """Return FSDP's wrapper, its class of sharded modules, and the class of their tensors; None for what was never imported."""
    fsdp, tensor = sys.modules.get("torch.distributed.fsdp"), sys.modules.get("torch.distributed.tensor")
    return (
        getattr(fsdp, "FullyShardedDataParallel", None),
        getattr(fsdp, "FSDPModule", None),
        getattr(tensor, "DTensor", None),
    )


def part_with(model: nn.Module, names: Any) -> str | None:
    """Return the path of the part of a model that has tensors of all these names, as in an averaged copy or a trainer's module.
    None if there is none."""
    own = {
        name
        for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    }
    for path, _ in model.named_modules():
        if path and all(f"{path}.{name}" in own for name in names):
            return path
    return None
