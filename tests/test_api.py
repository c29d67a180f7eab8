"""`prune`, its result, `build` and `load`: what goes in and what comes out."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs import training
from secateurs.testing.networks import data, images, network
from secateurs.testing.state import outputs
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
    assert with_val.cut.loss != with_val.calibrated.loss == with_val.after.loss
    without = sc.prune(network(), images(), "l1", HALF, data=given.train)
    assert (without.before.top1, without.cut.top1, without.after.loss) == (None, None, None)


def test_recovery() -> None:
    model = network()
    recipe = sc.Recover(epochs=3, lr=0.05)
    options: dict[str, Any] = {"data": data(), "recover": recipe, "progress": "silent", "seed": 5}
    result = sc.prune(model, images(), "l1", HALF, **options)
    assert result.after.loss < result.cut.loss
    assert (result.after.macs, result.after.params) == (result.cut.macs, result.cut.params)
    calibrated, *epochs = result.history
    assert calibrated["event"] == "calibrated"
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
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
    with pytest.raises(
        sc.DataError, match="Recover reads labels, and the training batches of this data are inputs only"
    ):
        sc.prune(model, images(), "l1", HALF, data=[images()], recover=sc.Recover(epochs=1))
    with pytest.raises(
        sc.BudgetError, match=r"No channel group is prunable, mostly because: .* See `secateurs inspect`\.$"
    ):
        sc.prune(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), images(), "l1", HALF)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"scope": "typo"}, r"scope='typo' is not a valid scope\. Known: all, internal"),
        ({"scope": "intern"}, r"scope='intern' is not a valid scope\. Did you mean internal"),
        ({"ranking": "layer"}, r"ranking is a setting of the method l1: pass method=sc\.L1\(ranking='layer'\)"),
        ({"scop": "all"}, r"no option 'scop'. Did you mean scope"),
        ({"nonsense": 1}, r"no option 'nonsense'.*Options: .*device, .*hooks, .*method=sc\.L1"),
        ({"checkpoints": None}, r"no option 'checkpoints'"),
        ({"budget": 0.5}, r"budget must be a Budget, got float 0\.5; did you mean Budget\(macs=0\.5\)\?"),
        ({"budget": {"params": 0.3}}, r"got dict .*; did you mean Budget\(params=0\.3\)\?"),
        ({"method": 3}, "method=3 is not a method"),
        ({"method": sc.L1}, "method=L1 is a class"),
        ({"seed": 0.5}, r"seed=0\.5 is not a valid seed: it must be an integer from 0 to 2\^63 - 1"),
        ({"seed": True}, "seed=True is not a valid seed"),
        ({"seed": 2**63}, "is not a valid seed"),
        ({"seed": None}, "seed=None is not a valid seed"),
        (
            {"data": data().train, "metrics": {"mIoU": max}},
            r"metrics=.* are measured on validation data: pass data=sc\.Data",
        ),
        ({"recover": sc.Recover}, r"recover=Recover is a class: pass an instance, sc\.Recover\(…\)\."),
        ({"recover": [sc.Mimic]}, r"recover=Mimic is a class: pass an instance, sc\.Mimic\(…\)\."),
        ({"exclude": torch.ones(2, 3)}, r"exclude: a tensor of shape \(2, 3\) is not valid: name layers"),
        ({"only": [nn.Parameter(torch.ones(2))]}, r"only: a tensor of shape \(2,\) is not valid: name layers"),
        ({"step": lambda m: 0}, r"step is called as step\(model, batch\) -> loss, and does not take that: too many"),
        (
            {"loss": lambda x, y, z: 0},
            r"loss is called as loss\(outputs, targets\) .*: missing a required argument: 'z'",
        ),
        ({"metrics": {"a": lambda x: 0}}, r"metrics\['a'\] is called as metric\(outputs, targets\) -> scalar"),
        ({"recover": 3}, r"recover=3 is not a valid recovery: pass a recipe such as sc\.Recover\(epochs=3\)"),
        ({"recover": "finetune"}, "recover='finetune' is not a valid recovery"),
    ],
)
def test_requests_that_make_no_sense_are_refused_before_any_work(asked: dict[str, Any], message: str) -> None:
    class Idle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("it was run")

    with pytest.raises(sc.ConfigError, match=message):
        sc.prune(Idle(), images(), **{"method": "l1", "budget": HALF, "data": data(), **asked})
    if {"scope", "budget", "seed"} & asked.keys():
        with pytest.raises(sc.ConfigError, match=message):
            sc.attach(
                Idle(), images(), **{"method": "npn", "steps": 1, "epoch_steps": 1, "data": data().train, **asked}
            )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("zoo:resnet20", r"not a str: sc\.build\('zoo:resnet20'\) builds one"),
        (None, "not a NoneType"),
        (nn.Conv2d, r"is a class: pass an instance of it, Conv2d\(…\)"),
    ],
)
def test_what_is_no_model(model: Any, message: str, tmp_path: Path) -> None:
    result = sc.prune(network(), images(), "l1", HALF)
    saved = result.save(tmp_path / "run")
    asks = [
        lambda: sc.prune(model, images(), "l1", HALF),
        lambda: sc.attach(model, images(), "npn", HALF, steps=1, epoch_steps=1, data=data()),
        lambda: sc.trace(model, images()),
        lambda: sc.count(model, images()),
        lambda: sc.apply(model, result.plan),
        lambda: sc.cut_(model, result.plan),
        lambda: sc.verify(model, result.plan, images()),
    ]
    if model is not None:
        asks.append(lambda: sc.load(saved, model=model))
    for ask in asks:
        with pytest.raises(sc.TraceError, match=message):
            ask()


def test_build_of_nothing() -> None:
    with pytest.raises(sc.SpecError, match="None is not a valid model spec"):
        sc.build(None)  # type: ignore[arg-type]


def test_options_of_training_are_let_through() -> None:
    class Watch(training.Hook):
        steps = 0

        def after_step(self, engine: Any) -> None:
            self.steps += 1

    hook, given = Watch(), data()
    options: dict[str, Any] = {"progress": "silent", "device": "cpu", "hooks": [hook]}
    sc.prune(network(), images(), "l1", HALF, given, sc.Recover(steps=2), **options)
    assert hook.steps == 2
    sc.prune(network(), images(), sc.NPN(epochs=1), HALF, given, sc.Recover(steps=2), **options)
    assert hook.steps == 4  # of recovery only


@pytest.mark.parametrize("length", [0, -3, 1.5, True, None])
def test_attach_wants_a_length(length: Any) -> None:
    for name in ("steps", "epoch_steps"):
        with pytest.raises(sc.ConfigError, match=f"{name}={length!r} is not a valid number of optimizer steps"):
            sc.attach(network(), images(), "npn", HALF, data=data(), **{"steps": 4, "epoch_steps": 2, name: length})


@pytest.mark.parametrize("method", [sc.AOFP(distil=0.5), sc.NPN(distil=0.5)], ids=lambda m: m.name)
def test_attach_cannot_teach(method: Any) -> None:
    """The loss is the loop's own."""
    model = network()
    with pytest.raises(sc.ConfigError, match=r"distil=0\.5\) has no effect in a training loop of your own"):
        sc.attach(model, images(), method, HALF, steps=4, epoch_steps=2, data=data())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_second_pruner_is_refused() -> None:
    model, given = network(), data()
    options: dict[str, Any] = {"steps": 1, "epoch_steps": 1, "data": given}
    first = sc.attach(model, images(), "npn", HALF, **options)
    for again in (
        lambda: sc.attach(model, images(), "npn", HALF, **options),
        lambda: sc.prune(model, images(), "l1", HALF),
    ):
        with pytest.raises(sc.ConfigError, match="A pruner is already attached to this model"):
            again()
    model(images())
    first.plan()
    sc.attach(model, images(), "npn", HALF, **options).plan()


def test_a_model_that_is_random_in_eval_mode_is_refused_before_any_work() -> None:
    class Noisy(nn.Module):
        def __init__(self, changes: bool = False) -> None:
            super().__init__()
            self.net, self.changes = network(), changes

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.net(nn.functional.dropout(x, 0.5))
            return y * torch.from_numpy(np.full(1, next(calls), dtype=np.float32)) if self.changes else y

    calls = iter(range(1000))

    class Never(sc.L1):
        def scores(self, task: Any) -> Any:
            raise AssertionError("it was asked")

    with pytest.raises(sc.VerificationError, match="The model is nondeterministic in eval mode"):
        sc.prune(Noisy(changes=True), images(), Never(), HALF)
    assert sc.prune(Noisy(), images(), "l1", HALF).error <= 1e-5  # both networks draw the same


def test_short_descriptions() -> None:
    result = sc.prune(network(), images(), "l1", HALF, data())
    assert len(repr(result)) < 200
    assert repr(result).startswith(f"Result(l1: macs {result.before.macs:,} → {result.after.macs:,}, params ")
    assert f"top1 {result.before.top1:.2f} → " in repr(result)
    groups = result.plan.groups
    left = sum(map(len, groups.values()))
    assert repr(result.plan).startswith(f"Plan({len(groups)} groups cut to {left} channels, ")
    assert len(repr(result.plan)) < 120


def test_a_seed_may_be_an_integer_of_any_kind() -> None:
    plans = [sc.prune(network(), images(), "random", HALF, seed=seed).plan for seed in (3, np.int64(3), 4)]
    assert plans[0] == plans[1] != plans[2]


def test_inexact_cut_on_request_only(tmp_path: Path) -> None:
    case = CASES["layer_norm"]
    model = case.make()
    allowed = sc.prune(model, case.inputs(), "l1", sc.Budget(macs=0.6), scope="all", allow_inexact=True)
    assert allowed.error != allowed.error  # nan
    assert not allowed.plan.exact
    assert any(
        "The cut is inexact and was not verified: an op computes with all channels of group" in line
        for line in allowed.warnings
    )
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
        """The second plan is for the first result, which the card says how to make of what `build` makes."""
        first = sc.prune(network(), images(), "l1", sc.Budget(macs=0.7))
        second = sc.prune(first.model, images(), "l1", sc.Budget(macs=0.7))
        assert second.source is not None
        assert len(second.source["plans"]) == 1
        path = second.save(tmp_path / "two")
        assert torch.equal(outputs(sc.load(path), images()), outputs(second.model, images()))
        whole = sc.load(first.save(tmp_path / "one"))
        assert torch.equal(outputs(sc.load(path, model=whole), images()), outputs(second.model, images()))

    def test_a_network_with_another_head(self) -> None:
        model = network()
        model.fc = nn.Linear(40, 3)
        assert sc.prune(model, images(), "l1", HALF).source is None

    @pytest.mark.parametrize("edit", ["dilation", "module", "eps", "forward"])
    def test_a_network_edited_without_another_shape(self, edit: str) -> None:
        model: Any = network()
        assert sc.prune(model, images(), "l1", HALF).source is not None
        if edit == "dilation":
            model.conv1.padding = (2, 2)
            model.conv1.dilation = (2, 2)
        elif edit == "module":
            model.bn1.act = nn.Identity()
        elif edit == "eps":
            model.bn1.eps = 0.5
        else:
            model.bn1.forward = type(model.bn1).forward.__get__(model.bn1)
        assert sc.prune(model, images(), "l1", HALF).source is None

    def test_options_that_json_does_not_have(self) -> None:
        model = network()
        model.secateurs_source = {"spec": "zoo:small_cnn", "act": nn.ReLU}
        assert sc.prune(model, images(), "l1", HALF).source is None


def test_dir_shows_the_public_names_alone() -> None:
    assert dir(sc) == sorted(sc.__all__)
    assert all(getattr(sc, name) is not None for name in dir(sc))


def test_a_folder_that_takes_no_files_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(sc.ArtifactError, match=f"{folder}.* (is a file|cannot be written to)"):
            sc.prune(network(), images(), "l1", sc.Budget(macs=0.5), data(), sc.Recover(epochs=1), folder=folder)


def test_in_inference_mode() -> None:
    model, inputs = sc.build("zoo:resnet20").eval(), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        graph = sc.trace(model, torch.randn(1, 3, 32, 32))
        result = sc.prune(model, inputs, "l1", sc.Budget(macs=0.5))
    assert [g.reason for g in graph.groups] == [g.reason for g in sc.trace(model, inputs).groups]
    assert result.error < 1e-5
    assert not any(p.is_inference() for p in result.model.parameters())  # it can be trained


def test_importing_a_part_leaves_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are imported at their first use, and libraries may draw random numbers then."""

    def importing(name: str) -> Any:
        random.random()
        return importlib.import_module(name)

    monkeypatch.setattr(sc, "import_module", importing)
    before = random.getstate()
    assert sc.__getattr__("Budget") is sc.Budget
    assert random.getstate() == before
