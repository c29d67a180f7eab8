"""Compare the speed of two networks in the runtime where they will run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from secateurs.deploy.clock import Spread, check_seconds, in_turn, ratios
from secateurs.deploy.inputs import batch_of, batched, shapes_of_one
from secateurs.deploy.runners import runner
from secateurs.deploy.target import Target, machine, threaded
from secateurs.devices import check_values
from secateurs.errors import ConfigError, ExportError, Setting
from secateurs.graph import Cost
from secateurs.graph.cost import count
from secateurs.graph.inputs import check_model


@dataclass(frozen=True)
class Timed:
    """Two networks on one target. Times are in seconds per run of a batch. `ratio` is the original's time divided by the pruned
    network's, within a round. memory: bytes, or None if the runtime does not report it. inputs: the shapes of one example."""

    target: Target
    batch: int | None
    machine: str
    threads: int
    original: Spread
    pruned: Spread
    ratio: Spread
    memory: tuple[int, int] | None = None
    inputs: tuple[tuple[int, ...], ...] = ()

    @property
    def speedup(self) -> float:
        """How many times faster the pruned network is, as the median over rounds."""
        return self.ratio.median

    @property
    def faster(self) -> bool | None:
        """Whether the pruned network is faster; None if the difference is within the noise."""
        return None if self.ratio.low <= 1 <= self.ratio.high else self.speedup > 1


@dataclass(frozen=True, repr=False)
class Bench:
    """The result of `bench`. rows: one for each target and batch size. skipped: targets that could not run, and why."""

    rows: tuple[Timed, ...]
    original: Cost
    pruned: Cost
    skipped: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        """The speed-up of the first row."""
        return self.rows[0].speedup

    def record(self) -> dict[str, Any]:
        """Return all measurements as a JSON-serializable dict."""
        return {
            "original": {"macs": self.original.macs, "params": self.original.params},
            "pruned": {"macs": self.pruned.macs, "params": self.pruned.params},
            "rows": [{**asdict(row), "speedup": row.speedup} for row in self.rows],
            "skipped": list(self.skipped),
        }

    def __repr__(self) -> str:
        rows = ", ".join(f"{row.target}: {row.speedup:.2f}×" for row in self.rows)
        return f"Bench({rows}; MACs {self.original.macs:,} → {self.pruned.macs:,})"


def bench(
    model: nn.Module,
    pruned: nn.Module,
    example_inputs: Any,
    target: Target | str | Sequence[Target | str] = "torch-cpu",
    *,
    batches: int | Sequence[int] | None = None,
    seconds: float = 2.0,
) -> Bench:
    """Measure how much faster `pruned` is than `model`. Both are in eval mode and warmed up. Neither is modified.

    Both run in every round, in alternating order, so that other load on the machine affects both. The speed-up is the median
    over rounds of the ratio of the two times. Stripe convolutions use the fastest kernel at each size.

    target: `torch-cpu`, `torch-cuda`, `onnxruntime`, `openvino`, or a `Target` with more settings; or several of them.
    batches: one or more numbers of examples. The default is each target's batch, or else the example inputs'.
    seconds: how long to measure each row, for at least seven rounds.

    Raises ConfigError for a target that does not exist. Also raises ConfigError for a target that cannot be used here, and
    ExportError for a network that cannot be exported to it; with several targets, these are skipped unless all of them fail.
    Raises TraceError for inputs that a network does not run on.
    """
    for network in (model, pruned):
        check_model(network)
        check_values(network)
    check_seconds(seconds)
    given: Sequence[Any] = target if isinstance(target, list | tuple) else [target]
    targets = [Target.of(t).suited(model) for t in given]
    if not targets:
        raise ConfigError("There is no target to measure on: name one, such as target='torch-cpu'.")
    sizes = None if batches is None else tuple(batches) if isinstance(batches, Iterable) else (batches,)
    if sizes is not None and not sizes:
        raise ConfigError(Setting("batches", batches), " names no number of examples.")
    costs = count(model, example_inputs), count(pruned, example_inputs)
    rows, skipped = [], []
    for one in targets:
        each = [one] if sizes is None else [replace(one, batch=size) for size in sizes]
        for sized in each:
            try:
                rows.append(_timed(model, pruned, batched(example_inputs, sized.batch), sized, seconds))
            except (ConfigError, ExportError) as error:
                if len(targets) == 1:
                    raise
                skipped.append(f"{one}: {error}")
                break
    if not rows:
        raise ConfigError("None of the targets can be measured here. ", " ".join(skipped))
    return Bench(tuple(rows), *costs, tuple(skipped))


def _timed(model: nn.Module, pruned: nn.Module, inputs: Any, target: Target, seconds: float) -> Timed:
    with threaded(target) as threads, ExitStack() as stack:
        runners = {
            name: stack.enter_context(runner(network, inputs, target))
            for name, network in (("original", model), ("pruned", pruned))
        }
        found = in_turn({name: one.program for name, one in runners.items()}, seconds)
        used = [one.memory() for one in runners.values() if one.memory is not None]
    return Timed(
        target, batch_of(inputs), machine(target), threads, Spread.of(found["original"]), Spread.of(found["pruned"]),
        ratios(found, "original", "pruned"), (used[0], used[1]) if used else None,
        shapes_of_one(inputs),
    )  # fmt: skip
