"""AOFP, the run: isolation, moves and the budget."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.methods import Task
from secateurs.methods.aofp import Damage
from secateurs.methods.aofp.pruner import AOFPPruner
from secateurs.training import Engine
from tests.methods.aofp.small import attached, bare, batches, events, images, network, train

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
    history = Engine(plain, batches(), method.recipe(task), seed=3, progress="silent").fit()
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
    masked = sc.mask(bare(model), pruner.task.graph.plan({n: np.flatnonzero(a) for n, a in alive.items()})).eval()
    with torch.no_grad():
        torch.testing.assert_close(twin(images(4, 9)), masked(images(4, 9)), rtol=1e-5, atol=1e-6)
    train(model, pruner, 30, first=60)
    for name, s in pruner.searches.items():
        assert not (s.alive & ~alive[name]).any()
    for name, drawn in pruner._drawn.items():
        assert pruner.searches[name].alive[drawn].all()


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
        bare(model), pruner.task.graph.plan({n: np.flatnonzero(s.alive) for n, s in pruner.searches.items()})
    )
    x, _ = batches()[0]
    with Damage(masked.train(), pruner.groups, images(1)) as damage:
        damage.keep({name: s.alive for name, s in pruner.searches.items()})
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


def test_damage_is_that_of_the_network_when_it_is_cut() -> None:
    """What the next layer puts out for filters that are pruned does not count."""
    model, pruner = attached(steps=400, search_cost=50, halves="batch")
    for search in pruner.searches.values():
        search.prune(np.arange(0, search.width, 3))
    pruner._mask()
    pruner._draw()
    drawn = dict(pruner._drawn)
    plan = pruner.task.graph.plan({n: np.flatnonzero(s.alive) for n, s in pruner.searches.items()})
    model.drop.p = 0.0  # it would draw others for fewer channels
    cut = sc.apply(bare(model), plan).train()
    cut.drop.p = 0.0
    groups = [g for g in sc.trace(cut, images(1)).groups if g.name in drawn]
    left = {name: np.flatnonzero(s.alive) for name, s in pruner.searches.items()}
    x, _ = batches()[0]
    with Damage(cut, groups, images(1)) as damage:
        damage.ablate({name: np.searchsorted(left[name], ablated) for name, ablated in drawn.items()})
        torch.manual_seed(0)
        cut(x)
        want = damage.take()
    train(model, pruner, 1)
    for name, search in pruner.searches.items():
        assert search.sums[drawn[name]] == pytest.approx(want[name], rel=1e-4), name


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
    model, pruner = attached(sc.Budget(macs=0.3), steps=8, theta=0.001, theta_growth=1, search_cost=2)
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
