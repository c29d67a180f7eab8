"""Measure a network's accuracy as one layer's channels are masked one by one, in the order of a criterion (Ding et al., ICML
2019, sec. 4.1 and fig. 3.)"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from secateurs.errors import ArtifactError, ConfigError, PlanError, nearest
from secateurs.files import shown
from secateurs.graph import ChannelGraph, ChannelGroup
from secateurs.methods.assess import Assessor, reporter, require_data, spread
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task
from secateurs.methods.oracle.ablation import Judging
from secateurs.plans import trace
from secateurs.runs.cut import pick_device
from secateurs.runs.folder import OVERWRITE
from secateurs.runs.sources import DataSpec, NetworkSpec
from secateurs.studies.criteria.orders import Order, criteria, order_by
from secateurs.studies.criteria.record import Curve, Record
from secateurs.tasks.purpose import Purpose
from secateurs.training import Batch, Metrics
from secateurs.training.processes import first


class Compared(NamedTuple):
    """The results for one layer. layer: the name of its channel group. curves: by criterion."""

    layer: str
    curves: Mapping[str, Curve]


def compare_criteria(
    network: NetworkSpec,
    data: DataSpec,
    purpose: Purpose,
    layer: str,
    chosen: Sequence[str],
    *,
    examples: int = 1000,
    validation: int | None = None,
    precision: str = "auto",
    folder: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Compared:
    """Compare criteria on one layer, as `secateurs compare-criteria` does.

    layer: a channel group, or a layer that makes one. chosen: names of criteria. examples, validation, precision: as for
    `one_by_one`. folder: where `curves.json` and its picture are written after each criterion. resume: keep the curves that are
    there; overwrite: replace them. report: called with a line of text about each criterion.
    """
    model, build = network.name, network.open(purpose)
    settings: dict[str, Any] = {
        "model": model,
        "weights": network.digest(),
        "layer": layer,
        "examples": examples,
        "val_examples": validation,
        "precision": precision,
        "seed": seed,
        **purpose.card(),
        **data.settings(),
    }
    record = None if folder is None else Record(folder, settings, model, layer, report)
    curves = {} if record is None else record.open(resume, overwrite)
    where = pick_device(device)
    source = data.load(seed, where, purpose.task, network.num_classes)
    built = build(source, where, seed)
    inputs = purpose.example(built, source)
    graph = trace(built, inputs, example_targets=purpose.example_targets(built, source))
    group = _group(graph, layer, model)
    for name, curve in curves.items():
        if record is not None and len(curve.values) != group.size:
            raise ArtifactError(
                f"{shown(record.file)} is not valid: field 'curves.{name}.{curve.figure}' has {len(curve.values)} values, "
                f"expected {group.size}, one for each channel of {layer}. ", OVERWRITE, " starts over.",
            )  # fmt: skip
    objective = purpose.objective(built, inputs)
    task = Task(built, graph, None, "all", source, seed, inputs, {"device": where, "objective": objective})
    for i, criterion in enumerate(chosen, start=1):
        if criterion in curves:
            continue
        report(f"[{i}/{len(chosen)}] {criterion}")
        curves[criterion] = one_by_one(
            task, group.name, criterion, examples=examples, validation=validation, precision=precision,
            figure=purpose.task.primary,
        )  # fmt: skip
        if record is not None and first():
            record.write(curves)
    return Compared(group.name, {name: curves[name] for name in chosen})


def _group(graph: ChannelGraph, layer: str, model: str) -> ChannelGroup:
    """The group of this name, or the group that a layer of this name produces."""
    try:
        group = graph[layer]
    except PlanError as error:
        raise ConfigError(f"{model}: {error}") from None
    if not group.prunable:
        why = "" if group.reason is None else group.reason.message
        raise ConfigError(f"The channels of {layer} cannot be cut: ", why, ".")
    if group.size < 2:
        raise ConfigError(f"{layer} has a single channel: there is no order to compare.")
    return group


def one_by_one(
    task: Task,
    layer: str,
    criterion: str | Criterion,
    *,
    examples: int = 1000,
    validation: int | Sequence[Batch] | None = None,
    precision: str = "fp32",
    figure: str | None = None,
) -> Curve:
    """Mask the channels of one group one by one, in the criterion's order, without training, and measure after each.

    layer: name of the group. task: its model (not modified), graph, data and seed; the budget is not used.
    criterion: one of `criteria()`, or a configured criterion.
        "oracle" (eq. 5) measures the loss without each channel on `examples` training examples, removes the one whose
        absence raises it least, and measures again; "oracle-10x" uses ten times as many, "oracle-degraded" measures only once.
        "aofp" is binary filter search by the final loss, until one filter remains in the search space, with as many evaluations
        as the oracle. Criteria that use data get the same examples.
    validation: batches to measure accuracy on, or the number of validation images, evenly spaced; None for all.
    figure: the figure to compare criteria by: "top1", "loss", or a metric of the task's objective; None for its first metric,
        else top-1, else the loss.

    Raises ConfigError for an unknown criterion and a figure that is not measured, PlanError for an unknown layer.
    """
    name = criterion if isinstance(criterion, str) else criterion.name
    if name not in criteria():
        raise ConfigError(f"{name!r} is not a valid criterion. {nearest(name, criteria())}")
    require_data(task, name, "is compared on examples")
    group = task.graph[layer]
    if not isinstance(validation, Sequence):
        if task.data.val is None:
            raise ConfigError("Curves are measured on validation data: pass Data(train=…, val=…).")
        validation = list(spread(task.data.val, validation, task.objective.whole))
    with reporter(task, name) as report:

        def show(done: int, total: int) -> None:
            report.total = total
            report.show(done, f"of {layer}'s ablations")

        report.start(None, 0)
        began = time.perf_counter()
        order, evaluated = order_by(criterion, task, group, examples, precision, show)
        seconds = time.perf_counter() - began
    measured = _measure(task, group, order, validation, precision)
    top1, loss = (_series([getattr(m, key) for m in measured]) for key in ("top1", "loss"))
    own = {key: tuple(m.metrics[key] for m in measured) for key in measured[0].metrics}
    known = [*own, *(["top1"] if top1 else []), *(["loss"] if loss else [])]
    if not known:
        raise ConfigError("Nothing is measured of these outputs: pass metrics={…}, or loss=fn(outputs, targets).")
    if figure is not None and figure not in known:
        raise ConfigError(f"{figure!r} is not measured here. {nearest(figure, known)}")
    return Curve(
        criterion=name, order=tuple(order), top1=top1, loss=loss, examples=evaluated, seconds=seconds, metrics=own,
        figure=figure or known[0],
    )  # fmt: skip


def _series(values: Sequence[float | None]) -> tuple[float, ...] | None:
    """The values, or None if one is missing."""
    found = tuple(value for value in values if value is not None)
    return found if len(found) == len(values) else None


def _measure(
    task: Task, group: ChannelGroup, order: Order, validation: Sequence[Batch], precision: str
) -> list[Metrics]:
    """What is measured with 0, 1, 2 … channels of the order removed."""
    masks = torch.ones(len(order) + 1, group.size)
    for i, channel in enumerate(order):
        masks[i + 1 :, channel] = 0
    return Judging(Assessor(task, validation, precision=precision), group).figures(masks)
