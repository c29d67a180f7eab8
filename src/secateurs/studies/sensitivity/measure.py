"""Cut each channel group alone, at several shares, and measure the network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import nn

from secateurs import artifact, training
from secateurs.artifact import Figures
from secateurs.artifact.provenance import source_of
from secateurs.calibration import images_of
from secateurs.data import Data
from secateurs.devices import usable
from secateurs.errors import ConfigError, SecateursError, Setting
from secateurs.files import shown
from secateurs.graph import ChannelGroup
from secateurs.graph.copies import copied
from secateurs.methods.assess import Assessor, reporter, spread
from secateurs.methods.criterion import Criterion
from secateurs.methods.limits import Limits
from secateurs.methods.matching import Layers
from secateurs.methods.method import Method, Scope, Task
from secateurs.methods.oracle.ablation import Judging
from secateurs.placement import Placement
from secateurs.plans import PrunableGraph
from secateurs.preflight import check, check_options, task_for, traced
from secateurs.recovery import IMAGES as CALIBRATE
from secateurs.recovery.calibrate import after_cut_
from secateurs.report import count, duration
from secateurs.seeds import checked as checked_seed
from secateurs.seeds import preserve_rng_state
from secateurs.studies.fingerprint import fingerprint, shapes
from secateurs.studies.sensitivity.asked import criterion, fractions
from secateurs.studies.sensitivity.record import Record, taken_over
from secateurs.studies.sensitivity.result import Cut, Group, Sensitivity, primary
from secateurs.surgery import apply
from secateurs.tasks.purpose import Purpose
from secateurs.training.losses import Loss
from secateurs.training.metrics import Metrics, higher_is_better
from secateurs.training.objective import Forward, Step
from secateurs.training.progress import Mode

SHARES = (0.25, 0.5, 0.75)
IMAGES = 1000
LONG = 10.0  # seconds; of a study that takes less, it is not said how long
T = TypeVar("T")


@torch.inference_mode(False)
@preserve_rng_state()
def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    method: str | Method = "l2",
    data: Any = None,
    shares: Sequence[float] = SHARES,
    *,
    images: int = IMAGES,
    calibrate: Any = True,
    scope: Scope | None = None,
    exclude: Layers = (),
    only: Layers | None = None,
    metric: str | None = None,
    allow_inexact: bool = False,
    loss: Loss | None = None,
    step: Step | None = None,
    forward: Forward | None = None,
    metrics: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    graph: PrunableGraph | None = None,
    example_targets: Any = None,
    report: Callable[[str], None] = lambda line: None,
    progress: Mode | bool = "auto",
    **unknown: NoReturn,
) -> Sensitivity:
    """Measure how much worse the network gets with each channel group cut alone, at several shares: right after the cut, and
    calibrated. Nothing is trained, and the given model is not modified.

    >>> found = sc.sensitivity(model, images, data=sc.Data(train=train, val=val))
    >>> sc.prune(model, images, "l2", data=data, ratios=found.ratios(drop=1.0))

    method: the criterion that determines which channels of a group are cut first, by name or configured.
    data: `Data(train=…, val=…)`. The network is measured on the validation data, and calibrated on the training data.
    shares: the fractions of its channels that each group loses; what stays is rounded up to a whole channel.
    images: how many validation images each cut is measured on, evenly spaced, and how many training images it is calibrated
        on (at most 1,024). The work grows with groups · shares · images.
    calibrate: as for `prune`: True, False, or batches to calibrate on.
    scope, exclude, only, allow_inexact: which groups are cut, as for `prune`.
    metric: the figure that drops are measured in: top1, top5, loss, or a metric's name; by default the first of `metrics`, or
        else top1, or else the loss.
    loss, step, forward, metrics, graph, example_targets, device, seed: as for `prune`.
    folder: where `sensitivity.json` is written after each group, and a picture at the end. resume: continue from that file;
        overwrite: replace it. settings: what else the result depends on, JSON-serializable; "data" replaces the record of the
        batches (their number, and the first one), "weights" the digest of the network's tensors. A resumed call must pass the
        same.
    report: called with a line of text about the study. progress: "auto", "bar", "lines" or "silent".

    Right after a cut, the network is measured with the group's channels masked, and the layers before them run once for all
    shares. For calibration, the network is actually cut.

    Raises before any work: ConfigError for settings that are not valid, DataError for data that does not fit, BudgetError if no
    group can be cut.
    """
    began = time.perf_counter()
    check_options(unknown, sensitivity)
    chosen = criterion(method)
    check(model, None, scope)
    shares = fractions(shares)
    if isinstance(images, bool) or not isinstance(images, Integral) or images < 1:
        raise ConfigError(Setting("images", images), " is not valid: it must be an integer of at least 1.")
    if data is None:
        raise ConfigError("A sensitivity study measures on data: pass data=sc.Data(train=…, val=…).")
    seed = checked_seed(seed)
    source, purpose = Data.of(data), Purpose.of(None, loss, step, forward, metrics or None)
    objective = purpose.base
    if source.val is None:
        raise ConfigError("A sensitivity study measures on validation data: pass data=sc.Data(train=…, val=…).")
    limits = Limits(exclude, only).named(model)
    where = usable(device)
    record = None if folder is None else Record(
        Path(folder),
        {
            "weights": artifact.weights_digest(model), "method": chosen.record(), "shares": shares, "images": images,
            "calibrate": _calibration(calibrate), "scope": scope or chosen.default_scope, "limits": limits.record(),
            "allow_inexact": allow_inexact, "metric": metric, "seed": seed,
            **purpose.record(), "data": fingerprint(source), "inputs": shapes(example_inputs),
            "targets": shapes(example_targets),
            **(settings or {}),
        },
    )  # fmt: skip
    earlier = None if record is None else record.open(resume, overwrite)
    if record is not None and earlier is not None and earlier.finished:
        report(f"{shown(record.file)} is finished already: nothing to do.")
        return earlier
    placement = Placement.of(model)
    network = copied(placement.working_copy(model, where)).eval()
    inputs = placement.working_inputs(example_inputs, where)
    targets = None if example_targets is None else placement.working_inputs(example_targets, where)
    graph = traced(network, inputs, graph, allow_inexact=allow_inexact, example_targets=targets)
    scope = scope or chosen.default_scope
    options = {"device": where, "objective": objective, "progress": progress}
    task = task_for(
        chosen, network, graph, inputs, None, scope, limits.on(graph, scope), data=source, seed=seed,
        engine_options=options,
    )  # fmt: skip
    task.widths.check()
    if not objective.whole and chosen.reads_labels:
        training.check_labels(source.train, [chosen.name])
    work = _Study(task, chosen, shares, allow_inexact, images, calibrate)
    done = taken_over(earlier, [g.name for g in task.groups])
    report(work.extent(len(done)))
    base, once = _timed(work.base) if earlier is None else (earlier.base, 0.0)
    calibrated, again = _timed(work.base_calibrated)
    name = primary(metric, base, tuple(objective.metrics))
    higher = name != "loss" and higher_is_better(objective.metrics.get(name.partition(".")[0]))

    def result(groups: Sequence[Group], finished: bool = True) -> Sensitivity:
        return Sensitivity(
            finished=finished, settings={"scope": scope} if record is None else record.plain, model=_named(model),
            method=chosen.record(), metric=name, higher_is_better=higher, shares=shares, images=work.assessor.examples,
            calibrated_on=work.calibrated_on, base=base, base_calibrated=calibrated, groups=tuple(groups),
            seconds=(0.0 if earlier is None else earlier.seconds) + time.perf_counter() - began,
        )  # fmt: skip

    each = earlier.seconds / len(done) if earlier is not None and done else work.expected(once, again)
    left = len(task.groups) - len(done)
    if each * left >= LONG:
        report(f"about {duration(each * left)} for {count(left, 'group')}")
    groups: list[Group] = []
    try:
        for group in work.groups(done):
            groups.append(group)
            if record is not None and group.name not in done:
                record.write(result(groups, finished=False))
    except KeyboardInterrupt:
        if record is None or not groups:
            raise
        raise record.interrupted() from None
    found = result(groups)
    if record is not None:
        record.write(found)
    return found


class _Study:
    """The measuring."""

    def __init__(
        self, task: Task, method: Criterion, shares: tuple[float, ...], allow_inexact: bool, images: int, calibrate: Any
    ) -> None:
        self.task, self.method, self.shares, self.allow_inexact = task, method, shares, allow_inexact
        self.objective, whole = task.objective, task.objective.whole
        val = task.data.val
        source = list(val) if isinstance(val, Iterator) else val
        self.assessor = Assessor(task, spread(source, images, whole))  # reads it once
        given = images_of(calibrate, task.data, task.seed, task.objective)
        some = [] if given is None else training.without_labels(
            given, min(images, CALIBRATE), seed=task.seed, whole=whole
        )  # fmt: skip
        self.to_calibrate_on = list(some)
        self.calibrated_on = sum(batch.rows for batch in self.to_calibrate_on)

    def extent(self, done: int) -> str:
        """How much there is to do, as a line of text."""
        groups = len(self.task.groups) - done
        each = f"each measured on {count(self.assessor.examples, 'image')}"
        again = f", and again after calibration on {self.calibrated_on:,}" if self.calibrated_on else ""
        already = f" ({done} are done already)" if done else ""
        return f"{count(groups, 'group')} at {count(len(self.shares), 'share')}, {each}{again}{already}"

    def base(self) -> Figures:
        cost = self.task.graph.cost()
        return _figures(cost, self._evaluated(self.task.model))

    def base_calibrated(self) -> Figures | None:
        """The whole network, calibrated as the cut ones are: cuts are then compared with it."""
        if not self.to_calibrate_on:
            return None
        return _figures(self.task.graph.cost(), self._evaluated(self._calibrated({})))

    def expected(self, whole: float, calibrated: float) -> float:
        """About how many seconds a group takes, by what the whole network took as it is and calibrated. Masked ones take no
        longer than the former, whose first run may wait for the device, and the latter includes a run."""
        return len(self.shares) * (calibrated + min(whole, calibrated) if self.to_calibrate_on else whole)

    def groups(self, done: Mapping[str, Group]) -> Iterator[Group]:
        """All groups; those that are done as they are."""
        groups = self.task.groups
        scores: Mapping[str, np.ndarray] = {}
        if len(done) < len(groups):
            scores = self.method.checked(self.task, self.method.scores(self.task))
        with reporter(self.task, "sensitivity") as progress:
            progress.start(len(groups), len(done))
            for i, group in enumerate(groups):
                if group.name in done:
                    yield done[group.name]
                    continue
                yield self._group(group, np.argsort(-scores[group.name], kind="stable"))  # best first
                progress.show(i + 1, group.name)

    def _group(self, group: ChannelGroup, order: np.ndarray) -> Group:
        kept = [_width(group, share) for share in self.shares]
        stay = {width: np.sort(order[:width]) for width in kept}
        masked = dict(zip(stay, self._masked(group, list(stay.values())), strict=True))
        cuts: dict[int, Cut] = {}
        for width, channels in stay.items():
            cost = self.task.graph.cost({group.name: width})
            calibrated = None
            if self.to_calibrate_on:
                small = self._calibrated({group.name: channels} if width < group.size else {})
                calibrated = _figures(cost, self._evaluated(small))
            cuts[width] = Cut(kept=width, cut=_figures(cost, masked[width]), calibrated=calibrated)
        return Group(name=group.name, size=group.size, cuts=tuple(cuts[width] for width in kept))

    def _calibrated(self, channels: Mapping[str, np.ndarray]) -> nn.Module:
        """The network without the other channels, calibrated as `prune` does it."""
        task = self.task
        plan = task.graph.plan(channels, allow_inexact=self.allow_inexact)
        small = apply(task.model, plan)
        batches = self.to_calibrate_on
        after_cut_(task.model, small, plan, task.example_inputs, lambda: batches, objective=self.objective)
        return small

    def _evaluated(self, model: nn.Module) -> Metrics:
        batches = [b.inputs if b.whole else (b.inputs, b.targets) for b in self.assessor.batches]
        return training.evaluate(model, batches, objective=self.objective)

    def _masked(self, group: ChannelGroup, kept: Sequence[np.ndarray]) -> list[Metrics]:
        """The figures with all but these channels of the group masked, for each selection."""
        masks = torch.zeros(len(kept), group.size)
        for mask, channels in zip(masks, kept, strict=True):
            mask[torch.from_numpy(channels)] = 1
        return Judging(self.assessor, group).figures(masks)


def _calibration(given: Any) -> Any:
    """What the record says of the setting: batches of the user's own are told apart as those of the data are."""
    if isinstance(given, bool):
        return given
    try:
        return fingerprint(Data.of(given)).get("train", True)
    except SecateursError as error:
        raise error.within(Setting("calibrate"), ": ") from error


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the seconds that it takes."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _figures(cost: Any, found: Metrics) -> Figures:
    own = {name: value if math.isfinite(value) else None for name, value in found.metrics.items()}
    loss = found.loss if found.loss is not None and math.isfinite(found.loss) else None
    return Figures(cost.macs, cost.params, found.top1, found.top5, loss, own)


def _width(group: ChannelGroup, share: float) -> int:
    return max(group.least, math.ceil(group.size * (1 - share) - 1e-9))


def _named(model: nn.Module) -> str:
    source = source_of(model)
    return str((source or {}).get("spec") or type(model).__qualname__)
