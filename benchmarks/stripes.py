"""The stripe convolution beside the dense one: `python benchmarks/stripes.py [--quick] [--threads N] [--cpu-time]`.

Time over nn.Conv2d as a user has it, same process, each in turn, random stripes. `chosen` is what `tune` set, and bars
are what that must not exceed. `--network SPEC` measures a whole network of which every convolution keeps so many random
stripes, `--network FOLDER` an artifact beside the network that it was pruned from. `--overhead` measures one call on a tiny
input, where the module's own work in Python counts most.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from timing import in_turn
from torch import Tensor, nn

import secateurs as sc
from secateurs import artifact
from secateurs.artifact.provenance import rebuilt
from secateurs.stripes import StripeConv2d
from secateurs.stripes.kernels import KERNELS
from secateurs.stripes.module import size_of
from secateurs.stripes.tune import synchronize

SHAPES = [(128, 16, 1), (128, 16, 32), (64, 56, 1), (64, 56, 32)]
SHARES = [1.0, 0.75, 0.5, 0.25, 0.1]
BARS = {(1, 0.5): 0.60, (1, 0.25): 0.36, (1, 0.1): 0.20, (32, 0.5): 0.75, (32, 0.25): 0.45, (32, 0.1): 0.25}


def keep_memory() -> None:
    """What is freed stays with the process, where glibc can do that. Otherwise it is given back and taken anew, page by
    page, by whichever network or layer happens to come next."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_TRIM_THRESHOLD, 1 << 30)
        mallopt(_MMAP_THRESHOLD, 1 << 30)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def medians(
    runs: dict[str, Callable[[], object]], x: Tensor, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds of each, taken in turn."""

    def done(run: Callable[[], object]) -> Callable[[], None]:
        def whole() -> None:
            run()
            synchronize(x)  # a GPU answers before it is through

        return whole

    took = in_turn({name: done(run) for name, run in runs.items()}, rounds, clock)
    return {name: sorted(own)[len(own) // 2] for name, own in took.items()}


def layers(options: argparse.Namespace, clock: Callable[[], float]) -> Table:
    """Single convolutions."""
    dtype = getattr(torch, options.dtype)
    names = [n for n, k in KERNELS.items() if k.usable(torch.zeros(2, device=options.device, dtype=dtype))]
    table = Table(title=f"time over dense {options.dtype} nn.Conv2d, 3x3, {options.device}")
    for heading in ("channels", "size", "batch", "kept %", *names, "chosen", "bar", ""):
        table.add_column(heading, justify="right")
    for channels, size, batch in SHAPES[:1] if options.quick else SHAPES:
        for share in SHARES[2:] if options.quick else SHARES:
            torch.manual_seed(0)
            conv = nn.Conv2d(channels, channels, 3, options.stride, 1, bias=False, device=options.device, dtype=dtype)
            x = torch.randn(batch, channels, size, size, device=options.device, dtype=dtype)
            layer = StripeConv2d.of(conv, torch.rand(channels, 3, 3) < share)
            sc.tune(layer, x)
            rounds = 5 if options.quick else 101 if batch == 1 else 15
            ratios = []
            for name in (
                *names,
                layer.kernels[size_of(x)],
            ):  # each beside the dense one, so that all find the same caches
                if not KERNELS[name].usable(x):
                    ratios.append(float("nan"))
                    continue
                one = copy.deepcopy(layer)
                one.kernels = dict.fromkeys(layer.kernels, name)
                took = medians({"conv": partial(conv, x), name: partial(one, x)}, x, rounds, clock)
                ratios.append(took[name] / took["conv"])
            bar = BARS.get((batch, share)) if options.device == "cpu" and options.stride == 1 else None
            verdict = ["", ""] if bar is None else [f"{bar:.2f}", "met" if ratios[-1] <= bar else "missed"]
            row = (
                channels,
                f"{size}x{size}",
                batch,
                round(100 * share),
                *("" if r != r else f"{r:.2f}" for r in ratios),
                *verdict,
            )
            table.add_row(*map(str, row))
    return table


def overhead(options: argparse.Namespace, clock: Callable[[], float]) -> Table:
    """Microseconds of a call, without a choice of kernels: the dense convolution."""
    dtype = getattr(torch, options.dtype)
    conv = nn.Conv2d(4, 4, 3, padding=1, device=options.device, dtype=dtype).eval()
    layer = StripeConv2d.of(conv, torch.rand(4, 3, 3) < 0.5)
    x = torch.randn(1, 4, 4, 4, device=options.device, dtype=dtype)
    calls = 200 if options.quick else 2000
    runs = {name: partial(_repeated, module, x, calls) for name, module in (("conv", conv), ("stripes", layer))}
    took = medians(runs, x, 5 if options.quick else 51, clock)
    table = Table("nn.Conv2d, µs", "StripeConv2d, µs", "ratio", title=f"a call on a tiny input, {options.device}")
    each = [1e6 * t / calls for t in took.values()]
    table.add_row(*(f"{t:.2f}" for t in each), f"{each[1] / each[0]:.3f}")
    return table


def _repeated(module: nn.Module, x: Tensor, calls: int) -> None:
    for _ in range(calls):
        module(x)


def random_stripes(dense: nn.Module, share: float) -> nn.Module:
    """Each convolution wider than 1x1 with this share of its stripes."""
    torch.manual_seed(0)
    small = copy.deepcopy(dense)
    for name, conv in list(small.named_modules()):
        if isinstance(conv, nn.Conv2d) and conv.groups == 1 and conv.kernel_size != (1, 1):
            path, _, leaf = name.rpartition(".")
            kept = torch.rand(conv.weight.shape[:1] + conv.kernel_size) < share
            setattr(small.get_submodule(path), leaf, StripeConv2d.of(conv, kept))
    return small


def network(options: argparse.Namespace, clock: Callable[[], float]) -> Table:
    """A whole network, tuned, over the dense one as it comes, and over the dense one in channels_last."""
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {}
    if Path(options.network).is_dir():
        source = artifact.read(options.network)[1].get("source")
        if source is None:
            raise SystemExit(f"{options.network} does not know what network it came from: no spec is on its card.")
        pairs["as pruned"] = rebuilt(source), sc.load(options.network)
    else:
        dense = sc.build(options.network)
        pairs = {f"{share:.0%}, random": (dense, random_stripes(dense, share)) for share in SHARES[2:]}
    table = Table(title=f"{options.network}, {options.device}")
    for heading in ("stripes", "batch", "MACs", "ms dense", "ms", "time", "speed-up over 1/MACs", "over channels_last"):
        table.add_column(heading, justify="right")
    for label, (dense, small) in pairs.items():
        dense, small = dense.eval().to(options.device), small.eval().to(options.device)
        last = copy.deepcopy(dense).to(memory_format=torch.channels_last)
        for batch in (1, 32):
            x = torch.randn(batch, 3, options.size, options.size, device=options.device)
            sc.tune(small, x)
            macs = sc.count(small, x).macs / sc.count(dense, x).macs
            runs = {"dense": partial(dense, x), "small": partial(small, x)}
            rounds = 5 if options.quick else 101 if batch == 1 else 25
            took = medians(runs, x, rounds, clock)
            runs["dense"] = partial(last, x.contiguous(memory_format=torch.channels_last))
            other = medians(runs, x, rounds, clock)
            ratio, beside = took["small"] / took["dense"], other["small"] / other["dense"]
            times = (f"{1000 * took['dense']:.2f}", f"{1000 * took['small']:.2f}", f"{ratio:.3f}")
            table.add_row(label, str(batch), f"{macs:.3f}", *times, f"{macs / ratio:.0%}", f"{beside:.3f}")
    return table


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape, three shares, few rounds")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--cpu-time", action="store_true", help="of this thread, where others keep the machine busy")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--network", help="a model's spec (zoo:vgg16) or an artifact, instead of single layers")
    parser.add_argument("--size", type=int, default=32, help="of the network's images")
    parser.add_argument("--overhead", action="store_true", help="a call on a tiny input, instead of layers")
    options = parser.parse_args()
    if options.threads or options.cpu_time:
        torch.set_num_threads(options.threads or 1)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    keep_memory()
    measure = network if options.network else overhead if options.overhead else layers
    table = measure(options, clock)
    table.caption = f"{torch.get_num_threads()} threads"
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
