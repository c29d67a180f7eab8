"""The proof: it passes what is right, and refuses what is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.errors import VerificationError
from secateurs.graph import register_rule, rules
from secateurs.plans import Plan, trace
from secateurs.surgery import apply, verify
from secateurs.surgery.verify import check_deterministic, verified
from secateurs.widening import widened
from tests.networks import CASES, Net, conv, half, head, image


def planned(model: nn.Module, inputs: Any, **options: Any) -> Plan:
    graph = trace(model, inputs, **options)
    return graph.plan(half(graph))


def changed(plan: Plan, param: str, axis: int, kept: tuple[int, ...]) -> Plan:
    axes = {p: dict(a) for p, a in plan.kept.items()}
    axes[param][axis] = kept
    return dataclasses.replace(plan, kept=axes)


def test_a_good_plan_passes_and_the_model_is_left_alone() -> None:
    model = CASES["chain"].make().train()
    model.na.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    error = verify(model, planned(model, image()), image())
    assert isinstance(error, float)
    assert 0 <= error <= 1e-5
    assert model.training
    assert not model.na.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_that_was_verified_is_left_as_it_was_sliced(dtype: torch.dtype) -> None:
    class Counting(nn.Module):
        """Counts its runs in a buffer and in a list."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), conv(6, 4)), nn.Linear(4, 2)
            self.register_buffer("runs", torch.zeros(1))
            self.seen: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            self.seen.append(len(x))
            return self.head(self.body(x).mean((2, 3)))

    model = Counting().train()
    plan = planned(model, image())
    model = model.to(dtype)
    small, error = verified(model, plan, image().to(dtype))
    assert 0 <= error <= 1e-5
    due = apply(model, plan).state_dict()
    assert small.state_dict().keys() == due.keys()
    assert all(torch.equal(v, due[k]) and v.dtype == due[k].dtype for k, v in small.state_dict().items())
    assert (small.runs.item(), small.seen, small.training) == (0, model.seen, True)


def test_keeping_nothing_less_is_no_difference() -> None:
    model = CASES["chain"].make()
    assert verify(model, trace(model, image()).plan({}), image()) == 0


@pytest.mark.parametrize(
    ("param", "axis", "kept"),
    [("a.weight", 0, (0, 1, 2, 4)), ("b.weight", 1, (0, 1, 2, 4)), ("na.running_mean", 0, (0, 1, 2, 4))],
)  # fmt: skip
def test_one_wrong_channel_is_found(param: str, axis: int, kept: tuple[int, ...]) -> None:
    model = CASES["chain"].make()
    plan = trace(model, image()).plan({"a": [0, 1, 2, 3]})
    with pytest.raises(
        VerificationError, match=r"differs from the masked one by \d\.\de[-+]\d\d of the output's range.* was edited"
    ):
        verify(model, changed(plan, param, axis, kept), image())


def test_a_cut_that_does_not_run_is_found() -> None:
    model = CASES["chain"].make()
    plan = trace(model, image()).plan({"a": [0, 1, 2, 3]})
    with pytest.raises(VerificationError, match="The sliced network does not run: RuntimeError"):
        verify(model, changed(plan, "b.weight", 1, (0, 1, 2)), image())


def test_the_tolerance_counts() -> None:
    model = CASES["dense_head"].make()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    plan = planned(model, image())
    assert verify(model, plan, image(), tolerance=1e-5) <= 1e-5
    with pytest.raises(VerificationError, match="at most -1e"):
        verify(model, plan, image(), tolerance=-1.0)


@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "efficient_channel_attention", "unit_length"])
def test_inexact_plans_do_not_pass(name: str) -> None:
    model = CASES[name].make()
    plan = planned(model, image(), allow_inexact=True)
    with pytest.raises(
        VerificationError, match=r"differs from the masked one.*a normalization computes its statistics over"
    ):
        verify(model, plan, image())


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_is_compared_in_single(name: str) -> None:
    case = CASES[name]
    model = case.make()
    assert verify(model, planned(model, case.inputs()), case.inputs()) <= 1e-5
    assert model.a.weight.dtype == case.inputs().dtype


@torch.library.custom_op("verify::ranked", mutates_args=())
def ranked(x: Tensor) -> Tensor:
    """Each channel times its position: a cut moves those behind it."""
    return x * torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype)[:, None, None]


@ranked.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.fixture
def wrong_rule() -> Any:
    register_rule(torch.ops.verify.ranked)(lambda t, x: t.labels(x))
    yield
    del rules.registry._RULES[torch.ops.verify.ranked]


def chained(n: int, *bad: int) -> nn.Module:
    """n convolutions, of which some are followed by an op with a wrong rule."""

    def run(s: Any, x: Tensor) -> Tensor:
        for i, layer in enumerate(s.layers):
            x = layer(x).relu()
            x = torch.ops.verify.ranked(x) if i in bad else x
        return s.h(x)

    torch.manual_seed(0)
    layers = nn.ModuleList(conv(3 if i == 0 else 8, 8, bias=False) for i in range(n))
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
    return Net(run, layers=layers, h=head(8)).eval()


def test_the_groups_to_blame_are_named(wrong_rule: None) -> None:
    model = chained(9, 6)
    with pytest.raises(VerificationError, match=r"differs .* The cause is the cut of group layers\.6: keep it whole"):
        verify(model, planned(model, image()), image())
    model = chained(9, 1, 6)
    with pytest.raises(VerificationError, match=r"The cause is the cut of groups layers\.1, layers\.6: keep"):
        verify(model, planned(model, image()), image())
    model = chained(9, *range(9))
    with pytest.raises(VerificationError, match=r"groups layers\.0, layers\.1, layers\.2 and perhaps others: keep"):
        verify(model, planned(model, image()), image())
    model = chained(9, 6)
    kept = half(trace(model, image()))
    del kept["layers.6"]
    assert verify(model, trace(model, image()).plan(kept), image()) <= 1e-5


class Noisy(nn.Module):
    """Draws in eval mode, by a function that gets a feature map of eight channels."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.draw = conv(3, 8), conv(8, 8), conv(8, 4), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.draw(self.b(self.a(x).relu())))


@pytest.mark.parametrize(
    "draw",
    [
        lambda h: h * (torch.rand(h.shape[0], 1, *h.shape[2:]) < 0.9),
        lambda h: h + torch.randn(1),
        lambda h: h * torch.empty(len(h), 1, 1, 1).bernoulli_(0.8),
        lambda h: h + torch.randn(h.shape[2:], generator=torch.Generator().manual_seed(h.shape[1])),
    ],
    ids=["drop_block", "noise", "drop_path", "a generator seeded by the width"],
)
def test_both_networks_draw_the_same_numbers(draw: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Noisy(draw).eval()
    state = torch.get_rng_state()
    plan = planned(model, image())
    assert "b" in plan.groups
    torch.set_rng_state(state)
    assert verify(model, plan, image()) <= 1e-5
    assert torch.equal(torch.get_rng_state(), state)
    check_deterministic(model, image())
    with pytest.raises(VerificationError, match="differs"):
        verify(model, changed(plan, "c.weight", 1, tuple(range(len(plan.kept["c.weight"][1])))), image())


def test_numbers_drawn_for_each_channel_keep_it_whole() -> None:
    model = Noisy(lambda h: F.dropout(h, 0.5)).eval()
    graph = trace(model, image())
    assert "random numbers are drawn for each channel" in str(graph["b"].reason)
    plan = graph.plan({"a": range(4)})
    assert verify(model, plan, image()) <= 1e-5
    everything = trace(Noisy(lambda h: h).eval(), image()).plan({"b": range(4)})
    with pytest.raises(
        VerificationError, match=r"draws random numbers in the shape of channels that are cut \(test_verify"
    ):
        verify(model, everything, image())


def test_a_model_that_is_nondeterministic_is_told_so() -> None:
    calls = iter(range(100))
    model = Net(lambda s, x: s.h(s.a(x)) + next(calls), a=conv(3, 8), h=head(8)).eval()
    with pytest.raises(VerificationError, match="The model is nondeterministic in eval mode"):
        check_deterministic(model, image())
    with pytest.raises(VerificationError, match="The model is nondeterministic in eval mode"):
        verify(model, trace(CASES["chain"].make(), image()).plan({}), image())
    check_deterministic(CASES["chain"].make(), image())


def test_a_network_that_only_runs_in_single_precision(wrong_rule: None) -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        y = torch.ops.verify.ranked(s.a(x))
        return s.h(F.conv2d(y.flatten(0, 1)[:, None], torch.full((1, 1, 3, 3), 0.1)).view(y.shape[0], -1, 10, 10))

    model = Net(run, a=conv(3, 8), h=head(8)).eval()
    plan = planned(model, image())
    with pytest.raises(VerificationError, match="differs"):  # and not "expected scalar type Double but found Float"
        verify(model, plan, image())


def test_outputs_of_any_kind_are_compared() -> None:
    def run(s: Any, x: Tensor) -> dict[str, Any]:
        y = s.h(s.b(s.a(x)))
        return {"class": y.argmax(1), "scores": [y, (y.softmax(1),)], "name": "net", "none": None}

    model = Net(run, a=conv(3, 8), b=conv(8, 6), h=head(6)).eval()
    plan = trace(model, image()).plan({"a": [0, 1, 2, 3]})
    assert verify(model, plan, image()) <= 1e-5
    with pytest.raises(VerificationError, match="differs"):
        verify(model, changed(plan, "b.weight", 1, (4, 5, 6, 7)), image())


def test_infinite_outputs_prove_nothing() -> None:
    model = CASES["chain"].make()
    plan = planned(model, image())
    with pytest.raises(VerificationError, match="not finite"):
        verify(model, plan, image() * float("inf"))


def test_example_inputs_of_nan_are_named() -> None:
    model, nan = CASES["chain"].make(), image() * float("nan")
    plan, said = planned(model, image()), "The example inputs contain NaN"
    with pytest.raises(VerificationError, match=said):
        verify(model, plan, nan)
    with pytest.raises(VerificationError, match=said):
        check_deterministic(model, nan)
    with pytest.raises(VerificationError, match=said):
        widened(model, nan, 1.5)


WRONG: list[Callable[[Tensor], Tensor]] = [torch.log, torch.reciprocal, torch.tanh, lambda x: x.half().float()]


@torch.library.custom_op("verify::narrow", mutates_args=())
def narrow(x: Tensor, wrong: int) -> Tensor:
    """Something that goes wrong where few channels are left, in float32, out of sight of a trace."""
    return WRONG[wrong](x) if x.dtype == torch.float32 and x.shape[1] < 8 else x.clone()


@pytest.fixture
def narrowing() -> Any:
    register_rule(torch.ops.verify.narrow)(lambda t, x, wrong: t.labels(x))
    yield lambda wrong: Net(lambda s, x: s.h(torch.ops.verify.narrow(s.a(x), wrong)), a=conv(3, 8), h=head(8)).eval()
    del rules.registry._RULES[torch.ops.verify.narrow]


@pytest.mark.parametrize("wrong", range(3), ids=["log", "reciprocal", "tanh"])
def test_float64_does_not_excuse_what_is_no_rounding(narrowing: Callable[[int], nn.Module], wrong: int) -> None:
    """Among it nan, which is above no tolerance."""
    model = narrowing(wrong)
    with pytest.raises(VerificationError, match="differs from the masked one by"):
        verify(model, planned(model, image()), image())


def test_float64_decides_about_rounding(narrowing: Callable[[int], nn.Module]) -> None:
    model = narrowing(3)
    assert verify(model, planned(model, image()), image()) <= 1e-5


def test_a_small_difference_of_large_numbers() -> None:
    """What is returned has one or two digits in float32: the masked network is as far from itself in float64."""
    model = Net(lambda s, x: s.h(s.a(x).relu()) - s.h(s.a(x * (1 - 2e-7)).relu()), a=conv(3, 32), h=head(32)).eval()
    plan = planned(model, image())
    assert verify(model, plan, image()) <= 1e-5
    with pytest.raises(VerificationError, match="differs"):
        verify(model, changed(plan, "h.2.weight", 1, tuple(range(16))), image())


@torch.library.custom_op("verify::single", mutates_args=())
def single(x: Tensor, by: float) -> Tensor:
    """Insists on float32, and is off by this where few channels are left, out of sight of a trace."""
    if x.dtype != torch.float32:
        raise TypeError("float32 only")
    return x * (1 + by) if x.shape[1] < 64 else x.clone()


@pytest.fixture
def insisting() -> Any:
    """Makes a network that runs in float32 only. nearly: it returns the difference of two results that are this close, so that
    its outputs have as few digits as that leaves."""
    register_rule(torch.ops.verify.single)(lambda t, x, by: t.labels(x))

    def make(by: float, nearly: float = 1.0) -> nn.Module:
        def run(s: Any, x: Tensor) -> Tensor:
            one, other = (s.h(torch.ops.verify.single(s.b(s.a(y)).relu(), by)) for y in (x, x * (1 - nearly)))
            return one - other

        torch.manual_seed(0)
        return Net(run, a=conv(3, 32), b=conv(32, 64), h=head(64)).eval()

    yield make
    del rules.registry._RULES[torch.ops.verify.single]


def test_rounding_of_a_network_that_insists_on_float32(insisting: Callable[..., nn.Module]) -> None:
    """As large as another order of computation makes it."""
    model = insisting(0.0, nearly=1e-2)
    assert 1e-5 < verify(model, planned(model, image()), image()) < 1e-4


@pytest.mark.parametrize(("by", "nearly"), [(3e-5, 1.0), (1e-4, 1.0), (1e-3, 1.0), (5e-4, 1e-2), (0.0, 1e-4)])
def test_what_is_no_rounding_of_a_network_that_insists_on_float32(
    insisting: Callable[..., nn.Module], by: float, nearly: float
) -> None:
    """More than that; and what is too much for any network."""
    model = insisting(by, nearly)
    with pytest.raises(VerificationError, match="differs from the masked one by"):
        verify(model, planned(model, image()), image())


@torch.library.custom_op("verify::uncut", mutates_args=())
def uncut(x: Tensor) -> Tensor:
    """Runs in float64 only where no channels are missing, out of sight of a trace."""
    if x.dtype != torch.float32 and x.shape[1] < 64:
        raise TypeError("float32 only")
    return x.clone()


def test_a_sliced_network_that_does_not_run_in_float64_where_the_masked_one_does() -> None:
    """The error is not above what a network that insists on float32 may have."""
    register_rule(torch.ops.verify.uncut)(lambda t, x: t.labels(x))

    def run(s: Any, x: Tensor) -> Tensor:
        one, other = (s.h(torch.ops.verify.uncut(s.b(s.a(y)).relu())) for y in (x, x * (1 - 1e-2)))
        return one - other

    torch.manual_seed(0)
    model = Net(run, a=conv(3, 32), b=conv(32, 64), h=head(64)).eval()
    try:
        with pytest.raises(VerificationError, match=r"The sliced network does not run: .*float32 only"):
            verify(model, planned(model, image()), image())
    finally:
        del rules.registry._RULES[torch.ops.verify.uncut]


class Mixed(nn.Module):
    """Creates float32 tensors in each of the usual ways, and converts to float32, whatever its parameters are."""

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.a, self.b, self.h, self.wrong = conv(3, 32), conv(32, 64), head(64), wrong

    def part(self, x: Tensor) -> Tensor:
        grid = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(12), indexing="xy"), -1).float() / 5.5 - 1
        scale = torch.tensor([0.5]) * torch.ones(1) + torch.zeros(1, dtype=torch.float32)
        x = F.grid_sample(x.float(), grid.expand(len(x), -1, -1, -1), align_corners=True)
        y = self.b(self.a(x)).relu()
        y = F.conv2d(y.flatten(0, 1)[:, None], torch.full((1, 1, 1, 1), 0.7)).view(len(y), -1, 12, 12)
        return self.h(y * scale)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 12, 12) → (N, 5)
        return self.part(x) - self.part(x * (1 - 1e-4)) * (1 - self.wrong * (self.b.weight.numel() < 64 * 32 * 9))


def test_what_a_network_creates_in_float32_is_no_obstacle_to_float64() -> None:
    """Its rounding is too large for any other judgment."""
    model = Mixed().eval()
    plan = trace(model, image()).plan({"a": range(20), "b": range(40)})
    assert verify(model, plan, image()) <= 1e-5
    wrong = Mixed(1e-3).eval()
    with pytest.raises(VerificationError, match="differs from the masked one by"):
        verify(wrong, plan, image())


def test_inputs_that_do_not_fit() -> None:
    model = CASES["chain"].make()
    with pytest.raises(VerificationError, match="The model does not run on these example inputs"):
        verify(model, planned(model, image()), image(channels=4))


def test_zeros_as_example_inputs_of_a_network_that_makes_zeros_of_them() -> None:
    """Noise takes their place: zeros would agree whatever was cut."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, bias=False),
    )
    zeros = torch.zeros(1, 3, 12, 12)
    plan = trace(model, zeros).plan({"0": range(4), "2": range(5)})
    assert verify(model, plan, zeros) <= 1e-5
    assert not zeros.any()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    with pytest.raises(VerificationError, match="Nothing can be verified"):
        verify(model, plan, zeros)


def test_zeros_as_example_inputs_of_a_network_that_makes_more_of_them() -> None:
    """A bias at the end makes the outputs of zeros say something, but not about the cut: noise is compared, too."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.h(s.b(y.tanh() if s.other and y.shape[1] < 8 else y.relu()))

    model = Net(run, a=conv(3, 8), b=conv(8, 8), h=head(8), other=False)
    zeros = torch.zeros(1, 3, 12, 12)
    plan = planned(model, zeros)
    assert verify(model, plan, zeros) <= 1e-5
    model.other = True
    with pytest.raises(VerificationError, match="differs from the masked one"):
        verify(model, plan, zeros)
