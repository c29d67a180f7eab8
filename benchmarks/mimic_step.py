"""What mimicking costs: one step of it, beside a plain training step of the same cut network and one forward of the original.

Steps of all kinds take turns in one process, and each is compared with its own turn; the median ratio counts. Seconds are
CPU seconds of this process, which other load on the machine hardly moves. Random data of CIFAR's shape, batch 128, one
thread, precision and memory layout as the engine chooses them. The networks are cut to half their MACs with crucial layers
kept whole, and mimicked at the nodes that `onestep` finds.

    python benchmarks/mimic_step.py            # resnet20, resnet56, vgg16; all four functions
    python benchmarks/mimic_step.py --quick    # resnet20, fewer turns
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
from secateurs.recovery.mimic import FUNCTIONS, Mimicking
from secateurs.training import precision as P

NETWORKS = ["resnet20", "resnet56", "vgg16"]
AIM = 1.5


def networks(name: str, x: Tensor) -> tuple[nn.Module, nn.Module, list[str]]:
    """The original, the cut one, and the nodes."""
    torch.manual_seed(0)
    model = sc.build(f"zoo:{name}", num_classes=10).eval()
    pruner = sc.attach(
        model, x[:1], sc.OneStep(), sc.Budget(macs=0.5), data=[(x, x.new_zeros(len(x)).long())], steps=1, epoch_steps=1
    )
    with torch.no_grad():
        pruner.importance.offset.normal_(0, 0.1)  # no matter which channels
    selection = pruner.finish()
    return model, sc.apply(model, selection.plan(pruner.task.graph)), list(selection.nodes)


def ready(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def steps(name: str, x: Tensor, y: Tensor, functions: list[str], precision: str) -> dict[str, Callable[[], None]]:
    original, small, nodes = networks(name, x)
    ready(original).requires_grad_(False)
    plain = ready(sc.apply(small, sc.trace(small, x[:1]).plan({}))).train()
    sgd = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    cast = P.autocast(precision, x.device)

    def step() -> None:
        with cast:
            loss = F.cross_entropy(plain(x), y)
        loss.backward()
        sgd.step()
        sgd.zero_grad()

    def forward() -> None:
        with torch.no_grad(), cast:
            original(x)

    def mimicking(function: str) -> Callable[[], None]:
        student = ready(sc.apply(small, sc.trace(small, x[:1]).plan({}))).train()
        hook = Mimicking(student, original, sc.Mimic(function=function), x[:1], nodes)
        hook.teacher.to(memory_format=torch.channels_last)
        adam = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-3)

        def step() -> None:
            with cast:
                hook.before_batch(None, None)  # type: ignore[arg-type]
                outputs = student(x)
                usual = F.cross_entropy(outputs, y)  # the engine knows it for its log
                loss = hook.loss(None, usual, outputs, y)  # type: ignore[arg-type]
            loss.backward()
            adam.step()
            adam.zero_grad()

        return step

    return {"plain step": step, "original's forward": forward, **{f"mimicking, {f}": mimicking(f) for f in functions}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="resnet20 and kl only, 5 turns")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("networks", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    precision = P.resolve(args.precision, torch.device("cpu"))
    x = torch.randn(args.rows, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (args.rows,))
    table = Table("network", "precision", "step", "seconds", "x (plain + forward)", "aim")
    for name in args.networks or (NETWORKS[:1] if args.quick else NETWORKS):
        functions = ["kl"] if args.quick else list(FUNCTIONS)
        seconds = in_turn(steps(name, x, y, functions, precision), 5 if args.quick else args.turns)
        base = [a + b for a, b in zip(seconds["plain step"], seconds["original's forward"], strict=True)]
        for kind, found in seconds.items():
            mimics = kind.startswith("mimicking")
            ratio = statistics.median(a / b for a, b in zip(found, base, strict=True))
            shown = [f"{ratio:.2f}", f"≤ {AIM}"] if mimics else ["", ""]
            table.add_row(name, precision, kind, f"{statistics.median(found):.3f}", *shown)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
