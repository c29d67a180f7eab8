"""The Python API: prune a network with a method to a budget, verify the result and recover its accuracy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from secateurs import artifact, recovery, training
from secateurs.artifact import Signature
from secateurs.artifact.history import is_warning
from secateurs.artifact.provenance import remember_cut, remember_widened, source_of
from secateurs.budget import Budget
from secateurs.calibration import check_images, images_of
from secateurs.cutting import Pruning, check_folder, figures, phase
from secateurs.data import Data
from secateurs.devices import usable
from secateurs.errors import ConfigError, DataError, Setting
from secateurs.files import check_writable
from secateurs.graph.copies import copied
from secateurs.graph.inputs import tensors
from secateurs.methods.limits import Counts, Cuts, Limits, Ratios
from secateurs.methods.matching import Layers
from secateurs.methods.method import Method, Scope
from secateurs.methods.pruner import Pruner, Taught, TrainingMethod
from secateurs.methods.registry import resolve
from secateurs.methods.rounds import Rounds, Schedule
from secateurs.placement import Placement
from secateurs.plans import Plan, PrunableGraph
from secateurs.preflight import check, check_unknown, task_for, traced
from secateurs.result import Result
from secateurs.seeds import checked as checked_seed
from secateurs.seeds import preserve_rng_state
from secateurs.speed import slower
from secateurs.stripes import tune
from secateurs.surgery.verify import check_copy
from secateurs.tasks import VisionTask
from secateurs.tasks.purpose import Purpose
from secateurs.timing import timing
from secateurs.training import Hook, Objective, Phase, processes
from secateurs.training.losses import Loss
from secateurs.training.objective import Forward, Step
from secateurs.training.progress import Mode, Reporter
from secateurs.widening.grow import widened

log = logging.getLogger("secateurs")


@torch.inference_mode(False)
@preserve_rng_state()
def prune(
    model: nn.Module,
    example_inputs: Any,
    method: str | Method = "epruner",
    budget: Budget | None = None,
    data: Any = None,
    recover: Phase | Sequence[Phase] | None = None,
    scope: Scope | None = None,
    seed: int = 0,
    *,
    exclude: Layers = (),
    only: Layers | None = None,
    ratios: Ratios | None = None,
    min_channels: int | Counts | None = None,
    max_cut: Cuts | None = None,
    calibrate: Any = True,
    allow_inexact: bool = False,
    report: Callable[[str], None] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    graph: PrunableGraph | None = None,
    device: str | torch.device | None = None,
    task: str | VisionTask | None = None,
    loss: Loss | None = None,
    step: Step | None = None,
    forward: Forward | None = None,
    metrics: Mapping[str, Any] | None = None,
    hooks: Sequence[Hook] = (),
    progress: Mode | bool = "auto",
    save_steps: int | None = None,
    save_seconds: float | None = None,
    track: Sequence[Any] = (),
    example_targets: Any = None,
    rounds: int = 1,
    schedule: Schedule = "linear",
    check_speed: bool = True,
    **unknown: NoReturn,
) -> Result:
    """Prune a model: trace, select, cut, verify and, on request, recover accuracy. The given model is not modified.

    The model, the example inputs and the data may each be on any device, and the model may be in half precision. With data,
    computation runs on `device` (default: an available accelerator), otherwise on the model's device. The result is on the
    model's device, in its dtypes.

    method: a name (see `methods()`) or a configured method, for example `EPruner(beta=0.7)`.
    budget: the most that the result may cost. For a time budget, a latency model of the network is built from measurements on
        this machine (kept on disk), and the cut network is measured until the budget holds: see `latency` of the result.
    data: batches of `(inputs, targets)`, or a `Data(train=…, val=…)`. Without validation data no accuracy is measured.
        Training batches may be inputs only, as long as neither the method nor the recovery reads labels.
    calibrate: re-estimate the batch-norm statistics of the cut network on 1,024 training images, see `calibrate`. True uses
        images of `data`, if any; batches given here are used instead; False leaves the network as it was cut and verified.
    recover: how to recover the cut network: `Reconstruct`, `Recover`, `Mimic`, `Distil`, or a list of them, run in order;
        None skips recovery. The given model is the teacher for all of them: `Recover(share=0)` trains on the labels alone, and
        `Reconstruct`, `Mimic` and `Recover(share=1)` read no labels.
    scope: "internal" keeps channels on a shortcut, "all" also cuts them; None is the method's default, which follows its
        paper ("internal" for most).
    exclude, only, ratios, min_channels, max_cut: which channel groups may be cut, and how far: names, wildcards, module types,
        functions; see `Limits`. The budget is met within them.
    allow_inexact: also cut channels that a normalization computes statistics over. Such a cut is not verified, and
        `error` in the result is nan.
    report: called with one line of text about each stage. By default, nothing is reported, unless the budget limits the time:
        its measurements can take minutes, so their progress is printed to stderr, as far as `progress` allows.
    folder: where training writes its log and checkpoints, one subfolder per phase, and where rounds keep their networks. An
        existing log that was not written by Secateurs is not overwritten.
    resume: resume from the last whole checkpoint in `folder`, if there is one.
    graph: the result of `trace` for this model and these inputs, with the same `allow_inexact`, to avoid tracing again.
    example_targets: what the model's forward takes in training in addition to the inputs, see `trace`. With a `task`, by
        default those of one example of `data`.
    device: where the work is done, see above.
    task: what the network is for: "classification", "segmentation", "detection", or one of `secateurs.tasks` with its
        settings. It sets `loss`, `step`, `forward` and `metrics` if they are not given: mIoU and pixel accuracy for
        segmentation, mean average precision for detection (extra `metrics`).
    loss: `loss(outputs, targets) -> scalar` for training and evaluation; by default cross-entropy. With your own loss, targets
        may be anything that it takes.
    step: `step(model, batch) -> loss`, for training on batches of any kind; the model is in train mode.
    forward: `forward(model, batch) -> (outputs, targets)`, for evaluation on batches of any kind, and for anything else that
        runs the network on examples; the model is in eval mode. Without `step`, `loss` is computed from it in training, too.
    metrics: what to measure on validation data, by name: torchmetrics metrics, or functions `(outputs, targets) -> scalar`, the
        mean over the examples of a batch. They are in `Figures.metrics` of the result and in the history.
    rounds: prune iteratively: cut a little, calibrate and recover, this many times. Every round runs the whole method and all
        of `recover` on the result of the last one, within a budget between the original's cost and `budget`; the teacher is
        always the original, and the limits apply to all rounds together. `plan` is a single plan for the original, and
        `history` has the figures of each round. With a `folder`, all rounds but the last are saved there as artifacts,
        `round-1` and so on.
    schedule: how the budgets of the rounds approach the final one: "linear", or "cubic" (much at first, little at the end).
    check_speed: run the cut network and the original in turn for a second or so, and add a line to `warnings` if the cut one is
        clearly not faster. A time budget is measured more thoroughly.
    hooks: hooks for recovery, see `secateurs.training.Hook`.
    progress: "auto", "bar", "lines" or "silent"; True means "auto", False means "silent".
    save_steps, save_seconds: how often checkpoints are saved in `folder` within an epoch.
    track: trackers that accelerate knows ("tensorboard", "wandb" …), which write to `folder`.

    Raises before any work: ConfigError for invalid settings, BudgetError for a budget that cannot be met,
    VerificationError for a model that is nondeterministic in eval mode, ArtifactError for a model whose rounds cannot be saved
    in `folder`. Raises VerificationError if the cut fails to verify.
    """
    chosen, seed = resolve(method), checked_seed(seed)
    check(model, budget, scope)
    check_unknown(unknown, chosen, prune)
    if report is None:
        report = Reporter(progress).line if budget is not None and budget.is_timed else lambda line: None
    limits = Limits(exclude, only, ratios, min_channels, max_cut).named(model)
    division = Rounds(rounds, schedule)
    if recover is not None and not isinstance(recover, Phase | list | tuple | type):
        raise ConfigError(
            f"recover={recover!r} is not a valid recovery: pass a recipe such as sc.Recover(epochs=3), or a list of recipes."
        )
    steps = recovery.phases(recover)
    if steps and data is None:
        raise ConfigError("Recovery needs data: pass data=…, or recover=None.")
    source, purpose = None if data is None else Data.of(data), Purpose.of(task, loss, step, forward, metrics)
    purpose.check_measured(source)
    objective = purpose.base
    recovery.check(recover, model, source, objective)
    images = images_of(calibrate, source, seed, objective)
    folder = None if folder is None else Path(folder)
    if resume and folder is None:
        raise ConfigError(Setting("resume", True), " needs folder=…, which keeps the checkpoints to resume from.")
    trains: dict[str, Any] = {
        "hooks": hooks, "progress": progress, "save_steps": save_steps, "save_seconds": save_seconds, "track": track,
    }  # fmt: skip
    training.check_options(**trains, folder=folder)
    phases = ["prune"] * isinstance(chosen, TrainingMethod) + [name for name, _ in steps]
    if folder is not None and (phases or rounds > 1):
        check_writable(folder)
        check_folder(folder, division, phases, resume)
    weights: str | None = None
    if folder is not None and rounds > 1:
        artifact.check_state(model)
        weights = artifact.weights_digest(model)
    if isinstance(chosen, TrainingMethod) and source is not None:
        chosen = chosen.before(recovery.epochs([recipe for _, recipe in steps], source.train))
    origin, placement = source_of(model), Placement.of(model)
    where = placement.device if source is None and device is None else usable(device)
    given, given_inputs, original = model, example_inputs, placement.working_copy(model, where)
    budget = None if budget is None else budget.suited(given, placement.device.type)
    example_inputs = placement.working_inputs(example_inputs, where)
    targets = None if example_targets is None else placement.working_inputs(example_targets, where)
    # Methods get a copy: some train it, and the given model has to be as it was whatever a method does.
    model = copied(original) if original is model or isinstance(chosen, TrainingMethod) else original
    check_copy(model, given, example_inputs)
    if purpose.named and source is not None and targets is None:
        targets = purpose.example_targets(model, source)
    graph = traced(model, example_inputs, graph, allow_inexact=allow_inexact, example_targets=targets)
    if purpose.named:
        measured = source is not None and source.val is not None
        objective = purpose.objective(original, example_inputs, measured)
    options = {"device": where, "objective": objective, **trains}
    scope = scope or chosen.default_scope
    job = task_for(
        chosen, model, graph, example_inputs, budget, scope, limits.on(graph, scope), data=source, seed=seed,
        engine_options=phase(folder, "prune", options), resume=resume, report=report, device=placement.device,
        folder=folder if resume else None,
    ).for_method(chosen)  # fmt: skip
    division.check(chosen, job.budget)
    graph = job.graph
    report(f"traced {len(graph.groups)} channel groups, {len(job.groups)} to cut")
    for line in (*job.describe(), *graph.warnings):
        report(line)
    for line in job.unused(chosen):
        log.warning(line)
    if source is not None:
        readers = [chosen.name] * chosen.reads_labels + [type(r).__name__ for _, r in steps if r.reads_labels]
        if not objective.whole:
            training.check_labels(source.train, readers)
        training.check_data(model, source, objective)
        if not hooks:  # they may change batches
            recovery.check_data([recipe for _, recipe in steps], original, source, objective)
    check_images(images, source, original, objective)
    before = figures(graph.cost(), original, source, objective)
    guessed = not purpose.named and objective.by_classes and not objective.metrics
    if guessed and before.top1 is None and before.loss is not None:
        log.warning(
            "the network has a class for each pixel, and only the loss is measured: task='segmentation' measures mIoU and "
            "pixel accuracy, and metrics={…} what you choose"
        )
    settings = {
        **division.record(), "method": chosen.record(),
        "budget": None if budget is None else budget.record(), "scope": job.scope, "limits": limits.record(),
        "allow_inexact": allow_inexact, "calibrate": calibrate is not False, "seed": seed,
        "recover": [recipe.record() for _, recipe in steps],
        "weights": weights, **({"task": purpose.task.card()} if purpose.named else {}),
    }  # fmt: skip
    known = (None, None) if source is None else (source.classes, source.preprocess)
    with timing(job, budget, original, report, folder) as held:
        work = Pruning(
            original=original, task=job, method=chosen, rounds=division, recover=steps, options=options, before=before,
            calibrate=calibrate is not False, images=images, allow_inexact=allow_inexact, example_targets=targets,
            folder=folder, report=report, source=origin, limits=limits.record(), settings=settings,
            signature=Signature.of(given_inputs, *known), timing=held,
        )  # fmt: skip
        found = work.run()
    small, plan = found.model, found.plan
    _hand_over(small, plan, given, given_inputs, report)
    remember_cut(small, origin, plan)
    told = graph.warnings + graph.stale(plan.groups) + graph.unverified(plan.groups)
    if check_speed and held is None and plan.kept and not plan.stripes and (slow := slower(given, small, given_inputs)):
        report(slow)
        told = (*told, slow)
    result = work.result(found, told)
    own = sorted(purpose.given)
    return replace(result, settings={**result.settings, "functions": own}) if own else result


def _hand_over(
    small: nn.Module, plan: Plan, given: nn.Module, example_inputs: Any, report: Callable[[str], None]
) -> None:
    """Make the cut network like the given one: its device, dtypes and modes. Its stripes get the fastest kernels there."""
    placement, modes = Placement.of(given), {name: module.training for name, module in given.named_modules()}
    placement.restore(small)
    if plan.stripes:
        tune(small, placement.restored_inputs(example_inputs))
        shapes = " and ".join("×".join(map(str, x.shape)) for x in tensors(example_inputs))
        report(
            f"selected the fastest kernel of each stripe convolution for inputs of {shapes}; "
            f"for other sizes call secateurs.tune"
        )
    for name, module in small.named_modules():
        module.training = modes.get(name, modes[""])


def attach(
    model: nn.Module,
    example_inputs: Any,
    method: str | TrainingMethod,
    budget: Budget | None = None,
    *,
    steps: int,
    epoch_steps: int,
    data: Any,
    scope: Scope | None = None,
    seed: int = 0,
    exclude: Layers = (),
    only: Layers | None = None,
    ratios: Ratios | None = None,
    min_channels: int | Counts | None = None,
    max_cut: Cuts | None = None,
    allow_inexact: bool = False,
    loss: Loss | None = None,
    step: Step | None = None,
    forward: Forward | None = None,
) -> Pruner:
    """Attach a pruner to a model in your own training loop. Modifies the model in place; see `Pruner` for the loop.

    With several processes, call it in each of them, on the network inside `DistributedDataParallel`. They find the same plan,
    and `step` averages the gradients of the pruner's own networks.

    After `plan`, the pruner's `history` has what the method reports about its search; warnings are also logged, for example if
    the loop took fewer steps than `steps`, or never called `penalty()`.

    steps, epoch_steps: number of optimizer steps that the loop will take, in total and per epoch.
    data: the training batches, for methods that measure on data before or after training; each process passes its own.
    loss, step, forward: as for `prune`, for data of any kind. The method measures with them; the loop trains with its own.
    exclude, only, ratios, min_channels, max_cut: which channel groups may be cut, and how far; see `Limits`.

    Raises ConfigError for invalid settings, or if a pruner is already attached; DataError if the method needs to run the
    model on `data` and cannot; BudgetError and VerificationError as `prune` does.
    """
    chosen, seed = resolve(method), checked_seed(seed)
    check(model, budget, scope)
    for name, value in (("steps", steps), ("epoch_steps", epoch_steps)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ConfigError(
                f"{name}={value!r} is not a valid number of optimizer steps: it must be an integer of at least 1."
            )
    if not isinstance(chosen, TrainingMethod):
        raise ConfigError(f"{chosen.name} does not prune during training: call prune(…) instead.")
    if isinstance(chosen, Taught) and chosen.distil and "distil" in chosen.model_fields_set:
        raise ConfigError(
            Setting("distil", chosen.distil, type(chosen)), " has no effect in a training loop of your own: add the original's "
            "class probabilities to your loss, or call prune(…) instead.",
        )  # fmt: skip
    history: list[dict[str, Any]] = []

    def note(entry: dict[str, Any]) -> None:
        history.append(entry)
        if is_warning(entry) and processes.first():  # there is no result to have it
            log.warning(entry["text"])

    source, objective = Data.of(data), Objective(loss, step, forward)
    if chosen.measures:
        try:
            training.check_runs(model, source, objective)
        except DataError as error:
            if objective.whole or any(error.hint):
                raise
            raise error.advised(
                "Pass forward=lambda model, batch: (outputs, targets) to run the model on batches of another form."
            ) from error
    limits = Limits(exclude, only, ratios, min_channels, max_cut).named(model)
    graph, scope = traced(model, example_inputs, None, allow_inexact=allow_inexact), scope or chosen.default_scope
    task = task_for(
        chosen, model, graph, example_inputs, budget, scope, limits.on(graph, scope), data=source, seed=seed,
        engine_options={"objective": objective}, log=note,
    ).for_method(chosen)  # fmt: skip
    for line in task.unused(chosen):
        log.warning(line)
    pruner = chosen.attach(task)
    pruner.history = history
    pruner.join()
    pruner.begin(steps, epoch_steps)
    return pruner


def widen(
    model: nn.Module,
    example_inputs: Any,
    widths: float | Mapping[str, int],
    *,
    scope: Scope = "internal",
    allow_inexact: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Return a wider network that computes the same function (Net2Net, Chen et al., ICLR 2016); the inverse of `apply`.
    The given model is not modified.

    widths: a factor, for example 1.5, by which every channel group in scope grows; or `{group name: channels}`. Groups that
        cannot be cut cannot be widened. To train the wider network from scratch, call `reinitialize` on it.
    scope: with a factor, "internal" keeps the width of channels on a shortcut, "all" also widens them.
    allow_inexact: also widen channels that a normalization computes statistics over; the function of the network then
        changes.
    seed: determines which channels are copied, and how their consumers' weights are split among the copies: unevenly, so that
        the copies diverge in training.

    The network is verified before it is returned: the outputs agree on the example inputs to a relative error of 1e-5, the cost
    is what the graph predicts, and a trace has the requested widths. Raises PlanError for invalid widths, and VerificationError
    if a check fails: most often because the network's code has a constant that only fits the old width.
    """
    check(model, None, scope)
    wide, how, _ = widened(
        model, example_inputs, widths, scope=scope, allow_inexact=allow_inexact, seed=checked_seed(seed)
    )
    remember_widened(wide, model, how.record())
    return wide
