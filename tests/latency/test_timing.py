"""Budgets of time, with made-up runtimes: what is chosen, measured, corrected, and said."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs import speed, timing
from secateurs.cli.spelling import option
from secateurs.deploy import clock
from secateurs.graph.counter import MacCounter
from secateurs.latency import LatencyModel, Measured, build, fits, stopwatch
from secateurs.latency.pieces import batched, pieces
from secateurs.latency.store import where
from secateurs.methods.epruner import method as epruner
from secateurs.methods.epruner.affinity import Affinities
from secateurs.methods.trimming import trimmed
from secateurs.speed import alternated
from secateurs.testing.checks import needs_data, quick
from secateurs.testing.networks import data, images, network
from tests.latency.fakes import STEP, Fakes, launch_bound

X = images(1)


def prune(budget: sc.Budget, method: Any = "l2", net: str = "small_cnn", **options: Any) -> sc.Result:
    return sc.prune(network(net), X, method, budget, progress="silent", **options)


@pytest.mark.parametrize("net", ["small_cnn", "residual", "depthwise"])
def test_the_measured_time_is_within_three_percent_below_the_budget(fakes: Fakes, net: str) -> None:
    result = prune(sc.Budget(latency=0.6, align=1), net=net, scope="all")
    found = result.latency
    assert found is not None
    step = 0.06 if net == "residual" else timing.BAND  # a channel of its shortcut is a part of every layer
    assert 0.6 * (1 - step) <= found.ratio <= 0.6
    assert found.goal == 0.6
    assert found.tries <= timing.TRIES
    assert found.ratio == pytest.approx(fakes.truth(
        result.after.macs / result.before.macs, result.after.params / result.before.params
    ), rel=1e-4)  # fmt: skip
    assert result.warnings == ()
    assert result.error < 1e-5


@pytest.mark.parametrize("method", sc.methods())
def test_every_method_meets_it(fakes: Fakes, method: str) -> None:
    chosen = quick(method)
    needs = needs_data(type(chosen))
    result = prune(sc.Budget(latency=0.6), chosen, data=data() if needs else None, scope="all")
    assert result.latency is not None
    assert result.latency.ratio <= 0.6
    assert result.latency.ratio >= 0.4
    assert result.error < 1e-5


def test_several_limits_hold_at_once(fakes: Fakes) -> None:
    result = prune(sc.Budget(macs=0.9, params=0.3, latency=0.8), scope="all")
    assert result.after.params <= 0.3 * result.before.params
    assert result.after.macs <= 0.9 * result.before.macs
    assert result.latency is not None
    assert result.latency.ratio <= 0.8


def test_milliseconds(fakes: Fakes) -> None:
    result = prune(sc.Budget(ms=6.0), scope="all")  # of 10
    assert result.latency is not None
    assert result.latency.goal == pytest.approx(0.6)
    assert result.latency.after <= 0.006
    assert "ms 10 → " in repr(result)
    whole = prune(sc.Budget(ms=20.0), scope="all")  # met already
    assert whole.after.macs == whole.before.macs


def test_what_is_measured_is_said(fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes minutes. Other budgets are met in silence, and so is this one if that is asked for."""
    sc.prune(network(), X, "l2", sc.Budget(macs=0.6), check_speed=False)
    prune(sc.Budget(latency=0.6))
    assert capsys.readouterr().err == ""
    sc.prune(network(), X, "l2", sc.Budget(latency=0.6))
    assert "% of the original's time" in capsys.readouterr().err


def test_the_ratio_and_the_times_say_the_same() -> None:
    """Their medians would not: the machine was slow in one round, and in the next only for the cut network."""
    measured = Measured.of([10.0, 10.0, 30.0, 10.0, 30.0], [6.0, 6.0, 20.0, 12.0, 18.0])
    assert (measured.ratio, measured.before) == (0.6, 10.0)
    assert measured.after == pytest.approx(6.0)


def test_a_network_in_half_precision_is_measured_in_it(fakes: Fakes) -> None:
    result = sc.prune(network("small_cnn").bfloat16(), X.bfloat16(), "l1", sc.Budget(latency=0.6), scope="all")
    assert result.latency is not None
    assert result.latency.target == {"runtime": "torch-cpu", "precision": "bf16"}
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}


def test_widths_are_those_that_the_target_likes(fakes: Fakes) -> None:
    graph = sc.trace(network(), X)
    task = timing.clocked(network(), graph, X, sc.Budget(latency=0.6), "all", {})
    assert task.clock is not None
    assert task.clock.liked == STEP  # type: ignore[attr-defined]
    by_time = prune(sc.Budget(latency=0.6), scope="all")
    by_macs = prune(sc.Budget(macs=0.5, align="auto"), scope="all")
    for result in (by_time, by_macs):
        sizes = {g.name: g.size for g in graph.groups}
        assert all(len(k) % STEP == 0 or sizes[n] < 4 * STEP for n, k in result.plan.groups.items())
    assert by_macs.after.macs <= 0.5 * by_macs.before.macs
    assert by_macs.latency is None
    assert len(fakes.watches) == 2  # one fits the model, one holds the cut: a budget of MACs needs neither


def test_a_model_of_a_network_is_made_once(fakes: Fakes) -> None:
    prune(sc.Budget(latency=0.6))
    calls, watches = len(fakes.calls), len(fakes.watches)
    prune(sc.Budget(latency=0.5))
    assert len(fakes.calls) == calls  # the tables are on disk …
    assert len(fakes.watches) == watches + 1  # … and so is the fit
    prune(sc.Budget(latency=0.6, target=sc.Target("torch-cpu", batch=4)))
    assert len(fakes.calls) > calls  # another batch size


def test_channels_are_scored_once_for_all_tries(fakes: Fakes) -> None:
    class Counted(sc.Criterion):
        name = "counted"

        def scores(self, task: Any) -> dict[str, torch.Tensor]:
            calls.append(task)
            return {g.name: g.filters(task.model).square().sum(1).sqrt() for g in task.groups}

    calls: list[Any] = []
    budget = sc.Budget(latency=0.6, align=1)
    found = prune(budget, Counted(), scope="all")
    assert found.latency is not None
    assert found.latency.tries > 1
    assert len(calls) == 1
    assert found.plan == prune(budget, "l2", scope="all").plan


def test_filters_are_compared_once_for_all_tries(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(epruner, "Affinities", lambda *args, **named: calls.append(args) or Affinities(*args, **named))
    found = prune(sc.Budget(latency=0.6, align=1), "epruner", scope="all")
    assert found.latency is not None
    assert found.latency.tries > 1
    assert len(calls) == 1
    (entry,) = found.history  # of the cut that was chosen
    assert {name: len(set(by)) for name, by in entry["groups"].items()} == {
        group.name: len(found.plan.groups.get(group.name, range(group.size)))
        for group in sc.trace(network("small_cnn"), X).groups
        if group.name in entry["groups"]
    }


def test_the_criterion_that_finds_what_a_budget_means_is_not_in_the_history(fakes: Fakes) -> None:
    options = {"data": data(), "scope": "all", "calibrate": False}
    alone = prune(sc.Budget(macs=0.6), quick("pff"), **options)
    found = prune(sc.Budget(latency=0.6), quick("pff"), **options)
    assert [e["event"] for e in found.history if "event" in e] == [e["event"] for e in alone.history if "event" in e]


def test_the_fit_of_a_busy_machine_is_used_for_a_while_only(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = 1e9, list[str]()
    monkeypatch.setattr(fits.time, "time", lambda: now)

    def fitted(noise: float) -> bool:
        """Whether the model was fitted anew."""
        fakes.error = noise
        watches = len(fakes.watches)
        lines.clear()
        timing.clocked(network(), sc.trace(network(), X), X, sc.Budget(latency=0.6), "all", {}, report=lines.append)
        return len(fakes.watches) > watches

    assert fitted(0.05)
    assert "is in doubt: the machine was busy, and times were only known to ±5.0%" in lines[-1]
    assert not fitted(0.05)  # the command that made it goes on with it …
    assert "is in doubt" in lines[-1]  # … and says so each time
    now += fits.PASSING
    assert fitted(0.001)
    assert not any("doubt" in line for line in lines)
    now += 1000 * fits.PASSING
    assert not fitted(0.05)


def test_a_fit_that_is_far_from_what_is_measured_is_in_doubt(fakes: Fakes) -> None:
    fakes.noise = (0.4, -0.3, 0.2, -0.4, 0.0)
    with pytest.raises(
        sc.BudgetError, match=r"This is in doubt: it is only within \d\d\.\d% of what was measured"
    ) as caught:
        prune(sc.Budget(latency=0.01), scope="all")
    assert str(caught.value).endswith("or measure a larger batch, Target(batch=…).")
    assert caught.value.text(option).endswith("or measure a larger batch, --target-set batch=….")


def test_nothing_can_be_gained(fakes: Fakes) -> None:
    fakes.truth = launch_bound
    with pytest.raises(sc.BudgetError, match=r"latency=0\.6 .* cannot be met") as caught:
        prune(sc.Budget(latency=0.6), scope="all")
    assert caught.value.lowest["latency"] > 0.9


def test_a_model_that_promises_too_much_is_found_out(fakes: Fakes) -> None:
    prune(sc.Budget(latency=0.6), scope="all")  # fits the model to a network that gains by a cut
    fakes.truth = launch_bound
    with pytest.raises(sc.BudgetError) as caught:
        prune(sc.Budget(latency=0.6), scope="all")
    text = str(caught.value)
    assert "cannot be met on torch-cpu: the fastest cut network that was found takes" in text
    assert "does not depend on widths" in text
    assert caught.value.lowest["latency"] == pytest.approx(0.97, abs=0.01)


def test_noise_within_the_margin_is_corrected_for(fakes: Fakes) -> None:
    fakes.noise = (0.01, -0.01, 0.005, -0.004)
    result = prune(sc.Budget(latency=0.6, align=1), scope="all")
    assert result.latency is not None
    assert result.latency.ratio <= 0.6
    assert result.warnings == ()


def test_a_cut_within_the_budget_by_luck_is_measured_again(fakes: Fakes) -> None:
    prune(sc.Budget(latency=0.6), scope="all")  # fits the model
    fakes.error, fakes.noise = 0.05, (0.0, -0.02, *[0.3] * 20)
    result = prune(sc.Budget(latency=0.6), scope="all")
    assert result.latency is not None
    assert result.latency.ratio > 0.6
    assert "too busy to hold the budget" in result.warnings[0]
    fakes.noise = (0.0,)
    result = prune(sc.Budget(latency=0.6), scope="all")
    assert result.latency is not None
    assert result.latency.ratio <= 0.6
    assert len(fakes.watches[-1].measured) == result.latency.tries + 1


def test_milliseconds_that_the_original_is_found_to_take(fakes: Fakes) -> None:
    """The model says that something has to go, and the measurement that nothing has."""
    fakes.seconds = 0.02
    assert prune(sc.Budget(ms=12.0), scope="all").after.macs < sc.count(network(), X).macs
    fakes.seconds = 0.01
    result = prune(sc.Budget(ms=12.0), scope="all")
    assert result.after.macs == result.before.macs
    assert result.latency is not None
    assert (result.latency.ratio, result.latency.noise) == (1.0, 0.0)


def test_a_network_that_stays_whole_is_not_measured_against_itself(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor in a file of its own, as a cut network of a runtime of files is."""
    prune(sc.Budget(ms=20.0), scope="all")  # fits the model
    whole = Fakes.stopwatch

    @contextmanager
    def of_files(self: Fakes, *args: Any) -> Iterator[Any]:
        with whole(self, *args) as watch:
            watch.exact, watch.noise = False, itertools.cycle([0.3])
            yield watch

    monkeypatch.setattr(timing, "stopwatch", lambda *args: of_files(fakes, *args))
    result = prune(sc.Budget(ms=20.0), scope="all")
    assert result.latency is not None
    assert (result.latency.ratio, result.latency.noise) == (1.0, 0.0)
    assert result.warnings == ()


def test_what_is_timed_is_not_counted() -> None:
    model, seen = nn.Sequential(nn.Conv2d(3, 8, 3)), []

    def watched(module: nn.Module, args: Any, out: Any) -> None:
        seen.append(torch.utils._python_dispatch._len_torch_dispatch_stack())

    model[0].register_forward_hook(watched)
    x = torch.randn(1, 3, 8, 8)
    with MacCounter() as counter, stopwatch(model, x, sc.Target("torch-cpu")) as watch:
        model(x)
        once = counter.macs
        watch.measure(sc.trace(model, x).plan({}), seconds=0.0)
        watch.confirm(model, seconds=0.0)
    assert once == sc.count(model, x).macs
    assert seen.count(0) > 2 * clock.LEAST
    assert counter.macs == once


def test_a_busy_machine_is_said(fakes: Fakes) -> None:
    fakes.error = 0.05
    result = prune(sc.Budget(latency=0.6), scope="all")
    (told,) = result.warnings
    assert "The machine is busy" in told
    assert "±5.0%" in told


def test_a_cut_network_has_the_pieces_of_the_target_s_batch_size(fakes: Fakes) -> None:
    """Of a later round: at the size of the examples, the tables have none of them."""
    inputs = images(2)
    graph = sc.trace(network(), inputs)
    budget = sc.Budget(latency=0.6, target=sc.Target("torch-cpu", batch=8))
    timed = timing.clocked(network(), graph, inputs, budget, "all", {})
    clock = timed.clock
    assert isinstance(clock, LatencyModel)
    again = clock.of(graph, inputs)
    assert len(again.pieces) == len(clock.pieces)
    assert again(graph.sizes) == pytest.approx(clock(graph.sizes))


def test_pieces_at_another_batch_size() -> None:
    (piece, *_) = pieces(sc.trace(network(), images(2)))
    once = replace(piece, geometry=replace(piece.geometry, batch=1))  # as of a position embedding
    assert [p.geometry.batch for p in batched([piece, once], 2, 1)] == [1, 1]
    assert [p.geometry.batch for p in batched([piece, once], 2, 8)] == [8, 1]


def test_a_fit_is_of_all_ops_of_a_network(fakes: Fakes) -> None:
    """What is no piece takes time, too: another network with the same layers has a fit of its own."""

    class More(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flip(2).flip(3))

    found = []
    for kind in (nn.Sequential, More):
        net = kind(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.LazyLinear(4)).eval()
        net(X)
        graph = sc.trace(net, X)
        made = build.tabulated(graph, X, sc.Target("torch-cpu"), lambda line: None)
        found.append(fits.key(made, graph.groups))
    assert found[0] != found[1]


def test_the_version_of_a_runtime_is_that_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever distribution has it: onnxruntime, onnxruntime-gpu …"""
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.2.3"))
    assert where(sc.Target("onnxruntime"))["onnxruntime"] == "1.2.3"


def test_rounds(fakes: Fakes) -> None:
    result = prune(sc.Budget(latency=0.6), scope="all", rounds=3)
    assert result.latency is not None
    assert 0.5 < result.latency.ratio <= 0.6
    ends = [line for line in result.history if line["event"] == "round"]
    assert ends[0]["budget"]["latency"] > ends[1]["budget"]["latency"]


def test_what_a_method_that_trains_leaves_over_the_budget_is_trimmed(fakes: Fakes) -> None:
    """The budget is found with the norms of the weights; then the machine turns out to be slower."""
    chosen = quick("npn")
    turns = iter(range(1000))

    def later(macs: float, params: float) -> float:
        return 0.1 + 0.9 * macs * (1.0 if next(turns) < 40 else 1.15)

    fakes.truth = later
    result = prune(sc.Budget(latency=0.6), chosen, data=data(), scope="all")
    assert result.latency is not None
    assert result.latency.ratio <= 0.6


def test_trimming_brings_nothing_back(fakes: Fakes) -> None:
    from secateurs.methods import Selection, Task, resolve

    model = network()
    graph = timing.clocked(model, sc.trace(model, X), X, sc.Budget(latency=0.6), "all", {})
    task = Task(model, graph, sc.Budget(latency=0.6), "all", example_inputs=X)
    first = Selection({g.name: np.arange(g.size - 4) for g in task.groups})
    assert task.budget is not None
    left = trimmed(Task(model, graph, task.budget.tightened(0.4), "all"), first, resolve("l2").select)
    assert all(set(left.channels[n]) <= set(k) for n, k in first.channels.items())
    assert graph.cost_of(left.plan(graph)).latency <= 0.4 * graph.cost().latency


def test_trimmed_stripes_leave_every_group_what_it_needs(fakes: Fakes) -> None:
    """The method and the criterion that trims agree on no channel."""
    from secateurs.methods import Selection, Task

    model, graph = network(), sc.trace(network(), X)
    task = Task(model, graph, sc.Budget(macs=0.9), "all", example_inputs=X)
    kernels = {name: np.ones(shape, dtype=bool) for name, shape in task.kernels.items()}
    first = Selection({g.name: np.arange(g.size // 2) for g in task.groups}, kernels)

    class Other:
        def select(self, task: Task) -> Selection:
            return Selection({g.name: np.arange(g.size // 2, g.size) for g in task.groups})

    left = trimmed(task, first, Other().select)
    assert {name: list(kept) for name, kept in left.channels.items()} == {g.name: [0] for g in task.groups}
    sc.apply(model, left.plan(graph))


def test_the_card_has_what_was_measured(fakes: Fakes, tmp_path: Any) -> None:
    result = prune(sc.Budget(latency=0.6, target=sc.Target("torch-cpu", threads=1)), scope="all")
    result.save(tmp_path / "run")
    card = sc.card(tmp_path / "run")
    assert card.latency == result.latency
    assert card.latency.target == {"runtime": "torch-cpu", "threads": 1}
    assert card.latency.cuts == 20
    assert 0 < card.latency.model_error < 0.1


def test_pieces_of_a_network() -> None:
    found = pieces(sc.trace(network("residual"), X))
    kinds = [p.geometry.kind for p in found]
    assert kinds.count("convolution") == 5
    assert kinds.count("linear") == 1
    layers = [p.geometry for p in found if p.geometry.kind == "convolution"]
    assert all(g.norm for g in layers)
    assert [g.added for g in layers].count(True) == 2  # x + block(x) belongs to the block's last layer
    assert all(g.activation == "relu" for g in layers)
    (depthwise, *_) = [
        p
        for p in pieces(sc.trace(network("depthwise"), X))
        if p.geometry.kind == "convolution" and not p.geometry.square
    ]
    assert depthwise.wide_in == depthwise.wide_out
    assert depthwise.geometry.groups == 0


def test_a_cut_that_is_slower_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"found": ([1e-2] * 7, [1.2e-2] * 7)}
    monkeypatch.setattr(speed, "alternated", lambda one, other: times["found"])
    result = prune(sc.Budget(macs=0.5))
    (told,) = result.warnings
    assert "not faster: 10 → 12 ms on torch-cpu, 1.20 of the time" in told
    assert prune(sc.Budget(macs=0.5), check_speed=False).warnings == ()
    for after in (
        [0.9e-2] * 7,
        [1.0e-2] + [1.2e-2] * 6,  # what slowed it down was not the network: its best run is as fast
        [1.01e-2] * 7,
        [0.9e-2] * 3 + [2e-2] * 4,
    ):  # faster, or nothing that stands out of the noise
        times["found"] = [1e-2] * 7, after
        assert prune(sc.Budget(macs=0.5)).warnings == ()


def test_a_cut_that_is_slower_once_is_not_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine slows down whatever it runs just then: both of two measurements must tell."""
    turns = iter([([1e-2] * 7, [2e-2] * 7), ([1e-2] * 7, [1e-2] * 7)])
    monkeypatch.setattr(speed, "alternated", lambda one, other: next(turns))
    assert prune(sc.Budget(macs=0.5)).warnings == ()
    assert next(turns, None) is None


def test_runs_that_are_too_short_or_too_long_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("secateurs.deploy.clock.time.perf_counter", lambda: now[0])

    def program(seconds: float) -> Any:
        from secateurs.deploy.clock import Program

        return Program(lambda: now.__setitem__(0, now[0] + seconds))

    assert alternated(program(1e-4), program(1e-4)) is None
    assert alternated(program(1.0), program(1.0)) is None
    found = alternated(program(0.02), program(0.01))
    assert found is not None
    assert found[0] == pytest.approx([0.02] * 13)
    assert found[1] == pytest.approx([0.01] * 13)
    few = alternated(program(0.3), program(0.3))
    assert few is not None
    assert len(few[0]) == speed.ROUNDS[0]


def test_the_call_that_repeats_it(fakes: Fakes, tmp_path: Any) -> None:
    from secateurs.calls import call

    target = sc.Target("torch-cpu", threads=1)
    prune(sc.Budget(latency=0.6, target=target), scope="all").save(tmp_path / "run")
    text = call(sc.card(tmp_path / "run"))
    assert 'budget=sc.Budget(latency=0.6, target=sc.Target("torch-cpu", threads=1))' in text
    assert "latency" in (tmp_path / "run" / "README.md").read_text()


def test_a_comparison_under_a_budget_of_time(fakes: Fakes) -> None:
    from secateurs.studies.comparison.contestants import budget_text

    assert budget_text(sc.Budget(latency=0.6, target="onnxruntime")) == "latency=0.6 target=onnxruntime"
    large = sc.Target("onnxruntime", batch=32, threads=1)
    assert budget_text(sc.Budget(latency=0.6, target=large)) == "latency=0.6 target=onnxruntime, 1 thread, batch 32"
    assert budget_text(sc.Budget(macs=0.5)) == "macs=0.5"
    assert budget_text(sc.Budget(macs=0.5, align="auto")) == "macs=0.5 align=auto"
