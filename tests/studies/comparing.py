"""A tiny comparison on the digits, for this process and others: the network, the data, and a method that dies; and one whose
figures are made up."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.artifact import Figures
from secateurs.methods import Criterion
from secateurs.methods.method import Task
from secateurs.studies.comparison.outcomes import Outcome

MODEL = "python:tests.studies.comparing:tiny"
DATA = sc.DataSpec("digits", normalize="none", image_size=8, batch_size=64)
EIGHT: dict[str, Any] = {
    "methods": ["l2", "aofp"],
    "budgets": [0.6, 0.4],
    "seeds": 2,
    "epochs": 2.0,
    "recover": "finetune lr=0.1 share=0",
}
DEAD = "TESTS_DEAD"  # names a folder that is there once `Dies` has died


def tiny(num_classes: int = 10, width: int = 8) -> nn.Module:
    """(N, 3, H, W) → (N, classes)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, num_classes),
    )  # fmt: skip


def batches() -> sc.Data:
    """Named by `python:tests.studies.comparing:batches`."""
    torch.manual_seed(0)
    return sc.Data(
        [(torch.randn(16, 3, 8, 8), torch.arange(16) % 10)] * 2, [(torch.randn(8, 3, 8, 8), torch.arange(8))]
    )


def run(folder: Path | None, **options: Any) -> sc.Comparison:
    """The eight cells, unless options say otherwise. On one thread: with several, sums may be split in another way when the
    machine is busy, and a search then takes other decisions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return sc.compare(MODEL, **{"data": DATA, "folder": folder, "report": lambda line: None, **EIGHT, **options})
    finally:
        torch.set_num_threads(threads)


def kill() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_the_middle_of_a_cell(folder: str, cells: int) -> None:
    """A run that is killed in the training of the cell after so many."""
    from secateurs.training.engine import Engine

    step: Callable[[Any], None] = Engine._step

    def dying(engine: Any) -> None:
        step(engine)
        if engine.step > 1 and len(list(Path(folder).glob("cells/*.json"))) == cells:
            kill()

    Engine._step = dying  # type: ignore[method-assign]
    run(Path(folder))


class Dies(Criterion):
    """ℓ1, once a process has died of it."""

    def scores(self, task: Task) -> dict[str, Tensor]:
        if not os.path.exists(os.environ[DEAD]):
            os.makedirs(os.environ[DEAD])
            kill()
        return {g.name: g.filters(task.model).abs().sum(1) for g in task.groups}


class AlwaysDies(Criterion):
    """Kills the process that it runs in."""

    def scores(self, task: Task) -> dict[str, Tensor]:
        kill()
        raise AssertionError


class Fails(Criterion):
    """Raises an exception after the checks."""

    def scores(self, task: Task) -> dict[str, Tensor]:
        raise RuntimeError("no <b>scores</b> here")


WHOLE = Figures(macs=1000, params=100, loss=0.5, top1=90.0)


def outcome(method: str, budget: str, seed: int, macs: int, top1: float) -> Outcome:
    def at(value: float) -> dict[str, Any]:
        return {"macs": macs, "params": macs // 20, "loss": 1.0, "top1": value, "metrics": {}}

    stages = {"original": vars(WHOLE), "cut": at(10.0), "calibrated": at(top1 / 2), "recovered": at(top1)}
    return Outcome(method=method, budget=budget, seed=seed, figures={**stages, "passes": 3.0, "seconds": 9.0})


def made_up() -> sc.Comparison:
    """A comparison that nobody ran: two methods, two budgets, two seeds, and a cell that failed."""
    cells = [
        outcome(method, f"macs={share}", seed, int(1000 * share), 80.0 + seed + 10 * share)
        for method in ("l2", "<b>mine</b>")
        for share in (0.5, 0.3)
        for seed in (0, 1)
    ]
    lost = Outcome(method="aofp", budget="macs=0.3", seed=0, failed="<script>alert(1)</script>")
    settings = {"model": "zoo:resnet20", "data": "folder:images", "epochs": 3.0, "recover": [{"mode": "finetune"}]}
    return sc.Comparison((*cells, lost), WHOLE, settings, {"train": 1438, "val": 359})
