"""`secateurs sensitivity`: how much worse a network gets with each channel group cut alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from secateurs.cli import options
from secateurs.cli.config import ConfigOptions
from secateurs.cli.methods import configured
from secateurs.cli.options import Count, DataOptions, Flag, Folder, ModelOptions, Names, Seed, log
from secateurs.cli.task import TaskOptions
from secateurs.errors import ConfigError, shown

if TYPE_CHECKING:
    from secateurs import Sensitivity

Shares = Annotated[tuple[float, ...], Parameter(negative="", consume_multiple=True)]


def sensitivity(
    model: str,
    *,
    method: str = "l2",
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    share: Shares = (0.25, 0.5, 0.75),
    images: Count = 1000,
    calibrate: Annotated[bool, Parameter(negative="--no-calibrate", show_default=False)] = True,
    metric: str | None = None,
    drop: Annotated[float | None, Parameter(validator=Number(gte=0))] = None,
    scope: Literal["internal", "all"] | None = None,
    exclude: Names = (),
    only: Names = (),
    allow_inexact: Flag = False,
    model_options: ModelOptions | None = None,
    task_options: TaskOptions | None = None,
    data_options: DataOptions | None = None,
    out: Folder | None = None,
    resume: Flag = False,
    force: Flag = False,
    seed: Seed = 0,
    device: str | None = None,
    config_options: ConfigOptions | None = None,
) -> None:
    """Cut each channel group alone, at several shares, without training: which layers can lose channels, and how many?

    Each cell has the figure right after the cut, and after calibration, with which the whole network, calibrated on the same
    images, is compared. `keep` is the fraction of its channels with which a
    group, cut alone, loses at most `--drop`; `secateurs prune --ratios OUT/sensitivity.json` keeps that much of each group, and
    `--max-cut OUT/sensitivity.json` at least so much, within which a budget decides.

    ```
    $ secateurs sensitivity zoo:small_cnn \\
          --weights runs/digits/pretrained.safetensors \\
          --data digits --normalize none --out runs/sensitivity
    group    channels        25% cut        50% cut        75% cut  keep
    ────────────────────────────────────────────────────────────────────
    stem.0         16  79.39 → 98.89  28.41 → 93.31  25.35 → 84.12  0.75
    plain.0        32  59.33 → 98.61  10.03 → 91.92  10.03 → 68.25  0.78
    conv1          40  75.77 → 99.16  55.15 → 98.61  20.89 → 88.02  0.57

    zoo:small_cnn: top-1 99.72% → 99.72% with all channels, on 359 images;
    each group cut alone by l2, calibrated on 1,000 images
    →: right after the cut, and calibrated
    noise: one standard error of top-1 is 0.28 points, one image is 0.28
    keep: the fraction of its channels with which a group cut alone loses at
    most 1 point
    saved to runs/sensitivity: sensitivity.json and sensitivity.png
    ```

    Parameters
    ----------
    model
        zoo:NAME, torchvision:NAME, timm:NAME, python:package.module:factory, or the folder of an artifact
    method
        the criterion that says which channels of a group go first: a name, optionally followed by settings ("l2 cost=0.5")
    settings
        a setting of the criterion, key=value; may be given several times
    share
        the fractions of its channels that each group loses
    images
        validation images that each cut is measured on, evenly spaced, and training images that it is calibrated on (at most
        1,024)
    calibrate
        also measure each cut with its batch-norm statistics re-estimated, as `prune` does it (the default);
        --no-calibrate skips this
    metric
        the figure that drops are measured in: top1, top5, loss, or one of the task's; by default the task's
    drop
        of `keep`, in units of the metric: by default one point of accuracy, or a hundredth of another metric's value
    scope
        `internal` leaves channels on a shortcut alone (the default of most methods), `all` cuts them too
    exclude
        leave out what these layers put out: a layer, a module for all layers in it, or a pattern ('layer4.*'); may be given
        several times, as may --only
    only
        cut only what these layers put out
    allow_inexact
        also cut channels over which a layer or group norm computes its statistics
    out
        folder for sensitivity.json and sensitivity.png; written after each group
    resume
        continue the study in --out
    force
        replace what is in --out
    seed
        of the order of the data, augmentation, and whatever the criterion draws
    device
        cpu, cuda, cuda:1 …; an accelerator if there is one
    """
    import secateurs as sc
    from secateurs.runs.cut import pick_device
    from secateurs.studies.sensitivity.record import Record
    from secateurs.tasks.purpose import Purpose

    model_options, task = model_options or ModelOptions(), (task_options or TaskOptions()).chosen()
    purpose = Purpose.of(task)
    if out is None and (resume or force):
        raise ConfigError("--resume and --force are about what is in --out: give it.")
    if out is not None:
        Record(out).check(resume, force)  # before anything is loaded
    source = model_options.network(model)
    if not source.has_weights:
        raise ConfigError(f"Without --weights {model} is untrained: there is nothing to lose.")
    spec = (data_options or DataOptions()).spec().complete(purpose.task, source)
    chosen, build, where = configured(method, settings), source.open(purpose), pick_device(device)
    data = spec.load(seed, where, purpose.task, model_options.num_classes)
    network = build(data, where, seed)
    inputs = purpose.example(network, data)
    objective = purpose.objective(network, inputs)
    found = sc.sensitivity(
        network, inputs, chosen, data, share, images=images, calibrate=calibrate, scope=scope, exclude=exclude,
        only=only or None, metric=metric or purpose.task.primary, allow_inexact=allow_inexact, loss=objective.loss,
        step=objective.step, forward=objective.forward, metrics=objective.metrics, folder=out, resume=resume,
        overwrite=force, settings={"model": model, "weights": source.digest(), **spec.settings(), **purpose.record()},
        seed=seed, device=where,
        example_targets=purpose.example_targets(network, data), report=log,
    )  # fmt: skip
    if options.first():
        _show(found, drop, out)


def _show(found: Sensitivity, drop: float | None, out: Path | None) -> None:
    console = options.out()
    console.print(found.table(drop))
    console.print()
    for line in found.summary(drop):
        console.print(options.spelled(line), soft_wrap=True)
    if out is not None:
        picture = " and sensitivity.png" if (out / "sensitivity.png").exists() else ""
        console.print(f"saved to {shown(out)}: sensitivity.json{picture}")
        if not picture:
            log("no picture was drawn: that needs matplotlib, pip install 'secateurs[report]'")
