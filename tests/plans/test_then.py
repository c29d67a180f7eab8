"""`Plan.then`: two cuts in a row are one cut by the composed plan, whatever the architecture."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from secateurs.errors import PlanError
from secateurs.graph.channels import named_tensors
from secateurs.plans import Plan, trace
from secateurs.surgery import apply, verify
from tests.networks import CASES, fraction, image

VARIETY = (
    "residual", "padded_shortcut", "shared_batch_norm_after_concat_and_sum", "depthwise_multiplier", "grouped",
    "channel_shuffle", "flatten", "pixel_shuffle", "transposed_grouped", "squeeze_excite", "weight_normalization",
    "spectral_normalization", "tied_weights", "shared_module", "a_module_of_ones_own_that_records_its_channels", "chunk",
    "view_by_constants", "bfloat16", "two_inputs",
)  # fmt: skip


@pytest.mark.parametrize("name", VARIETY)
def test_two_cuts_are_one(name: str) -> None:
    case = CASES[name]
    model, inputs = case.make(), case.inputs()
    graph = trace(model, inputs)
    first = graph.plan(fraction(graph, 0.7, seed=1))
    small = apply(model, first)
    rest = trace(small, inputs)
    second = rest.plan(fraction(rest, 0.6, seed=2))
    whole = first.then(second)
    twice, once = apply(small, second), apply(model, whole)
    one, other = named_tensors(once), named_tensors(twice)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    plain = (int, tuple, list)
    for (path, a), (_, b) in zip(once.named_modules(), twice.named_modules(), strict=True):
        for key, value in vars(a).items():
            if isinstance(value, plain) and not isinstance(value, bool):
                assert getattr(b, key) == value, (path, key)
    assert verify(model, whole, inputs) <= 1e-5
    assert graph.cost_of(whole) == rest.cost_of(second)
    # It is the plan of this selection of the original's groups, too, and comes back from JSON.
    again = graph.plan(whole.groups)
    assert (whole.kept, whole.shapes, whole.consumes) == (again.kept, again.shapes, again.consumes)
    assert Plan.from_json(whole.to_json()) == whole


def test_stripes_are_cut_last() -> None:
    model = CASES["chain"].make()
    graph = trace(model, image())
    first = graph.plan({"a": [0, 2, 3, 5, 7], "b": [1, 2, 4]})
    small = apply(model, first)
    rest = trace(small, image())
    kernel = next(iter(rest.kernels))
    alive = torch.rand(rest.kernels[kernel], generator=torch.Generator().manual_seed(0)) < 0.6
    second = rest.plan({"b": [0, 2]}, stripes={kernel: alive.numpy()})
    whole = first.then(second)
    once, twice = apply(model, whole).eval(), apply(small, second).eval()
    with torch.no_grad():
        assert torch.allclose(once(image()), twice(image()), atol=1e-6)
    assert verify(model, whole, image()) <= 1e-5
    assert Plan.from_json(whole.to_json()) == whole
    with pytest.raises(PlanError, match=r"cuts stripes of .*only the last of several cuts may"):
        second.then(rest.plan({}))


def test_plans_that_do_not_follow_each_other() -> None:
    model = CASES["chain"].make()
    graph = trace(model, image())
    plan = graph.plan({"a": [0, 1, 2]})
    with pytest.raises(PlanError, match=r"expects a\.weight of shape .*, the first one leaves \(3, "):
        plan.then(plan)
    nothing = graph.plan({})
    assert nothing.then(plan) == plan
    assert plan.then(trace(apply(model, plan), image()).plan({})) == plan


def test_a_plan_is_not_changed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = trace(model, image())
    first = graph.plan({"0": range(6)})
    text = first.to_json()
    second = trace(apply(model, first), image()).plan({"0": [1, 3]})
    assert first.then(second).groups["0"] == (1, 3)
    assert first.to_json() == text


class Squeezed(nn.Module):
    """Needs two channels of each of its first layers: `squeeze` drops an axis of one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (1, 3, H, W) → (1, 2, H - 4, W - 4)
        x = self.a(x).squeeze()
        x = self.b(x[None]).squeeze()
        return self.c(x[None])


def test_the_fewest_channels_that_groups_need_are_kept() -> None:
    model = Squeezed()
    first = trace(model, image(1)).plan({"a": range(5)})
    second = trace(apply(model, first), image(1)).plan({"b": range(4)})
    whole = first.then(second)
    assert dict(whole.least) == {"a": 2, "b": 2}
    assert Plan.from_json(whole.to_json()) == whole
    with pytest.raises(PlanError, match=r"keeps 1 of the channels of group b, which needs at least 2"):
        dataclasses.replace(whole, groups={**whole.groups, "b": (0,)}).check(model)
