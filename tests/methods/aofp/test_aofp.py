"""AOFP, the run: isolation, moves and the budget, pace, stalls, and what becomes of bad input."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import Task
from secateurs.methods.aofp import Damage, Halves
from secateurs.methods.aofp.figures import draw, remaining, widths
from secateurs.methods.aofp.pace import Pace
from secateurs.methods.aofp.pruner import AOFPPruner
from secateurs.testing.networks import randomize
from secateurs.training import Engine


def images(n: int = 8, seed: int = 0, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batches(count: int = 4, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [(images(rows, i), torch.arange(rows) % 4) for i in range(count)]


class Net(nn.Module):
    """A residual block, with dropout: it draws random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.bn3 = nn.Conv2d(8, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))) + x)
        x = F.relu(self.bn3(self.wide(x)))
        return self.fc(self.drop(x.mean((2, 3))))


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return randomize(Net(), seed)


def attached(budget: sc.Budget | None = None, steps: int = 40, **settings: Any) -> tuple[nn.Module, AOFPPruner]:
    model = network()
    pruner = sc.attach(
        model, images(1), sc.AOFP(**settings), budget, steps=steps, epoch_steps=4, data=batches(), scope="all"
    )
    assert isinstance(pruner, AOFPPruner)
    return model.train(), pruner


def train(model: nn.Module, pruner: AOFPPruner, steps: int, first: int = 0) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = batches()
    for i in range(first, first + steps):
        torch.manual_seed(i)
        x, y = data[i % len(data)]
        (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        if pruner.done:
            break
    return optimizer


def events(history: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [h for h in history if h.get("event") == kind]


# -- isolation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("spec", ["own", "zoo:resnet20"])
def test_with_scoring_on_and_moves_off_training_is_plain_fine_tuning(spec: str, precision: Any) -> None:
    """To the bit: weights, statistics, the losses on the way."""

    def fresh() -> nn.Module:
        torch.manual_seed(1)
        return network() if spec == "own" else sc.build(spec, num_classes=4)

    method = sc.AOFP(theta=0, search_cost=2, epochs=2, patience=10**6, precision=precision, lr=0.05)
    model, plain = fresh(), fresh()
    record: list[dict[str, Any]] = []
    task = Task(
        model, sc.trace(model, images(1)), None, "all", sc.Data.of(batches()), seed=3, example_inputs=images(1),
        engine_options={"progress": "silent"}, log=record.append,
    )  # fmt: skip
    seen = 0

    class Counting(AOFPPruner):
        def advance(self) -> None:
            nonlocal seen
            seen += len(self.damage._sums) >= len(self.groups) > 1
            super().advance()

    class Counted(sc.AOFP):
        def attach(self, task: Task) -> AOFPPruner:
            return Counting(task, self)

    Counted(**method.model_dump()).select(task)
    history = Engine(plain, batches(), method.recipe(), seed=3, progress="silent").fit()
    assert seen == 8  # scoring was on
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    losses = [h["train_loss"] for h in record if "train_loss" in h]
    assert losses == [h["train_loss"] for h in history]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# -- moves -------------------------------------------------------------------------------------------------------------


def test_pruned_filters_are_masked_for_good_while_training_goes_on() -> None:
    model, pruner = attached(steps=400, theta=0.6, search_cost=3)
    train(model, pruner, 60)
    alive = {name: s.alive.copy() for name, s in pruner.searches.items()}
    assert any(not a.all() for a in alive.values())
    twin = copy.deepcopy(model).eval()  # hooks and all: it goes by the same masks
    masked = sc.mask(_bare(model), pruner.task.graph.plan({n: np.flatnonzero(a) for n, a in alive.items()})).eval()
    with torch.no_grad():
        torch.testing.assert_close(twin(images(4, 9)), masked(images(4, 9)), rtol=1e-5, atol=1e-6)
    train(model, pruner, 30, first=60)
    for name, s in pruner.searches.items():
        assert not (s.alive & ~alive[name]).any()
    for name, drawn in pruner._drawn.items():
        assert pruner.searches[name].alive[drawn].all()


def _bare(model: nn.Module) -> nn.Module:
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    return fresh


def test_damage_that_is_recorded_is_of_the_masked_network() -> None:
    """After some moves: the recorded sample is what `Damage` finds on the network with its pruned filters cut off."""
    model, pruner = attached(steps=400, theta=0.6, search_cost=50)
    for name, search in pruner.searches.items():
        search.prune(np.arange(0, search.width, 3))
        assert name in pruner._drawn
    pruner._mask()
    pruner._draw()
    drawn = copy.deepcopy(pruner._drawn)
    masked = sc.mask(
        _bare(model), pruner.task.graph.plan({n: np.flatnonzero(s.alive) for n, s in pruner.searches.items()})
    )
    x, _ = batches()[0]
    with Damage(masked.train(), pruner.groups, images(1)) as damage:
        damage.ablate(drawn)
        torch.manual_seed(0)
        masked(x)
        want = damage.samples()
    train(model, pruner, 1)
    for name, search in pruner.searches.items():
        assert search.sums == pytest.approx(want[name][0], rel=1e-4)
        assert search.counts.tolist() == want[name][1].tolist()
        assert search.counts.sum() % search.half == 0
        assert not search.counts[~search.alive].any()


def test_the_record_says_what_happened() -> None:
    budget = sc.Budget(macs=0.5)
    model = network()
    result = sc.prune(
        model, images(1), sc.AOFP(epochs=30, search_cost=1, theta=0.1, lr=0.01), budget, data=batches(), scope="all",
        progress="silent",
    )  # fmt: skip
    assert json.loads(json.dumps(result.history)) == result.history
    (start,), (end,), moves = (events(result.history, k) for k in ("search", "end", "move"))
    graph = sc.trace(model, images(1))
    assert start["groups"] == [g.name for g in graph.groups if g.prunable]
    assert start["left_out"] == {}
    assert start["search_cost"] == 1
    widths = np.array(start["sizes"])
    step = 0
    for move in moves:
        after = np.array(move["widths"])
        changed = np.flatnonzero(after != widths)
        assert [start["groups"][i] for i in changed] == [move["group"]]
        assert (widths - after)[changed].tolist() == [move["count"]]
        cost = graph.cost(dict(zip(start["groups"], after.tolist(), strict=True)))
        assert (move["macs"], move["params"]) == (cost.macs, cost.params)
        assert 0 <= move["damage"] < move["theta"]
        assert move["step"] >= step
        widths, step = after, move["step"]
    assert end["reason"] == "the budget is met"
    assert end["forced"] == 0
    assert end["step"] == step
    limit, base = int(0.5 * result.before.macs), result.before.macs
    assert moves[-1]["macs"] <= end["macs"] == result.after.macs <= limit < moves[-2]["macs"]
    assert (limit - result.after.macs) / base <= 0.01
    assert {n: len(k) for n, k in result.plan.groups.items()} == {
        n: w for n, w in zip(start["groups"], end["widths"], strict=True) if n in result.plan.groups
    }
    assert step < 120  # and the run was over then


def test_the_last_move_is_trimmed() -> None:
    """A move that would go far below the budget gives its most damaging filters back."""
    _model, pruner = attached(sc.Budget(macs=0.95), steps=400, theta=0.6)
    name = "wide"
    search, found = pruner.searches[name], np.linspace(0.01, 0.5, 20)
    search.sums, search.counts, search.batches = found * 3, np.full(20, 3), pruner.cost
    pruner._finish_steps([name])
    (move,) = events(pruner.record, "move")
    assert 0 < move["count"] < 10
    assert np.flatnonzero(~search.alive).tolist() == list(range(move["count"]))
    assert move["damage"] == pytest.approx(found[move["count"] - 1])
    graph = pruner.task.graph
    limit = int(0.95 * graph.cost().macs)
    assert graph.cost({name: search.width}).macs <= limit < graph.cost({name: search.width + 1}).macs
    assert pruner.done
    assert len(pruner.plan().groups[name]) == search.width


def test_of_moves_found_at_once_the_least_damaging_come_first() -> None:
    _model, pruner = attached(sc.Budget(macs=0.9), steps=400, theta=0.6)
    for i, (_, search) in enumerate(pruner.searches.items()):
        search.sums, search.counts = (
            np.full(len(search.alive), 0.5 - 0.1 * i),
            np.ones(len(search.alive), dtype=np.int64),
        )
        search.batches = pruner.cost
    pruner._finish_steps(list(pruner.searches))
    moves = events(pruner.record, "move")
    assert [m["group"] for m in moves] == list(pruner.searches)[::-1][: len(moves)]
    assert pruner.ended == "the budget is met"
    untouched = set(pruner.searches) - {m["group"] for m in moves}
    assert untouched
    assert all(pruner.searches[n].alive.all() for n in untouched)


@pytest.mark.parametrize(
    "budget", [sc.Budget(params=0.6), sc.Budget(macs=0.7, params=0.5), sc.Budget(macs=0.5, align=4)]
)
def test_other_budgets(budget: sc.Budget) -> None:
    result = sc.prune(
        network(), images(1), sc.AOFP(epochs=30, search_cost=1, theta=0.1), budget, data=batches(), scope="all",
        progress="silent",
    )  # fmt: skip
    (end,) = events(result.history, "end")
    assert end["reason"] == "the budget is met"
    assert end["forced"] == sum(h["count"] for h in events(result.history, "forced"))
    slack = []
    for what in ("macs", "params"):
        allowed, full, now = getattr(budget, what), getattr(result.before, what), getattr(result.after, what)
        if allowed is not None:
            assert now <= allowed * full
            slack.append(allowed - now / full)
    assert min(slack) < 0.05
    assert all(len(k) % budget.align == 0 for k in result.plan.groups.values())


def test_what_the_search_has_not_got_to_is_cut_by_its_last_damage() -> None:
    lines: list[str] = []
    model, pruner = attached(sc.Budget(macs=0.3), steps=8, theta=0.001, theta_growth=1)
    pruner.log = lines.append
    train(model, pruner, 8)
    latest = {name: s.latest.copy() for name, s in pruner.searches.items()}
    plan = pruner.plan()
    (end,) = events(pruner.history, "end")
    assert end["forced"] == sum(s.width for s in pruner.searches.values()) - sum(map(len, plan.groups.values())) > 0
    assert end["macs"] <= int(0.3 * pruner.task.graph.cost().macs)
    assert any(str(end["forced"]) in line and "last measured damage" in line for line in lines)
    for name, index in plan.groups.items():
        kept = np.array(index)
        gone = np.setdiff1d(np.arange(len(latest[name])), kept)
        known = latest[name][gone][np.isfinite(latest[name][gone])]
        stay = latest[name][kept][np.isfinite(latest[name][kept])]
        if len(known) and len(stay) == len(kept):
            assert known.max() <= stay.min()


def test_a_move_that_is_too_small_is_filled_up_by_the_latest() -> None:
    """Widths that fit by far, for want of smaller steps: what went last comes back first."""
    _model, pruner = attached(sc.Budget(macs=0.8), steps=400, theta=0.6)
    wide = pruner.searches["wide"]
    for i, filters in enumerate(([3, 4], [9, 1, 7], list(range(10, 20)))):
        wide.prune(np.array(filters))
        pruner.moves = i + 1
        pruner.order["wide"][filters] = pruner.moves + np.arange(len(filters)) / len(filters)
    kept = list(pruner.plan().groups["wide"])
    back = [j for j in kept if j in (3, 4, 9, 1, 7, *range(10, 20))]
    assert back
    assert back == list(range(20 - len(back), 20))


# -- θ, stalls, the start ----------------------------------------------------------------------------------------------


def test_pace() -> None:
    pace = Pace(0.01, growth=2, goal={"macs": 0.5})
    assert [pace.excess({"macs": 1.0}, p) for p in (0, 0.45, 0.9, 1)] == [0, 0.25, 0.5, 0.5]
    assert pace.update({"macs": 1.0}, 0.45, steps=1) == pytest.approx(0.02)  # far behind: once the growth
    assert pace.update({"macs": 1.0}, 0.45, steps=0.5) == pytest.approx(0.02 * 2**0.5)
    assert pace.update({"macs": 0.76}, 0.45, steps=1) == pytest.approx(0.04)  # a little behind
    assert pace.update({"macs": 0.5}, 0.45, steps=1) == pytest.approx(0.02)  # ahead
    for _ in range(3):
        pace.update({"macs": 0.5}, 0.45, steps=1)
    assert pace.theta == 0.01  # never below where it began
    for _ in range(100):
        pace.update({"macs": 1.0}, 1, steps=1)
    assert pace.theta == 1.0
    still = Pace(0.02, growth=1, goal={"macs": 0.3})
    assert still.update({"macs": 1.0}, 1.0, 1.0) == 0.02
    assert still.due({"macs": 1.0}, 1.0, 0.1) == 0  # the paper's θ: nothing is forced before the end


def test_what_is_due_waits_for_the_first_full_search() -> None:
    pace = Pace(0.01, growth=2, goal={"macs": 0.5})
    assert [pace.due({"macs": 1.0}, p, 0.1) for p in (0, 0.1, 0.5, 0.9, 1)] == pytest.approx([0, 0, 0.25, 0.5, 0.5])
    assert pace.due({"macs": 0.5}, 0.9, 0.1) == 0


def test_each_limit_has_a_line_of_its_own() -> None:
    pace = Pace(0.01, growth=2, goal={"macs": 0.9, "params": 0.5})
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
        model, pruner = attached(None, steps=1000, theta=1e-5, search_cost=1, patience=patience)
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


def test_scores_of_one_search_step_rank_as_those_of_a_long_one() -> None:
    """Also in a run so short that a hundredth of it is one batch."""
    x, found = images(64, 3), {}
    model, pruner = attached(steps=40)
    with torch.no_grad(), Damage(_bare(model).train(), pruner.groups, images(1)) as damage:
        damage.ablate({g.name: Halves(np.arange(g.size), g.size // 2, seed=5) for g in pruner.groups})
        for _ in range(50):  # 1,600 halves
            damage._model(x)
        exact = {name: sums / counts for name, (sums, counts) in damage.samples().items()}
    for halves in ("example", "batch"):
        model, pruner = attached(steps=40, theta=0, halves=halves)
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


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_figures_from_the_record(tmp_path: Any) -> None:
    history: list[dict[str, Any]] = [
        {"epoch": 1, "train_loss": 1.0},
        {"event": "search", "groups": ["a", "b"], "sizes": [4, 10]},
        {"event": "move", "step": 3, "widths": [4, 8]},
        {"event": "move", "step": 7, "widths": [3, 8]},
        {"event": "end", "step": 9, "widths": [3, 9]},
    ]
    assert remaining(history) == {"a": ([0, 7, 9], [1.0, 0.75, 0.75]), "b": ([0, 3, 9], [1.0, 0.8, 0.9])}
    assert widths(history) == {"a": (4, 3), "b": (10, 9)}
    with pytest.raises(sc.ConfigError, match="not contain an aofp run"):
        remaining(history[:1])
    pytest.importorskip("matplotlib")
    for path in draw(history, tmp_path / "new"):
        assert path.read_bytes().startswith(b"\x89PNG")
    model, pruner = attached(sc.Budget(macs=0.6), steps=100, theta=0.05, search_cost=1)
    train(model, pruner, 100)
    plan = pruner.plan()
    found = widths(pruner.history)
    assert {n: b for n, (a, b) in found.items() if a != b} == {
        n: len(k) for n, k in plan.groups.items() if len(k) < found[n][0]
    }
    for name, (steps, shares) in remaining(pruner.history).items():
        assert steps == sorted(steps)
        assert shares[-1] == found[name][1] / found[name][0]


# -- loops of one's own, copies, evaluation ----------------------------------------------------------------------------


def test_a_loop_of_ones_own() -> None:
    model, pruner = attached(sc.Budget(macs=0.5), steps=200, theta=0.05, search_cost=1)
    optimizer = train(model, pruner, 200)
    x, plan = images(4, 9), pruner.plan()
    with torch.no_grad():
        want = sc.mask(_bare(model), plan).eval()(x)
    sc.cut_(model, plan, optimizer)
    assert sc.count(model, images(1)).macs <= 0.5 * sc.count(network(), images(1)).macs
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), want, rtol=1e-4, atol=1e-5)
    F.cross_entropy(model.train()(x), torch.arange(4)).backward()
    optimizer.step()


def test_only_training_passes_count() -> None:
    model, pruner = attached(steps=400, search_cost=100)
    x, _y = batches()[0]
    twin = copy.deepcopy(model)
    model.eval()
    model(x)
    model.train()
    with torch.no_grad():
        model(x)
    twin.train()(x)
    assert pruner.damage.samples() == {}
    model(x)
    assert set(pruner.damage.samples()) == set(pruner.searches)


def test_taken_up_again_in_the_middle_of_a_search_step() -> None:
    def run(switch: int | None) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        model, pruner = attached(sc.Budget(macs=0.6), steps=60, theta=0.05, search_cost=3)
        train(model, pruner, switch or 45)
        if switch is not None:
            state = copy.deepcopy(pruner.state())
            weights = copy.deepcopy(model.state_dict())
            model, pruner = attached(sc.Budget(macs=0.6), steps=60, theta=0.05, search_cost=3)
            pruner.load(state)
            model.load_state_dict(weights)
            train(model, pruner, 45 - switch, first=switch)
        return pruner.record, model.state_dict()

    def restarted(switch: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """The same, momentum lost as above, without a new pruner."""
        model, pruner = attached(sc.Budget(macs=0.6), steps=60, theta=0.05, search_cost=3)
        train(model, pruner, switch)
        train(model, pruner, 45 - switch, first=switch)
        return pruner.record, model.state_dict()

    for switch in (7, 23):
        (record, weights), (want, wanted) = run(switch), restarted(switch)
        assert record == want
        assert events(record, "move")
        for name, value in wanted.items():
            assert torch.equal(value, weights[name]), name


def test_accumulated_batches_are_one_step() -> None:
    model, pruner = attached(steps=400, search_cost=100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = []
    for x, y in batches(2):
        F.cross_entropy(model(x), y).backward()
        found.append({key: torch.stack(rows) for key, rows in pruner.damage._sums.items()})
    key = next(k for k in found[1] if k.startswith("conv1"))  # which one layer reads
    optimizer.step()
    pruner.step()
    search = pruner.searches["conv1"]
    assert len(found[1][key]) == 2
    above, below = found[1][key].sum(0).numpy()
    assert below.sum() == 8 * search.half  # half of the 16 examples, all alike
    assert search.sums == pytest.approx(above)
    assert search.counts.tolist() == below.tolist()
    assert (search.batches, search.halves) == (1, 8)


def test_one_half_for_a_batch() -> None:
    """The paper's and the released code's: all examples ablate the same filters."""
    model, pruner = attached(steps=400, search_cost=100, halves="batch")
    drawn = dict(pruner._drawn)
    train(model, pruner, 1)
    for name, search in pruner.searches.items():
        assert len(drawn[name]) == search.half
        assert np.flatnonzero(search.counts).tolist() == list(drawn[name])
        assert len(set(search.sums[drawn[name]])) == 1
    paper = sc.AOFP.preset("paper")
    assert (paper.halves, paper.theta_growth, paper.lr, paper.search_cost) == ("batch", 1, 1e-3, 8000)


def test_the_original_teaches() -> None:
    def taught(distil: float, theta: float) -> tuple[float, list[dict[str, Any]]]:
        """How far the weights went, and the history."""
        record: list[dict[str, Any]] = []
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(576, 4))
        before = copy.deepcopy(randomize(model, 0))
        task = Task(
            model, sc.trace(model, images(1)), None, "internal", sc.Data.of(batches()), example_inputs=images(1),
            engine_options={"progress": "silent"}, log=record.append,
        )  # fmt: skip
        method = sc.AOFP(epochs=2, theta=theta, search_cost=1, lr=0.1, weight_decay=0, distil=distil, precision="fp32")
        method.select(task)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        return max(float((p - q).detach().abs().max()) for p, q in pairs), record

    assert taught(1.0, theta=0)[0] < 1e-5  # it is its own teacher
    assert 1e-3 < taught(0.9, theta=0)[0] < taught(0.0, theta=0)[0]
    moved, record = taught(1.0, theta=0.9)
    assert events(record, "move")
    assert moved > 1e-3  # the teacher is not pruned with its student


# -- what cannot be searched -------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Reads channels by a weight of its own, in a way that nobody can know."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inputs, outputs) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,cd->ndhw", x, self.matrix)


def test_groups_whose_readers_are_unknown_are_left_out_with_a_reason() -> None:
    torch.manual_seed(0)
    model = randomize(nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Functional(8, 10), nn.ReLU(), nn.Conv2d(10, 12, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    ), 0)  # fmt: skip
    result = sc.prune(
        model, images(1), sc.AOFP(epochs=6, search_cost=1), sc.Budget(macs=0.2), data=batches(), progress="silent"
    )
    (start,), (end,) = events(result.history, "search"), events(result.history, "end")
    assert set(start["left_out"]) == {"0"}
    assert "Functional, not a convolution or linear layer" in start["left_out"]["0"]
    assert result.after.macs <= 0.2 * result.before.macs  # the budget is met all the same
    assert end["forced"] > 0
    only = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Functional(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(sc.ConfigError, match=r"no layer whose damage can be measured.*Functional"):
        sc.prune(only, images(1), "aofp", data=batches(), progress="silent")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search_cost": 0}, "search_cost=0"),
        ({"theta": -0.1}, "theta=-0.1"),
        ({"theta_growth": 0.5}, "theta_growth=0.5"),
        ({"min_filters": 0}, "min_filters=0"),
        ({"ratio": "mean"}, "ratio='mean'"),
        ({"phi": 3}, "phi=3"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(sc.ConfigError, match=message):
        sc.AOFP(**settings)


def test_data_is_needed() -> None:
    with pytest.raises(sc.ConfigError, match="aofp prunes during training"):
        sc.prune(network(), images(1), "aofp", sc.Budget(macs=0.5))
