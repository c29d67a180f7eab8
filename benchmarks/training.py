"""What the training engine costs: images per second of a plain loop, of the loop compiled, and of the engine; and a step of
each method that prunes while it trains, beside the plain step.

All kinds take turns in one process, so that what else the machine does falls on all of them; each is compared with the plain
loop of its turn, and the median ratio counts. Random data of CIFAR's shape, on the device. Methods are measured in their
search, without the original as a teacher, as a run of `sc.prune`. "Compiled" is torch.compile, on a GPU with CUDA graphs.

    python benchmarks/training.py --threads 1                    # resnet20, float32
    python benchmarks/training.py --quick
    python benchmarks/training.py --device cuda --precision bf16 --network resnet56
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import resolve
from secateurs.training import Engine, Recipe
from secateurs.training.capture import options as compiler
from secateurs.training.precision import autocast

METHODS = ("aofp", "npn", "pff", "onestep")
EPOCHS = 100_000  # more than are measured


class Steps:
    """Batches for a run in a thread of its own, which takes as many steps at a time as it is told."""

    def __init__(self, batch: tuple[Tensor, Tensor], epoch: int, run: Callable[[Steps], object]) -> None:
        self.batch, self.epoch, self.left = batch, epoch, 0
        self.go, self.rests = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(run, torch.get_num_threads()), daemon=True)

    def _run(self, run: Callable[[Steps], object], threads: int) -> None:
        torch.set_num_threads(threads)
        try:
            run(self)
        except BaseException as error:
            self.error = error
        self.rests.set()

    def __len__(self) -> int:
        return self.epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.epoch):
            while self.left == 0:
                self.rests.set()
                self.go.wait()
                self.go.clear()
            self.left -= 1
            yield self.batch

    def __call__(self, count: int) -> None:
        """Take so many steps."""
        self.left = count
        self.rests.clear()
        self.go.set()
        if not self.thread.is_alive():
            self.thread.start()
        self.rests.wait()
        if self.error is not None:
            raise self.error


def network(name: str, x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    return sc.build(f"zoo:{name}", num_classes=10).to(x.device).train()


def loop(name: str, batch: tuple[Tensor, Tensor], precision: str, compiled: bool) -> Callable[[int], None]:
    """A training loop as one writes it."""
    x, y = batch
    model = network(name, x).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    net = torch.compile(model, **compiler(x.device)) if compiled else model
    images = x.contiguous(memory_format=torch.channels_last)

    def steps(count: int) -> None:
        for _ in range(count):
            with autocast(precision, x.device):
                loss = F.cross_entropy(net(images), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def engine(
    name: str, batch: tuple[Tensor, Tensor], options: argparse.Namespace, compiled: bool
) -> Callable[[int], None]:
    recipe = Recipe(
        epochs=EPOCHS, lr=1e-3, schedule="constant", precision=options.precision, channels_last=True, compile=compiled
    )  # fmt: skip
    device = str(batch[0].device)
    return Steps(
        batch, options.steps, lambda data: Engine(network(name, batch[0]), data, recipe, device=device, progress=False).fit()
    )  # fmt: skip


def method(
    name: str, of: str, batch: tuple[Tensor, Tensor], options: argparse.Namespace, compiled: bool
) -> Callable[[int], None]:
    settings = {"epochs": EPOCHS, "precision": options.precision, "distil": 0.0, "compile": compiled}
    made = type(resolve(of))(**settings)
    inputs = batch[0][:1].contiguous()

    def run(data: Steps) -> None:
        model = network(name, batch[0])
        sc.prune(model, inputs, made, sc.Budget(macs=0.5), data=data, device=str(inputs.device), progress=False)

    return Steps(batch, options.steps, run)


def measured(name: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each kind, turn by turn."""
    device = torch.device(options.device)
    x = torch.randn(options.rows, 3, 32, 32, device=device)
    batch = x, torch.randint(0, 10, (options.rows,), device=device)
    kinds: dict[str, Callable[[int], None]] = {"plain loop": loop(name, batch, options.precision, False)}
    if options.compiled:
        kinds["compiled loop"] = loop(name, batch, options.precision, True)
    kinds["engine"] = engine(name, batch, options, False)
    if options.compiled:
        kinds["engine, compiled"] = engine(name, batch, options, True)
    for of in METHODS:
        kinds[of] = method(name, of, batch, options, False)
        if options.compiled:
            kinds[f"{of}, compiled"] = method(name, of, batch, options, True)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(-1, options.turns):
        for kind, steps in kinds.items() if turn % 2 else reversed(kinds.items()):
            if turn < 0:  # compilers, caches, the first steps
                steps(max(options.steps, 5))
            began = time.perf_counter() if device.type == "cuda" else time.process_time()
            steps(options.steps)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ended = time.perf_counter() if device.type == "cuda" else time.process_time()
            if turn >= 0:
                seconds[kind].append(ended - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches, few steps")
    parser.add_argument("--network", action="append", help="resnet20, resnet56, vgg16 …")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rows", type=int, default=128, help="of a batch")
    parser.add_argument("--steps", type=int, default=0, help="of each kind in a turn; also an epoch of the runs")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--compiled", action="store_true", help="compiled kinds on a CPU, too")
    options = parser.parse_args()
    on_gpu = torch.device(options.device).type == "cuda"
    options.compiled |= on_gpu
    options.steps = options.steps or (50 if on_gpu else 2)
    if options.quick:
        options.rows, options.turns = 16, 3
    if options.threads:
        torch.set_num_threads(options.threads)
    base = ["plain loop", *(["compiled loop"] if options.compiled else [])]
    title = f"{options.device}, {options.precision}"
    table = Table("network", "kind", "images per second", *(f"step, x {kind}" for kind in base), title=title)
    for name in options.network or ["resnet20"]:
        seconds = measured(name, options)
        for kind, found in seconds.items():
            ratios = [statistics.median(a / b for a, b in zip(found, seconds[of], strict=True)) for of in base]
            rate = options.rows * options.steps / statistics.median(found)
            table.add_row(name, kind, f"{rate:,.0f}", *(f"{ratio:.3f}" for ratio in ratios))
    table.caption = f"batches of {options.rows}, {torch.get_num_threads()} threads; on a CPU, seconds of CPU time"
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
