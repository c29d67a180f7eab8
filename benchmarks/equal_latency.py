"""Accuracy at equal measured time: a budget of time beside a budget of MACs in multiples of eight.

    python benchmarks/equal_latency.py --network resnet56 --weights resnet56.safetensors --data folder:/data/cifar10 --threads 1
    python benchmarks/equal_latency.py --quick                 # ResNet-20, random weights and images: only to see that it runs

A method cuts the network to a fraction of its time on a target, and the network recovers. Then the MACs are searched at which
the same method in multiples of eight (`align=8`) takes as long or a little longer, as `sc.bench` measures both, and
that network recovers alike. Cells that are in `--out` already are not run again.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from accuracy import NORMALIZATIONS, loaded
from rich.console import Console
from rich.table import Table
from timing import Cells, add_clock, set_clock

import secateurs as sc
from secateurs.devices import processor
from secateurs.errors import BudgetError

KEY = ("network", "method", "target", "batch", "latency", "scope", "images", "epochs", "seed")
NEAR = 0.01  # of the time: so much longer may the network with fewer MACs take
HALVINGS = 8
COLUMNS = (
    "network",
    "method",
    "target",
    "batch",
    "seed",
    "budget",
    "time",
    "MACs",
    "params",
    "calibrated",
    "recovered",
)


def main() -> None:
    options, clock = arguments()
    torch.set_num_threads(options.threads)
    cells = Cells(options.out)
    table = Table(*COLUMNS)
    for target in options.target or ["torch-cpu", "onnxruntime"]:
        for seed in range(options.seeds):
            cell = {name: {**vars(options), "target": target, "seed": seed}[name] for name in KEY}
            found = cells.get(cell, lambda pair=(options, target, seed): {"rows": Pair(*pair).run()})
            for row in found["rows"]:
                figures = [f"{row[name]:.2f}" for name in ("time", "macs", "params")]
                figures += [f"{row[name]:.1f}" for name in ("calibrated", "recovered")]
                table.add_row(
                    *(str(found[name]) for name in ("network", "method", "target", "batch", "seed")),
                    row["budget"],
                    *figures,
                )
    console = Console(width=140)
    console.print(table)
    console.print(
        f"Time, MACs and parameters over the original's; top-1. {processor()}, {options.threads} threads, PyTorch "
        f"{torch.__version__}, {clock}; {options.images:,} training images, {options.epochs:g} epochs."
    )


class Pair:
    """One network, method and target, cut in both ways."""

    def __init__(self, options: argparse.Namespace, target: str, seed: int) -> None:
        self.options, self.seed = options, seed
        torch.manual_seed(seed)
        weights = None if options.quick else options.weights
        self.model = sc.build(f"zoo:{options.network}", weights, num_classes=10).eval()
        normalize = NORMALIZATIONS.get(options.network, "imagenet")
        self.data = random() if options.quick else loaded(options.data, normalize, 128, options.images, options.test)
        self.inputs = next(iter(self.data.val))[0][:1]
        self.target = sc.Target(target, batch=options.batch, threads=options.threads)

    def run(self) -> list[dict[str, Any]]:
        """The figures of the network with the budget of time, and of that with the budget of MACs."""
        timed = self._recovered(sc.Budget(latency=self.options.latency, target=self.target))
        low, high, found = 0.02, 1.0, sc.Budget(macs=1.0, align=8)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            budget = sc.Budget(macs=middle, align=8)
            try:
                time = self._time(self._cut(budget))
            except BudgetError:  # below what multiples of eight allow
                low = middle
                continue
            if time < timed["time"]:
                low = middle
                continue
            high, found = middle, budget
            if time <= timed["time"] * (1 + NEAR):
                break
        return [timed, self._recovered(found)]

    def _cut(self, budget: sc.Budget, recover: sc.Recover | None = None) -> sc.Result:
        """Without recovery, nothing but the cut: its time is all that counts."""
        data = sc.Data(train=self.data.train) if recover is None else self.data
        return sc.prune(
            self.model, self.inputs, self.options.method, budget, data, recover, seed=self.seed, scope=self.options.scope,
            calibrate=recover is not None, check_speed=False, progress="silent",
        )  # fmt: skip

    def _time(self, result: sc.Result) -> float:
        """Over the original's."""
        return 1 / sc.bench(self.model, result.model, self.inputs, self.target, seconds=self.options.seconds).speedup

    def _recovered(self, budget: sc.Budget) -> dict[str, Any]:
        result = self._cut(budget, sc.Recover(epochs=self.options.epochs))
        assert result.calibrated is not None
        return {
            "budget": f"latency={budget.latency:g}" if budget.macs is None else f"macs={budget.macs:.3f}, align=8",
            "time": self._time(result), "macs": result.after.macs / result.before.macs,
            "params": result.after.params / result.before.params,
            "calibrated": result.calibrated.top1, "recovered": result.after.top1,
        }  # fmt: skip


def random() -> sc.Data:
    images, targets = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    return sc.Data(train=[(images, targets)], val=[(images, targets)])


def arguments() -> tuple[argparse.Namespace, str]:
    """The options, and what to call the clock."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--network", default="resnet56", help="of the zoo")
    add("--weights", type=Path, help="of that network")
    add("--data", help="folder:PATH with CIFAR-10")
    add("--method", default="l2")
    add("--latency", type=float, default=0.5)
    add("--target", action="append")
    add("--scope", choices=("internal", "all"), default="all")
    add("--batch", type=int, default=32)
    add("--images", type=int, default=10_000, help="training images, evenly from all classes")
    add("--test", type=int, default=10_000, help="test images")
    add("--epochs", type=float, default=1.0, help="of recovery")
    add("--seeds", type=int, default=1)
    add("--threads", type=int, default=torch.get_num_threads())
    add("--seconds", type=float, default=2.0, help="for what sc.bench measures")
    add_clock(parser)
    add("--out", type=Path, help="a file with a line of JSON for each cell")
    add("--quick", action="store_true")
    options = parser.parse_args()
    clock = set_clock(parser, options)
    if options.quick:
        options.network, options.target, options.seconds, options.images = "resnet20", ["torch-cpu"], 0.2, 64
    elif options.weights is None or options.data is None:
        parser.error("--weights and --data are needed, or --quick")
    return options, clock


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
