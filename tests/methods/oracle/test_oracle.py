"""Oracle pruning against the definition, worked out in the slowest way there is."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
from secateurs.methods.method import Task
from secateurs.methods.oracle.method import _Greedy
from secateurs.testing.networks import data, images, network
from secateurs.training import Objective

NAME = "residual"
GAMMA = 12


def task(model: nn.Module, budget: sc.Budget | None = None, source: sc.Data | None = None, **options: Any) -> Task:
    options = {"progress": "silent", **options}
    graph = sc.trace(model, images(1))
    return Task(model, graph, budget or sc.Budget(macs=0.6), data=source or data(), engine_options=options)


oracle = partial(sc.Oracle, precision="fp32")


def loss_without(model: nn.Module, gone: dict[str, list[int]], graph: sc.ChannelGraph, loss: Any = None) -> float:
    """Σ over the first GAMMA examples, of a network that is masked in the plain way."""
    kept = {name: [c for c in range(graph[name].size) if c not in channels] for name, channels in gone.items()}
    masked = sc.mask(model, graph.plan(kept)).eval()
    x, y = (torch.cat(parts)[:GAMMA] for parts in zip(*data().train, strict=True))
    with torch.no_grad():
        return float((loss or F.cross_entropy)(masked(x), y)) * GAMMA


def scores(model: nn.Module, gone: dict[str, list[int]], loss: Any = None) -> dict[tuple[str, int], float]:
    """T of every channel that is left (eq. 5)."""
    t = task(model)
    base = loss_without(model, gone, t.graph, loss)
    return {
        (g.name, c): loss_without(model, {**gone, g.name: [*gone.get(g.name, []), c]}, t.graph, loss) - base
        for g in t.groups
        for c in range(g.size)
        if c not in gone.get(g.name, [])
    }


def greedy(model: nn.Module, step: int, count: int, rescore: bool = True) -> list[tuple[str, int]]:
    gone: dict[str, list[int]] = {}
    order: list[tuple[str, int]] = []
    ranked: list[tuple[str, int]] = []
    while len(order) < count:
        if rescore or not ranked:
            found = scores(model, gone)
            ranked = sorted(found, key=lambda k: found[k])
        for name, channel in ranked[:step]:
            gone.setdefault(name, []).append(channel)
            order.append((name, channel))
        ranked = ranked[step:]
    return order[:count]


def cuts(
    model: nn.Module, budget: sc.Budget | None = None, **settings: Any
) -> tuple[list[tuple[str, int]], Task, list[dict[str, Any]]]:
    record: list[dict[str, Any]] = []
    t = replace(task(model, budget), log=record.append)
    run = _Greedy(oracle(examples=GAMMA, **settings), t)
    run.ranks()
    return [(t.groups[i].name, c) for i, c in run.cuts], t, record


@pytest.mark.parametrize("loss", [None, lambda out, y: F.multi_margin_loss(out, y)])
def test_scores(loss: Any) -> None:
    model = network(NAME)
    expected = scores(model, {}, loss)
    options = {} if loss is None else {"objective": Objective(loss=loss)}
    run = _Greedy(oracle(examples=GAMMA), task(model, **options))
    for i in range(len(run.groups)):
        run.measure(i)
    found = {(g.name, c): d * GAMMA for g, ds in zip(run.groups, run.damage, strict=True) for c, d in enumerate(ds)}
    assert found == pytest.approx(expected, abs=2e-5)
    assert run.evaluated == sum(g.size + 1 for g in run.groups) * GAMMA


@pytest.mark.parametrize("step", [1, 3])
def test_order_is_that_of_greedy_removal(step: int) -> None:
    model = network(NAME)
    found, *_ = cuts(model, granularity=step)
    assert len(found) > 8
    assert found == greedy(model, step, len(found))


def test_degraded_order_is_that_of_the_first_scores() -> None:
    model = network(NAME)
    found, t, record = cuts(model, rescore=False)
    assert found == greedy(model, 1, len(found), rescore=False)
    assert found != greedy(model, 1, len(found))
    (record,) = (r for r in record if r["event"] == "oracle")
    assert record["evaluated"] == sum(g.size + 1 for g in t.groups) * GAMMA


def test_what_is_kept_is_what_was_not_cut() -> None:
    model = network(NAME)
    found, t, _ = cuts(model, granularity=1)
    kept = oracle(examples=GAMMA, granularity=1).select(task(model)).channels
    for g in t.groups:
        gone = {c for name, c in found if name == g.name}
        assert set(range(g.size)) - gone <= set(kept[g.name])  # one may come back where it still fits
    assert sum(len(k) for k in kept.values()) <= sum(g.size for g in t.groups) - len(found) + 2


@pytest.mark.parametrize("step", [1, 5, 100])
def test_a_group_keeps_its_last_channel_and_the_record_says_what_went(step: int) -> None:
    model = network(NAME)
    with torch.no_grad():
        model.blocks[0][3].weight.zero_()  # of a whole group all channels could go without damage
    graph = sc.trace(model, images(1))
    inner = [g.name for g in graph.groups if g.prunable and g.internal]
    lowest = sc.Budget(macs=graph.cost(dict.fromkeys(inner, 1)).macs)
    found, t, record = cuts(model, lowest, granularity=step)
    assert len(found) == sum(g.size - 1 for g in t.groups)
    moves = [r for r in record if r["event"] == "cut"]
    assert {(n, c) for r in moves for n, cs in r["channels"].items() for c in cs} == set(found)
    assert moves[-1]["macs"] == lowest.macs
    assert [r["macs"] for r in moves] == sorted((r["macs"] for r in moves), reverse=True)
    steps = [sum(map(len, r["channels"].values())) for r in moves]
    assert all(n == min(step, len(found)) for n in steps[:-1])


def test_a_32nd_of_the_channels_goes_at_a_time() -> None:
    model = sc.build("zoo:resnet20", num_classes=4)
    found, t, record = cuts(model, sc.Budget(macs=0.93))
    moves = [r for r in record if r["event"] == "cut"]
    assert sum(map(len, moves[0]["channels"].values())) == sum(g.size for g in t.groups) // 32 == 10
    assert len(found) > 10


def test_a_channel_that_nothing_reads_does_no_damage() -> None:
    model = network(NAME)
    with torch.no_grad():
        model.blocks[0][3].weight[:, [2, 5]] = 0
    run = _Greedy(oracle(examples=GAMMA), task(model))
    run.measure(0)
    assert np.flatnonzero(run.damage[0] == 0).tolist() == [2, 5]


def test_a_loss_that_is_not_finite() -> None:
    model = network(NAME)
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    with pytest.raises(sc.ConfigError, match=r"oracle: the loss without channels of blocks\.0\.0 is not finite"):
        cuts(model)


@pytest.mark.parametrize("name", ["oracle", "apoz", "taylor"])
def test_needs_data(name: str) -> None:
    with pytest.raises(sc.ConfigError, match=f"{name} .*: pass data="):
        sc.prune(network(), images(), name, sc.Budget(macs=0.5))


def test_fewer_examples_than_asked_for_are_on_record() -> None:
    result = sc.prune(network(), images(), sc.Oracle(), sc.Budget(macs=0.5), data(), progress="silent")
    (record,) = (r for r in result.history if r["event"] == "oracle")
    assert record["examples"] == 16


def test_reduced_precision_finds_much_the_same() -> None:
    model = network(NAME)
    full, low = (_Greedy(sc.Oracle(examples=16, precision=p), task(model)) for p in ("fp32", "bf16"))
    for run in (full, low):
        run.measure(0)
    assert not np.array_equal(full.damage[0], low.damage[0])
    assert np.corrcoef(full.damage[0], low.damage[0])[0, 1] > 0.98
