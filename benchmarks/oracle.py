"""What it costs to choose half of the filters of ResNet-20's first layers: the oracle's c·q·γ evaluations beside AOFP's.

Each picks filters one by one, with γ images to a measurement, in float32 on one thread.
"oracle, whole passes": every ablation is a pass through the whole network, one layer after the other.
"oracle": ours, which runs what comes before the layer's reader once for each batch.
"AOFP": binary filter search by isolated damage on all the layers at once; each step of a search sees γ images, and a search
is refined down to a single filter (so log₂ c steps to each; with a threshold θ whole halves go, which is cheaper). "AOFP,
on top": what scoring adds to passes that training makes anyway.

Evaluations are images times passes. Seconds are CPU seconds of this process, which other load on the machine hardly moves.
What filters are chosen does not matter here, so weights and images are random.

    python benchmarks/oracle.py            # the first three layers, half of their 16 filters, γ = 256
    python benchmarks/oracle.py --quick    # γ = 64, a quarter of the filters
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import secateurs as sc
from secateurs.graph import ChannelGroup
from secateurs.methods.aofp.scoring import Damage
from secateurs.methods.aofp.search import BinaryFilterSearch
from secateurs.methods.assess import Assessor
from secateurs.methods.method import Task
from secateurs.methods.oracle.ablation import Ablation

BATCH = 64
Cost = tuple[int, float]  # evaluations, CPU seconds


def timed(work: Callable[[], int]) -> Cost:
    began = time.process_time()
    evaluations = work()
    return evaluations, time.process_time() - began


def oracle(held: Assessor, groups: list[ChannelGroup], share: float, replay: bool) -> int:
    evaluations = 0
    for group in groups:
        alive = np.ones(group.size, dtype=bool)
        with Ablation(held, group) as ablation:
            if not replay:
                ablation.prefix.close()
            for _ in range(int(group.size * share)):
                left = np.flatnonzero(alive)
                masks = torch.from_numpy(alive).float().repeat(len(left), 1)
                masks[torch.arange(len(left)), torch.from_numpy(left)] = 0
                alive[left[int(ablation(masks)[:, 0].argmin())]] = False
                evaluations += len(left) * held.examples
    return evaluations


def aofp(held: Assessor, groups: list[ChannelGroup], share: float, damage: Damage | None) -> int:
    """Without `damage` the passes alone are made: damages are drawn."""
    generator = torch.Generator().manual_seed(0)
    searches = {g.name: BinaryFilterSearch(g.size, len(held.batches)) for g in groups}
    least = {g.name: g.size - int(g.size * share) for g in groups}
    evaluations = 0
    while live := [n for n, s in searches.items() if s.width > least[n]]:
        for batch in held.batches:
            drawn = {n: searches[n].draw(generator) for n in live}
            if damage is not None:
                damage.ablate(drawn)
            held.run(batch)
            evaluations += len(batch.targets)
            found = dict.fromkeys(live, 0.5) if damage is None else damage.take()
            for n in live:
                searches[n].record(drawn[n], found[n] + 1e-6 * float(torch.rand((), generator=generator)))
        for n in live:
            move = searches[n].finish(theta=-np.inf)
            if move.kind == "restarted":
                searches[n].prune(move.picked)
    return evaluations


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="γ = 64, a quarter of the filters")
    parser.add_argument("--layers", type=int, default=3, help="how many of ResNet-20's nine layers within blocks")
    args = parser.parse_args()
    gamma, share = (64, 0.25) if args.quick else (256, 0.5)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sc.build("zoo:resnet20", num_classes=10).eval()
    x, y = torch.randn(gamma, 3, 32, 32), torch.randint(0, 10, (gamma,))
    task = Task(model, sc.trace(model, x[:1]), None, data=sc.Data(train=[(x, y)]))
    groups = task.groups[: args.layers]
    held = Assessor(task, gamma, rows=BATCH)
    aofp(held, groups, 1 / 16, None)  # warms up
    costs: dict[str, Cost] = {
        "oracle, whole passes": timed(lambda: oracle(held, groups, share, False)),
        "oracle": timed(lambda: oracle(held, groups, share, True)),
    }
    damage = Damage(held.model, groups, x[:1]).attach()
    costs["AOFP"] = timed(lambda: aofp(held, groups, share, damage))
    damage.detach()
    evaluations, passes = timed(lambda: aofp(held, groups, share, None))
    assert evaluations == costs["AOFP"][0]
    costs["AOFP, on top"] = 0, max(costs["AOFP"][1] - passes, 0.0)
    _show(groups, share, gamma, costs)


def _show(groups: list[ChannelGroup], share: float, gamma: int, costs: dict[str, Cost]) -> None:
    sizes = ", ".join(f"{int(g.size * share)} of {g.size}" for g in groups)
    rows = Table(title=f"{groups[0].name} … {groups[-1].name}, filters: {sizes}; γ = {gamma}")
    rows.add_column("")
    for column in ("evaluations", "times AOFP's", "CPU s", "times AOFP's"):
        rows.add_column(column, justify="right")
    base = costs["AOFP"]
    for name, (evaluations, seconds) in costs.items():
        rows.add_row(
            *(name, f"{evaluations:,}", f"{evaluations / base[0]:.1f}x"),
            *(f"{seconds:.1f}", f"{seconds / base[1]:.1f}x"),
        )
    Console(width=120).print(rows)


if __name__ == "__main__":
    main()
