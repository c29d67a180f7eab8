"""`Reconstruct` as a phase of recovery: images from the data, one process of several, what the history says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from secateurs.devices import full_precision, usable
from secateurs.errors import TrainingError
from secateurs.graph.channels import named_tensors
from secateurs.plans import Plan
from secateurs.recovery.reconstruct.recipe import Reconstruct
from secateurs.recovery.reconstruct.run import reconstruct_
from secateurs.recovery.reconstruct.watch import Chunk
from secateurs.seeds import preserve_rng_state
from secateurs.training.batches import split_data, to_device, without_labels
from secateurs.training.checks import Check
from secateurs.training.objective import Objective
from secateurs.training.processes import Peers, several
from secateurs.training.progress import Mode, Reporter
from secateurs.training.runtime import wait_for_everyone


def reconstruct(
    model: nn.Module,
    data: Any,
    recipe: Reconstruct,
    original: nn.Module,
    plan: Plan,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Mode | bool = "auto",
    objective: Objective | None = None,
) -> list[dict[str, Any]]:
    """Reconstruct a cut network in place. Returns what the history says of it: one entry, with each layer's error before and
    after, as the share of the variance of its targets on the images held out, and whether its solution was used.

    data: as for training; labels are not read. original: the network that `plan` was applied to; it is not modified.

    Deterministic: a run that is done again gives the same network. Of several processes the first does the work, with the
    images that it reads, and sends the result to the others.
    """
    where = usable(device)
    given = (data, recipe, original, plan, seed, where, progress, objective or Objective())
    if not several():
        return _reconstruct(model.to(where), *given)
    wait_for_everyone(device)
    return _shared(model.to(where), lambda: _reconstruct(model, *given))


def _reconstruct(
    model: nn.Module, data: Any, recipe: Reconstruct, original: nn.Module, plan: Plan, seed: int, device: torch.device,
    progress: Mode | bool, objective: Objective,
) -> list[dict[str, Any]]:  # fmt: skip
    began = time.perf_counter()
    with preserve_rng_state(), full_precision(), Reporter(progress, recipe.mode) as report:
        inputs = list(_images(original, data, recipe.images, seed, device, objective))
        solved = reconstruct_(
            model, original, plan, inputs, positions=recipe.positions, ridge=recipe.ridge, seed=seed, report=report
        )
        used = sum(s.weight is not None for s in solved.values())
        seconds = time.perf_counter() - began
        report.line(f"{recipe.mode}  {used} of {len(solved)} layers solved  {seconds:.0f} s")
    layers = [
        {"weight": name, "before": _figure(s.before), "after": _figure(s.after), "solved": s.weight is not None}
        for name, s in solved.items()
    ]
    images = sum(chunk.images for chunk in inputs)
    return [{"event": "reconstructed", "images": images, "seconds": seconds, "layers": layers}]


def _figure(share: float) -> float | None:
    return round(share, 6) if math.isfinite(share) else None  # JSON has no NaN


def _images(
    model: nn.Module, data: Any, images: int, seed: int, device: torch.device, objective: Objective
) -> Iterator[Chunk]:
    """The inputs of the first training images, on the device."""
    check = Check(model, "train")
    for index, batch in enumerate(without_labels(split_data(data)[0], images, seed=seed, whole=objective.whole)):
        batch = to_device(check.fit(batch, index), device)
        yield Chunk(objective.arguments(model, batch), batch.rows)


def _shared(model: nn.Module, work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the first process gets from `work`, in all of them, with its weights and statistics."""
    shared: list[Any] = [None]
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            shared = [work()]
        except Exception as raised:
            error, shared = raised, [f"{type(raised).__name__}: {raised}"]
    with Peers(dist.get_world_size(), {}).watched():
        dist.broadcast_object_list(shared, src=0)
        if error is not None:
            raise error
        if isinstance(shared[0], str):
            raise TrainingError(f"Reconstruct failed in the first process: {shared[0]}")
        for tensor in named_tensors(model).values():
            dist.broadcast(tensor.data, src=0)
    return shared[0]
