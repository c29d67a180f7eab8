"""Every classification CNN of torchvision: traced, cut at random to 60% of its channels, masked ≡ sliced.

Also checks that the cost from the graph is FlopCounterMode's to the digit, whole and cut, and with `--memory` compares
the peak memory of a trace with that of a forward pass (a process for each).

    python benchmarks/zoo.py
    python benchmarks/zoo.py --quick
    python benchmarks/zoo.py --memory resnet152
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
import warnings

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import secateurs as sc
from secateurs.zoo.vision import torchvision

QUICK = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"]
TRANSFORMERS = ("vit", "swin", "maxvit")


def networks() -> list[str]:
    models = torchvision().models
    return [n for n in models.list_models(models) if not n.startswith(TRANSFORMERS)]


def example(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network whose every parameter matters: random batch-norm statistics, layer scales far from zero."""
    torch.manual_seed(0)
    model = torchvision().models.get_model(name, weights=None).eval()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(m.running_mean, 0, 0.1)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.1)
    for key, p in model.named_parameters():
        if key.endswith("layer_scale"):
            nn.init.uniform_(p, 0.5, 1.5)
    size = 299 if name == "inception_v3" else 224
    return model, torch.randn(1, 3, size, size)


def peak(name: str, what: str) -> tuple[int, int]:
    """Peak memory in bytes of a fresh process that traces a network, or runs it; and by how much that made it grow."""
    code = f"""
import resource, torch
from benchmarks.zoo import example
import secateurs as sc
torch.set_num_threads(1)
small, y = example("resnet18")
sc.trace(small, y)
with torch.no_grad(): small(y)
model, x = example({name!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if {what!r} == "trace": sc.trace(model, x)
else:
    with torch.no_grad(): model(x)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after, after - before)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    unit = 1024 if sys.platform == "linux" else 1
    total, growth = (int(n) * unit for n in run.stdout.split())
    return total, growth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--memory", action="store_true", help="peak memory instead")
    parser.add_argument("networks", nargs="*")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    console = Console()
    names = args.networks or (QUICK if args.quick else networks())
    if args.memory:
        table = Table("network", "forward MB", "trace MB", "beyond the loaded network: forward", "trace")
        for name in names:
            (run, run_growth), (traced, trace_growth) = peak(name, "forward"), peak(name, "trace")
            table.add_row(name, *(f"{n / 1e6:.0f}" for n in (run, traced, run_growth, trace_growth)))
        console.print(table)
        return
    table = Table("network", "trace ms", "channels", "prunable", "MACs left", "relative error", "cost exact")
    worst = 0.0
    for name in names:
        model, x = example(name)
        start = time.perf_counter()
        graph = sc.trace(model, x)
        seconds = time.perf_counter() - start
        draw = np.random.default_rng(0)
        keep = {
            g.name: draw.permutation(g.size)[: max(1, round(0.6 * g.size))].tolist() for g in graph.groups if g.prunable
        }
        plan = graph.plan(keep)
        error = sc.verify(model, plan, x)
        cut = graph.cost({n: len(k) for n, k in keep.items()})
        exact = sc.count(model, x) == graph.cost() and sc.count(sc.apply(model, plan), x) == cut
        worst = max(worst, error)
        total, free = sum(g.size for g in graph.groups), sum(g.size for g in graph.groups if g.prunable)
        table.add_row(
            name, f"{seconds * 1e3:.0f}", f"{total}", f"{free}", f"{cut.macs / graph.cost().macs:.0%}", f"{error:.0e}",
            "yes" if exact else "NO",
        )  # fmt: skip
        console.print(f"{name}: {error:.1e}{'' if exact else ', cost differs'}")
    console.print(table)
    console.print(f"{len(names)} networks, worst relative error {worst:.1e}, peak {_peak_gb():.1f} GB")


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
