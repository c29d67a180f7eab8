"""What must hold of every network, checked by running it: see `FAULTS`."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

import secateurs as sc
from fuzzing import consistency
from fuzzing.frames import Chain
from fuzzing.networks import Spec
from fuzzing.parts import Block
from fuzzing.snapshot import Snapshot
from fuzzing.twins import Masked, apart, as_double, doubled, leaves, run, train_step
from secateurs.surgery.reordered import Reordered

FAULTS = {
    "mismatch": "the trace calls a cut exact, and the sliced network differs from the masked one, or does not run",
    "passed": "verify passes what differs",
    "refused": "a right network is not traced, or a right cut refused",
    "frozen": "channels that can be cut are not prunable",
    "cost": "the cost from the graph is not that of the sliced network",
    "budget": "a pruned network exceeds its budget",
    "train": "the original trains, and the sliced network does not, or computes something else in training mode",
    "touched": "the caller's model, inputs, random state or settings have changed",
    "attributes": "attributes of modules do not agree with tensors, or tied tensors are no longer tied",
    "unstable": "the same model traced twice gives different answers",
    "crash": "an exception that is none of SecateursError",
    "slow": "over the time limit",
}
SECONDS = 30.0  # of CPU time; most networks take a quarter of a second
MOST = 3  # texts of each fault
PLAIN = 1e-3  # what verify has to see
ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3}
# A larger difference is rounding, too, if another order of computation makes one as large in the masked network, as in a small
# difference of large numbers.
ORDERS, REORDERED = 4, 10.0


@dataclass
class Verdict:
    """faults: (fault, what was seen). kept: the cut that was judged first."""

    faults: list[tuple[str, str]] = field(default_factory=list)
    kept: dict[str, list[int]] = field(default_factory=dict)
    prunable: int = 0
    groups: int = 0

    def add(self, fault: str, text: object) -> None:
        if sum(f == fault for f, _ in self.faults) < MOST:
            self.faults.append((fault, " ".join(str(text).split())[:400]))

    @property
    def kinds(self) -> set[str]:
        return {fault for fault, _ in self.faults}


class SlowError(BaseException):  # not an Exception: the code under test catches those
    pass


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise SlowError in the body after so much CPU time."""

    def stop(*_: Any) -> None:
        raise SlowError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judge(spec: Spec, seconds: float = SECONDS) -> Verdict:
    """All checks on one network. Never raises for a fault of the library."""
    verdict = Verdict()
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(spec.seed)
        try:
            with limited(seconds):
                Judge(spec, verdict).all()
        except SlowError:
            verdict.add("slow", f"after {seconds:.0f} s")
        except Exception as error:  # a fault that nobody thought of, or one of the judge's own
            verdict.add("crash", f"the judge: {type(error).__name__}: {error}")
    return verdict


class Judge:
    def __init__(self, spec: Spec, verdict: Verdict) -> None:
        self.spec, self.verdict = spec, verdict
        self.model = spec.build()
        self.inputs = self.model.inputs()
        self.targets = getattr(self.model, "targets", lambda: None)()
        self.random = any(getattr(m, "random", False) for m in self.model.modules())

    def call(self, what: str, function: Any, *args: Any, may: type[Exception] | None = None, **options: Any) -> Any:
        """The result; None if it raised. Whatever happens, the caller's things must be as they were."""
        before = Snapshot(model=self.model, inputs=self.inputs)
        self.refusal = ""
        try:
            return function(*args, **options)
        except sc.SecateursError as error:
            self.refusal = str(error)
            if may is None or not isinstance(error, may):
                self.verdict.add("refused", f"{what}: {error}")
        except Exception as error:
            self.verdict.add("crash", f"{what}: {type(error).__name__}: {error}")
        finally:
            if changed := before.differences():
                self.verdict.add("touched", f"{what}: {'; '.join(changed[:4])}")
                self.model = self.spec.build()  # the rest is judged on a whole one
                self.inputs = self.model.inputs()
        return None

    def all(self) -> None:
        count = self.call("count", sc.count, self.model, self.inputs)
        graph = self.call("trace", trace, self.model, self.inputs, self.targets)
        if graph is None:
            return
        self.verdict.groups, self.verdict.prunable = len(graph.groups), sum(g.prunable for g in graph.groups)
        again = self.call("trace again", trace, self.model, self.inputs, self.targets)
        if again is not None and _told(again) != _told(graph):
            changed = sorted({*_told(graph)} ^ {*_told(again)})
            self.verdict.add("unstable", f"{changed[:2]}")
        if count is not None and count != graph.cost():
            self.verdict.add("cost", f"whole: counted {count}, from the graph {graph.cost()}")
        self.frozen(graph)
        draw = np.random.default_rng(self.spec.seed)
        for cut in range(2):
            kept = {
                g.name: sorted(draw.permutation(g.size)[: int(draw.integers(g.least, g.size + 1))].tolist())
                for g in graph.groups
                if g.prunable
            }
            if kept:
                self.verdict.kept = self.verdict.kept if self.verdict.faults else kept
                self.cut(graph, kept, train=cut == 0)
        self.prune(graph, count)

    def frozen(self, graph: Any) -> None:
        for layer in due(self.model):
            groups = [g for g in graph.groups if layer in g.producers and g.size > 1]
            if groups and not any(g.prunable for g in groups):
                self.verdict.add("frozen", f"{layer}: {groups[0].reason}")

    def cut(self, graph: Any, kept: dict[str, list[int]], train: bool) -> None:
        plan = self.call("plan", graph.plan, kept)
        small = None if plan is None else self.call("apply", sc.apply, self.model, plan)
        if small is None:
            return
        far = self.far(plan)
        right = far is not None and far == 0
        widths = {name: len(k) for name, k in kept.items()}
        if right:
            counted = self.call("count of the sliced network", sc.count, small, self.inputs)
            if counted is not None and counted != graph.cost(widths):
                self.verdict.add("cost", f"at {widths}: counted {counted}, from the graph {graph.cost(widths)}")
            for text in consistency.attributes(small, self.inputs, graph) + consistency.ties(self.spec.build(), small):
                self.verdict.add("attributes", text)
        passed = self.call("verify", sc.verify, self.model, plan, self.inputs, may=sc.VerificationError)
        if far is not None and far > PLAIN and passed is not None:
            self.verdict.add("passed", f"verify says {passed:.1e}")
        if right and self.refusal:
            self.verdict.add("refused", f"verify: {self.refusal}")
        if right and train:
            with torch.random.fork_rng():
                self.trains(plan)

    def far(self, plan: Any) -> float | None:
        """How far sliced and masked are apart in eval mode; 0 for rounding, None if random numbers keep from saying. A fault is
        told."""
        for dtype in (torch.float64, torch.float32):
            sliced, inputs = sc.apply(self.spec.build(), plan), self.inputs
            if dtype is torch.float64:
                sliced, inputs = doubled(sliced), as_double(inputs)
            with torch.no_grad():
                try:
                    wanted = self.masked(plan, dtype)
                except Exception as error:
                    if dtype is torch.float64:
                        continue  # a network may make float32 tensors of its own
                    raise AssertionError(f"{self.spec} does not run") from error
                try:
                    found = leaves(run(sliced.eval(), inputs))
                except Exception as error:
                    self.verdict.add("mismatch", f"the sliced network does not run: {type(error).__name__}: {error}")
                    return math.inf
            far = apart(found, wanted)
            if not far <= ROUNDING[dtype] and not self.random and not self.rounding(far, plan, dtype):
                self.verdict.add("mismatch", f"sliced and masked are {far:.1e} apart in {dtype}")
                return far
            break
        return None if self.random else 0.0

    def rounding(self, far: float, plan: Any, dtype: torch.dtype, train: bool = False) -> bool:
        """Whether rounding explains that sliced and masked are so far apart."""
        if not far <= PLAIN:
            return False
        wanted, *others = (self.masked(plan, dtype, train, order) for order in (None, *range(ORDERS)))
        return far <= REORDERED * max(apart(other, wanted) for other in others)

    def masked(
        self, plan: Any, dtype: torch.dtype, train: bool = False, order: int | None = None
    ) -> list[torch.Tensor]:
        """The masked network's outputs. order: the seed of the order in which it sums over channels."""
        model, inputs, targets = self.spec.build().train(train), self.inputs, self.targets if train else None
        if dtype is torch.float64:
            model, inputs = doubled(model), as_double(inputs)  # type: ignore[assignment]
        with torch.no_grad(), nullcontext() if order is None else Reordered(order):
            return Masked(model, plan).outputs(inputs, targets)  # type: ignore[arg-type]

    def trains(self, plan: Any) -> None:
        inputs, targets = as_double(self.inputs), self.targets
        try:
            whole = train_step(doubled(self.spec.build()), inputs, targets)
        except Exception:
            return  # the original does not train, or not in double precision
        try:
            found = train_step(doubled(sc.apply(self.spec.build(), plan)), inputs, targets)
        except Exception as error:
            self.verdict.add("train", f"the sliced network does not train: {type(error).__name__}: {error}")
            return
        torch.manual_seed(5)
        model = doubled(self.spec.build()).train()
        again = leaves(model(**inputs) if isinstance(inputs, dict) else run_unseeded(model, inputs, targets))
        if apart([x.detach() for x in again], whole) > 0:
            return  # random in training mode
        far = apart(found, self.masked(plan, torch.float64, train=True))
        if far > 1e-6 and not self.rounding(far, plan, torch.float64, train=True):
            self.verdict.add("train", f"in training mode sliced and masked are {far:.1e} apart")

    def prune(self, graph: Any, count: Any) -> None:
        """A budget is met, or refused as one that cannot be."""
        if not any(g.prunable for g in graph.groups) or {"mismatch", "train"} & self.verdict.kinds or self.random:
            return
        share = float(np.random.default_rng(self.spec.seed).uniform(0.3, 0.95))
        what = ("macs", "params")[self.spec.seed % 2]
        result = self.call(
            "prune", sc.prune, self.model, self.inputs, "l1", sc.Budget(**{what: share}),  # type: ignore[arg-type]
            scope="all",
            graph=graph, may=sc.BudgetError,
        )  # fmt: skip
        after = (
            None if result is None else self.call("count of the pruned network", sc.count, result.model, self.inputs)
        )
        if after is None or count is None:
            return
        if getattr(after, what) > share * getattr(count, what):
            self.verdict.add(
                "budget", f"{what}={share:.3f} of {getattr(count, what)}, and {getattr(after, what)} are left"
            )
        if (after.macs, after.params) != (result.after.macs, result.after.params):
            self.verdict.add("cost", f"pruned: counted {after}, told {result.after}")


def trace(model: nn.Module, inputs: Any, targets: Any) -> Any:
    return sc.trace(model, inputs) if targets is None else sc.trace(model, inputs, example_targets=targets)


def run_unseeded(model: nn.Module, inputs: Any, targets: Any) -> Any:
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return model(*inputs) if targets is None else model(*inputs, targets)


def _told(graph: Any) -> list[tuple[str, int, str]]:
    return [(g.name, g.size, str(g.reason)) for g in graph.groups]


def due(net: Chain) -> list[str]:
    """The layers whose channels must be prunable: those inside of blocks, and those between blocks that all allow it."""
    blocks: list[Block] = list(net.blocks)  # type: ignore[arg-type]
    found = [f"blocks.{i}.{name}" for i, b in enumerate(blocks) for name in b.inside]
    makers, free = ["stem"], 0 not in net.kept  # of the channels that the next block reads
    for i, b in enumerate(blocks):
        given = [f"blocks.{i}.{name}" for name in b.gives]
        free = free and b.reads
        if b.passes:
            makers += given
        else:
            found += makers if free else []
            makers, free = given, bool(given)
        free = free and i + 1 not in net.kept
    return found + (makers if free else [])
