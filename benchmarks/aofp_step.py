"""What AOFP's scoring costs: its training step beside the plain fine-tuning step, and beside a scoring path that runs the
next layer a second time.

Steps of all kinds take turns in one process, and each is compared with the plain step of its turn; the median ratio
counts. "first": all layers at the first step of a search, with the whole layer as search space, which is the most there is.
"move": the mean over the steps of a whole search, whose search space halves until one filter is left. "second path": the
layer that reads the ablated filters, its batch norm and its non-linearity once more on masked inputs, as the paper has
it. Seconds are CPU seconds of this process, which other load on the machine hardly moves. Random data of CIFAR's shape, one
thread, memory layout as the engine chooses it.

    python benchmarks/aofp_step.py            # resnet56, vgg16, in float32 and in bfloat16
    python benchmarks/aofp_step.py --quick    # resnet20, fewer turns
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import in_turn
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods.following import following

Step = Callable[[], None]


class Steps:
    """The steps that are compared, each with a network of its own."""

    def __init__(self, name: str, rows: int, precision: str) -> None:
        self.name, self.bf16 = name, precision == "bf16"
        self.x = torch.randn(rows, 3, 32, 32).to(memory_format=torch.channels_last)  # the engine's choice for CPUs
        self.y = torch.randint(0, 10, (rows,))

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        made = sc.build(f"zoo:{self.name}", num_classes=10)
        return made.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]

    def training(self, model: nn.Module, after: Step = lambda: None) -> Step:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = F.cross_entropy(model(self.x), self.y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            after()

        return step

    def plain(self) -> Step:
        return self.training(self.network())

    def aofp(self, refinements: int) -> Step:
        """With each search space halved so many times."""
        model = self.network()
        method = sc.AOFP(search_cost=10**6, theta=0)
        pruner: Any = sc.attach(model, self.x[:1], method, steps=10**6, epoch_steps=10**3, data=[(self.x, self.y)])
        for search in pruner.searches.values():
            for _ in range(refinements):
                if search.half > 1:
                    search.space = search.space[: search.half]
        pruner._draw()
        return self.training(model, pruner.step)

    def second_path(self) -> Step:
        """Half of each layer's filters ablated, and the next layer run again on what is left."""
        model = self.network()
        graph = sc.trace(model, self.x[:1])
        groups = [g for g in graph.groups if g.prunable and g.internal]
        readers = {s.module: (g, s) for g in groups for s in g.slots if s.consumes}
        follows = following(model, readers, self.x[:1])
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        damage: list[Tensor] = []

        def watch(name: str) -> Any:
            def hook(module: nn.Module, args: Any, out: Tensor) -> None:
                if torch.is_grad_enabled():
                    seen[name] = (args[0], out.detach().clone())

            return hook

        for name in readers:
            model.get_submodule(name).register_forward_hook(watch(name))

        def score(module: nn.Module, args: Any, out: Any) -> None:
            with torch.no_grad():
                for name, (group, slot) in readers.items():
                    x, y = seen.pop(name)
                    gone = slot.index[np.random.permutation(group.size)[: group.size // 2]].ravel()
                    mask = torch.ones(x.shape[1], dtype=x.dtype)
                    mask[gone] = 0
                    other = model.get_submodule(name)(x * mask.view(1, -1, *[1] * (x.ndim - 2)))
                    for z in (y, other):
                        norm = follows[name].norm
                        if norm is not None:
                            z.copy_(F.batch_norm(z, None, None, norm.weight, norm.bias, True, 0.0, norm.eps))
                        z.copy_(follows[name].finish(z))
                    damage.append((y - other).float().square().sum() / y.float().square().sum())
            damage.clear()

        model.register_forward_hook(score)
        return self.training(model)


def measure(name: str, turns: int, rows: int, precision: str) -> dict[str, list[float]]:
    """Seconds of each kind of step, turn by turn."""
    made = Steps(name, rows, precision)
    steps = {"plain": made.plain(), "second path": made.second_path()}
    widest = {"resnet20": 5, "resnet56": 5, "vgg16": 8}[name]
    for i in range(widest + 1):
        steps[f"refined {i} times"] = made.aofp(i)
    return in_turn(steps, turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="resnet20 only, 5 turns")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--precision", choices=["fp32", "bf16"], action="append")
    parser.add_argument("networks", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("network", "precision", "step", "seconds", "x plain", "aim")
    for name in args.networks or (["resnet20"] if args.quick else ["resnet56", "vgg16"]):
        for precision in args.precision or ["fp32", "bf16"]:
            seconds = measure(name, 5 if args.quick else args.turns, args.rows, precision)
            plain = seconds["plain"]
            stages = [s for kind, s in seconds.items() if kind.startswith("refined")]
            shown = {"plain": plain, "first": stages[0], "move": [sum(t) / len(t) for t in zip(*stages, strict=True)]}
            for kind, found in {**shown, "second path": seconds["second path"]}.items():
                ratio = statistics.median(a / b for a, b in zip(found, plain, strict=True))
                aim = "≤ 1.2" if kind in ("first", "move") else ""
                table.add_row(name, precision, kind, f"{statistics.median(found):.3f}", f"{ratio:.3f}", aim)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
