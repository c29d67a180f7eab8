"""Accuracy at equal compute: methods × budgets × recoveries × seeds, each with the same compute in all.

The unit is a training pass over the images through the uncut network, 3 · MACs · images; every cell gets `--epochs` of them.
A method that trains spends its default share (`Taught.share`) on its search, counted as it runs (benchmarks/compute.py);
`--search`, or `--method "onestep search=0.1"`, sets another one. The rest goes to recovery, where an epoch costs the cut
network's share of the MACs, and a third of a pass more if a teacher runs along.
`--unit steps` counts an epoch of the cut network as one pass, whatever its size.

A cell is saved in OUT when it is done, so a run that was stopped resumes with the next cell. `--show` prints the table of the
cells that are done.

    python benchmarks/accuracy.py --weights resnet20.safetensors --data folder:/data/cifar10 --images 10000 --out runs/accuracy
    python benchmarks/accuracy.py … --method "aofp theta=0.02" --macs 0.5 --recovery finetune --recovery "finetune lr=0.05"
    python benchmarks/accuracy.py … --quick        # 512 images, one pass: only to see that it runs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compute import SearchCost, recovery_cost, search_cost
from rich.console import Console

import secateurs as sc
from secateurs import data, report
from secateurs.data.loader import ArraySource
from secateurs.files import write_whole
from secateurs.methods import Method, TrainingMethod, resolve
from secateurs.methods.pruner import Taught
from secateurs.recovery import MODES
from secateurs.training import Phase, Recipe

METHODS = ("l2", "aofp", "npn", "pff", "onestep", "epruner")
NORMALIZATIONS = {"vgg16": "cifar10"}  # of the checkpoints; the others have ImageNet's
COLUMNS = ("after the cut", "calibrated", "recovered", "narrowest", "MACs", "passes")


@dataclass(frozen=True)
class Cell:
    """What is measured once. method, recovery: as given, with their settings."""

    method: str
    macs: float
    recovery: str
    seed: int


def settings(words: list[str]) -> dict[str, Any]:
    """`key=value` each; values are JSON where they can be."""
    found = {}
    for word in words:
        key, mark, value = word.partition("=")
        if not mark:
            raise SystemExit(f"{word!r} is not a setting: write key=value.")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def configured(text: str, **more: Any) -> Method:
    """`pff penalty=group-lasso`, or a preset by its name, `aofp preset=paper`."""
    name, *words = text.split()
    given = {key: value for key, value in settings(words).items() if key != "search"} | more
    preset = given.pop("preset", None)
    return resolve(name, **given) if preset is None else type(resolve(name)).preset(preset, **given)


def recipes(text: str, passes: float, macs: float, images: int) -> list[Phase]:
    """`reconstruct + finetune lr=0.05`: phases of recovery, which share these passes; those that train do so evenly."""
    found: list[Phase] = []
    for phase in text.split("+") if text != "none" else []:
        mode, *words = phase.split()
        kind = sc.Reconstruct if mode == sc.Reconstruct.mode else MODES[mode]
        found.append(kind(**settings(words)))
    trained = [phase for phase in found if isinstance(phase, Recipe)]
    left = max(0.0, passes - sum(recovery_cost(phase, macs, images) for phase in found if phase not in trained))
    for i, phase in enumerate(found):
        if isinstance(phase, Recipe):
            epochs = left / len(trained) / recovery_cost(phase, macs, images)
            found[i] = phase.model_copy(update={"epochs": epochs})
    return found


class Accuracy:
    """All cells of one network on one data set."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.out
        self.folder.mkdir(parents=True, exist_ok=True)
        self.costs: dict[tuple[str, float], SearchCost] = {}
        self.model = sc.build(f"zoo:{args.network}", args.weights, num_classes=10).eval()
        normalize = args.normalize or NORMALIZATIONS.get(args.network, "imagenet")
        self.found = data.load(args.data, normalize=normalize, batch_size=args.batch_size)
        self.found.train.source = part(self.found.train.source, args.images)
        self.found.val.source = part(self.found.val.source, args.test)
        self.inputs = next(iter(self.found.val))[0][:1]

    def data(self, seed: int) -> sc.Data:
        """From the first epoch on."""
        self.found.train.seed = seed
        self.found.train.set_epoch(0)
        return self.found

    def cost(self, text: str, macs: float) -> SearchCost:
        """Of a method's search; it does not depend on the seed."""
        if (text, macs) not in self.costs:
            train = self.data(0).train
            self.costs[text, macs] = search_cost(
                self.model, self.inputs, configured(text), sc.Budget(macs=macs), train, 0
            )
        return self.costs[text, macs]

    def run(self, cell: Cell) -> dict[str, Any]:
        """Everything that is known about a cell."""
        cost, images, total = self.cost(cell.method, cell.macs), len(self.found.train.source), self.args.epochs
        once, searching = cost.once / images, isinstance(configured(cell.method), TrainingMethod)
        share = self.share(cell)
        epochs = share * total / cost.epoch if searching else 0.0
        method = configured(cell.method, **({"epochs": epochs} if searching else {}))
        width = cell.macs if self.args.unit == "macs" else 1.0
        left = total - once - epochs * cost.epoch
        recovery = recipes(cell.recovery, left, width, images)
        began, cpu = time.perf_counter(), time.process_time()
        result = sc.prune(
            self.model, self.inputs, method, sc.Budget(macs=cell.macs), self.data(cell.seed), recovery or None,
            seed=cell.seed, progress="lines" if self.args.verbose else "silent",
        )  # fmt: skip
        groups = {g.name: g.size for g in sc.trace(self.model, self.inputs).groups}
        narrowest = min((len(kept) / groups[name] for name, kept in result.plan.groups.items()), default=1.0)
        cut = next(
            i for i, line in enumerate([*result.history, {"event": "calibrated"}]) if line.get("event") == "calibrated"
        )
        searched = max((line["step"] for line in result.history[:cut] if "train_loss" in line and searching), default=0)
        return {
            "before": result.before.top1,
            "after the cut": result.cut.top1,
            "calibrated": result.calibrated.top1,
            "recovered": result.after.top1,
            "narrowest": 100 * narrowest,
            "MACs": 100 * result.after.macs / result.before.macs,
            "passes": once
            + epochs * cost.epoch
            + sum(getattr(phase, "epochs", 1) * recovery_cost(phase, width, images) for phase in recovery),
            "search": {"epoch": cost.epoch, "once": once, "epochs": epochs, "steps": searched},
            "recovery": [
                {"mode": phase.mode, **phase.model_dump(mode="json", exclude_unset=True)} for phase in recovery
            ],
            "seconds": time.perf_counter() - began,
            "cpu": time.process_time() - cpu,
        }

    def share(self, cell: Cell) -> float:
        """Of the compute, what the search gets."""
        method, given = configured(cell.method), self.args.search
        usual = method.share if isinstance(method, Taught) and given is None else given
        return float(settings(cell.method.split()[1:]).get("search", usual or 0.0))

    # -- cells in files -----------------------------------------------------------------------------------------------

    def settings(self, cell: Cell) -> dict[str, Any]:
        """What a cell's figures depend on."""
        a = self.args
        return {
            "network": a.network, "images": a.images, "test": a.test, "epochs": a.epochs, "search": self.share(cell),
            "unit": a.unit, "batch_size": a.batch_size, **vars(cell),
        }  # fmt: skip

    def file(self, cell: Cell) -> Path:
        text = json.dumps(self.settings(cell), sort_keys=True)
        name = re.sub(r"[^\w.=-]+", "-", f"{self.args.network}-{cell.method}-{cell.macs:g}-{cell.recovery}-{cell.seed}")
        return self.folder / f"{name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self.file(cell).read_text())["figures"])
        except FileNotFoundError:
            return None

    def keep(self, cell: Cell, figures: dict[str, Any]) -> None:
        versions = {"secateurs": sc.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
        body = {"settings": self.settings(cell), "figures": figures, "versions": versions}
        write_whole(self.file(cell), json.dumps(body, indent=1))

    def table(self, cells: list[Cell]) -> None:
        """Mean ± standard deviation over seeds, of the cells that are done."""
        rows = report.table("method", "MACs ≤", "recovery", "seeds", *COLUMNS, left=3)
        several: dict[tuple[float, str, str], list[dict[str, Any]]] = {}
        for cell in cells:
            if (figures := self.read(cell)) is not None:
                several.setdefault((cell.macs, cell.method, cell.recovery), []).append(figures)
        for (macs, method, recovery), found in several.items():
            columns = [spread([f[name] for f in found], 2 if name == "passes" else 1) for name in COLUMNS]
            rows.add_row(method, f"{macs:g}", recovery, str(len(found)), *columns)
        console = Console(width=max(120, Console().width))
        console.print(rows)
        if several:
            before = next(iter(several.values()))[0]["before"]
            a = self.args
            console.print(
                f"{a.network}, {a.images:,} training images, {a.test:,} test images, before the cut {before:.1f}; "
                f"{a.epochs:g} passes each, epochs of the cut network counted by {a.unit}. top-1 %; narrowest: % of its width."
            )


def part(source: ArraySource, count: int) -> ArraySource:
    """Evenly spaced images, held in memory: as many of each class, as a folder is sorted by class."""
    index = torch.linspace(0, len(source) - 1, min(count, len(source))).long()
    return ArraySource(source.images[index].clone(), source.targets[index], device=source.images.device)


def spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """The first seed of everything comes first."""
    for seed in range(args.seeds):
        for macs in args.macs:
            for method in args.method:
                for recovery in args.recovery:
                    yield Cell(method, macs, recovery, seed)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--network", default="resnet20", help="of the zoo: resnet20, resnet56, vgg16 …")
    add("--weights", required=True, type=Path, help="of that network")
    add("--data", required=True, help="folder:PATH with CIFAR-10")
    add("--normalize", help="of the images, as the weights were trained (default: cifar10 for vgg16, else imagenet)")
    add("--images", type=int, default=10_000, help="training images, evenly from all classes")
    add("--test", type=int, default=10_000, help="test images")
    add("--batch-size", type=int, default=128)
    add(
        "--method",
        action="append",
        help=f"with settings, 'pff alpha=0.01'; several times (default: {', '.join(METHODS)})",
    )
    add("--macs", type=float, action="append", help="the share that stays; several times (default: 0.5, 0.3)")
    add(
        "--recovery",
        action="append",
        help="'finetune lr=0.05', 'mimic + finetune', none; several times (default: finetune)",
    )
    add("--epochs", type=float, default=3, help="compute of each cell, in training passes of the uncut network")
    add("--search", type=float, help="share of it for the search of methods that train (default: each method's own)")
    add("--unit", choices=("macs", "steps"), default="macs", help="by what an epoch of the cut network counts")
    add("--seeds", type=int, default=1)
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=Path("runs/accuracy"))
    add("--quick", action="store_true")
    add("--show", action="store_true", help="only print the table of the cells that are done")
    add("--verbose", action="store_true", help="a line for each epoch")
    args = parser.parse_args()
    args.method, args.recovery = args.method or list(METHODS), args.recovery or ["finetune"]
    args.macs = args.macs or [0.5, 0.3]
    if args.quick:
        args.images, args.test, args.epochs = 512, 512, 1
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    accuracy, wanted = Accuracy(args), list(cells(args))
    if not args.show:
        for i, cell in enumerate(wanted, 1):
            if accuracy.read(cell) is not None:
                continue
            torch.manual_seed(cell.seed)
            figures = accuracy.run(cell)
            accuracy.keep(cell, figures)
            line = ", ".join(f"{name} {figures[name]:.2f}" for name in COLUMNS)
            print(f"[{i}/{len(wanted)}] {vars(cell)}: {line}, {figures['seconds']:.0f} s", flush=True)
    accuracy.table(wanted)


if __name__ == "__main__":
    main()
