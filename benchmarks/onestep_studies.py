"""The one-step paper's studies, re-run on ResNet-20 and CIFAR-10 with a few hundred steps each: which nodes to mimic (Fig. 2a),
how many (2b), which mimicking function (5a), which filters to keep (5b); and mimicking beside fine-tuning, before any label
was used.

β is learned once, and all runs start from the same cut networks and see the same batches. What is done is kept in
OUT/studies.json: a run that was stopped goes on. The table and the plot are drawn from it.

    python benchmarks/onestep_studies.py --data folder:/data/cifar10 --weights resnet20.safetensors --out runs/studies
    python benchmarks/onestep_studies.py … --quick         # 10 steps each, on a part of the images: only to see that it runs
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import secateurs as sc
from secateurs import data, recovery, training
from secateurs.methods import Selection, Task
from secateurs.methods.pruner import PrunerHook
from secateurs.methods.registry import resolve
from secateurs.methods.select import select_within_budget

AUTO = ("layer1", "layer2", "layer3")
NODES = {  # Fig. 2a: where; the last map is always among them, as in the paper
    "automatic: ends of the stages": AUTO,
    "middle of the stages": ("layer1.1", "layer2.1", "layer3"),
    "beginnings of the stages": ("layer1.0", "layer2.0", "layer3"),
    "shallow": ("layer1.0", "layer1.1", "layer3"),
    "deep": ("layer3.0", "layer3.1", "layer3"),
}
NUMBERS = {  # Fig. 2b: how many, from the last one back; a fourth is put in between
    "1 node": ("layer3",),
    "2 nodes": ("layer2", "layer3"),
    "3 nodes": AUTO,
    "4 nodes": ("layer1", "layer2", "layer3.0", "layer3"),
}
FUNCTIONS = {"MSE": "mse", "ℓ1": "l1", "KL": "kl", "JS": "js"}
SELECTIONS = {  # Fig. 5b
    "β, all layers together": "onestep",
    "β, each layer by the same share": "onestep layer",
    "random": "random layer",
    "first k": "index layer",
    "max response (ℓ1)": "l1 layer",
}


class Studies:
    """Runs by name, each done once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.file = args, args.out / "studies.json"
        args.out.mkdir(parents=True, exist_ok=True)
        found = data.load(args.data, normalize="imagenet", batch_size=128, seed=0)
        assert found.val is not None
        self.val = [b for i, b in enumerate(found.val) if not args.quick or i % 20 == 0]
        self.train = found.train
        self.base = sc.build("zoo:resnet20", args.weights)
        self.inputs = self.val[0][0][:1]
        self.graph = sc.trace(self.base, self.inputs)
        settings = {"steps": args.steps, "beta_epochs": args.beta_epochs, "quick": args.quick}
        self.done: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {"settings": settings}
        if self.done["settings"] != settings:
            raise SystemExit(f"{self.file} was made with {self.done['settings']}: give another --out.")
        if "base" not in self.done:
            self.keep("base", {"top1": self.top1(self.base)})
        self.selections: dict[tuple[str, float], Selection] = {}

    def keep(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        self.done[name] = result
        self.file.write_text(json.dumps(self.done, indent=1))
        print(name, {k: v for k, v in result.items() if k != "beta"}, flush=True)
        return result

    def top1(self, model: nn.Module) -> float:
        return round(training.evaluate(model, self.val, precision="bf16").top1, 2)

    def beta(self) -> dict[str, torch.Tensor]:
        """Learned once, without a cut."""
        if "beta" not in self.done:
            began = time.perf_counter()
            model = copy.deepcopy(self.base)
            method = sc.OneStep(epochs=self.args.beta_epochs)
            options = {"progress": "lines"}
            record: list[dict[str, Any]] = []
            task = self.task(0.5, model, options, record.append)
            pruner = method.attach(task)
            hooks = [PrunerHook(pruner, {})]
            training.Engine(model, self.train, method.recipe(task), hooks=hooks, **options).fit()
            found = {name: b.tolist() for name, b in pruner.beta().items()}
            nodes = pruner.finish().nodes
            seconds = round(time.perf_counter() - began)
            self.keep("beta", {"seconds": seconds, "nodes": nodes, "note": record[-1], "beta": found})
        return {name: torch.tensor(b, dtype=torch.float64) for name, b in self.done["beta"]["beta"].items()}

    def task(self, macs: float, model: nn.Module | None = None, options: Any = None, log: Any = print) -> Task:
        return Task(
            model or self.base, self.graph, sc.Budget(macs=macs), "internal", sc.Data(self.train, self.val), 0,
            self.inputs, options or {}, log=log,
        )  # fmt: skip

    def selection(self, how: str, macs: float) -> Selection:
        if (how, macs) not in self.selections:
            task, (name, *ranking) = self.task(macs), how.split()
            if name != "onestep":
                found = resolve(name, ranking=ranking[0]).select(task)
            else:
                scores = {g.name: self.beta()[g.name].numpy() for g in task.groups}
                if ranking:
                    scores = {n: (s.argsort().argsort() + 1) / len(s) for n, s in scores.items()}
                found = Selection(select_within_budget(task.widths, scores))
            self.selections[how, macs] = found
        return self.selections[how, macs]

    def run(self, how: str, macs: float, *recipes: training.Recipe) -> float:
        """Top-1 after these steps of recovery from this cut."""
        key = f"{how} at {macs}: " + ", ".join(
            f"{type(r).__name__} {r.model_dump(mode='json', exclude_unset=True)}" for r in recipes
        )
        if key not in self.done:
            small = sc.apply(self.base, self.selection(how, macs).plan(self.graph))
            began = time.perf_counter()
            for recipe in recipes:
                recovery.recover(
                    small,
                    self.train,
                    recipe,
                    teacher=self.base,
                    example_inputs=self.inputs,
                    nodes=AUTO,
                    progress="silent",
                )
            self.keep(key, {"top1": self.top1(small), "seconds": round(time.perf_counter() - began)})
        return float(self.done[key]["top1"])

    def cut(self, how: str, macs: float) -> float:
        """Top-1 right after the cut."""
        key = f"{how} at {macs}"
        if key not in self.done:
            self.keep(key, {"top1": self.top1(sc.apply(self.base, self.selection(how, macs).plan(self.graph)))})
        return float(self.done[key]["top1"])


def studies(s: Studies) -> dict[str, dict[str, float]]:
    """Title → label → top-1. As in the paper, all layers are cut by the same share where it is not the cut that is studied;
    which of their channels go, β says."""
    n, half, low = s.args.steps, ("onestep", 0.5), ("onestep layer", 0.25)
    tuned = sc.Recover(steps=n)

    def mimic(function: str = "kl", nodes: tuple[str, ...] = AUTO) -> recovery.Mimic:
        settings: dict[str, Any] = {} if nodes == AUTO else {"nodes": nodes}
        return sc.Mimic(steps=n, lr=1e-2, function=function, **settings)

    cuts = {"0.5 of the MACs": half, "0.25 of the MACs": low, "0.25, all layers together": ("onestep", 0.25)}
    found: dict[str, dict[str, float]] = {}
    for title, cut in cuts.items():
        found[f"no labels yet: {title}"] = {
            "right after the cut": s.cut(*cut),
            f"{n} steps of fine-tuning": s.run(*cut, tuned),
            f"{n} steps of mimicking": s.run(*cut, mimic()),
        }
    found["5a: mimicking function"] = {label: s.run(*low, mimic(kind)) for label, kind in FUNCTIONS.items()}
    found["2a: which nodes (MSE)"] = {label: s.run(*low, mimic("mse", nodes)) for label, nodes in NODES.items()}
    found["2b: how many nodes (MSE)"] = {label: s.run(*low, mimic("mse", nodes)) for label, nodes in NUMBERS.items()}
    adam = sc.Recover(steps=n, optimizer="adam", lr=1e-2, weight_decay=0)
    found["2b: how many nodes (MSE)"]["cross-entropy instead"] = s.run(*low, adam)
    found["5b: which filters, 0.5 of the MACs (KL)"] = {
        label: s.run(how, 0.5, mimic()) for label, how in SELECTIONS.items()
    }
    for title, cut in list(cuts.items())[:2]:
        found[f"no labels yet: {title}"] |= {
            f"{n} of mimicking, then {n} of fine-tuning": s.run(*cut, mimic(), tuned),
            f"{2 * n} steps of fine-tuning": s.run(*cut, sc.Recover(steps=2 * n)),
        }
    return found


def plot(found: dict[str, dict[str, float]], base: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "secateurs", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    rows = [len(labels) for labels in found.values()]
    figure, axes = plt.subplots(
        len(found), figsize=(7, 0.23 * sum(rows) + 0.45 * len(rows)), height_ratios=rows, layout="constrained"
    )
    for axis, (title, labels) in zip(axes, found.items(), strict=True):
        names = list(labels)[::-1]
        values = [labels[name] for name in names]
        axis.plot(values, names, "o", color="#35607f", markersize=5)
        for i, value in enumerate(values):
            axis.annotate(f"{value:.1f}", (value, i), (6, 0), textcoords="offset points", va="center", fontsize=8)
        axis.axvline(base, color="#b04a3a", linewidth=0.8)
        axis.set_xlim(0 if min(values) < 50 else 65, 92)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", linewidth=0.4)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(f"top-1 %; the line is the uncut network's {base:.2f}", fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True, help="folder:PATH with CIFAR-10")
    parser.add_argument("--weights", required=True, type=Path, help="of zoo:resnet20")
    parser.add_argument("--out", type=Path, default=Path("runs/onestep-studies"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--beta-epochs", type=float, default=2)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.beta_epochs = 10, 0.02
    torch.set_num_threads(1)
    s = Studies(args)
    found = studies(s)
    table = Table("study", "", "top-1 %")
    for title, labels in found.items():
        for i, (label, top1) in enumerate(labels.items()):
            table.add_row("" if i else title, label, f"{top1:.2f}")
        table.add_section()
    Console(width=110).print(table)
    plot(found, s.done["base"]["top1"], args.out / "studies.svg")
    print(f"uncut: {s.done['base']['top1']:.2f}; drawn in {args.out / 'studies.svg'}")


if __name__ == "__main__":
    main()
