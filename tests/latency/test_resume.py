"""Budgets of time, interrupted: measurements differ from day to day, and the cut must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.latency import FitRecord, fits, notes
from secateurs.latency.model import Fit
from secateurs.testing.checks import quick
from secateurs.testing.networks import data, images, network
from tests.latency.fakes import Fakes, usual

X = images(1)


class Stop(sc.training.Hook):
    """Interrupts a run after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_step(self, engine: Any) -> None:
        if engine.step >= self.after:
            raise KeyboardInterrupt


def prune(folder: Path | None, method: Any = "l2", **options: Any) -> sc.Result:
    return sc.prune(
        network(), X, method, sc.Budget(latency=0.6, align=1), data=data(), recover=sc.Recover(epochs=3, lr=0.01), scope="all",
        folder=folder, progress="silent", save_steps=1, **options,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["l2", "npn"])
def test_a_resumed_run_makes_the_same_cut(fakes: Fakes, tmp_path: Path, method: str) -> None:
    fakes.noise = (0.0,)
    chosen = quick(method) if method != "l2" else method
    whole = prune(None, chosen, hooks=[Stop(10**9)])
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path / "run", chosen, hooks=[Stop(2)])
    fakes.truth = lambda macs, params: usual(macs, params) * 1.1 - 0.05  # another day
    found = prune(tmp_path / "run", chosen, hooks=[Stop(10**9)], resume=True)
    assert found.latency == whole.latency
    assert found.plan == whole.plan
    one, other = whole.model.state_dict(), found.model.state_dict()
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_a_resumed_run_works_with_the_fit_that_it_was_begun_with(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that was in doubt, and is no longer kept for others."""
    fakes.error = 0.05
    whole = prune(None, hooks=[Stop(10**9)])
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path / "run", hooks=[Stop(2)])
    monkeypatch.setattr(fits, "PASSING", 0.0)
    fakes.truth = lambda macs, params: 0.6 * usual(macs, params) + 0.3 * macs**2 + 0.1
    watches = len(fakes.watches)
    found = prune(tmp_path / "run", hooks=[Stop(10**9)], resume=True)
    assert len(fakes.watches) == watches + 1  # nothing was fitted
    assert (found.latency, found.plan) == (whole.latency, whole.plan)


def test_the_fit_of_a_run_under_another_budget_is_not_used(tmp_path: Path) -> None:
    """Its target may be another."""
    fit, budgets = Fit(seconds=0.1), [sc.Budget(latency=0.6, target=target) for target in ("torch-cpu", "torch-cuda")]
    records = [budget.record() for budget in budgets]
    file = tmp_path / notes.FILE
    notes.write(file, notes.Note(settings={"budget": records[0]}, goal=0.6, tries=1, fit=FitRecord.of(fit)))
    assert [notes.fit_in(file, record) for record in records] == [fit, None]
