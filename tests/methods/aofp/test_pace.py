"""AOFP, the schedule: θ, stalls, the start, and what is cut to keep to the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.methods.aofp import Damage, Halves
from secateurs.methods.aofp.pace import Pace
from secateurs.testing.networks import randomize
from tests.methods.aofp.small import attached, bare, batches, events, images, network, train

# -- θ, stalls, the start ----------------------------------------------------------------------------------------------


def test_pace() -> None:
    pace = Pace(0.01, growth=2, goal={"macs": 0.5}, begin=0, end=1)
    assert [pace.excess({"macs": 1.0}, p) for p in (0, 0.45, 0.9, 1)] == [0, 0.25, 0.5, 0.5]
    assert pace.update({"macs": 1.0}, 0.45, searches=1) == pytest.approx(0.02)  # far behind: once the growth
    assert pace.update({"macs": 1.0}, 0.45, searches=0.5) == pytest.approx(0.02 * 2**0.5)
    assert pace.update({"macs": 0.76}, 0.45, searches=1) == pytest.approx(0.04)  # a little behind
    assert pace.update({"macs": 0.5}, 0.45, searches=1) == pytest.approx(0.02)  # ahead
    for _ in range(3):
        pace.update({"macs": 0.5}, 0.45, searches=1)
    assert pace.theta == 0.01  # never below where it began
    for _ in range(100):
        pace.update({"macs": 1.0}, 1, searches=1)
    assert pace.theta == 1.0
    still = Pace(0.02, growth=1, goal={"macs": 0.3}, begin=0, end=1)
    assert still.update({"macs": 1.0}, 1.0, 1.0) == 0.02
    assert still.due({"macs": 1.0}, 1.0, 0.1) == 0  # the paper's θ: nothing is forced before the end


def test_what_is_due_waits_for_the_first_full_search() -> None:
    pace = Pace(0.01, growth=2, goal={"macs": 0.5}, begin=0, end=1)
    assert [pace.due({"macs": 1.0}, p, 0.1) for p in (0, 0.1, 0.5, 0.9, 1)] == pytest.approx([0, 0, 0.25, 0.5, 0.5])
    assert pace.due({"macs": 0.5}, 0.9, 0.1) == 0


def test_each_limit_has_a_line_of_its_own() -> None:
    pace = Pace(0.01, growth=2, goal={"macs": 0.9, "params": 0.5}, begin=0, end=1)
    assert pace.excess({"macs": 0.95, "params": 0.75}, 0.45) == pytest.approx(0)
    assert pace.excess({"macs": 0.9, "params": 0.8}, 0.9) == pytest.approx(
        0.3
    )  # the MACs have arrived, the parameters not
    assert pace.excess({"macs": 0.98, "params": 0.4}, 0.9) == pytest.approx(0.08)
    model, pruner = attached(sc.Budget(macs=0.9, params=0.5), steps=60, theta=1e-6, search_cost=1)
    train(model, pruner, 60)
    base, cost = pruner.widths.base, pruner.widths.cost(pruner._widths())
    assert pruner.ended == "the budget is met"
    assert pruner.steps <= 54
    assert cost.params <= 0.5 * base.params
    assert events(pruner.record, "end") == []
    half = next(h for h in pruner.record if h.get("step", 0) >= 27 and "params" in h)
    assert half["params"] <= 0.8 * base.params  # and not at once at the end


def test_theta_grows_until_the_budget_is_in_reach_and_stays_without_one() -> None:
    model, pruner = attached(sc.Budget(macs=0.5), steps=200, theta=1e-4, search_cost=1)
    train(model, pruner, 200)
    moves = events(pruner.record, "move")
    assert pruner.ended == "the budget is met"
    assert moves[0]["theta"] > 1e-4
    model, pruner = attached(None, steps=60, theta=0, search_cost=1, patience=1000)
    train(model, pruner, 60)
    assert pruner.pace.theta == 0
    assert not events(pruner.record, "move")


@pytest.mark.parametrize("budget", [None, sc.Budget(macs=0.6)])
def test_a_sweep_in_which_nothing_can_be_pruned_ends_the_run(budget: sc.Budget | None) -> None:
    lines: list[str] = []
    model, pruner = attached(budget, steps=1000, theta=1e-5, theta_growth=1, search_cost=2)
    pruner.log = lines.append
    train(model, pruner, 1000)
    assert pruner.done
    assert pruner.steps < 30
    (line,) = lines
    assert "no layer has a filter left whose damage is below theta=1e-05" in line
    assert "raise theta" in line
    plan = pruner.plan()
    (end,), (stall,) = events(pruner.history, "end"), events(pruner.history, "stall")
    assert stall["step"] == end["step"] == pruner.steps
    assert end["reason"] in line
    if budget is None:
        assert plan.groups == {}
        assert end["forced"] == 0
    else:
        assert end["forced"] > 0
        assert end["macs"] <= 0.6 * pruner.task.graph.cost().macs


def test_patience() -> None:
    found = []
    for patience in (1, 3):
        model, pruner = attached(None, steps=1000, theta=0, search_cost=1, patience=patience)
        train(model, pruner, 1000)
        assert len(events(pruner.record, "stall")) == patience
        found.append(pruner.steps)
    assert found[1] == 3 * found[0]


def test_layers_down_to_their_last_filters_are_left_alone() -> None:
    model, pruner = attached(None, steps=1000, theta=10, search_cost=1, min_filters=2)
    train(model, pruner, 1000)
    assert {s.width for s in pruner.searches.values()} == {2}
    assert pruner.ended is not None
    assert "every layer is down to" in pruner.ended
    model, pruner = attached(None, steps=1000, theta=10, search_cost=1)
    train(model, pruner, 1000)
    assert {len(k) for k in pruner.plan().groups.values()} == {1}
    assert model(images(2)).isfinite().all()


def test_a_layer_of_one_filter() -> None:
    torch.manual_seed(0)
    model = randomize(nn.Sequential(
        nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ), 0)  # fmt: skip
    result = sc.prune(
        model,
        images(1),
        sc.AOFP(epochs=20, search_cost=1, theta=0.5),
        sc.Budget(macs=0.6),
        data=batches(),
        progress="silent",
    )
    assert result.after.macs <= 0.6 * result.before.macs
    assert "0" not in result.plan.groups or len(result.plan.groups["0"]) == 1


def test_warm_up_and_staggered_starts() -> None:
    _, pruner = attached(None, steps=1000, search_cost=30, warmup=5)
    model, pruner = attached(None, steps=1000, search_cost=9, warmup=5, stagger=True, theta=0)
    names = list(pruner.searches)
    assert len(names) == 3
    first: dict[str, int] = {}
    for step in range(14):
        for name in pruner._drawn:
            first.setdefault(name, step)
        train(model, pruner, 1, first=step)
    assert first == {names[0]: 5, names[1]: 8, names[2]: 11}
    assert pruner.searches[names[0]].space.size < 8 or pruner.searches[names[0]].batches == 0
    model, pruner = attached(None, steps=1000, search_cost=9, warmup=5, theta=0)
    train(model, pruner, 5)
    assert set(pruner._drawn) == set(names)


@pytest.mark.parametrize("stagger", [False, True])
def test_the_schedule_begins_with_the_search(stagger: bool) -> None:
    """After the warm-up nothing is due yet, and θ has not grown: no layer has been searched before."""
    model, pruner = attached(sc.Budget(macs=0.5), steps=100, search_cost=3, warmup=60, stagger=stagger, theta=1e-6)
    late = pruner._starts(2)
    assert late == (62 if stagger else 60)
    whole = {"macs": 1.0}
    assert [pruner.pace.excess(whole, step) for step in (0, 60, late, 100)] == [0, 0, 0, 0.5]
    assert [pruner.pace.due(whole, step, 10) for step in (0, 60, late + 10, 100)] == [0, 0, 0, 0.5]
    train(model, pruner, 64)
    assert pruner.pace.theta < 2e-6
    assert not events(pruner.record, "forced")
    train(model, pruner, 36, first=64)
    forced = events(pruner.record, "forced")
    assert forced[0]["step"] > late + min(pruner.full_search, 0.45 * (100 - late))
    assert pruner.ended == "the budget is met"
    _, pruner = attached(sc.Budget(macs=0.5), steps=10, warmup=50)
    assert pruner.pace.excess(whole, 10) == pruner.pace.due(whole, 10, 5) == 0


def test_search_cost_by_default_is_a_hundredth_of_the_training() -> None:
    assert [attached(steps=n)[1].cost for n in (4, 250, 2000)] == [1, 2, 20]
    assert attached(steps=2000, search_cost=7)[1].cost == 7


def test_search_cost_by_default_is_enough_for_128_halves() -> None:
    """However short the training: four of these eight images have a half each."""
    model, pruner = attached(steps=100, theta=0)
    search = pruner.searches["conv1"]
    train(model, pruner, 31)
    assert (search.batches, search.halves) == (31, 124)
    assert pruner.full_search == 32 * 5  # of 20 filters; θ may grow by its factor in as many batches
    train(model, pruner, 1, first=31)
    assert (search.batches, search.halves) == (0, 0)
    assert len(search.space) == 6
    _, pruner = attached(steps=100, halves="batch")  # a batch has one half
    assert pruner.full_search == 128 * 5
    for _ in range(127):
        pruner.searches["conv1"].record(np.arange(6), 1.0)
    assert not pruner.searches["conv1"].full
    pruner.searches["conv1"].record(np.arange(6), 1.0)
    assert pruner.searches["conv1"].full
    assert attached(steps=100, halves="batch", search_cost=2)[1].full_search == 10


def test_a_run_shorter_than_a_step_says_so() -> None:
    model, pruner = attached(sc.Budget(macs=0.6), steps=8, halves="batch")
    lines: list[str] = []
    pruner.log = lines.append
    train(model, pruner, 8)
    pruner.plan()
    assert any(
        "more filters were cut by their norms, since no step of the search was complete," in line for line in lines
    )


@pytest.mark.parametrize("ratio", ["example", "batch"])
def test_a_batch_gives_a_half_for_each_scored_example(ratio: str) -> None:
    """Whatever the ratio, and however many layers read the filters: "stem" has two readers."""
    model, pruner = attached(steps=100, theta=0, ratio=ratio)
    assert sum(r.group == "stem" for r in pruner.damage._readers) == 2
    train(model, pruner, 3)
    assert {name: s.halves for name, s in pruner.searches.items()} == dict.fromkeys(pruner.searches, 12)
    assert pruner.halves == 4
    train(model, pruner, 29, first=3)
    assert {len(s.space) for s in pruner.searches.values()} == {4, 6, 10}  # 128 halves: every step is complete


def test_scores_of_one_search_step_rank_as_those_of_a_long_one() -> None:
    """Also in a run so short that a hundredth of it is one batch."""
    x, found = images(64, 3), {}
    model, pruner = attached(steps=40)
    with torch.no_grad(), Damage(bare(model).train(), pruner.groups, images(1)) as damage:
        damage.ablate({g.name: Halves(np.arange(g.size), g.size // 2, seed=5) for g in pruner.groups})
        for _ in range(50):  # 1,600 halves
            damage._model(x)
        exact = {name: sums / counts for name, (sums, counts) in damage.samples().items()}
    for halves in ("example", "batch"):
        model, pruner = attached(steps=40, theta=0, halves=halves, search_cost=1 if halves == "batch" else None)
        while any(np.isinf(s.latest).all() for s in pruner.searches.values()):
            model(x)
            pruner.step()
        ranks = [
            (np.argsort(np.argsort(s.latest)), np.argsort(np.argsort(exact[n]))) for n, s in pruner.searches.items()
        ]
        found[halves] = [float(np.corrcoef(a, b)[0, 1]) for a, b in ranks]
    assert min(found["example"]) > 0.6, found
    assert np.mean(found["batch"]) < 0.4, found


# -- what the schedule requires ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["on the way", "at the end"])
def test_forced_cuts_leave_no_layer_behind(when: str) -> None:
    """A filter of a wide layer does less damage than one of a narrow layer: each counts with all that go before."""
    _model, pruner = attached(sc.Budget(macs=0.4), steps=100, theta=1e-6)
    for name, search in pruner.searches.items():
        search.latest = {"stem": 0.2, "conv1": 0.1, "wide": 0.06}[name] * np.linspace(0.5, 1.5, len(search.alive))
    if when == "on the way":
        for pruner.steps in range(5, 101, 5):
            pruner._catch_up()
        assert pruner.ended == "the budget is met"
        assert len(events(pruner.record, "forced")) > 5
    plan = pruner.plan()
    (end,) = events(pruner.history, "end")
    assert end["forced"] > 5
    assert end["macs"] <= int(0.4 * pruner.widths.base.macs)
    for name, kept in plan.groups.items():
        assert 0.3 < len(kept) / len(pruner.searches[name].alive) < 0.8, name
        assert kept == tuple(range(len(pruner.searches[name].alive) - len(kept), len(pruner.searches[name].alive)))


@pytest.mark.parametrize("growth", [1, 2])
def test_every_layer_keeps_min_filters(growth: float) -> None:
    """Also if the budget is met by other means than the search."""
    model, pruner = attached(
        sc.Budget(macs=0.5), steps=30, theta=1e-4, theta_growth=growth, search_cost=1, min_filters=7
    )
    train(model, pruner, 30)
    plan = pruner.plan()
    assert events(pruner.history, "end")[0]["forced"] > 0
    assert all(len(kept) >= 7 for kept in plan.groups.values())
    assert pruner.history[-1]["macs"] <= 0.5 * pruner.widths.base.macs


def test_min_filters_that_no_budget_allows() -> None:
    with pytest.raises(sc.BudgetError, match="cannot be met"):
        sc.prune(network(), images(1), sc.AOFP(min_filters=8), sc.Budget(macs=0.2), data=batches(), scope="all")


@pytest.mark.parametrize("budget", [sc.Budget(macs=1.0), sc.Budget(macs=1.0, params=1.0)])
def test_nothing_to_do_does_nothing(budget: sc.Budget) -> None:
    model = network()
    result = sc.prune(model, images(1), sc.AOFP(epochs=2, lr=0.1), budget, data=batches(), progress="silent")
    for name, value in model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name]), name
    (end,) = events(result.history, "end")
    assert (end["step"], end["moves"], end["forced"]) == (0, 0, 0)
    assert end["reason"] == "the budget is already met"
    assert not any("train_loss" in h for h in result.history)
