"""The pruner's logits for training images, after training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateurs.graph.inputs import call
from secateurs.methods.pruner import Pruner
from secateurs.seeds import preserve_rng_state
from secateurs.training.batches import share, to_device, walk
from secateurs.training.checks import Check


@torch.no_grad()
def calibrate(pruner: Pruner, network: nn.Module, images: int, *, per_epoch: int | None, device: Any) -> Tensor:
    """This process's rows of the logits (N, channels) for at least this many training images."""
    network.eval()
    seen, rows = 0, []
    with preserve_rng_state():  # the first epoch's batches, whatever the current epoch
        check = Check(network, "train")
        task = pruner.task
        objective = task.objective
        for index, raw, _ in walk(
            task.data.train, seed=task.seed, epoch=0, limit=per_epoch, labels=False, whole=objective.whole
        ):
            batch = to_device(check.fit(share(raw, *pruner.share), index), device)
            rows.append(call(network, objective.arguments(task.model, batch)).double().cpu())
            seen += round(float(pruner.mean(torch.tensor([float(len(rows[-1]))]))) * pruner.processes)
            if seen >= images:
                break
    return torch.cat(rows)
