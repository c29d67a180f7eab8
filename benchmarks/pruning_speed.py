"""From a network to the cut network, ours beside torch-pruning's, in one process.

Both find the coupled channels, score them by the l1 norm of their weights, and cut the lower half of every group that
may be cut, the network's classifier excepted. Each network is measured `--repeats` times and the fastest run counts.

    python benchmarks/pruning_speed.py            # needs torch-pruning and torchvision
    python benchmarks/pruning_speed.py --quick

How a trace grows with a network: CIFAR ResNets of 6n + 2 layers, up to 1202, and of up to four times the width.

    python benchmarks/pruning_speed.py --depth --threads 1 --cpu-time
    python benchmarks/pruning_speed.py --depth --quick
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import secateurs as sc
from secateurs.methods.criteria import norms
from secateurs.zoo.vision import torchvision

QUICK = ["resnet18", "mobilenet_v2", "densenet121"]
NETWORKS = [
    "alexnet", "vgg11_bn", "vgg16", "resnet18", "resnet50", "resnet152", "resnext50_32x4d", "wide_resnet50_2",
    "densenet121", "densenet201", "googlenet", "squeezenet1_0", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large",
    "mobilenet_v3_small", "mnasnet1_0", "efficientnet_b0", "efficientnet_b4", "efficientnet_v2_s", "regnet_x_400mf",
    "regnet_x_8gf", "regnet_y_400mf", "regnet_y_8gf", "inception_v3", "shufflenet_v2_x1_0", "convnext_tiny",
]  # fmt: skip
DEPTHS, WIDTHS = (20, 56, 110, 272, 1202), (1, 2, 4)
QUICK_DEPTHS, QUICK_WIDTHS = (20, 56), (1, 2)


class Block(nn.Module):
    """A basic block of a ResNet, with a projection where its shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (N, I, H, W) → (N, O, H / stride, W / stride)
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


def resnet(depth: int, width: int = 1) -> nn.Module:
    """A CIFAR ResNet: 6n + 2 layers, n blocks in each of three stages. width: a multiple of its 16, 32 and 64 channels."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"a CIFAR ResNet has 6n + 2 layers, not {depth}")
    first, stages = 16 * width, []
    inputs = first
    for stage in range(3):
        outputs = first * 2**stage
        for i in range(blocks):
            stages.append(Block(inputs, outputs, 2 if stage and not i else 1))
            inputs = outputs
    stem = nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def traced(model: nn.Module, x: torch.Tensor) -> None:
    sc.trace(model, x)


def growth(depths: Sequence[int], widths: Sequence[int], repeats: int, clock: Callable[[], float]) -> Table:
    """Trace time beside forward time, of one 32×32 image, by depth and by width."""
    table = Table("network", "width", "groups", "forward ms", "trace ms", "trace / forward", "trace ms a layer")
    for depth, width in [*((d, 1) for d in depths), *((depths[0], w) for w in widths if w > 1)]:
        torch.manual_seed(0)
        model, x = resnet(depth, width).eval(), torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            forward = fastest(lambda m, x: m(x), model, x, repeats, clock)
        time_of = fastest(traced, model, x, repeats, clock)
        table.add_row(
            f"ResNet-{depth}", f"×{width}", str(len(sc.trace(model, x).groups)), f"{forward * 1e3:.1f}",
            f"{time_of * 1e3:.0f}", f"{time_of / forward:.1f}", f"{time_of * 1e3 / depth:.2f}",
        )  # fmt: skip
    return table


def ours(model: nn.Module, x: torch.Tensor) -> None:
    graph = sc.trace(model, x)
    keep = {}
    for g in graph.groups:
        if g.prunable:
            keep[g.name] = norms(g, model, 1).topk(max(g.least, g.size // 2)).indices.tolist()
    sc.cut_(model, graph.plan(keep))


def theirs(model: nn.Module, x: torch.Tensor) -> None:
    import torch_pruning as tp

    classifier = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 1000]
    tp.pruner.BasePruner(
        model, x, importance=tp.importance.GroupMagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=classifier
    ).step()


def fastest(
    run: Callable[[nn.Module, torch.Tensor], None],
    model: nn.Module,
    x: torch.Tensor,
    repeats: int,
    clock: Callable[[], float],
) -> float:
    times: list[float] = []
    while len(times) < repeats and sum(times) < 60:
        copied = copy.deepcopy(model)
        start = clock()
        run(copied, x)
        times.append(clock() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}; only the smallest with --depth")
    parser.add_argument("--depth", action="store_true", help="trace time of CIFAR ResNets by depth and width")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="threads for torch, 0 for its own choice")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time instead of wall time, for a busy machine")
    parser.add_argument("networks", nargs="*")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    warnings.simplefilter("ignore")
    if args.depth:
        sizes = (QUICK_DEPTHS, QUICK_WIDTHS) if args.quick else (DEPTHS, WIDTHS)
        Console().print(growth(*sizes, args.repeats, clock))
        return
    models = torchvision().models
    console, table = Console(), Table("network", "forward ms", "ours ms", "torch-pruning ms", "ratio")
    ratios = []
    for name in args.networks or (QUICK if args.quick else NETWORKS):
        torch.manual_seed(0)
        model = models.get_model(name, weights=None).eval()
        size = 299 if name == "inception_v3" else 224
        x = torch.randn(1, 3, size, size)
        with torch.no_grad():
            forward = fastest(lambda m, x: m(x), model, x, args.repeats, clock)
        mine = fastest(ours, model, x, args.repeats, clock)
        try:
            other = fastest(theirs, model, x, args.repeats, clock)
        except Exception as error:
            table.add_row(name, f"{forward * 1e3:.0f}", f"{mine * 1e3:.0f}", f"fails: {type(error).__name__}", "")
            continue
        ratios.append(other / mine)
        table.add_row(name, f"{forward * 1e3:.0f}", f"{mine * 1e3:.0f}", f"{other * 1e3:.0f}", f"{other / mine:.1f}x")
        console.print(f"{name}: ours {mine * 1e3:.0f} ms, torch-pruning {other * 1e3:.0f} ms, {other / mine:.1f}x")
    console.print(table)
    console.print(f"median {statistics.median(ratios):.1f}x over {len(ratios)} networks")


if __name__ == "__main__":
    main()
