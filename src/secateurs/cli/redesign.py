"""`secateurs redesign`: better widths at the same cost, found by pruning a wider network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secateurs.cli import options
from secateurs.cli.config import ConfigOptions
from secateurs.cli.limits import LimitOptions
from secateurs.cli.methods import configured
from secateurs.cli.options import Count, DataOptions, Flag, Folder, ModelOptions, Names, Seed
from secateurs.cli.recipes import RedesignOptions
from secateurs.cli.task import TaskOptions
from secateurs.errors import shown

if TYPE_CHECKING:
    from secateurs.runs import Redesign


def redesign(
    model: str,
    *,
    widen: float = 1.5,
    macs: float = 1.0,
    align: Count = 1,
    method: str = "aofp",
    scope: Literal["internal", "all"] | None = None,
    ranking: Literal["global", "layer", "isomorphic"] | None = None,
    preset: str | None = None,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    limit_options: LimitOptions | None = None,
    from_base: Flag = False,
    model_options: ModelOptions | None = None,
    task_options: TaskOptions | None = None,
    data_options: DataOptions | None = None,
    train_options: RedesignOptions | None = None,
    out: Folder,
    resume: Flag = False,
    force: Flag = False,
    seed: Seed = 0,
    device: str | None = None,
    track: Names = (),
    config_options: ConfigOptions | None = None,
) -> None:
    """Find better widths at the same cost: widen a network, train it, prune it back, and train what was found from scratch.

    The four networks of the AOFP paper's Table 4: the base, the scaled one, that pruned to the base's MACs, and a network
    of the widths found, trained from scratch like the base. `--resume` continues a run that was killed.

    ```
    $ secateurs redesign zoo:small_cnn --data digits --normalize none \\
          --batch-size 64 --widen 1.5 --epochs 15 --recover-epochs 5 \\
          --out runs/redesign
    zoo:small_cnn has 2,986,384 MACs, 4,700,560 when widened by 1.5, to be
    pruned to 2,986,384
    training the base, 15 epochs
    ...
    training the widened network, 15 epochs
    ...
    traced 5 channel groups, 3 to cut
    ...
    aofp keeps 63.4% of the MACs and 63.8% of the parameters
    cut and verified: masked and sliced differ by 1.4e-07
    ...
    training the widths found, from scratch, 15 epochs
    ...
                        MACs          params          top-1 %  top-5 %   loss
    ─────────────────────────────────────────────────────────────────────────
    base               2.99M  100.0%   46.1k  100.0%    99.44   100.00  0.042
    scaled             4.70M  157.4%   72.3k  156.9%    99.16   100.00  0.038
    re-design-pruned   2.98M   99.8%   46.2k  100.1%    99.16   100.00  0.050
    re-design-scratch  2.98M   99.8%   46.2k  100.1%    98.33   100.00  0.043

    channels of  base  scaled  re-designed
    ──────────────────────────────────────
    stem.0         16      24           14
    plain.0        32      48           29
    conv1          40      60           43

    masked ≡ sliced to 1.4e-07 · 1:39 · saved to runs/redesign
    model = secateurs.load("runs/redesign/pruned")  # or from-scratch
    ```

    Parameters
    ----------
    model
        zoo:NAME, torchvision:NAME, timm:NAME or python:package.module:factory
    widen
        the factor by which every layer in scope grows
    macs
        the MACs to prune back to: a fraction of the base's (1.0: as many), or an absolute number (60e6)
    align
        keep widths that are multiples of this
    method
        how channels are chosen: a method name, optionally followed by settings ("aofp theta=0.02"); `secateurs demo` runs every
        method there is
    scope
        internal leaves channels on a shortcut as they are, all widens and cuts them too; by default as the method's
        paper does
    ranking
        compare channels over the whole network, cut the same share of every group, or the same share of groups of like
        structure taken together
    preset
        named settings of the method, which --set overrides: `secateurs methods` lists them
    settings
        a setting of the method, key=value; may be given several times
    from_base
        the scaled network starts as a copy of the trained base that computes the same, not from scratch
    out
        folder for the artifacts, the checkpoints and the logs
    resume
        continue the run in --out
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
    from secateurs.runs import RedesignRun

    model_options = model_options or ModelOptions()
    run = RedesignRun(
        model,
        (data_options or DataOptions()).spec(),
        out,
        widen=widen,
        macs=macs,
        align=align,
        method=configured(method, settings, ranking, () if preset is None else (preset,)),
        scope=scope,
        **(limit_options or LimitOptions()).options(),
        from_base=from_base,
        train=(train_options or RedesignOptions()).training(),
        weights=model_options.weights,
        num_classes=model_options.num_classes,
        trust_code=model_options.trust_code,
        task=(task_options or TaskOptions()).chosen(),
        seed=seed,
        device=device,
        track=track,
        log=options.log,
    )
    found = run.start(resume=resume, overwrite=force, began=began)
    if options.first():
        _show(found, out)


def _show(found: Redesign, folder: Path) -> None:
    from secateurs.report import columns, duration, error, share, short, table
    from secateurs.runs.redesign import PRUNED, SCRATCH

    base = found.rows["base"]
    measured = columns(list(found.rows.values()))
    figures = table("", "MACs", "", "params", "", *measured)
    for name, row in found.rows.items():
        figures.add_row(
            *(name, short(row.macs), share(row.macs, base.macs)),
            *(short(row.params), share(row.params, base.params)),
            *(measure(row) for measure in measured.values()),
        )
    layers = table("channels of", "base", "scaled", "re-designed")
    for layer, widths in found.widths.items():
        layers.add_row(layer, *map(str, widths))
    console = options.out()
    console.print(figures)
    console.print()
    console.print(layers)
    console.print()
    console.print(f"masked ≡ sliced to {error(found.error)} · {duration(found.seconds)} · saved to {shown(folder)}")
    console.print(f'model = secateurs.load("{shown(folder / PRUNED)}")  # or {SCRATCH}')
