"""One layer, pruned one by one: orders and curves against the slowest way to get them."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
from secateurs.methods import Criterion
from secateurs.methods.method import Task
from secateurs.studies.criteria import Curve, one_by_one
from secateurs.studies.criteria import orders as study
from secateurs.studies.criteria.orders import criteria
from secateurs.studies.criteria.record import Record
from secateurs.testing.networks import data, images, network
from secateurs.testing.state import State
from tests.methods.oracle.test_oracle import loss_without
from tests.tasks import detectors, drawn

LAYER, SIZE = "blocks.0.0", 16
GAMMA = 12


def task(model: nn.Module | None = None, source: sc.Data | None = None, **options: Any) -> Task:
    model = model or network("residual")
    options = {"progress": "silent", **options}
    return Task(model, sc.trace(model, images(1)), None, "all", source or data(), engine_options=options)


def curve(criterion: str | Criterion, t: Task | None = None, **options: Any) -> Curve:
    return one_by_one(t or task(), LAYER, criterion, **{"examples": GAMMA, **options})


def brute(rescore: bool) -> list[int]:
    model = network("residual")
    graph = sc.trace(model, images(1))
    gone: list[int] = []
    ranked: list[int] = []
    while len(gone) < SIZE - 1:
        if rescore or not ranked:
            left = [c for c in range(SIZE) if c not in gone]
            ranked = sorted(left, key=lambda c: loss_without(model, {LAYER: [*gone, c]}, graph))
        gone.append(ranked.pop(0))
    return gone


@pytest.mark.parametrize("name", ["oracle", "oracle-degraded"])
def test_the_oracle_goes_by_the_loss(name: str) -> None:
    found = curve(name)
    assert list(found.order) == brute(rescore=name == "oracle")
    assert found.examples == GAMMA * (sum(range(2, SIZE + 1)) if name == "oracle" else SIZE)
    assert curve("oracle").order != curve("oracle-degraded").order


def test_ten_times_as_many_examples() -> None:
    source = data(batches=5, rows=8)
    found = curve("oracle-10x", task(source=source), examples=4)
    assert found.order == curve("oracle", task(source=source), examples=40).order
    assert found.order != curve("oracle", task(source=source), examples=4).order
    assert found.examples == 40 * sum(range(2, SIZE + 1))


def test_aofp_takes_as_many_evaluations_as_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "BATCH", 2)
    ablated: list[tuple[int, ...]] = []
    record = study.BinaryFilterSearch.record

    def spy(self: Any, filters: np.ndarray, damage: float) -> None:
        assert set(filters) <= set(self.space)
        assert len(filters) == self.half
        ablated.append((self.width, len(self.space)))
        record(self, filters, damage)

    monkeypatch.setattr(study.BinaryFilterSearch, "record", spy)
    found = curve("aofp")
    whole = curve("oracle").examples
    assert abs(found.examples - whole) <= 0.02 * whole
    assert sorted(set(found.order)) == sorted(found.order)
    assert len(found.order) == SIZE - 1
    spaces = [space for width, space in ablated if width == SIZE]
    assert set(spaces) == {16, 8, 4, 2}
    steps = [spaces.count(n) for n in (16, 8, 4, 2)]
    assert max(steps) - min(steps) <= 1


def test_aofp_finds_what_the_oracle_finds_where_that_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels of which nothing is read go first, whatever else is ablated with them."""
    monkeypatch.setattr(study, "BATCH", 4)  # many samples
    model = network("residual", seed=1).eval()
    with torch.no_grad():
        model.blocks[0][3].weight[:, [3, 8, 11]] = 0
        model.fc.weight *= 8
        model.fc.bias *= 8
        # What the network says is right, so that any ablation hurts.
        batches = [(x, model(x).softmax(1)) for x, _ in data(batches=4, rows=16).train]
    t = task(model, sc.Data(train=batches, val=data().val))
    for name in ("oracle", "aofp"):
        assert set(curve(name, t, examples=64).order[:3]) == {3, 8, 11}


def test_aofp_hangs_on_the_seed_alone() -> None:
    first = curve("aofp").order
    torch.manual_seed(5)
    assert curve("aofp").order == first


@pytest.mark.parametrize("name", ["l1", "l2", "bn-scale", "random", "index", "apoz", "taylor"])
def test_registered_criteria_go_by_their_scores(name: str) -> None:
    t = task()
    settings = {"examples": GAMMA} if name in ("apoz", "taylor") else {}
    scores = study.resolve(name, **settings).scores(t)[LAYER]  # type: ignore[union-attr]
    if name != "random":  # which draws for other groups, too
        assert list(curve(name).order) == np.argsort(scores.double().numpy(), kind="stable")[:-1].tolist()
    assert curve(name).examples == (GAMMA if settings else 0)


def test_criteria_with_settings_of_their_own() -> None:
    found = curve(sc.Taylor(examples=3))
    assert (found.criterion, found.examples) == ("taylor", 3)


@pytest.mark.parametrize("validation", [None, 3, "batches"])
def test_curves(validation: Any) -> None:
    model, source = network("residual"), data()
    x, y = source.val[0]
    if validation == 3:
        x, y = x[[0, 2, 5]], y[[0, 2, 5]]
    given = [sc.training.Batch(x, y)] if validation == "batches" else validation  # type: ignore[attr-defined]
    found = curve("l1", task(model, source), validation=given)
    graph = sc.trace(model, images(1))
    assert len(found.top1) == len(found.loss) == SIZE
    for k in range(SIZE):
        kept = [c for c in range(SIZE) if c not in found.order[:k]]
        with torch.no_grad():
            out = sc.mask(model, graph.plan({LAYER: kept})).eval()(x)
        assert found.loss[k] == pytest.approx(float(F.cross_entropy(out, y)), rel=1e-4)
        assert found.top1[k] == pytest.approx(100 * float((out.argmax(1) == y).float().mean()))
    assert found.area == pytest.approx(np.mean(found.top1))
    assert found.asdict()["area"] == found.area


def test_the_model_is_left_alone() -> None:
    model = network("residual").train()
    before = State.of(model)
    for name in ("oracle", "aofp", "taylor", "apoz"):
        curve(name, task(model))
    before.assert_same(model)


def test_layers_on_a_shortcut_can_be_studied() -> None:
    t = task()
    stream = next(g for g in t.groups if not g.internal)
    found = one_by_one(t, stream.name, "taylor", examples=GAMMA)
    assert len(found.order) == stream.size - 1


def test_errors() -> None:
    with pytest.raises(sc.ConfigError, match=r"'taylr' is not a valid criterion\. Did you mean taylor"):
        curve("taylr")
    with pytest.raises(sc.PlanError, match=r"no channel group 'blocks\.0\.00'"):
        one_by_one(task(), "blocks.0.00", "l1")
    with pytest.raises(sc.ConfigError, match="validation data"):
        curve("l1", task(source=sc.Data(train=data().train)))
    model = network("residual")
    with pytest.raises(sc.ConfigError, match="compared on examples: pass data="):
        one_by_one(Task(model, sc.trace(model, images(1)), None), LAYER, "oracle")
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    for name in ("oracle", "aofp"):
        with pytest.raises(sc.ConfigError, match="not finite"):
            curve(name, task(model))


def test_every_registered_criterion_is_there() -> None:
    assert {"oracle", "oracle-10x", "oracle-degraded", "aofp", "apoz", "taylor", "l1", "random"} <= set(criteria())
    assert "epruner" not in criteria()


def test_held_or_not_the_order_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    held = curve("oracle").order
    monkeypatch.setattr(study, "HOLD", 0)
    assert curve("oracle").order == held


def test_what_the_task_measures_is_what_the_masked_network_shows() -> None:
    """Segmentation on images of two sizes, with a metric of its own and one of torchmetrics' kind."""
    model = drawn.network(inside=3).eval()
    random = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(2, 3, *size, generator=random), torch.randint(3, (2, *size), generator=random))
        for size in ((16, 16), (8, 24), (16, 16))
    ]
    metrics = {"margin": lambda outputs, targets: outputs.amax(1).sub(outputs.amin(1)).mean()}
    objective = sc.training.Objective(metrics=metrics)
    graph, source = sc.trace(model, batches[0][0]), sc.Data(batches, batches)
    t = Task(model, graph, None, "all", source, engine_options={"progress": "silent", "objective": objective})
    found = one_by_one(t, "middle.0", "oracle-degraded", examples=4)
    assert found.figure == "margin"
    assert found.top1 is None
    assert found.area == pytest.approx(np.mean(found.metrics["margin"]))
    assert len(found.values) == 8
    for gone in (0, 3, 7):
        kept = sorted(set(range(8)) - set(found.order[:gone]))
        shown = sc.training.evaluate(sc.mask(model, graph.plan({"middle.0": kept})), batches, objective=objective)
        assert found.values[gone] == pytest.approx(shown.metrics["margin"], rel=1e-5)
        assert found.loss is not None
        assert found.loss[gone] == pytest.approx(shown.loss, rel=1e-5)
    assert one_by_one(t, "middle.0", "l1", figure="loss").values == one_by_one(t, "middle.0", "l1").loss
    with pytest.raises(sc.ConfigError, match=r"'mIoU' is not measured here\. .*margin"):
        one_by_one(t, "middle.0", "l1", figure="mIoU")


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_detectors_loss_is_the_same_for_the_same_network() -> None:
    """The boxes that count in its loss are drawn at random: the same ones for all that is compared."""
    model = detectors.faster_rcnn()
    images = [torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    targets = [{"boxes": torch.tensor([[4.0, 4, 20, 20]]), "labels": torch.tensor([1])} for _ in images]
    objective = sc.training.Objective(**sc.adapters.detection())
    graph, source = sc.trace(model.eval(), ([images[0]],)), sc.Data([(images, targets)], [(images, targets)])
    t = Task(model, graph, None, "all", source, engine_options={"progress": "silent", "objective": objective})
    state = torch.get_rng_state()
    assessor = study.Assessor(t, 2)
    losses = [float(assessor.run(assessor.batches[0])[0]) for _ in range(3)]
    assert losses[0] == losses[1] == losses[2] > 0
    assert torch.equal(torch.get_rng_state(), state)
    found = one_by_one(
        replace(t, engine_options={"progress": "silent", "objective": replace(objective, metrics={"boxes": boxes})}),
        "backbone.3", "oracle-degraded", examples=2,
    )  # fmt: skip
    assert found.loss is None  # in evaluation a detector has none
    assert found.figure == "boxes"
    assert len(found.values) == 16


def boxes(outputs: Any, targets: Any) -> float:
    return sum(len(one["boxes"]) for one in outputs) / len(outputs)


def test_curves_of_a_setting_that_is_no_longer_given_are_others(tmp_path: Path) -> None:
    def record(**settings: Any) -> Record:
        return Record(tmp_path, settings, "net", LAYER, lambda line: None)

    record(data="digits", channels=1).write({"index": curve("index")})
    assert record(data="digits", channels=1).open(True, False).keys() == {"index"}
    with pytest.raises(sc.ConfigError, match=r"differs in channels \(1 then, none now\)"):
        record(data="digits").open(True, False)
