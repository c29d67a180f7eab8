"""`secateurs demo`: every method side by side, on a data set that comes with a dependency."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from secateurs.cli import options
from secateurs.cli.options import Seed, log
from secateurs.cli.spelling import option
from secateurs.errors import BudgetError, ConfigError, SecateursError, Setting

if TYPE_CHECKING:
    from torch import nn

    from secateurs import Budget, Data, Figures, Method, Result

SPEC = "zoo:small_cnn"
CHEAPER: dict[str, dict[str, Any]] = {"oracle": {"examples": 128}}  # by default it takes far longer than the others


def demo(
    *,
    methods: str | None = None,
    macs: float = 0.5,
    epochs: float = 12,
    recover_epochs: float = 4,
    seed: Seed = 0,
) -> None:
    """Train a small CNN on handwritten digits and prune it with every method, side by side.

    Methods have their default settings, except `oracle`, which measures the loss on 128 examples instead of 256.

    ```
    $ secateurs demo
    zoo:small_cnn on scikit-learn's digits: 2.99M MACs, 46.1k parameters, 99.16% top-1

    method         MACs  params    cut  calibrated  recovered    error   time
    ─────────────────────────────────────────────────────────────────────────
    apoz          49.4%   50.2%  19.22       66.02      98.33  1.2e-07  2.0 s
    variance      49.8%   50.6%   9.75       77.44      98.05  1.3e-07  1.9 s
    l1            49.9%   51.0%   9.75       56.27      98.05  7.9e-08  1.8 s
    l2            49.8%   50.7%  16.71       71.59      98.33  7.4e-08  1.9 s
    bn-scale      49.7%   50.5%  38.16       86.35      98.89  1.3e-07  2.0 s
    random        49.7%   50.8%  10.03       62.12      98.33  4.4e-08  1.9 s
    index         49.6%   50.1%  10.58       86.07      98.33  0.0e+00  2.0 s
    aofp          50.0%   50.4%  51.53       96.38      99.16  6.4e-08  2.7 s
    coring        49.8%   50.1%   9.75       69.08      98.05  6.2e-08  1.9 s
    damage        49.7%   51.0%  10.03       82.45      98.61  6.5e-08  2.2 s
    epruner       50.0%   50.2%  46.24       94.71      98.61  6.2e-08  2.3 s
    fpgm          49.7%   50.8%  15.32       50.42      98.05  1.4e-07  2.0 s
    group-l1      49.7%   50.5%  33.43       93.31      98.61  1.2e-07  2.0 s
    group-l2      49.7%   50.5%  13.37       89.97      98.61  1.4e-07  2.0 s
    lamp          49.9%   49.1%  16.71       95.54      98.61  3.1e-08  2.0 s
    taylor        49.8%   49.4%  25.07       96.38      98.61  1.5e-07  2.4 s
    fisher        49.1%   48.3%  36.21       95.82      98.33  4.1e-08  2.3 s
    group-taylor  49.8%   50.7%  16.71       81.34      98.61  7.3e-08  2.5 s
    npn           49.9%   49.1%  91.92       94.71      98.33  3.9e-08  3.5 s
    onestep       49.9%   49.1%  20.06       92.20      98.61  9.6e-08  2.2 s
    oracle        49.9%   49.3%  84.96       96.66      98.89  1.3e-07  8.1 s
    l2-stripes    50.0%   50.4%  20.61       93.59      98.33  0.0e+00  2.9 s
    pff           50.0%   50.4%  32.31       96.94      98.61  0.0e+00  3.1 s

    cut, calibrated, recovered: top-1 %; error: sliced against masked network
    1:07 in all
    ```

    Parameters
    ----------
    methods
        only these, separated by commas, each optionally followed by settings: "l2, aofp theta=0.02"
    macs
        the MACs that may stay
    epochs
        how long to train the network first
    recover_epochs
        how long to train each pruned network
    seed
        of training and pruning
    """
    began = time.perf_counter()
    import torch

    import secateurs as sc
    import secateurs.report as report
    from secateurs.preflight import task_for
    from secateurs.runs.sources import DataSpec, rewind
    from secateurs.runs.training import check_epochs
    from secateurs.tasks.purpose import Purpose

    torch.set_num_threads(1)  # so small a network gains nothing by more, and loses much where cores are shared
    chosen = _methods(methods)
    cpu = torch.device("cpu")  # a GPU gains nothing on a network of this size
    budget = sc.Budget(macs=macs)
    check_epochs(epochs, Setting("epochs", epochs))
    check_epochs(recover_epochs, Setting("recover_epochs", recover_epochs))
    data = DataSpec(data="digits", normalize="none", batch_size=64).load(seed, cpu)
    torch.manual_seed(seed)
    network = sc.build(SPEC, num_classes=10)
    inputs = Purpose().example(network, data)
    graph = sc.trace(network, inputs)
    for name, method in chosen.items():
        try:
            task = task_for(method, network, graph, inputs, budget, None, {}, data=data, seed=seed)
            task.for_method(method)
        except BudgetError as error:  # without advice on a scope, which is not to be had here
            raise error.within(f"{name}: ").advised() from error
    rewind(data)
    _train(network, data, epochs, seed)
    rows = report.table("method", "MACs", "params", "cut", "calibrated", "recovered", "error", "time")
    heading = f"{SPEC} on scikit-learn's digits"
    failures: list[tuple[str, Exception]] = []
    for i, (name, method) in enumerate(chosen.items(), start=1):
        log(f"[{i}/{len(chosen)}] {name}")
        try:
            result, seconds = _pruned(method, network, data, budget, recover_epochs, seed)
            rows.add_row(name, *_row(result), report.duration(seconds))
            heading = f"{SPEC} on scikit-learn's digits: {_figures(result.before)}"
        except Exception as failure:  # the others still get their rows
            failures.append((name, failure))
            rows.add_row(name, *["-"] * 6, "failed")
    console = options.out()
    console.print(heading)
    console.print()
    console.print(rows)
    console.print()
    console.print("cut, calibrated, recovered: top-1 %; error: sliced against masked network")
    console.print(f"{report.duration(time.perf_counter() - began)} in all")
    for name, cause in failures:
        log(f"secateurs: {name}: {cause.text(option) if isinstance(cause, SecateursError) else cause}")
    if failures:
        raise SecateursError(f"{len(failures)} of {len(chosen)} methods failed.") from failures[0][1]


def _methods(names: str | None) -> dict[str, Method]:
    """By the text that names them."""
    import secateurs as sc
    from secateurs.grammar import terms
    from secateurs.methods.text import made

    if names is not None and not names.strip(" ,"):
        raise ConfigError(f"--methods names none. Known: {', '.join(sc.methods())}.")
    chosen = terms((names or ",".join(sc.methods())).strip(" ,"), sc.methods())
    return {str(term): made(term, **CHEAPER.get(term.name, {})) for term in chosen}


def _train(network: nn.Module, data: Data, epochs: float, seed: int) -> None:
    from secateurs.report import count
    from secateurs.training import Engine, Recipe

    log(f"training {SPEC} on the digits, {count(epochs, 'epoch')}")
    Engine(network, data, Recipe(epochs=epochs, lr=0.1), seed=seed, device="cpu", title="train").fit()


def _pruned(
    method: Method, network: nn.Module, data: Data, budget: Budget, epochs: float, seed: int
) -> tuple[Result, float]:
    """The result, and the seconds that it took."""
    import secateurs as sc
    from secateurs.runs.sources import rewind
    from secateurs.tasks.purpose import Purpose

    began = time.perf_counter()
    rewind(data)
    quiet: dict[str, Any] = {"device": "cpu", "progress": "silent"}
    recover = sc.Recover(epochs=epochs) if epochs else None
    result = sc.prune(network, Purpose().example(network, data), method, budget, data, recover, seed=seed, **quiet)
    return result, time.perf_counter() - began


def _row(result: Result) -> list[str]:
    import secateurs.report as report

    before, after = result.before, result.after
    return [
        report.share(after.macs, before.macs),
        report.share(after.params, before.params),
        *(report.percent(stage.top1) for stage in (result.cut, result.calibrated, after)),
        report.error(result.error),
    ]


def _figures(figures: Figures) -> str:
    import secateurs.report as report

    macs, params = report.short(figures.macs), report.short(figures.params)
    return f"{macs} MACs, {params} parameters, {report.percent(figures.top1)}% top-1"
