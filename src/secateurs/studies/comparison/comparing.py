"""Compare methods, budgets and seeds on one network and data, each with the same total compute."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import nn

from secateurs.budget import Budget
from secateurs.data import Data
from secateurs.errors import ConfigError, Setting, nearest
from secateurs.graph.inputs import check_model
from secateurs.methods import Method
from secateurs.methods.limits import Counts, Cuts, Limits, Ratios
from secateurs.methods.matching import Layers
from secateurs.methods.method import Scope, check_scope
from secateurs.preflight import check_options
from secateurs.runs.sources import DataSpec
from secateurs.seeds import preserve_rng_state
from secateurs.studies.comparison.compute import Unit
from secateurs.studies.comparison.contestants import (
    USUAL,
    Cell,
    contestants,
    recoveries,
)
from secateurs.studies.comparison.contestants import (
    budgets as checked_budgets,
)
from secateurs.studies.comparison.contestants import (
    seeds as checked_seeds,
)
from secateurs.studies.comparison.crew import Crew, Here, Processes, devices
from secateurs.studies.comparison.folder import ComparisonFolder
from secateurs.studies.comparison.result import Comparison
from secateurs.studies.comparison.running import Running
from secateurs.studies.comparison.work import OWN, Network, Work
from secateurs.studies.fingerprint import fingerprint, shapes
from secateurs.tasks import VisionTask
from secateurs.tasks.purpose import Purpose
from secateurs.training import Phase
from secateurs.training.losses import Loss
from secateurs.training.objective import Forward, Step

Workers = Literal["local", "ray"]
NEEDS = ("num_cpus", "num_gpus", "memory")  # of a cell on a Ray cluster


@torch.inference_mode(False)
@preserve_rng_state()
def compare(
    model: nn.Module | str | os.PathLike[str],
    inputs: Any = None,
    methods: Sequence[str | Method] = ("l2", "aofp", "npn", "pff", "onestep", "epruner"),
    budgets: Sequence[float | Budget] = (0.5, 0.3),
    seeds: int | Sequence[int] = 2,
    *,
    data: Data | DataSpec | str | Any = None,
    epochs: float = 3,
    recover: Phase | Sequence[Phase] | str | None = USUAL,
    search: float | None = None,
    unit: Unit = "macs",
    workers: Workers = "local",
    processes: int | None = None,
    device: str | torch.device | None = None,
    resources: Mapping[str, float] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    minutes: float | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    trust_code: bool = False,
    scope: Scope | None = None,
    exclude: Layers = (),
    only: Layers | None = None,
    ratios: Ratios | None = None,
    min_channels: int | Counts | None = None,
    max_cut: Cuts | None = None,
    allow_inexact: bool = False,
    task: str | VisionTask | None = None,
    loss: Loss | None = None,
    step: Step | None = None,
    forward: Forward | None = None,
    metrics: Mapping[str, Any] | None = None,
    example_targets: Any = None,
    report: Callable[[str], None] | None = None,
    progress: bool = False,
    **unknown: NoReturn,
) -> Comparison:
    """Compare methods × budgets × seeds on one network and data. Every cell has the same total compute, including a method's
    own search and training.

    >>> found = sc.compare(model, x, methods=["l2", "aofp theta=0.02", sc.PFF()], budgets=[0.5, 0.3], seeds=2, data=data,
    ...                    folder="runs/compare")
    >>> print(found)                     # the table: mean ± standard deviation over seeds

    model: a module, a spec (see `build`) with `weights`, or the folder of an artifact.
    inputs: example inputs, as for `prune`; by default one example of the data.
    methods: names, names with settings ("aofp theta=0.02 search=0.1", "pff preset=paper"), or configured methods.
        "torch-pruning:group-l2" is torch-pruning's selection with our recovery, "torch-pruning:group-l2:own" its own cut,
        fine-tuned on the labels (group-l1, l1, l2, lamp, fpgm, bn-scale, taylor, random likewise).
    budgets: numbers, for fractions or absolute numbers of MACs, or budgets.
    seeds: how many, or a list of them. A seed determines the order of the data, augmentation, and everything that a method
        draws.
    data: `Data` with validation data, a data spec, a `DataSpec`, or "python:package.module:function", which returns `Data`.
    epochs: the compute of a cell, in training passes of the uncut network over the training images, 3 · MACs for each image.
    recover: phases of recovery without a length, or text ("reconstruct + finetune lr=0.05", "none"); they get the compute that
        the method leaves. A teacher costs its forward pass.
    search: the share of the compute for a method's own training; by default each method's own share.
    unit: what an epoch of the cut network costs: "macs", the budget's share of a pass; "steps", a whole pass. Under a budget
        that does not limit the MACs, an epoch always counts as a whole pass.
    workers: "local": this machine, with a process for each accelerator, or `processes` of them; with one, cells run in the
        calling process. "ray": the Ray cluster that this process is connected to, or that RAY_ADDRESS names. Each cell is a
        task with its `resources` (num_cpus, num_gpus); this process collects and writes. The machines need the model and the
        data as specs, or a model that `build` made.
    folder: where finished cells are kept. resume: continue a comparison in it: finished cells are not run again; methods,
        budgets and seeds may change, but not the network, the data (batches are told apart by their number and by the first
        one), or any other setting. overwrite: replace it.
    minutes: the time that the comparison may take. If the estimate is longer, nothing is run. When the time is up, no further
        cell starts.
    scope, exclude, only, ratios, min_channels, max_cut, allow_inexact: as for `prune`. num_classes, trust_code: as for `build`.
    task, loss, step, forward, metrics: as for `PruneRun`. example_targets: as for `prune`.
    report: called with a line about each cell; by default lines are written to stderr. progress: also show training.

    A cell that fails becomes a row with its error, and the others are still measured. Raises before any work: ConfigError for
    methods and settings that are not valid, for a folder that holds something else, and for an estimate over `minutes`;
    BudgetError for a budget that a method cannot meet; DataError without validation data.
    """
    check_options(unknown, compare)
    if workers not in get_args(Workers):
        raise ConfigError(Setting("workers", workers), f" is not valid. {nearest(str(workers), get_args(Workers))}")
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if not isinstance(model, str):
        check_model(model)
    _check(epochs, search, unit, processes, minutes, workers, resources)
    check_scope(scope)
    chosen = [
        Cell(one, budget, seed)
        for seed in checked_seeds(seeds) for budget in checked_budgets(budgets) for one in contestants(methods)
    ]  # fmt: skip
    limits = Limits(exclude, only, ratios, min_channels, max_cut)
    if isinstance(model, nn.Module):
        limits = limits.named(model)
    network = Network.of(model, None if weights is None else Path(weights), num_classes, trust_code)
    purpose = Purpose.of(task, loss, step, forward, metrics)
    work = Work(
        network, inputs, _data(data, purpose, network), purpose, tuple(recoveries(recover)), epochs, unit, search,
        {"scope": scope, **limits.options(), "allow_inexact": allow_inexact}, progress, example_targets,
    )  # fmt: skip
    settings = _settings(work, limits, scope, allow_inexact, kept=folder is not None)
    kept = None if folder is None else ComparisonFolder(Path(folder), settings)
    if kept is not None:
        kept.check(resume=resume, overwrite=overwrite)
    say = _stderr if report is None else report
    crew = _crew(work, workers, processes, device, resources)
    return Running(crew, chosen, kept, settings, epochs, None if minutes is None else 60 * minutes, say).run()


def _crew(
    work: Work, workers: Workers, processes: int | None, device: str | torch.device | None,
    resources: Mapping[str, float] | None,
) -> Crew:  # fmt: skip
    if workers == "ray":
        from secateurs.studies.comparison.cluster import Cluster

        return Cluster(work, resources, None if device is None else str(device))
    on = devices(device, processes)
    return Here(work, on[0]) if len(on) == 1 else Processes(work, on)


def _data(given: Any, purpose: Purpose, network: Network) -> DataSpec | Data | str:
    """Where a worker gets the data from."""
    if isinstance(given, str) and given.startswith(OWN):
        return given
    if isinstance(given, str | DataSpec):
        return (DataSpec(given) if isinstance(given, str) else given).complete(purpose.task, network.spec)
    if given is None:
        raise ConfigError("A comparison needs data: pass data=…, with training and validation batches.")
    return Data.of(given)


def _settings(work: Work, limits: Limits, scope: Scope | None, allow_inexact: bool, kept: bool) -> dict[str, Any]:
    """What all cells' figures depend on, as JSON. kept: in a folder, from which the comparison may be resumed."""
    given = work.data
    data: dict[str, Any] = {"data": given if isinstance(given, str) else None}
    if isinstance(given, DataSpec):
        data = given.settings()
    elif isinstance(given, Data) and kept:
        data = {"data": fingerprint(given)}
    spec = work.network.spec
    given_as = {"module": True} if spec is None else {"num_classes": spec.num_classes} if spec.num_classes else {}
    return {
        "model": work.network.name, "weights": work.network.digest(), **given_as, **data, **work.purpose.record(),
        "primary": work.purpose.task.primary if work.purpose.metrics is None else next(iter(work.purpose.metrics), "top1"),
        "epochs": float(work.epochs), "unit": work.unit, "search": work.search, "scope": scope, "limits": limits.record(),
        "allow_inexact": allow_inexact, "inputs": shapes(work.inputs), "targets": shapes(work.targets),
        "recover": [phase.record() for phase in work.recover],
    }  # fmt: skip


def _check(epochs: Any, search: Any, unit: Any, processes: Any, minutes: Any, workers: Workers, resources: Any) -> None:
    """Raise ConfigError for numbers that are not valid."""

    def positive(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "A comparison starts its own processes: run it in one, without torchrun, with ", Setting("processes"), "."
        )
    if not positive(epochs):
        raise ConfigError(Setting("epochs", epochs), ": the compute of a cell must be a number of passes above 0.")
    if search is not None and not (positive(search) and search < 1):
        raise ConfigError(Setting("search", search), " must be a share of the compute above 0 and below 1.")
    if unit not in get_args(Unit):
        raise ConfigError(Setting("unit", unit), f" is not valid. {nearest(str(unit), get_args(Unit))}")
    if minutes is not None and not positive(minutes):
        raise ConfigError(Setting("minutes", minutes), " must be a number of minutes above 0.")
    if processes is not None and (not isinstance(processes, int) or isinstance(processes, bool) or processes < 1):
        raise ConfigError(Setting("processes", processes), " must be a number of processes, 1 or more.")
    if workers == "ray" and processes is not None:
        raise ConfigError(
            Setting("processes", processes), " is for ", Setting("workers", "local"),
            ": Ray measures as many cells as their resources allow.",
        )  # fmt: skip
    if workers == "local" and resources is not None:
        raise ConfigError("resources are for ", Setting("workers", "ray"), ": local processes share this machine.")
    given = dict(resources or {})
    if unknown := given.keys() - set(NEEDS):
        raise ConfigError(f"resources has no {min(unknown)}: give {', '.join(NEEDS)}.")
    for name, need in given.items():
        if isinstance(need, bool) or not (positive(need) or need == 0):
            raise ConfigError(f"resources: {name}={need!r} must be a number, 0 or more.")
    if given.get("num_cpus") == 0 and not given.get("num_gpus"):
        raise ConfigError("resources: a cell needs CPUs or GPUs: give num_cpus or num_gpus above 0.")


def _stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
