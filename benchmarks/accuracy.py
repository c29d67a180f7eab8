"""Accuracy at equal compute: methods × budgets × recoveries × seeds, each with the same compute in all.

The unit is a training pass over the images through the uncut network, 3 · MACs · images; every cell gets `--epochs` of them.
A method that trains spends its default share (`Taught.share`) on its search, counted as it runs; `--search`, or
`--method "onestep search=0.1"`, sets another one. The rest goes to recovery, where an epoch costs the cut network's
share of the MACs, and a third of a pass more if a teacher runs along. `--unit steps` counts an epoch of the cut network
as one pass, whatever its size. `secateurs compare` does the same with any network and data; here recoveries are
compared, too.

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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import secateurs as sc
from secateurs import artifact, data, report
from secateurs.data.loader import ArraySource
from secateurs.files import write_whole
from secateurs.methods.pruner import Taught
from secateurs.studies.comparison.bench import Bench
from secateurs.studies.comparison.compute import SearchCost
from secateurs.studies.comparison.contestants import Cell, Contestant, recipes
from secateurs.studies.comparison.folder import VERSION
from secateurs.studies.comparison.outcomes import Spread
from secateurs.studies.comparison.work import Network, Work
from secateurs.tasks.purpose import Purpose

METHODS = ("l2", "aofp", "npn", "pff", "onestep", "epruner")
NORMALIZATIONS = {"vgg16": "cifar10"}  # of the checkpoints; the others have ImageNet's
COLUMNS = ("after the cut", "calibrated", "recovered", "narrowest", "MACs", "passes")


@dataclass(frozen=True)
class Case:
    """What is measured once. method, recovery: as given, with their settings."""

    method: str
    macs: float
    recovery: str
    seed: int

    @property
    def cell(self) -> Cell:
        return Cell(Contestant.of(self.method), sc.Budget(macs=self.macs), self.seed)


class Accuracy:
    """All cells of one network on one data set."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.out
        self.folder.mkdir(parents=True, exist_ok=True)
        self.costs: dict[tuple[str, float], SearchCost] = {}

    @cached_property
    def bench(self) -> Bench:
        args = self.args
        model = sc.build(f"zoo:{args.network}", args.weights, num_classes=10).eval()
        normalize = args.normalize or NORMALIZATIONS.get(args.network, "imagenet")
        found = loaded(args.data, normalize, args.batch_size, args.images, args.test)
        inputs = next(iter(found.val))[0][:1]
        work = Work(
            Network(module=model),
            inputs,
            found,
            Purpose(),
            (),
            args.epochs,
            args.unit,
            args.search,
            progress=args.verbose,
        )
        return Bench(work)

    def run(self, case: Case) -> dict[str, Any]:
        """Everything that is known about a cell."""
        cell, known = case.cell, (case.method, case.macs)
        if known not in self.costs and not cell.contestant.own:
            self.costs[known] = self.bench.search_cost(cell)
        self.bench.work = replace(self.bench.work, recover=tuple(recipes(case.recovery)))
        found = self.bench.measure(cell, self.costs.get(known))
        top1 = {stage: found[stage] and found[stage]["top1"] for stage in ("cut", "calibrated", "recovered")}
        return {
            "before": found["original"]["top1"], "after the cut": top1["cut"], "calibrated": top1["calibrated"],
            "recovered": top1["recovered"],
            "narrowest": None if found["narrowest"] is None else 100 * found["narrowest"],
            "MACs": 100 * found["recovered"]["macs"] / found["original"]["macs"],
            **{name: found[name] for name in ("passes", "search", "recovery", "seconds", "cpu")},
        }  # fmt: skip

    def share(self, case: Case) -> float:
        """Of the compute, what the search gets."""
        contestant, given = case.cell.contestant, self.args.search
        usual = contestant.method.share if isinstance(contestant.method, Taught) and given is None else given
        return float((usual or 0.0) if contestant.search is None else contestant.search)

    # -- cells in files -----------------------------------------------------------------------------------------------

    @cached_property
    def weights(self) -> str:
        return artifact.digest(self.args.weights)

    def settings(self, case: Case) -> dict[str, Any]:
        """What a cell's figures depend on."""
        a = self.args
        return {
            "network": a.network, "images": a.images, "test": a.test, "epochs": a.epochs, "search": self.share(case),
            "unit": a.unit, "batch_size": a.batch_size, "data": a.data, "normalize": a.normalize,
            "weights": self.weights, "version": VERSION, **vars(case),
        }  # fmt: skip

    def file(self, case: Case) -> Path:
        text = json.dumps(self.settings(case), sort_keys=True)
        name = re.sub(r"[^\w.=-]+", "-", f"{self.args.network}-{case.method}-{case.macs:g}-{case.recovery}-{case.seed}")
        return self.folder / f"{name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"

    def read(self, case: Case) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self.file(case).read_text())["figures"])
        except FileNotFoundError:
            return None

    def keep(self, case: Case, figures: dict[str, Any]) -> None:
        versions = {"secateurs": sc.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
        body = {"settings": self.settings(case), "figures": figures, "versions": versions}
        write_whole(self.file(case), json.dumps(body, indent=1))

    def table(self, cases: list[Case]) -> None:
        """Mean ± standard deviation over seeds, of the cells that are done."""
        rows = report.table("method", "MACs ≤", "recovery", "seeds", *COLUMNS, left=3)
        several: dict[tuple[float, str, str], list[dict[str, Any]]] = {}
        for case in cases:
            if (figures := self.read(case)) is not None:
                several.setdefault((case.macs, case.method, case.recovery), []).append(figures)
        for (macs, method, recovery), found in several.items():
            spreads = {name: Spread.of([f[name] for f in found]) for name in COLUMNS}
            columns = [text(spread, 2 if name == "passes" else 1) for name, spread in spreads.items()]
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


def loaded(spec: str, normalize: str, batch_size: int, images: int, test: int) -> sc.Data:
    """So many training and test images of a folder."""
    found = data.load(spec, normalize=normalize, batch_size=batch_size)
    found.train.source = part(found.train.source, images)
    found.val.source = part(found.val.source, test)
    return found


def part(source: ArraySource, count: int) -> ArraySource:
    """Evenly spaced images, held in memory: as many of each class, as a folder is sorted by class."""
    index = torch.linspace(0, len(source) - 1, min(count, len(source))).long()
    return ArraySource(source.images[index].clone(), source.targets[index], device=source.images.device)


def text(spread: Spread | None, digits: int) -> str:
    return "-" if spread is None else spread.text(digits)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """The first seed of everything comes first."""
    for seed in range(args.seeds):
        for macs in args.macs:
            for method in args.method:
                for recovery in args.recovery:
                    yield Case(method, macs, recovery, seed)


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
    accuracy, wanted = Accuracy(args), list(cases(args))
    if not args.show:
        for i, case in enumerate(wanted, 1):
            if accuracy.read(case) is not None:
                continue
            figures = accuracy.run(case)
            accuracy.keep(case, figures)
            line = ", ".join(f"{name} {figures[name]:.2f}" for name in COLUMNS if figures[name] is not None)
            print(f"[{i}/{len(wanted)}] {vars(case)}: {line}, {figures['seconds']:.0f} s", flush=True)
    accuracy.table(wanted)


if __name__ == "__main__":
    main()
