"""`secateurs compare`: methods × budgets × seeds on one network and data, at equal compute."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from secateurs.cli import options
from secateurs.cli.config import ConfigOptions
from secateurs.cli.limits import LimitOptions
from secateurs.cli.options import Count, DataOptions, Flag, Folder, Many, ModelOptions, log, pairs
from secateurs.cli.task import TaskOptions
from secateurs.errors import ConfigError, SecateursError, shown

if TYPE_CHECKING:
    from secateurs import Budget, Comparison

Shares = Annotated[tuple[float, ...], Parameter(negative="", show_default=False)]
USUAL_METHODS = ("l2", "aofp", "npn", "pff", "onestep", "epruner")
USUAL_BUDGETS = (0.5, 0.3)


def compare(
    model: str,
    *,
    method: Many = (),
    macs: Shares = (),
    params: Shares = (),
    budget: Many = (),
    seeds: Count = 2,
    epochs: float = 3,
    recover: str = "finetune",
    search: float | None = None,
    unit: Literal["macs", "steps"] = "macs",
    scope: Literal["internal", "all"] | None = None,
    limit_options: LimitOptions | None = None,
    allow_inexact: Flag = False,
    workers: Literal["local", "ray"] = "local",
    processes: Count | None = None,
    cpus: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    gpus: Annotated[float | None, Parameter(validator=Number(gte=0))] = None,
    time_limit: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    model_options: ModelOptions | None = None,
    task_options: TaskOptions | None = None,
    data_options: DataOptions | None = None,
    out: Folder,
    resume: Flag = False,
    force: Flag = False,
    verbose: Flag = False,
    device: str | None = None,
    config_options: ConfigOptions | None = None,
) -> None:
    """Compare methods × budgets × seeds, each cell with the same compute in all: a method's own search and training count.

    A cell is kept in `--out` when it is done, so that a comparison that was killed resumes with `--resume`. How long all of
    them will take is said first.

    ```
    $ secateurs compare zoo:small_cnn \\
          --weights runs/digits/pretrained.safetensors \\
          --data digits --normalize none --batch-size 64 \\
          --method l2 --method onestep --macs 0.2 --macs 0.1 \\
          --seeds 2 --epochs 2 --out runs/compare
    measuring what the cells take: 4 short runs
    short run 1/4: l2, macs=0.2, about 6.6 s for a cell
    ...
    8 cells of 2 training passes over 1,438 images: about 56 s ...
    [1/8] l2, macs=0.2, seed 0: top-1 % 10.03 → 32.31 → 96.66, 8.8 s ...
    ...
    method    budget    seeds  after the cut     calibrated     recovered ...
    ─────────────────────────────────────────────────────────────────────
    original                                                        99.16
    l2        macs=0.2      2   10.03 ± 0.00   31.62 ± 0.98  96.38 ± 0.39
    onestep   macs=0.2      2   15.18 ± 7.29  41.92 ± 11.23  95.68 ± 0.20
    l2        macs=0.1      2   10.58 ± 0.00   15.18 ± 0.20  92.90 ± 1.38
    onestep   macs=0.1      2   10.03 ± 0.00   27.86 ± 0.00  93.04 ± 1.97
    ...
    ```

    Parameters
    ----------
    model
        zoo:NAME, torchvision:NAME, timm:NAME or python:package.module:factory; or the folder of an artifact
    method
        a method name, optionally followed by settings ("pff preset=paper", "aofp search=0.1": the share of the compute for its
        search); may be given several times; by default l2 and the five published methods. torch-pruning:group-l2 is
        torch-pruning's selection with our recovery, torch-pruning:group-l2:own its own cut, fine-tuned on the labels
    macs
        the MACs that may stay: a fraction up to 1 (0.5), or an absolute number; may be given several times; 0.5 and 0.3 by
        default
    params
        the parameters that may stay, in the same way; each is a budget of its own
    budget
        a budget of several figures, KEY=VALUE,KEY=VALUE, such as macs=0.5,params=0.4, or of time, with settings of the target:
        latency=0.6,target=onnxruntime,batch=32; may be given several times
    seeds
        how many times each method is run under each budget
    epochs
        the compute of a cell: training passes of the uncut network over the training images
    recover
        phases of recovery as for prune, "reconstruct, finetune lr=0.05", or none; without a length, since they get the compute
        that the method leaves
    search
        share of the compute for the own training of methods that train; by default each method's own share
    unit
        what an epoch of the cut network costs: its budget's share of a pass (macs), or a pass (steps)
    scope
        internal keeps channels on a shortcut, all cuts them too; by default as each method's paper does
    allow_inexact
        also cut channels over which a layer or group norm computes its statistics
    workers
        this machine (local), or the Ray cluster that RAY_ADDRESS names (ray)
    processes
        cells at a time on this machine; by default one for each accelerator
    cpus
        of a cell on a Ray cluster, 1 by default
    gpus
        of a cell on a Ray cluster; by default 1 where the cluster has any
    time_limit
        minutes that the comparison may take: if the estimate is longer, nothing is run; when they are over, no further cell
        begins
    out
        folder for the cells, the table (comparison.json, .csv and .html) and a plot of the frontier
    resume
        continue the comparison in --out: cells that are done are not run again; --method, --macs and --seeds may be others
    force
        replace what is in --out
    verbose
        a line for each epoch of training
    device
        cpu, cuda, cuda:1 …; by default all accelerators
    """
    began = time.perf_counter()
    import secateurs as sc

    model_options, chosen = model_options or ModelOptions(), _budgets(macs, params, budget)
    resources = {name: value for name, value in (("num_cpus", cpus), ("num_gpus", gpus)) if value is not None}
    if resources and workers != "ray":
        raise ConfigError("--cpus and --gpus are what a cell needs of a Ray cluster: give --workers ray with them.")
    found = sc.compare(
        model,
        methods=method or USUAL_METHODS,
        budgets=chosen or USUAL_BUDGETS,
        seeds=seeds,
        data=(data_options or DataOptions()).spec(),
        epochs=epochs,
        recover=recover,
        search=search,
        unit=unit,
        workers=workers,
        processes=processes,
        device=device,
        resources=resources or None,
        folder=out,
        resume=resume,
        overwrite=force,
        minutes=time_limit,
        weights=model_options.weights,
        num_classes=model_options.num_classes,
        trust_code=model_options.trust_code,
        scope=scope,
        **(limit_options or LimitOptions()).options(),
        allow_inexact=allow_inexact,
        task=(task_options or TaskOptions()).chosen(),
        report=log,
        progress=verbose,
    )
    _show(found, out, time.perf_counter() - began)


def _budgets(macs: Shares, params: Shares, budget: Many) -> list[Budget]:
    from secateurs import Budget
    from secateurs.budget import exact
    from secateurs.deploy import Target

    found = [Budget(macs=exact(figure)) for figure in macs] + [Budget(params=exact(figure)) for figure in params]
    known = {f.name for f in fields(Target)} - {"runtime"}
    for text in budget:
        given = pairs("budget", map(str.strip, text.split(",")), "macs=0.5,params=0.4")
        figures: dict[str, Any] = {k: exact(v) if k in ("macs", "params", "latency") else v for k, v in given.items()}
        own = {k: figures.pop(k) for k in known & figures.keys()}
        if own and "target" not in figures:
            raise ConfigError(
                f"--budget {text}: {min(own)} is a setting of a target, and none is named: add target=torch-cpu, torch-cuda, "
                "onnxruntime or openvino."
            )
        try:
            if own:
                figures["target"] = Target(figures["target"], **own)
            found.append(Budget(**figures))
        except SecateursError as error:  # settings are written as in Python there
            raise type(error)(f"--budget {text}: {error}") from None
    return found


def _show(found: Comparison, out: Path, seconds: float) -> None:
    from secateurs.report import count, duration

    console = options.out()
    console.print(found.rich())
    console.print()
    for note in found.notes:
        console.print(note, soft_wrap=True)
    also = "".join(f", {name}" for name in ("comparison.html", "frontier.png") if (out / name).exists())
    console.print(f"{duration(seconds)} · saved to {shown(out)}: comparison.json, comparison.csv{also}")
    if failed := sum(cell.failed is not None for cell in found.cells):
        raise SecateursError(
            f"{failed} of {count(len(found.cells), 'cell')} failed or were not run: --resume runs them again."
        )
