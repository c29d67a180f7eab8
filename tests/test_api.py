"""`prune`, its result, `build` and `load`: what goes in and what comes out."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from tests.conformance import data, images, network, outputs
from tests.networks import CASES

HALF = sc.Budget(macs=0.5)


def test_result() -> None:
    model = network()
    lines: list[str] = []
    result = sc.prune(model, images(), "l2", HALF, report=lines.append)
    assert result.before == sc.Figures(*dataclasses.astuple(sc.count(model, images())))
    assert result.cut == result.after == sc.Figures(*dataclasses.astuple(sc.count(result.model, images())))
    assert result.method == sc.L2()
    assert result.history == []
    assert torch.equal(outputs(result.model, images()), outputs(sc.apply(model, result.plan), images()))
    assert len(lines) == 3
    assert "l2 keeps" in lines[1]
    assert f"{result.after.macs / result.before.macs:.1%} of the MACs" in lines[1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.error = 0


@pytest.mark.parametrize("inputs", [images(1), (images(1),), {"x": images(1)}])
def test_example_inputs_of_any_kind(inputs: Any) -> None:
    expected = sc.prune(network(), images(1), "l1", HALF)
    assert sc.prune(network(), inputs, "l1", HALF).plan == expected.plan


def test_accuracy_is_measured_where_there_is_validation_data() -> None:
    given = data()
    with_val = sc.prune(network(), images(), "l1", HALF, data=given)
    assert with_val.before.top1 is not None
    assert with_val.cut.loss == with_val.after.loss
    without = sc.prune(network(), images(), "l1", HALF, data=given.train)
    assert (without.before.top1, without.cut.top1, without.after.loss) == (None, None, None)


def test_recovery() -> None:
    model = network()
    recipe = sc.Recover(epochs=3, lr=0.05)
    options: dict[str, Any] = {"data": data(), "recover": recipe, "progress": "silent", "seed": 5}
    result = sc.prune(model, images(), "l1", HALF, **options)
    assert result.after.loss < result.cut.loss
    assert (result.after.macs, result.after.params) == (result.cut.macs, result.cut.params)
    assert len(result.history) == 3
    again = sc.prune(model, images(), "l1", HALF, **options)
    for key, value in result.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])


def test_wrong_requests() -> None:
    model = network()
    with pytest.raises(sc.ConfigError, match="Did you mean epruner"):
        sc.prune(model, images(), "epruned", HALF)
    with pytest.raises(sc.ConfigError, match="Recovery needs data"):
        sc.prune(model, images(), "l1", HALF, recover=sc.Recover(epochs=1))
    with pytest.raises(sc.ConfigError, match="l1 needs a budget"):
        sc.prune(model, images(), "l1")
    with pytest.raises(sc.DataError, match="not a pair"):
        sc.prune(model, images(), "l1", HALF, data=[images()])
    with pytest.raises(sc.BudgetError, match=r"No channel group may be cut.*scope='all'"):
        sc.prune(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), images(), "l1", HALF)


def test_inexact_cut_on_request_only(tmp_path: Path) -> None:
    case = CASES["layer_norm"]
    model = case.make()
    allowed = sc.prune(model, case.inputs(), "l1", sc.Budget(macs=0.6), scope="all", allow_inexact=True)
    assert allowed.error != allowed.error  # nan
    assert not allowed.plan.exact
    path = allowed.save(tmp_path / "run")
    assert json.loads((path / "card.json").read_text())["error"] is None
    x = case.inputs()
    assert torch.equal(outputs(sc.load(path, model=model), x), outputs(allowed.model, x))
    cut = {name for name in allowed.plan.groups if not sc.trace(model, case.inputs())[name].exact}
    assert cut
    with pytest.raises(sc.BudgetError, match=r"No channel group|cannot be met"):
        sc.prune(model, case.inputs(), "l1", sc.Budget(macs=allowed.after.macs), scope="all")


class TestSource:
    """The card says how to build the network that was pruned, or nothing: never how to build another."""

    def test_options_of_build(self, tmp_path: Path) -> None:
        model = sc.build("zoo:small_cnn", num_classes=4, in_channels=1)
        x = torch.randn(1, 1, 16, 16)
        result = sc.prune(model, x, "l1", HALF)
        assert result.source == {"spec": "zoo:small_cnn", "num_classes": 4, "in_channels": 1}
        assert torch.equal(outputs(sc.load(result.save(tmp_path / "run")), x), outputs(result.model, x))

    def test_copies_have_it_too(self) -> None:
        assert sc.prune(copy.deepcopy(network()), images(), "l1", HALF).source is not None

    def test_a_network_pruned_twice(self, tmp_path: Path) -> None:
        """The second plan is for the first result, not for what `build` makes."""
        first = sc.prune(network(), images(), "l1", sc.Budget(macs=0.7))
        second = sc.prune(first.model, images(), "l1", sc.Budget(macs=0.7))
        assert second.source is None
        path = second.save(tmp_path / "two")
        with pytest.raises(sc.ArtifactError, match=r"pass load\(.*model="):
            sc.load(path)
        whole = sc.load(first.save(tmp_path / "one"))
        assert torch.equal(outputs(sc.load(path, model=whole), images()), outputs(second.model, images()))

    def test_a_network_with_another_head(self) -> None:
        model = network()
        model.fc = nn.Linear(40, 3)
        assert sc.prune(model, images(), "l1", HALF).source is None

    def test_options_that_json_does_not_have(self) -> None:
        model = network()
        model.secateurs_source = {"spec": "zoo:small_cnn", "act": nn.ReLU}
        assert sc.prune(model, images(), "l1", HALF).source is None
