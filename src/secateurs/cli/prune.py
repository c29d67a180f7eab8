"""`secateurs prune`: prune a network, verify the cut, recover accuracy."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from secateurs.cli import options
from secateurs.cli.budget import BudgetOptions
from secateurs.cli.config import ConfigOptions
from secateurs.cli.limits import LimitOptions
from secateurs.cli.methods import configured, own, stages
from secateurs.cli.options import Count, DataOptions, Flag, Folder, Many, ModelOptions, Names, Seed
from secateurs.cli.recipes import PretrainOptions, RecoverOptions
from secateurs.cli.task import TaskOptions
from secateurs.errors import shown

if TYPE_CHECKING:
    from secateurs.runs import RunResult


def prune(
    model: str,
    *,
    method: str = "epruner",
    budget_options: BudgetOptions | None = None,
    scope: Literal["internal", "all"] | None = None,
    ranking: Literal["global", "layer", "isomorphic"] | None = None,
    preset: Names = (),
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    rounds: Count = 1,
    schedule: Literal["linear", "cubic"] = "linear",
    then: Many = (),
    limit_options: LimitOptions | None = None,
    allow_inexact: Flag = False,
    calibrate: Annotated[bool, Parameter(negative="--no-calibrate", show_default=False)] = True,
    model_options: ModelOptions | None = None,
    task_options: TaskOptions | None = None,
    data_options: DataOptions | None = None,
    recover_options: RecoverOptions | None = None,
    pretrain_options: PretrainOptions | None = None,
    out: Folder,
    resume: Flag = False,
    force: Flag = False,
    seed: Seed = 0,
    device: str | None = None,
    track: Names = (),
    config_options: ConfigOptions | None = None,
) -> None:
    """Prune a network to a budget, verify the cut, recover the accuracy, save the result.

    Without `--weights`, the network is trained first, on the same data. `--resume` continues a run that was killed.

    ```
    $ secateurs prune zoo:small_cnn --data digits --normalize none \\
          --batch-size 64 --method l1 --macs 0.5 --out runs/digits
    no --weights: training zoo:small_cnn on digits first, 30 epochs
    (--pretrain-epochs)
    ...
    traced 5 channel groups, 3 to cut
    l1 keeps 49.6% of the MACs and 50.1% of the parameters
    cut and verified: masked and sliced differ by 9.0e-08
    calibrated on 1,024 images: statistics of 5 norms
    recover: peak learning rate 0.021
    ...
                     MACs          params          top-1 %  top-5 %    loss
    ───────────────────────────────────────────────────────────────────────
    before          2.99M  100.0%   46.1k  100.0%    99.72   100.00   0.018
    after the cut   1.48M   49.6%   23.1k   50.1%    10.03    59.33  13.011
    calibrated      1.48M   49.6%   23.1k   50.1%    74.93    97.49   0.753
    after recovery  1.48M   49.6%   23.1k   50.1%    98.89   100.00   0.047

    masked ≡ sliced to 9.0e-08 · 1:59 · saved to runs/digits
    model = secateurs.load("runs/digits")
    ```

    Parameters
    ----------
    model
        zoo:NAME, torchvision:NAME, timm:NAME or python:package.module:factory; or the folder of an artifact, whose
        network is pruned further
    method
        how channels are chosen: a method name, optionally followed by settings ("aofp theta=0.02", "pff preset=paper");
        `secateurs methods` lists both, `secateurs demo` runs every method there is
    scope
        internal keeps channels on a shortcut, all cuts them too; by default as the method's paper does
    ranking
        compare channels over the whole network, cut the same share of every group, or the same share of groups of like
        structure taken together
    preset
        named settings of the method, which --set overrides (`secateurs methods` lists them); pff.NAME for a method of
        --then
    settings
        a setting of the method, key=value, as within --method, or pff.key=value for a method of --then; may be given several
        times
    rounds
        prune iteratively: so many rounds of cutting a little and recovering, each with the whole method and recovery
    schedule
        of the rounds: the same share in each (linear), or most at first (cubic); --lr-schedule is the learning rate's
    then
        METHOD:MACS, a further method that prunes the result (pff:0.3, with settings "pff:0.3 epochs=2"), and the MACs of the
        original network to keep at most; may be given several times. Each cut is followed by the same recovery
    allow_inexact
        also cut channels over which a layer or group norm computes its statistics; the cut is then not verified
    calibrate
        re-estimate the batch-norm statistics of the cut network on 1,024 training images, without labels (the default);
        --no-calibrate skips this
    out
        folder for the artifact, the checkpoints and the log
    resume
        continue the run in --out; recovery settings may change until recovery has begun
    force
        replace what is in --out
    seed
        seed of the initial weights, the order of the data, augmentation and the method
    device
        cpu, cuda, cuda:1 …; an accelerator if there is one
    track
        a tracker that accelerate knows (tensorboard, wandb …); may be given several times
    """
    began = time.perf_counter()
    from secateurs.runs import PruneRun

    limits = budget_options or BudgetOptions()
    model_options, pretrain = model_options or ModelOptions(), pretrain_options or PretrainOptions()
    budget = limits.budget()
    run = PruneRun(
        model,
        (data_options or DataOptions()).spec(),
        out,
        method=configured(method, own(settings, then), ranking, own(preset, then)),
        budget=budget,
        recover=(recover_options or RecoverOptions()).recipes(),
        rounds=rounds,
        schedule=schedule,
        then=stages(
            then,
            settings,
            preset,
            limits.align or 1,
            budget.target if limits.align == "auto" and budget is not None else None,
        ),
        weights=model_options.weights,
        num_classes=model_options.num_classes,
        trust_code=model_options.trust_code,
        task=(task_options or TaskOptions()).chosen(),
        pretrain_epochs=pretrain.pretrain_epochs,
        pretrain_lr=pretrain.pretrain_lr,
        scope=scope,
        **(limit_options or LimitOptions()).options(),
        allow_inexact=allow_inexact,
        calibrate=calibrate,
        seed=seed,
        device=device,
        track=track,
        log=options.log,
        by_command=True,
    )
    result = run.start(resume=resume, overwrite=force, began=began)
    if options.first():
        _show(result, out)


def _show(result: RunResult, folder: Path) -> None:
    from secateurs.plans.stripes import summary
    from secateurs.report import duration, error, outcome, stripes_line, timed

    console = options.out()
    console.print(outcome(result.networks))
    console.print()
    if result.latency is not None:
        console.print(timed(result.latency))
    if layers := summary(result.plan):
        console.print(stripes_line(layers))
    options.warn(console, result.warnings)
    took = "" if result.seconds is None else f" · {duration(result.seconds)}"
    console.print(f"masked ≡ sliced to {error(result.error)}{took} · saved to {shown(folder)}")
    console.print(f"model = {loading(result.source, folder)}")


def loading(source: Mapping[str, Any] | None, folder: Path) -> str:
    """The call that loads an artifact of the user's own making."""
    spec = str((source or {}).get("spec"))
    trusted = ", trust_code=True" if spec.startswith("python:") else ""  # its own module is imported
    return f'secateurs.load("{shown(folder)}"{trusted})'
