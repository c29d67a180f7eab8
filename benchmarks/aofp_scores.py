"""What AOFP's scores are worth: their rank correlation with exact damage, by the number of batches in a search step.

Exact damage of a filter, over all batches: *alone*, eq. 7 with this filter ablated and no other; *marginal*, how much more
damage random halves of the layer do with it than without it, which is what a search step estimates. ResNet-20's inner
layers are compared before the addition, with no non-linearity between, so both follow from the inner products of the
channels' contributions.

A search step sees some batches in train mode. "one half per batch": all images ablate the same filters, as in the paper.
"one half per image": the default. Spearman's correlation, mean over layers and over search steps.

    python benchmarks/aofp_scores.py --weights resnet20.safetensors --data folder:cifar10
    python benchmarks/aofp_scores.py --quick    # random weights and images, few batches
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import secateurs as sc
from secateurs.data.load import load
from secateurs.methods.aofp import BinaryFilterSearch, Damage, Halves

Array = np.ndarray


def batches(data: str | None, count: int, rows: int) -> list[Tensor]:
    if data is None:
        g = torch.Generator().manual_seed(0)
        colors = torch.randn(count, rows, 3, 4, 4, generator=g)
        return list(torch.nn.functional.interpolate(colors.flatten(0, 1), 32, mode="bilinear").split(rows))
    found = load(data, batch_size=rows).train
    return [x for (x, _), _ in zip(found, range(count), strict=False)]


def exact(model: Any, groups: list[Any], x: list[Tensor]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Exact damage of each filter of each layer, alone and marginal: {name: (size,)}."""
    products = {g.name: np.zeros((g.size, g.size)) for g in groups}
    layers = {s.module: g.name for g in groups for s in g.slots if s.consumes}

    def watch(name: str, norm: Any) -> Any:
        def hook(conv: Any, args: Any, y: Tensor) -> None:
            factor = norm.weight / (y.var((0, 2, 3), unbiased=False) + norm.eps).sqrt()  # (O,)
            z = torch.nn.functional.batch_norm(y, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
            for i in range(0, len(y), 16):
                inputs, w = args[0][i : i + 16], conv.weight * factor.view(-1, 1, 1, 1)
                parts = [
                    conv._conv_forward(inputs[:, j : j + 1], w[:, j : j + 1], None).flatten(1)
                    for j in range(w.shape[1])
                ]
                c = torch.stack(parts, 1)  # (rows, C, values): what each channel contributes to z
                size = z[i : i + 16].flatten(1).square().sum(1).view(-1, 1, 1)
                products[name] += ((c @ c.transpose(1, 2)) / size).sum(0).double().numpy()

        return hook

    handles = [
        model.get_submodule(layer).register_forward_hook(
            watch(name, model.get_submodule(layer.replace("conv2", "bn2")))
        )
        for layer, name in layers.items()
    ]
    for batch in x:
        model(batch)
    for handle in handles:
        handle.remove()
    # The damage of a set of filters is the sum of their products; a filter adds, to a random half of the others, its own
    # product and twice half of those with the others.
    return {n: np.diag(p) for n, p in products.items()}, {n: p.sum(1) for n, p in products.items()}


def scores(model: Any, groups: list[Any], x: list[Tensor], kind: str, seed: int) -> dict[str, Array]:
    """T̂ of one search step over these batches."""
    searches = {g.name: BinaryFilterSearch(g.size, len(x)) for g in groups}
    generator = torch.Generator().manual_seed(seed)
    with Damage(model, groups, x[0][:1]) as damage:
        for step, batch in enumerate(x):
            if kind == "image":
                halves = {
                    n: Halves(s.space, s.half, seed * 10_000 + step * 100 + i)
                    for i, (n, s) in enumerate(searches.items())
                }
                damage.ablate(halves)
                model(batch)
                for name, (sums, counts) in damage.samples().items():
                    searches[name].add(sums, counts, len(batch) // 2)
            else:
                drawn = {n: s.draw(generator) for n, s in searches.items()}
                damage.ablate(drawn)
                model(batch)
                for name, t in damage.take().items():
                    searches[name].record(drawn[name], t)
    found = {name: s.means() for name, s in searches.items()}
    # A filter that was never ablated has no score; it ranks last.
    return {n: np.where(np.isfinite(t), t, 1e9) for n, t in found.items()}


def ranks(values: Array) -> Array:
    """Ranks, equal values sharing theirs."""
    _, at, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[at]


def correlation(a: Array, b: Array) -> float:
    if len(np.unique(a)) == 1:
        return 0.0
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", help="ResNet-20's weights; default: random")
    parser.add_argument("--data", help="for example folder:cifar10; default: random images")
    parser.add_argument("--batches", type=int, default=8, help="that exact damage is measured on")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="2 batches of 32, search steps of 1 and 2 batches")
    args = parser.parse_args()
    count, rows = (2, 32) if args.quick else (args.batches, args.rows)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sc.build("zoo:resnet20", num_classes=10, weights=args.weights).train()
    x = batches(args.data, count, rows)
    groups = [g for g in sc.trace(model, x[0][:1]).groups if g.prunable and g.internal]
    alone, marginal = exact(model, groups, x)
    table = Table(
        "batches", "a half for each", "alone", "marginal", "by layer", title="rank correlation with exact damage"
    )
    for phi in (1, 2) if args.quick else (1, 2, 4, 7):
        for kind in ("batch", "image"):
            found: dict[str, list[list[float]]] = {"alone": [], "marginal": []}
            for first in range(0, count - phi + 1, max(phi, 2)):
                t = scores(model, groups, x[first : first + phi], kind, seed=first)
                found["alone"].append([correlation(t[g.name], alone[g.name]) for g in groups])
                found["marginal"].append([correlation(t[g.name], marginal[g.name]) for g in groups])
            a, m = (np.mean(found[what], axis=0) for what in ("alone", "marginal"))
            table.add_row(str(phi), kind, f"{a.mean():.2f}", f"{m.mean():.2f}", f"{m.min():.2f} to {m.max():.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
