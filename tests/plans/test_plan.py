"""Plans: what they refuse, that they don't change, and that they come back from JSON as they went in."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateurs.errors import PlanError
from secateurs.masking import mask
from secateurs.plans import Plan, PrunableGraph, trace
from secateurs.plans.plan import VERSION, _digest
from secateurs.surgery import apply, cut_, verify
from tests.networks import CASES, Net, conv, half, head, image


@pytest.fixture
def model() -> nn.Module:
    return CASES["chain"].make()


@pytest.fixture
def graph(model: nn.Module) -> PrunableGraph:
    return trace(model, image())


def test_what_a_plan_says(graph: PrunableGraph) -> None:
    plan = graph.plan({"a": [4, 1, 2]})
    assert plan.groups == {"a": (1, 2, 4)}
    everywhere = ["a.weight", "a.bias", "na.weight", "na.bias", "na.running_mean", "na.running_var"]
    assert plan.kept == {**{p: {0: (1, 2, 4)} for p in everywhere}, "b.weight": {1: (1, 2, 4)}}
    assert plan.shapes["b.weight"] == (6, 8, 3, 3)
    assert plan.attributes == {
        ("a", "out_channels"): 3, ("b", "in_channels"): 3, ("na", "num_features"): 3,
    }  # fmt: skip
    assert plan.consumes == {("b.weight", 1)}
    assert plan.exact


def test_it_takes_any_integers_in_any_order(graph: PrunableGraph) -> None:
    expected = graph.plan({"a": [1, 2, 4]})
    for kept in (
        (4, 2, 1),
        {1, 2, 4},
        np.array([2, 1, 4], dtype=np.int32),
        torch.tensor([4, 1, 2]),
        (i for i in (1, 4, 2)),
        [np.int64(1), 2, 4],
    ):
        assert graph.plan({"a": kept}) == expected


def test_whole_groups_leave_no_trace(graph: PrunableGraph) -> None:
    plan = graph.plan({"a": range(8), "h.2": range(5)})
    assert plan == graph.plan({})
    assert plan.kept == {}


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "The plan would keep no channel of group a: keep at least one of its 8 channels."),
        ([0, 8], "Kept channels of group a must be in 0…7, got 0 to 8."),
        ([-1, 2], "Kept channels of group a must be in 0…7, got -1 to 2."),
        ([1, 2, 1], "Kept channels of group a repeat: 1 is listed twice."),
        ([0.0, 1.0], "Kept channels of group a must be integers, not float64."),
        ([True, False] * 4, "Kept channels of group a must be integers, not bool."),
        (["0"], "Kept channels of group a must be integers, not <U1."),
        ([[0, 1], [2, 3]], "Kept channels of group a must be"),
        ([2**70], "Kept channels of group a must"),
        (3, "Kept channels of group a must be"),
        (None, "Kept channels of group a must be"),
        ([[0, 1], [2]], "Kept channels of group a must be"),
    ],
    ids=["empty", "high", "low", "repeated", "float", "bool", "text", "nested", "huge", "number", "none", "ragged"],
)
def test_indices_that_make_no_sense(graph: PrunableGraph, kept: Any, message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        graph.plan({"a": kept})


def test_unknown_groups_suggest_near_ones(graph: PrunableGraph) -> None:
    with pytest.raises(PlanError, match=r"no channel group 'h\.3'\. Did you mean h\.2"):
        graph.plan({"h.3": [0]})
    with pytest.raises(PlanError, match=r"no channel group 'conv1'\. Known: a, b, h\.2"):
        graph.plan({"conv1": [0]})


def test_groups_that_stay_are_refused_with_the_reason(graph: PrunableGraph) -> None:
    with pytest.raises(PlanError, match=r"Group h\.2 cannot be cut: reaches the model's output\."):
        graph.plan({"h.2": [0, 1]})


def test_inexact_groups_need_to_be_asked_for() -> None:
    model = CASES["layer_norm"].make()
    for graph in (trace(model, image()), trace(model, image(), allow_inexact=True)):
        plan = graph.plan({"a": [0, 1, 2]}, allow_inexact=True)
        assert not plan.exact
        assert apply(model, plan).n.normalized_shape == (3,)
    with pytest.raises(PlanError, match="Group a cannot be cut: inexact: layer norm"):
        trace(model, image()).plan({"a": [0, 1, 2]})
    frozen = CASES["layer_norm_to_a_constant"].make()
    with pytest.raises(PlanError, match="a constant in the code"):
        trace(frozen, image()).plan({"a": [0, 1]}, allow_inexact=True)


def test_a_plan_does_not_change(graph: PrunableGraph) -> None:
    kept = {"a": [1, 2], "b": [0, 3]}
    plan = graph.plan(kept)
    text = plan.to_json()
    kept["a"].append(5)
    for name in (f.name for f in dataclasses.fields(plan)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(plan, name, {})
    for mapping in (plan.groups, plan.shapes, plan.attributes, plan.kept, plan.kept["a.weight"]):
        with pytest.raises(TypeError):
            mapping["x"] = 1  # type: ignore[index]
    with pytest.raises(AttributeError):
        plan.consumes.add(("x", 0))  # type: ignore[attr-defined]
    assert plan.to_json() == text


def test_copies(graph: PrunableGraph) -> None:
    plan = graph.plan({"a": [1, 2], "b": [0, 3]})
    for other in (copy.copy(plan), copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert other == plan
        assert other.to_json() == plan.to_json()
        with pytest.raises(TypeError):
            other.kept["a.weight"]["x"] = 1


def test_a_group_stands_for_its_name(graph: PrunableGraph) -> None:
    assert graph.plan({graph["a"]: [1, 2]}) == graph.plan({"a": [1, 2]})


@pytest.mark.parametrize("wrong", [None, 3, ["a"], {"a": [0]}])
@pytest.mark.parametrize("use", [apply, mask, cut_, lambda model, plan: verify(model, plan, image())])
def test_what_is_not_a_plan(model: nn.Module, use: Any, wrong: Any) -> None:
    with pytest.raises(PlanError, match=r"is not a plan: make one with graph\.plan\(\{group name: kept indices\}\)"):
        use(model, wrong)


@pytest.mark.parametrize("wrong", [None, ["a"], 3])
def test_what_no_plan_is_made_from(graph: PrunableGraph, wrong: Any) -> None:
    with pytest.raises(PlanError, match=r"A plan is made from a dict, \{group name: kept indices\}, not from"):
        graph.plan(wrong)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.prunable])
def test_json_there_and_back(name: str) -> None:
    case = CASES[name]
    model, inputs = case.make(), case.inputs()
    graph = trace(model, inputs)
    plan = graph.plan(half(graph))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    small, other = apply(model, plan), apply(model, again)  # no graph needed
    assert small.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), other.state_dict().values(), strict=True))


def rewritten(text: str, change: Any, sign: bool) -> str:
    body = json.loads(text)
    body.pop("digest") if sign else None
    change(body)
    return json.dumps({**body, "digest": _digest(body)} if sign else body)


@pytest.mark.parametrize("where", ["groups", "shapes", "kept", "attributes", "consumes", "exact", "version"])
def test_tampered(graph: PrunableGraph, where: str) -> None:
    def change(body: dict[str, Any]) -> None:
        body[where] = {
            "groups": {"a": [0]}, "shapes": {}, "kept": {"a.weight": {"0": [0]}}, "attributes": [],
            "consumes": [], "exact": False, "version": 0,
        }[where]  # fmt: skip

    with pytest.raises(PlanError, match="does not match its digest"):
        Plan.from_json(rewritten(graph.plan({"a": [0, 1]}).to_json(), change, sign=False))


def test_cut_off_anywhere(graph: PrunableGraph) -> None:
    text = graph.plan({"a": [0, 1]}).to_json()
    for end in range(0, len(text) - 1, 7):
        with pytest.raises(PlanError, match=r"is empty|not valid JSON"):
            Plan.from_json(text[:end])


@pytest.mark.parametrize("text", ["[]", "null", "3", '"plan"', "{}", '{"format": "onnx"}'])
def test_other_json(text: str) -> None:
    with pytest.raises(PlanError, match="not a Secateurs plan"):
        Plan.from_json(text)


@pytest.mark.parametrize("version", [VERSION + 1, "2", None, 1.5])
def test_from_a_newer_version(graph: PrunableGraph, version: Any) -> None:
    text = rewritten(graph.plan({"a": [0]}).to_json(), lambda body: body.update(version=version), sign=True)
    with pytest.raises(PlanError, match=f"has version {version}, but this Secateurs reads versions up to {VERSION}"):
        Plan.from_json(text)


def _wrong(part: str, value: Any) -> Any:
    def change(body: dict[str, Any]) -> None:
        body[part] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("kept"),
        lambda body: body.pop("exact"),
        _wrong("kept", []),
        _wrong("kept", {"a.weight": {"x": [0]}}),
        _wrong("kept", {"a.weight": {"0": [99]}}),
        _wrong("kept", {"a.weight": {"0": [-1]}}),
        _wrong("kept", {"a.weight": {"0": []}}),
        _wrong("kept", {"a.weight": {"0": [1, 1]}}),
        _wrong("kept", {"a.weight": {"0": [2, 1]}}),
        _wrong("kept", {"a.weight": {"0": ["1"]}}),
        _wrong("kept", {"a.weight": {"0": 3}}),
        _wrong("kept", {"a.weight": {"7": [0]}}),
        _wrong("kept", {"nowhere": {"0": [0]}}),
        _wrong("consumes", [["b.weight", 0]]),
        _wrong("consumes", [["nowhere", 1]]),
        _wrong("consumes", [["b.weight"]]),
        _wrong("attributes", [["a", "out_channels"]]),
        _wrong("attributes", [["a", "forward", 3]]),
        _wrong("attributes", [["nowhere", "out_channels", 2]]),
        _wrong("shapes", None),
    ],
)  # fmt: skip
def test_signed_but_senseless(model: nn.Module, graph: PrunableGraph, change: Any) -> None:
    """A digest guards against accidents; whoever writes one anew still gets a clear error and an untouched model."""
    text = rewritten(graph.plan({"a": [0, 1]}).to_json(), change, sign=True)
    for use in (apply, mask, cut_):
        with pytest.raises(PlanError):
            use(model, Plan.from_json(text))
    assert model.a.out_channels == 8
    assert model.a.weight.shape == (8, 3, 3, 3)


@pytest.mark.parametrize(
    "use", [apply, mask, cut_, lambda m, p: verify(m, p, image())], ids=["apply", "mask", "cut_", "verify"]
)
def test_another_networks_plan(graph: PrunableGraph, use: Any) -> None:
    plan = graph.plan({"a": [0, 1]})
    other = CASES["squeeze_excite"].make()
    with pytest.raises(
        PlanError, match=r"cuts na\.\w+, which this model does not have: the plan is for another network"
    ):
        use(other, plan)
    wider = Net(lambda s, x: s.h(s.b(s.a(x))), a=conv(3, 16), na=nn.BatchNorm2d(16), b=conv(16, 6), h=head(6))
    with pytest.raises(PlanError, match=r"expects a\.weight of shape \(8, 3, 3, 3\), this model has \(16, 3, 3, 3\)"):
        use(wider, plan)
    assert wider.a.weight.shape[0] == 16


def test_twice_on_the_same_network(model: nn.Module, graph: PrunableGraph) -> None:
    plan = graph.plan({"a": [0, 1]})
    small = apply(model, plan)
    with pytest.raises(PlanError, match="or this one is already cut"):
        apply(small, plan)
