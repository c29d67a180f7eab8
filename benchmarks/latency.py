"""Budgets of time: networks cut by ℓ2 to a fraction of their time on a target, and the fraction that `sc.bench` then measures.

    python benchmarks/latency.py --quick
    python benchmarks/latency.py --threads 1 --batch 1 --batch 32 --out results/latency.jsonl

One line for each network, target and batch size: what was asked for, what `prune` and what `sc.bench` measured, the error of
the latency model on cuts that it was not fitted to, the widths that the target likes, the MACs that are left, and the time of a
cut to the same MACs without a latency model. Cells that are in `--out` already are not run again.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import Cells, add_clock, set_clock

import secateurs as sc
from secateurs.devices import processor
from secateurs.errors import SecateursError

NETWORKS = ("torchvision:vgg16_bn", "torchvision:resnet50", "torchvision:mobilenet_v2", "torchvision:densenet121")
TARGETS = ("torch-cpu", "onnxruntime")
KEY = ("network", "target", "batch", "latency", "size", "scope")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ResNet-20 at 32 pixels in PyTorch")
    parser.add_argument("--network", action="append")
    parser.add_argument("--target", action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--scope", choices=("internal", "all"), default="all")
    parser.add_argument("--size", type=int, default=160, help="pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="for what sc.bench measures")
    add_clock(parser)
    parser.add_argument("--out", type=Path, help="a file with a line of JSON for each cell")
    options = parser.parse_args()
    clock = set_clock(parser, options)
    if options.quick:
        options.network, options.target, options.size, options.seconds = ["zoo:resnet20"], ["torch-cpu"], 32, 0.2
    cells = Cells(options.out)
    console = Console(width=140)
    table = Table(
        "network", "target", "batch", "asked", "prune", "bench", "model", "liked", "MACs", "same MACs, align 1"
    )
    for name in options.network or NETWORKS:
        for target in options.target or TARGETS:
            for batch in options.batch or [1]:
                cell = dict(zip(KEY, (name, target, batch, options.latency, options.size, options.scope), strict=True))
                found = cells.get(cell, partial(run, cell, options.threads, options.seconds, console))
                table.add_row(*row(found))
                console.print(*row(found))
    console.print(table)
    console.print(
        f"Time over the original's. {processor()}, {options.threads} threads, {options.size} pixels, PyTorch "
        f"{torch.__version__}, {clock}."
    )


def run(cell: dict[str, Any], threads: int, seconds: float, console: Console) -> dict[str, Any]:
    torch.manual_seed(0)
    model, inputs = sc.build(cell["network"]).eval(), torch.randn(1, 3, cell["size"], cell["size"])
    where = sc.Target(cell["target"], batch=cell["batch"], threads=threads)
    began = time.time()
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        console.print(f"  {time.time() - began:5.0f} s  {line}", style="dim", highlight=False)

    try:
        result = sc.prune(
            model, inputs, "l2", sc.Budget(latency=cell["latency"], target=where), scope=cell["scope"], report=report
        )
    except SecateursError as error:
        return {"error": str(error)}
    assert result.latency is not None
    plain = sc.prune(
        model, inputs, "l2", sc.Budget(macs=result.after.macs), scope=cell["scope"], check_speed=False
    ).model
    measured = [1 / sc.bench(model, small, inputs, where, seconds=seconds).speedup for small in (result.model, plain)]
    liked = next((line for line in lines if "multiples of" in line), "")
    return {
        "prune": result.latency.ratio, "bench": measured[0], "plain": measured[1], "noise": result.latency.noise,
        "error_of_model": result.latency.model_error, "cuts": result.latency.cuts, "tries": result.latency.tries,
        "macs": result.after.macs / result.before.macs, "seconds": round(time.time() - began),
        "liked": int(liked.rpartition("multiples of ")[2].split()[0]) if liked else None,
    }  # fmt: skip


def row(found: dict[str, Any]) -> list[str]:
    head = [found["network"], found["target"], str(found["batch"]), f"{found['latency']:.2f}"]
    if "error" in found:
        return [*head, found["error"]]
    liked = "-" if found["liked"] is None else str(found["liked"])
    return [
        *head, f"{found['prune']:.3f}", f"{found['bench']:.3f}", f"{found['error_of_model']:.1%} ({found['cuts']})", liked,
        f"{found['macs']:.2f}", f"{found['plain']:.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
