"""What fewer MACs are worth in time: networks cut by ℓ2 to a share of their MACs, at several alignments, on every runtime that
is installed; and what `deploy` adds in PyTorch.

    python benchmarks/speed.py --quick
    python benchmarks/speed.py --threads 1 --batch 1 --batch 32
"""

from __future__ import annotations

import argparse
import warnings

import torch
from rich.console import Console
from rich.table import Table

import secateurs as sc
from secateurs.deploy import Target, deployed
from secateurs.devices import processor

NETWORKS = ("torchvision:vgg16_bn", "torchvision:resnet50", "torchvision:mobilenet_v2", "torchvision:densenet121")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="ResNet-20 at 32 pixels, a tenth of a second for each figure"
    )
    parser.add_argument("--network", action="append")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--align", type=int, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--size", type=int, default=160, help="pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    options = parser.parse_args()
    if options.quick:
        options.network, options.align, options.size, options.seconds = ["zoo:resnet20"], [1, 4], 32, 0.1
    targets = Target.installed(options.threads)
    batches, console = options.batch or [1], Console(width=160)
    table = Table(
        "network", "align", "MACs", *(f"{t.runtime}, batch {b}" for t in targets for b in batches), "deployed, PyTorch"
    )
    for name in options.network or NETWORKS:
        torch.manual_seed(0)
        model, inputs = sc.build(name).eval(), torch.randn(1, 3, options.size, options.size)
        for align in options.align or [1, 8, 32]:
            small = sc.prune(model, inputs, "l2", sc.Budget(macs=options.macs, align=align), scope="all").model
            found = sc.bench(model, small, inputs, targets, batches=batches, seconds=options.seconds)
            plain = Target("torch-cpu", threads=options.threads)
            fast = sc.bench(model, deployed(small, inputs), inputs, plain, batches=batches[:1], seconds=options.seconds)
            share = found.pruned.macs / found.original.macs
            times = [f"{1 / row.speedup:.2f}" for row in found.rows]
            row = (name, str(align), f"{share:.2f}", *times, f"{1 / fast.speedup:.2f}")
            table.add_row(*row)
            console.print(*row)  # large networks take minutes
    console.print(table)
    where = f"{processor()}, {options.threads} threads, {options.size} pixels, PyTorch {torch.__version__}"
    console.print(f"Time of the cut network over the original's. {where}.")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
