"""`secateurs demo`: every method side by side, on a data set that comes with a dependency."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from secateurs.cli import options
from secateurs.cli.options import DataOptions, say
from secateurs.errors import SecateursError

if TYPE_CHECKING:
    from torch import nn

    from secateurs import Data, Method

SPEC = "zoo:small_cnn"


def demo(
    *,
    methods: str | None = None,
    macs: float = 0.5,
    epochs: float = 12,
    recover_epochs: float = 4,
    seed: int = 0,
) -> int:
    """Train a small CNN on handwritten digits and prune it with every method, side by side.

    ```
    EXAMPLE
    ```

    Parameters
    ----------
    methods
        only these, separated by commas
    macs
        the MACs that may stay
    epochs
        how long to train the network first
    recover_epochs
        how long to train each pruned network
    seed
        of everything that is drawn
    """
    began = time.perf_counter()
    import torch

    from secateurs import report

    chosen = _methods(methods)
    cpu = torch.device("cpu")  # a GPU gains nothing on a network of this size
    data = DataOptions(data="digits", normalize="none", batch_size=64).load(seed, cpu)
    network = _trained(data, epochs, seed)
    rows = report.table("method", "MACs", "parameters", "before", "cut", "recovered", "masked ≡ sliced", "time")
    failed = 0
    for i, method in enumerate(chosen, start=1):
        say(f"[{i}/{len(chosen)}] {method.name}")
        try:
            rows.add_row(*_row(method, network, data, macs, recover_epochs, seed))
        except SecateursError as error:
            failed += 1
            rows.add_row(method.name, *["–"] * 6, "failed")
            say(f"secateurs: {method.name}: {error}")
    console = options.out()
    console.print(
        f"{SPEC} on scikit-learn's digits, {report.share(macs, 1)} of its MACs: top-1 % before, after the cut, recovered"
    )
    console.print(rows)
    console.print(f"{report.duration(time.perf_counter() - began)} in all")
    return 1 if failed else 0


def _methods(names: str | None) -> list[Method]:
    import secateurs as sc
    from secateurs.methods import resolve

    return [resolve(name.strip()) for name in (names.split(",") if names else sc.methods())]


def _trained(data: Data, epochs: float, seed: int) -> nn.Module:
    import torch

    import secateurs as sc
    from secateurs.training import Engine, Recipe

    torch.manual_seed(seed)
    network = sc.build(SPEC, num_classes=10)
    say(f"training {SPEC} on the digits, {epochs:g} epochs")
    Engine(network, data, Recipe(epochs=epochs, lr=0.1), seed=seed, device="cpu", title="train").fit()
    return network


def _row(method: Method, network: nn.Module, data: Data, macs: float, epochs: float, seed: int) -> list[str]:
    import secateurs as sc
    from secateurs import report

    began = time.perf_counter()
    recover = sc.Recover(epochs=epochs, lr=0.05) if epochs else None
    quiet: dict[str, Any] = {"device": "cpu", "progress": "silent"}
    result = sc.prune(
        network, options.example(data), method, sc.Budget(macs=macs), data, recover, seed=seed, **quiet
    )
    before, after = result.before, result.after
    return [
        method.name,
        f"{report.short(after.macs)} ({report.share(after.macs, before.macs)})",
        f"{report.short(after.params)} ({report.share(after.params, before.params)})",
        *(report.percent(stage.top1) for stage in (before, result.cut, after)),
        report.error(result.error),
        report.duration(time.perf_counter() - began),
    ]
