"""EPruner's clustering of every prunable layer of a network, beside scikit-learn's on the same matrices.

    python benchmarks/affinity.py                                  # ResNet-152, random weights
    python benchmarks/affinity.py --quick                          # every tenth layer of it
    python benchmarks/affinity.py --weights resnet152.safetensors  # trained ones, or any network's:
    python benchmarks/affinity.py --weights resnet56.safetensors --layers 'conv1.weight$' --betas 0.5 0.6 0.76

Both get identical similarities and identical preferences. Columns of the table, all of them one process:

    kept      filters that stay, of all
    same      layers whose exemplars are exactly the same on both sides
    ours      seconds from similarities and medians to exemplars, which is what each step of a search for beta costs
    sklearn   seconds that scikit-learn takes for the same: a loop of AffinityPropagation.fit over the layers
    ratio     sklearn / ours
    + once    the ratio if medians and all else that is done once for all betas is counted too, on both sides
    + sim     the ratio if the similarities are counted too, on both sides (scikit-learn then computes its own)

Random weights say little about how many filters a trained network would keep: with the high-dimensional filters of a
ResNet-152 all distances are much alike, and everything happens between beta 0.9 and 1.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.cluster import AffinityPropagation
from sklearn.metrics import euclidean_distances
from torch import Tensor

from secateurs.methods.epruner import affinity, messages
from secateurs.methods.epruner.affinity import Affinities

T = TypeVar("T")


def filters(weights: Path | None, layers: str) -> list[Tensor]:
    """The filters of each layer whose weight's name matches, ``(filters, inputs * height * width)``."""
    if weights is not None:
        safe = weights.suffix == ".safetensors"
        state = load_file(weights) if safe else torch.load(weights, map_location="cpu", weights_only=True)
    else:
        from secateurs.zoo.vision import torchvision

        torch.manual_seed(0)
        state = torchvision().models.resnet152(weights=None).state_dict()
    found = [value.flatten(1) for name, value in state.items() if value.dim() == 4 and re.search(layers, name)]
    if not found:
        raise SystemExit(f"no convolution weight matches {layers!r}")
    return found


def timed(call: Callable[[], T], repeats: int = 1) -> tuple[float, T]:
    """The best of some repeats."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return best, result


def reference(similar: np.ndarray, own: np.ndarray) -> np.ndarray:
    model = AffinityPropagation(affinity="precomputed", random_state=0, preference=own)
    return np.asarray(model.fit(similar).cluster_centers_indices_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every tenth layer only")
    parser.add_argument("--weights", type=Path, help="a state dict: .safetensors, or what torch.load reads safely")
    parser.add_argument(
        "--layers", default=r"layer\d+\.\d+\.conv[12]\.weight$", help="which weights, a regular expression"
    )
    parser.add_argument("--betas", type=float, nargs="+", default=[0.7, 0.8, 0.9, 0.95, 1.0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many runs counts, on both sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # about layers that didn't converge, which the counts below show anyway

    points = filters(options.weights, options.layers)
    points = points[::10] if options.quick else points
    arrays = [x.numpy() for x in points]
    repeats = 1 if options.quick else options.repeats
    affinity.exemplars(affinity.similarity(torch.randn(1, 64, 9)), torch.full((1, 64), -9.0))  # start threads and pools

    similarity_ours, similar = timed(lambda: [affinity.similarity(x[None])[0] for x in points])
    similarity_theirs, _ = timed(lambda: [-euclidean_distances(x, squared=True) for x in arrays])
    all_ours, affinities = timed(lambda: Affinities(points))
    with messages.one_thread():  # as Affinities does it
        once_ours, _ = timed(lambda: [(affinity.medians(s), messages.Layer(s)) for s in similar], repeats)
    matrices = [s.numpy() for s in similar]
    once_theirs, _ = timed(lambda: [np.median(s, axis=0) for s in matrices], repeats)

    total = sum(map(len, points))
    print(f"{options.weights or 'torchvision resnet152, random weights'}: {len(points)} layers, {total} filters")
    print(f"once, ours:    similarities {similarity_ours:.3f} s, medians and noise {once_ours:.3f} s", end="")
    print(f" (Affinities(…) in all {all_ours:.3f} s)")
    print(f"once, sklearn: similarities {similarity_theirs:.3f} s, medians {once_theirs:.3f} s")
    print(f"{'beta':>5} {'kept':>13} {'same':>9} {'ours':>9} {'sklearn':>9} {'ratio':>7} {'+ once':>7} {'+ sim':>7}")
    differ = 0
    for beta in options.betas:
        own = [(beta * median).numpy() for median in affinities.medians]
        ours, found = timed(lambda beta=beta: affinities.exemplars(beta), repeats)  # type: ignore[misc]
        theirs, want = timed(lambda own=own: [reference(s, p) for s, p in zip(matrices, own, strict=True)], repeats)
        same = sum(np.array_equal(a.numpy(), b) for a, b in zip(found, want, strict=True))
        differ += len(points) - same
        with_once = (theirs + once_theirs) / (ours + once_ours)
        with_sim = (theirs + once_theirs + similarity_theirs) / (ours + once_ours + similarity_ours)
        kept = f"{sum(map(len, found))}/{total}"
        print(
            f"{beta:5.2f} {kept:>13} {f'{same}/{len(points)}':>9} {ours:8.4f}s {theirs:8.4f}s"
            f" {theirs / ours:6.1f}x {with_once:6.1f}x {with_sim:6.1f}x"
        )
    if differ:
        raise SystemExit(f"{differ} layers have other exemplars than scikit-learn's")


if __name__ == "__main__":
    main()
