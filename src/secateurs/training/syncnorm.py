"""Batch norm over the whole batch when its rows are spread over processes, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduced gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad


def all_sum(x: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes. The gradient is summed, too."""
    total: torch.Tensor = _Sum.apply(x)
    return total


def batch_norm(bn: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """Compute `bn(x)` in train mode with statistics over the rows of all processes. x: (N, C, *); N may differ."""
    axes = [0, *range(2, x.ndim)]
    shape = [1, -1] + [1] * (x.ndim - 2)
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    count = wide.new_tensor([x.numel() / x.shape[1]])
    sums = _Sum.apply(torch.cat([wide.sum(axes), count]))
    n = sums[-1].detach()
    mean = sums[:-1] / n
    centered = wide - mean.view(shape)
    var = _Sum.apply(centered.square().sum(axes)) / n  # centered first: E[x²] − E[x]² would lose digits
    if bn.track_running_stats and bn.running_mean is not None and bn.running_var is not None:
        with torch.no_grad():
            if bn.num_batches_tracked is not None:
                bn.num_batches_tracked.add_(1)
            rate = bn.momentum if bn.momentum is not None else 1 / float(bn.num_batches_tracked or 1)
            bn.running_mean.lerp_(mean.detach().to(bn.running_mean.dtype), rate)
            bn.running_var.lerp_((var.detach() * (n / (n - 1))).to(bn.running_var.dtype), rate)
    scale = (var + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight
    y = centered * scale.view(shape)
    return (y if bn.bias is None else y + bn.bias.view(shape)).to(x.dtype)


@contextmanager
def synchronized(model: nn.Module) -> Iterator[None]:
    """Make the model's batch norms in train mode use the rows of all processes within this context. No module is replaced."""
    changed = []

    def patch(bn: Any) -> None:
        usual = bn.forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            return batch_norm(bn, x) if bn.training else usual(x)

        bn.forward = forward
        changed.append(bn)

    for module in model.modules():
        # SyncBatchNorm does this itself. A batch norm with its own forward (fused activations) is not changed.
        if (
            isinstance(module, _BatchNorm)
            and type(module).forward is _BatchNorm.forward
            and "forward" not in vars(module)
        ):
            patch(module)
    try:
        yield
    finally:
        for bn in changed:
            del bn.forward
