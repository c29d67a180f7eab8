"""What gates cost: a training step with all channel groups gated, and NPN's joint step, beside the plain step.

Steps of all kinds take turns in one process, and each is compared with the plain step of its turn; the median ratio
counts. Seconds are CPU seconds of this process, which other load on the machine hardly moves. Random data of CIFAR's
shape, batch 128, one thread, memory layout as the engine chooses it.

Two networks hold twice the activations, which glibc gives back to the system after each step and fetches again, page by
page. MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000 in the environment keep them.

    python benchmarks/gates.py            # resnet20, resnet56, vgg16
    python benchmarks/gates.py --quick    # resnet20, fewer turns
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import in_turn
from torch import Tensor, nn

import secateurs as sc
from secateurs.masking.gates import Gates
from secateurs.methods import NPN

NETWORKS = ["resnet20", "resnet56", "vgg16"]
AIMS = {"gated per batch": 1.05, "gated per sample": None, "npn": 1.4, "npn, all images": 2.1, "npn, per sample": 2.1}


def network(name: str, layout: torch.memory_format) -> nn.Module:
    torch.manual_seed(0)
    return sc.build(f"zoo:{name}", num_classes=10).to(memory_format=layout).train()  # type: ignore[call-overload]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


def plain(name: str, x: Tensor, y: Tensor, layout: torch.memory_format) -> Callable[[], None]:
    model = network(name, layout)
    optimizer = sgd(model)

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def gated(name: str, x: Tensor, y: Tensor, layout: torch.memory_format, *, per_sample: bool) -> Callable[[], None]:
    """All groups gated by factors that are learned too."""
    model = network(name, layout)
    graph = sc.trace(model, x[:1])
    gates = Gates(model, [g for g in graph.groups if g.prunable]).attach()
    shape = (len(x), gates.channels) if per_sample else (gates.channels,)
    logits = torch.full(shape, 3.0, requires_grad=True)
    optimizer = sgd(model)
    optimizer.add_param_group({"params": [logits]})

    def step() -> None:
        gates.flat(logits.sigmoid())
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def joint(name: str, x: Tensor, y: Tensor, layout: torch.memory_format, method: NPN) -> Callable[[], None]:
    """A step of NPN's odd epochs, which train both networks, with λ under control."""
    model = network(name, layout)
    budget = sc.Budget(macs=0.5)
    pruner = sc.attach(model, x[:1], method, budget, steps=10**6, epoch_steps=10**5, data=[(x, y)])
    pruner.steps = 10**5  # the second epoch
    pruner.advance()
    optimizer = sgd(model)

    def step() -> None:
        loss = F.cross_entropy(model(x), y) + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()

    return step


def measure(name: str, turns: int, rows: int) -> dict[str, list[float]]:
    """Seconds of each kind of step, turn by turn."""
    x, y = torch.randn(rows, 3, 32, 32), torch.randint(0, 10, (rows,))
    layout = torch.channels_last  # the engine's choice for CPUs
    x = x.to(memory_format=layout)
    steps = {
        "plain": plain(name, x, y, layout),
        "gated per batch": gated(name, x, y, layout, per_sample=False),
        "gated per sample": gated(name, x, y, layout, per_sample=True),
        "npn": joint(name, x, y, layout, NPN()),
        "npn, all images": joint(name, x, y, layout, NPN(pruner_images=1)),
        "npn, per sample": joint(name, x, y, layout, NPN(gates="sample")),
    }
    return in_turn(steps, turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="resnet20 only, 5 turns")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("networks", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("network", "step", "seconds", "x plain", "aim")
    for name in args.networks or (NETWORKS[:1] if args.quick else NETWORKS):
        seconds = measure(name, 5 if args.quick else args.turns, args.rows)
        for kind, found in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(found, seconds["plain"], strict=True))
            aim = AIMS.get(kind)
            row = [f"{statistics.median(found):.3f}", f"{ratio:.3f}", "" if aim is None else f"≤ {aim}"]
            table.add_row(name, kind, *row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
