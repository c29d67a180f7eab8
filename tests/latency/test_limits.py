"""What a budget of time means for methods that train, for stripes, and beside other limits. With made-up runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secateurs as sc
from secateurs import timing
from secateurs.latency import LatencyModel
from secateurs.latency.stripes import FLAT, SHARES
from secateurs.methods import Selection, Task, resolve
from secateurs.testing.checks import quick
from secateurs.testing.networks import data, images, network
from tests.latency.fakes import Fakes, usual

X = images(1)


def prune(budget: sc.Budget, method: Any = "l2", **options: Any) -> sc.Result:
    return sc.prune(network(), X, method, budget, progress="silent", scope="all", **options)


class Slow(sc.Method):
    """A method that selects once, as those do that train. share: of each group's channels; None: what the budget allows."""

    name = "slow"
    quick = False
    share: float | None = None

    def select(self, task: Task) -> Selection:
        assert task.budget is not None
        base = task.graph.cost()
        limit = task.budget.limits(base).latency
        task.note(event="allowed", share=limit / base.latency)  # type: ignore[operator]
        if self.share is None:
            return Selection.of(resolve("l2").select(task))
        return Selection({g.name: np.arange(round(g.size * self.share)) for g in task.groups})


def test_a_method_that_trains_may_take_the_time_that_another_limit_leaves(fakes: Fakes) -> None:
    """The criterion that finds what the budget means is cut by the MACs: its time is not the limit."""
    result = prune(sc.Budget(macs=0.3, latency=0.9), Slow())
    assert result.latency is not None
    assert result.latency.ratio < 0.6
    (entry,) = (line for line in result.history if line["event"] == "allowed")
    assert entry["share"] > 0.8
    (entry,) = (line for line in prune(sc.Budget(latency=0.6), Slow()).history if line["event"] == "allowed")
    assert entry["share"] == pytest.approx(0.6, abs=0.05)


def test_what_was_trimmed_is_in_the_history(fakes: Fakes) -> None:
    result = prune(sc.Budget(latency=0.6), Slow(share=1.0))
    (entry,) = (line for line in result.history if line["event"] == "trimmed")
    assert entry["kept"] == sum(map(len, result.plan.groups.values()))
    assert entry["of"] > entry["kept"]
    assert not any(line["event"] == "trimmed" for line in prune(sc.Budget(latency=0.6), Slow(share=0.25)).history)


def test_stripes_that_a_runtime_does_not_skip_save_no_time(fakes: Fakes) -> None:
    """Whatever share of the time the fit gives to parameters and MACs."""
    graph = sc.trace(network(), X)
    clock = timing.clocked(network(), graph, X, sc.Budget(latency=0.6), "all", {}).clock
    assert isinstance(clock, LatencyModel)
    assert clock.fit.macs + clock.fit.params > 0.01
    half = {name: int(np.prod(shape)) // 2 for name, shape in graph.kernels.items()}
    whole = clock(graph.sizes)
    assert clock(graph.sizes, half) == pytest.approx(whole, rel=1e-9)
    assert clock.with_curve(FLAT)(graph.sizes, half) == pytest.approx(whole, rel=1e-9)
    assert clock.with_curve(([0.0, 1.0], [0.0, 1.0]))(graph.sizes, half) < 0.9 * whole


@pytest.mark.parametrize("method", ["pff", "l2-stripes"])
def test_all_stripes_stay_where_they_cost_no_time(fakes: Fakes, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(timing, "curve", lambda *_: FLAT)
    result = prune(sc.Budget(latency=0.6), quick(method), data=data())
    assert result.latency is not None
    assert result.latency.ratio <= 0.6
    kept, of = (sum(layer[key] for layer in result.card()["stripes"]) for key in ("stripes", "of_stripes"))
    assert kept == of


def test_what_stripes_gain_is_measured_once_with_the_network(fakes: Fakes) -> None:
    """Another day's measurements make no other model; and a network that takes as long without them gains nothing."""
    found = []
    for truth in (usual, lambda macs, params: 0.5 + 0.5 * usual(macs, params)):
        fakes.truth = truth
        graph = timing.clocked(
            network(), sc.trace(network(), X), X, sc.Budget(latency=0.6), "internal", {}, stripes=True
        )
        assert isinstance(graph.clock, LatencyModel)
        found.append(graph.clock)
    assert found[0].curve == found[1].curve
    for share in SHARES:
        half = {name: max(1, round(share * int(np.prod(shape)))) for name, shape in graph.kernels.items()}
        cost, whole = graph.cost(graph.sizes, half), graph.cost()
        due = usual(cost.macs / whole.macs, cost.params / whole.params)
        assert found[0](graph.sizes, half) / found[0](graph.sizes) == pytest.approx(due, rel=0.02)


def test_a_model_that_promises_too_much_is_corrected_in_a_few_tries(fakes: Fakes) -> None:
    prune(sc.Budget(latency=0.6))  # fits the model
    fakes.truth = lambda macs, params: 0.5 + 0.5 * usual(macs, params)
    result = prune(sc.Budget(latency=0.62, align=1))
    assert result.latency is not None
    assert 0.6 < result.latency.ratio <= 0.62


def test_a_budget_that_only_the_narrowest_cut_meets_is_met(fakes: Fakes) -> None:
    prune(sc.Budget(latency=0.6))  # fits the model
    fakes.truth = lambda macs, params: 0.615 if macs > 0.02 else 0.5
    result = prune(sc.Budget(latency=0.6, align=1))
    assert result.latency is not None
    assert result.latency.ratio == 0.5
    assert result.latency.tries <= timing.TRIES + timing.MORE


def slower(macs: float, params: float) -> float:
    """Cuts of less than a half are slower than the original."""
    return 1.2 if 0.3 < macs < 0.999 else usual(macs, params)


def test_no_cut_is_slower_than_the_original(fakes: Fakes) -> None:
    prune(sc.Budget(latency=0.6))  # fits the model
    fakes.truth = slower
    result = prune(sc.Budget(macs=0.5, latency=1.0))
    assert result.latency is not None
    assert result.latency.ratio <= 1.0
    assert result.after.macs <= 0.3 * result.before.macs


def test_a_cut_within_the_milliseconds_that_is_slower_than_the_original_is_said(fakes: Fakes) -> None:
    prune(sc.Budget(latency=0.6))  # fits the model
    fakes.truth = slower
    for method in ("l2", Slow()):
        result = prune(sc.Budget(macs=0.5, ms=20.0), method)  # of 10
        assert 0.4 * result.before.macs < result.after.macs
        (told,) = result.warnings
        assert "not faster: 10 → 12 ms on torch-cpu, 1.20 of the time" in told


def test_a_resumed_run_is_checked_with_the_model_that_it_began_with(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that was in doubt, and is no longer kept for others."""
    from secateurs.latency import fits
    from tests.latency.test_resume import Stop
    from tests.runs.test_rounds import DIGITS

    fakes.error = 0.05
    monkeypatch.setattr(fits, "PASSING", 0.0)
    run = sc.PruneRun(
        "zoo:small_cnn", DIGITS, tmp_path / "run", method="l2", budget=sc.Budget(latency=0.6), pretrain_epochs=0,
        recover=sc.Recover(epochs=1, lr=0.01), device="cpu",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(
            "secateurs.recovery.recover", lambda *args, **named: Stop(0).after_step(type("", (), {"step": 1}))
        )
        with pytest.raises(KeyboardInterrupt):
            run.start()
    watches = len(fakes.watches)
    run.check(resume=True)
    assert len(fakes.watches) == watches  # nothing was fitted


def test_a_later_cut_keeps_to_the_widths_of_the_same_target() -> None:
    from secateurs.cli.methods import stages

    (stage,) = stages(["l2:0.3"], [], [], "auto", sc.Target("onnxruntime"))
    budget = stage.budget(1000)
    assert budget is not None
    assert (budget.macs, budget.align, budget.target) == (300, "auto", sc.Target("onnxruntime"))


def test_a_comparison_has_the_times_and_what_was_said_of_them() -> None:
    from secateurs.studies.comparison.outcomes import Outcome
    from secateurs.studies.comparison.result import Comparison

    one = {"macs": 5, "params": 5, "top1": 50.0, "top5": None, "loss": 1.0, "metrics": {}}
    figures = {
        "cut": one, "calibrated": one, "recovered": one, "passes": 1.0, "seconds": 2.0,
        "latency": {"target": {}, "goal": 0.6, "ratio": 0.62, "noise": 0.02, "before": 0.002, "after": 0.00124},
        "warnings": ["The machine is too busy to hold the budget"],
    }  # fmt: skip
    found = Comparison((Outcome(method="npn", budget="latency=0.6", seed=0, figures=figures),))
    assert "npn, latency=0.6, seed 0: The machine is too busy to hold the budget" in found.table()
    names, line = (row.split(",") for row in found.to_csv().splitlines())
    assert line[names.index("latency")] == "0.62"
