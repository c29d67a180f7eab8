"""The stripe convolution beside the dense one: `python benchmarks/stripes.py [--quick] [--threads N]`.

Time over the dense float32 nn.Conv2d as a user has it, same process, each in turn, random stripes. The bars are the
method's own: what the whole is worth depends on what the kernels make of it. `chosen` is what `tune` would set.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from secateurs.stripes import StripeConv2d
from secateurs.stripes.kernels import KERNELS
from secateurs.stripes.tune import fastest, synchronise

SHAPES = [(128, 16, 1), (128, 16, 32), (64, 56, 1), (64, 56, 32)]
SHARES = [1.0, 0.75, 0.5, 0.25, 0.1]
BARS = {(1, 0.5): 0.60, (1, 0.25): 0.36, (1, 0.1): 0.20, (32, 0.5): 0.75, (32, 0.25): 0.45, (32, 0.1): 0.25}


def median(conv: nn.Conv2d, layer: StripeConv2d, x: Tensor, names: list[str], rounds: int) -> dict[str, float]:
    """Each kernel's time over nn.Conv2d's, and that of the tuned module."""
    runs = {"conv": lambda: conv(x), "chosen": lambda: layer(x)}
    for name in names:
        one = copy.deepcopy(layer)
        one.kernels = dict.fromkeys(layer.kernels, name)
        runs[name] = lambda one=one: one(x)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            synchronise(x)
            began = time.perf_counter()
            run()
            synchronise(x)
            if turn:
                times[name].append(time.perf_counter() - began)
    middle = {name: sorted(own)[len(own) // 2] for name, own in times.items()}
    return {name: t / middle["conv"] for name, t in middle.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape, three shares, few rounds")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    probe = torch.zeros(1, device=options.device, dtype=dtype)
    names = [name for name, kernel in KERNELS.items() if kernel.usable(probe)]
    table = Table(
        title=f"time over dense {options.dtype} nn.Conv2d, 3x3, {options.device}, {torch.get_num_threads()} threads"
    )
    for heading in ("channels", "size", "batch", "kept %", *names, "chosen", "bar", ""):
        table.add_column(heading, justify="right")
    for channels, size, batch in SHAPES[:1] if options.quick else SHAPES:
        for share in SHARES[2:] if options.quick else SHARES:
            torch.manual_seed(0)
            conv = nn.Conv2d(channels, channels, 3, options.stride, 1, bias=False, device=options.device, dtype=dtype)
            kept = torch.rand(channels, 3, 3) < share
            x = torch.randn(batch, channels, size, size, device=options.device, dtype=dtype)
            layer = StripeConv2d.of(conv, kept)
            rounds = 5 if options.quick else 41 if batch == 1 else 15
            with torch.no_grad():
                fastest(layer, x)
                ratios = median(conv, layer, x, names, rounds)
            bar = BARS.get((batch, share)) if options.device == "cpu" and options.stride == 1 else None
            verdict = "" if bar is None else "met" if ratios["chosen"] <= bar else "missed"
            figures = [f"{ratios[name]:.2f}" for name in (*names, "chosen")]
            row = (
                channels,
                f"{size}x{size}",
                batch,
                round(100 * share),
                *figures,
                "" if bar is None else f"{bar:.2f}",
                verdict,
            )
            table.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 110).print(table)


if __name__ == "__main__":
    main()
