"""Reconstruct a cut network: which layers are solved, and from which images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.graph.modes import evaluating
from secateurs.plans import Plan
from secateurs.recovery.reconstruct.solver import Solution
from secateurs.recovery.reconstruct.structure import Step, Structure
from secateurs.recovery.reconstruct.walk import Original, Sampler, Targets, Walk
from secateurs.recovery.reconstruct.watch import Chunk
from secateurs.training.progress import Reporter

CHUNK = 32  # images that run at a time
LOOK = 2  # images of the run that finds the layers


def reconstruct_(
    model: nn.Module,
    original: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    *,
    positions: int,
    ridge: float,
    seed: int,
    report: Reporter | None = None,
) -> dict[str, Solution]:
    """Solve a cut network's layers, in place. Returns the solutions by weight, in the order in which the layers run.

    original: the network that `plan` was applied to; it is not modified. batches: inputs, on the device of both, or each
    as a `Chunk`, where it takes more than the first axis of a tensor to tell how many images they are: lists of images.

    Memory: all chunks' activations that later layers read, float32; the targets, (images · positions) values for each output of
    each layer solved; and for the layer that is being solved about four times n² float64, n being its inputs times the
    positions of its kernel, at most as many as there are samples.
    """
    whole = [Chunk.of(given) for given in batches]
    chunks = [each.part(i, i + CHUNK) for each in whole for i in range(0, each.images, CHUNK)]
    names = _names(model, original)
    original = copied(original).eval()
    with torch.no_grad(), evaluating(model):
        found = Structure.of(model, chunks[0].part(0, LOOK), names)
        targets = [_targets(step, original, plan) for step in found.steps if _reads_cut(step, plan)]
        if not targets:
            return {}
        sampler = Sampler(positions, seed)
        watched = Original(original, targets, sampler)
        report = report or Reporter("silent")
        report.start(len(chunks) + len(targets), 0)
        for i, chunk in enumerate(chunks):
            watched.run(i, chunk)
            report.show(i + 1, "running the original")
        del watched, original  # a copy
        walk = Walk(model, names, found, targets, sampler, ridge)
        walk.solved = lambda done, name: report.show(len(chunks) + done, name)
        return walk.run(chunks)


def _reads_cut(step: Step, plan: Plan) -> bool:
    """Whether the layer reads channels of which some were cut, or has lost stripes."""
    axes = {axis for param, axis in plan.consumes if param == step.weight}
    return bool(axes) or step.weight in plan.stripes


def _targets(step: Step, original: nn.Module, plan: Plan) -> Targets:
    tensors = named_tensors(original)
    kept = _kept_outputs(step, tensors[step.weight], plan)
    index = None if kept is None else torch.tensor(kept, device=tensors[step.weight].device)
    scale, shift, affine = None, None, False
    if step.norm is not None:
        norm = original.get_submodule(step.norm.rpartition(".")[0])
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -scale * norm.running_mean if norm.bias is None else norm.bias - scale * norm.running_mean
        scale, shift = ((x if index is None else x[index]).detach() for x in (scale, shift))
        affine = norm.affine
    return Targets(step, index, scale, shift, affine)


def _kept_outputs(step: Step, weight: Tensor, plan: Plan) -> list[int] | None:
    """The layer's outputs that are left of the original's, or None if all are."""
    axes = plan.kept.get(step.weight, {})
    if not step.geometry.transposed:  # (O, C / groups, *kernel)
        return list(axes[0]) if 0 in axes else None
    if 1 not in axes:  # (C, O / groups, *kernel)
        return list(axes[0]) if 0 in axes and step.geometry.groups == len(weight) else None
    return [g * weight.shape[1] + k for g in range(step.geometry.groups) for k in axes[1]]


def _names(model: nn.Module, original: nn.Module) -> dict[str, str]:
    """The original's name for each of the cut network's parameters and buffers: `conv.weight` for the `conv.1.weight` of a
    convolution that was replaced by a padding and a convolution."""
    known, found = named_tensors(original), {}
    for name in named_tensors(model):
        *path, leaf = name.split(".")
        while path and ".".join([*path, leaf]) not in known:
            path.pop()
        old = ".".join([*path, leaf])
        found[name] = old if old in known else name
    return found
