"""How much costs count, measured: against the same by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import Selection, Task, assess
from secateurs.methods.costs import POWERS, chosen
from secateurs.recovery import calibrate

BUDGET = sc.Budget(macs=0.4)
IMAGES = torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    """Layers of which a channel costs very different amounts."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in ((3, 8), (8, 8), (8, 16), (16, 16), (16, 24)):
        layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * (o in (16, 24))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 4, 6))
    with torch.no_grad():
        model.train()(IMAGES)
    return model.eval()


def only_images() -> sc.Data:
    return sc.Data(train=list(IMAGES.split(32)))


def divergence(model: nn.Module, small: nn.Module) -> Tensor:
    """(N,)"""
    with torch.no_grad():
        p, q = (F.log_softmax(m(IMAGES), 1) for m in (model, small))
    return (p.exp() * (p - q)).sum(1).double()


def prune(model: nn.Module, method: Any, data: Any = None) -> sc.Result:
    return sc.prune(
        model, IMAGES[:1], method, BUDGET, data, calibrate=False, check_speed=False, progress="silent"
    )  # fmt: skip


def noted(result: sc.Result) -> dict[str, Any]:
    (event,) = [entry for entry in result.history if entry.get("event") == "cost"]
    return event


CRITERIA = [sc.L2(ranking="layer"), sc.L2Stripes(), sc.EPruner(init="exemplar")]  # cuts of which no weights change


@pytest.mark.parametrize("method", CRITERIA, ids=lambda method: method.name)
def test_the_power_is_the_largest_of_those_whose_cuts_are_about_nearest_to_the_original(method: Any) -> None:
    model = net()
    cuts = {p: prune(model, method.model_copy(update={"cost": p})) for p in POWERS}
    assert len({str(cut.plan.groups) + str(cut.plan.stripes) for cut in cuts.values()}) > 1
    missed = {p: divergence(model, sc.calibrate(cut.model, [IMAGES]).eval()) for p, cut in cuts.items()}
    best = min(missed, key=lambda p: float(missed[p].sum()))
    more = {p: m - missed[best] for p, m in missed.items()}
    power = max(p for p, m in more.items() if m.mean() <= m.std() / len(IMAGES) ** 0.5)
    result = prune(model, method.model_copy(update={"cost": None}), only_images())
    event = noted(result)
    assert event["power"] == power
    assert event["examples"] == len(IMAGES)
    assert event["missed"] == {str(p): pytest.approx(float(m.sum()), rel=1e-3) for p, m in missed.items()}
    assert result.plan == cuts[power].plan


def test_of_powers_that_the_examples_cannot_tell_apart_the_largest_is_chosen() -> None:
    draws = torch.Generator().manual_seed(0)
    images = 1 + torch.rand(256, generator=draws, dtype=torch.float64)  # how hard each of them is
    noise = 0.1 * torch.randn(4, 256, generator=draws, dtype=torch.float64)  # one standard error is about 0.1 · √2 / 16
    apart = images + noise + torch.tensor([0.003, 0, 0.003, 0.05])[:, None]
    assert chosen(apart) == 0.25
    assert chosen(apart[:, :1] * 0 + torch.tensor([2.0, 1, 2, 3])[:, None]) == 0.125  # one example has no error
    assert chosen(images + torch.tensor([0, 0.01, 0.01, 0.01])[:, None]) == 0  # the error is that of the difference


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_cuts_with_infinite_outputs_are_not_chosen(broken: float) -> None:
    apart = torch.rand(4, 8, dtype=torch.float64)
    apart[0], apart[2:, 3] = 2, broken
    assert chosen(apart) == 0.125
    assert chosen(torch.full((4, 8), broken)) == 0


def test_without_data_costs_do_not_count() -> None:
    model = net()
    assert prune(model, sc.L2(cost=None)).plan == prune(model, sc.L2(cost=0)).plan
    assert prune(model, "l2-stripes").plan == prune(model, sc.L2Stripes(cost=0)).plan
    assert prune(model, "epruner").plan == prune(model, sc.EPruner(cost=0)).plan


def test_groups_of_epruner_lose_as_much_more_as_their_channels_cost() -> None:
    model = net()
    sizes = {g.name: g.size for g in sc.trace(model, IMAGES[:1]).groups if g.prunable}
    lost = {}
    for power in (0, 0.5):
        kept = prune(model, sc.EPruner(cost=power)).plan.groups
        lost[power] = {name: 1 - len(kept.get(name, range(n))) / n for name, n in sizes.items()}
    first, last = "3", "14"  # 8 channels of 16 × 16 pixels, 24 of 4 × 4
    assert lost[0][first] == pytest.approx(lost[0][last], abs=1 / 8)
    assert lost[0.5][first] > lost[0.5][last] + 1 / 4


@pytest.mark.parametrize("method", [sc.OneStep(epochs=1), sc.PFF(epochs=1)], ids=["onestep", "pff"])
def test_methods_that_train_measure_it_on_the_network_as_it_was(method: Any) -> None:
    """Gates and skeletons are not part of what is measured; and it is measured again in the same way."""
    model = net()
    labels = torch.arange(len(IMAGES)) % 6
    data = sc.Data(train=list(zip(IMAGES.split(32), labels.split(32), strict=True)))
    first, again = (prune(model, method, data) for _ in range(2))
    assert noted(first) == noted(again)
    assert set(noted(first)["missed"]) == {str(p) for p in POWERS}
    assert first.plan == again.plan
    if isinstance(method, sc.PFF):
        stripes = prune(model, sc.L2Stripes(), data)
        assert noted(first)["power"] == noted(stripes)["power"]


def test_outputs_that_are_no_logits_are_compared_by_distance() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()[:6]

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.body(x)
            return {"a": y.flatten(1)[:, :1], "b": y.mean()}

    result = prune(Maps().eval(), sc.L2(ranking="layer", cost=None), only_images())
    assert noted(result)["power"] in POWERS


def test_an_iterator_that_can_be_read_once_is_left_to_the_training() -> None:
    model = net()
    stream = iter(IMAGES.split(32))
    result = prune(model, sc.L2Stripes(), sc.Data(train=stream))
    assert result.plan == prune(model, sc.L2Stripes(cost=0)).plan
    assert len(list(stream)) == 3


@pytest.mark.parametrize("method", [sc.L2(ranking="layer", cost=None), sc.L2Stripes()], ids=["l2", "l2-stripes"])
def test_it_is_measured_once_where_several_budgets_are_tried(method: Any) -> None:
    model, notes = net(), list[dict[str, Any]]()
    graph = sc.trace(model, IMAGES[:1])
    task = Task(model, graph, BUDGET, data=only_images(), example_inputs=IMAGES[:1], log=notes.append)
    select = method.selector(task)
    for macs in (0.3, 0.4, 0.6):
        select(replace(task, budget=sc.Budget(macs=macs)))
    assert [entry["event"] for entry in notes] == ["cost"]
    assert Selection.of(select(task)).plan(graph) == Selection.of(method.select(task)).plan(graph)


def test_criteria_wait_for_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a script of several processes, one of them may prune alone."""

    def gathered(value: Any) -> Any:
        raise AssertionError("a collective")

    monkeypatch.setattr(calibrate, "gathered", gathered)
    assert noted(prune(net(), sc.L2Stripes(), only_images()))["power"] in POWERS


def test_distances_in_float16_do_not_overflow() -> None:
    y = torch.full((4, 1), 300.0, dtype=torch.float16)
    assert calibrate._apart(y, 0 * y, 4).tolist() == [300.0**2] * 4


def test_distances_of_outputs_without_a_row_for_each_image_are_spread_evenly() -> None:
    y, boxes = torch.arange(6.0).reshape(3, 2), torch.ones(5, 2)
    assert calibrate._apart(y, torch.zeros(3, 2), 3).tolist() == [1, 13, 41]
    assert calibrate._apart(boxes, boxes[:2], 3).tolist() == [2, 2, 2]
    assert calibrate._apart(torch.tensor(2.0), torch.tensor(5.0), 3).tolist() == [3, 3, 3]


def test_large_images_are_assessed_as_many_at_a_time_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    task = Task(model, sc.trace(model, IMAGES[:1]), BUDGET, data=only_images())
    assert [b.rows for b in assess.Assessor(task, 80, labels=False).batches] == [80]
    monkeypatch.setattr(assess, "VALUES", IMAGES[:8].numel())
    assert [b.rows for b in assess.Assessor(task, 80, labels=False).batches] == [32, 32, 16]
