"""`secateurs compare-criteria`: one layer's channels masked one by one, in the order of each criterion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from secateurs.cli import options
from secateurs.cli.config import ConfigOptions
from secateurs.cli.options import Count, DataOptions, Flag, Folder, ModelOptions, Seed, log
from secateurs.cli.task import TaskOptions
from secateurs.errors import ConfigError, nearest, shown

if TYPE_CHECKING:
    from secateurs.studies.criteria import Compared

COSTLY = "oracle-10x"


def compare_criteria(
    model: str,
    *,
    layer: str,
    criteria: str | None = None,
    examples: Count = 1000,
    val_examples: Count | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
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
    """Mask a layer's channels one by one, least important first: how long does accuracy hold without training?

    Every channel but the last goes. `area` is the mean top-1 along the way, on validation data; top-1 is shown with a
    quarter, half and three quarters of the channels gone: with `--task segmentation` the mIoU, with `--task detection` the
    mAP. `images` is how many the network was evaluated on to find the order, each ablation counted.

    ```
    $ secateurs compare-criteria zoo:small_cnn \\
          --weights runs/digits/pretrained.safetensors \\
          --data digits --normalize none --layer conv1 --out runs/conv1
    [1/18] oracle
    ...
    criterion         area  1/4 gone    1/2    3/4   images     time
    ────────────────────────────────────────────────────────────────
    oracle           86.20     99.72  98.89  86.63  819,000     29 s
    oracle-degraded  79.82     98.61  93.59  63.51   40,000    1.7 s
    aofp             86.38     99.72  99.44  92.20  819,000     1:38
    apoz             45.50     62.67  38.16   9.75    1,000   300 ms
    taylor           70.45     98.89  95.26  54.32    1,000   500 ms
    l1               59.12     77.99  68.25  40.67        0  0.74 ms
    l2               58.22     89.69  61.56  20.33        0  0.92 ms
    bn-scale         77.24     95.82  84.68  82.17        0  0.84 ms
    random           51.94     99.44  41.23   9.75        0  0.44 ms
    index            62.28     84.12  72.70  38.44        0   0.4 ms
    ...

    zoo:small_cnn, conv1: 40 channels, top-1 99.72 with all of them
    saved to runs/conv1: curves.json and curves.png
    ```

    Parameters
    ----------
    model
        zoo:NAME, torchvision:NAME, timm:NAME or python:package.module:factory
    layer
        a channel group, or a layer that makes one; `secateurs inspect` lists them
    criteria
        only these, separated by commas; by default all but oracle-10x, which takes ten times as long as the oracle
    examples
        training images that criteria look at, each of them the same
    val_examples
        validation images to measure accuracy on, evenly spaced; by default all
    precision
        in which the network is evaluated; auto is bf16 where the hardware is fast at it
    out
        folder for curves.json and curves.png; written after each criterion
    resume
        take over the curves that are in --out already
    force
        replace them
    seed
        of the order of the data, augmentation, and whatever a criterion draws
    device
        cpu, cuda, cuda:1 …; an accelerator if there is one
    """
    from secateurs.studies.criteria import compare_criteria
    from secateurs.tasks.purpose import Purpose

    purpose = Purpose.of((task_options or TaskOptions()).chosen())
    network = (model_options or ModelOptions()).network(model)
    spec = (data_options or DataOptions()).spec().complete(purpose.task, network)
    chosen = _criteria(criteria)
    if network.weights is None:
        raise ConfigError(f"Without --weights {model} is untrained: all of its channels are as good as another.")
    found = compare_criteria(
        network, spec, purpose, layer, chosen, examples=examples, validation=val_examples, precision=precision, folder=out,
        resume=resume, overwrite=force, seed=seed, device=device, report=log,
    )  # fmt: skip
    if options.first():
        _show(model, found, out)


def _criteria(names: str | None) -> list[str]:
    from secateurs.studies.criteria.orders import criteria

    known = criteria()
    if names is None:
        return [name for name in known if name != COSTLY]
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--criteria: there is no criterion {name!r}. {nearest(name, known)}")
    if not chosen:
        raise ConfigError(f"--criteria names none. Known: {', '.join(known)}.")
    return chosen


def _show(model: str, found: Compared, out: Path | None) -> None:
    import secateurs.report as report

    curves = found.curves
    first = next(iter(curves.values()))
    figure, size = first.figure, len(first.values)
    show = report.formatted([x for curve in curves.values() for x in curve.values], figure)
    rows = report.table("criterion", "area", "1/4 gone", "1/2", "3/4", "images", "time")
    for name, curve in curves.items():
        at = (round(size * k / 4) for k in (1, 2, 3))
        rows.add_row(
            name,
            show(curve.area),
            *(show(curve.values[min(k, size - 1)]) for k in at),
            f"{curve.examples:,}",
            report.duration(curve.seconds),
        )
    console = options.out()
    console.print(rows)
    console.print()
    whole = show(first.values[0])
    console.print(f"{model}, {found.layer}: {size} channels, {report.heading(figure)} {whole} with all of them")
    if out is not None:
        picture = " and curves.png" if (out / "curves.png").exists() else ""
        console.print(f"saved to {shown(out)}: curves.json{picture}")
