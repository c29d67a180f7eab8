"""What two networks are compared by, and how they are run for it."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import BudgetError, SecateursError, VerificationError
from secateurs.graph import register_rule, rules
from secateurs.plans import Plan, trace
from secateurs.surgery import apply, verify
from secateurs.surgery.compare import apart, disagreement
from tests.networks import Net, conv, head, image
from tests.surgery.test_verify import changed

WRONG = {"match": "The sliced network differs from the masked one"}


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(512, 5)
    ).eval()


def net(then: Callable[[Tensor], Any]) -> nn.Module:
    """Two convolutions, and then this."""
    torch.manual_seed(0)
    return Net(lambda s, x: then(s.b(s.a(x).relu())), a=conv(3, 8), b=conv(8, 6)).eval()


def planned(model: nn.Module, x: Any = None) -> Plan:
    return trace(model, image() if x is None else x).plan({"a": range(5)})


def wrongly(plan: Plan) -> Plan:
    """The same cut, with a reader that keeps other channels."""
    return changed(plan, "b.weight", 1, (0, 1, 2, 3, 5))


def prune(model: nn.Module) -> Any:
    return sc.prune(model, image(), "l1", sc.Budget(macs=0.6))


# -- a copy that runs the original ---------------------------------------------------------------------------------------


def assert_its_own(result: Any) -> None:
    """The network's answer comes from its own parameters, and costs what the result says."""
    assert sc.count(result.model, image()).macs == result.after.macs
    with torch.no_grad():
        for p in result.model.parameters():
            p.zero_()
        assert not result.model.eval()(image()).any()


def test_a_network_that_was_compiled_in_place() -> None:
    model = body()
    model.compile(backend="eager")
    model[0].compile(backend="eager")
    before = model(image())
    result = prune(model)
    assert_its_own(result)
    assert result.model._compiled_call_impl is None
    assert model._compiled_call_impl is not None
    assert torch.equal(model(image()), before)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # with the hooks of PyTorch's own counter
def test_a_compiled_part_is_copied_with_the_network() -> None:
    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = list(body())
            self.body, self.head = torch.compile(nn.Sequential(*layers[:5]), backend="eager"), layers[5]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    result = prune(Compiled().eval())
    assert_its_own(result)
    torch._dynamo.reset()


def by_closure() -> nn.Module:
    model = body()
    own = model.forward
    model.forward = lambda x: own(x)  # type: ignore[method-assign, assignment]
    return model


def by_the_closure_of_a_part() -> nn.Module:
    model = body()
    conv = model[0]
    conv.forward = lambda x: F.conv2d(x, conv.weight)  # type: ignore[method-assign, assignment]
    return model


def by_hook() -> nn.Module:
    model = body()
    model[3].register_forward_hook(lambda layer, args, out: out + model[3].weight.mean())
    return model


def by_a_compiled_function() -> nn.Module:
    class Fast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body()
            self.fast = torch.compile(self.body.forward, backend="eager")

        def forward(self, x: Tensor) -> Tensor:
            return self.fast(x)

    return Fast().eval()


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (by_closure, "see forward"),
        (by_the_closure_of_a_part, "see 0.forward"),
        (by_hook, "see a hook of 3"),
        (by_a_compiled_function, "see fast"),
    ],
)
def test_functions_that_hold_the_network_are_refused(make: Callable[[], nn.Module], where: str) -> None:
    with pytest.raises(VerificationError, match=rf"it reads \S+ of the given model, and not its own.*{where}"):
        prune(make())
    torch._dynamo.reset()


def test_verify_refuses_them_by_itself() -> None:
    model = body()
    plan = trace(model, image()).plan({"0": range(8)})
    own = model.forward
    model.forward = lambda x: own(x)  # type: ignore[method-assign, assignment]
    with pytest.raises(VerificationError, match=r"it reads \S+ of the given model"):
        verify(model, plan, image())


def test_functions_that_copies_can_have_are_no_obstacle() -> None:
    seen: list[float] = []
    bound, partial, watched = body(), body(), body()
    bound.forward = types.MethodType(lambda self, x: nn.Sequential.forward(self, x) * 2, bound)  # type: ignore[method-assign]
    partial.forward = functools.partial(nn.Sequential.forward, partial)  # type: ignore[method-assign]
    watched[0].register_forward_hook(
        lambda layer, args, out: seen.append(float(out.sum())) if not out.is_meta else None
    )
    for model in (bound, partial, watched):
        assert prune(model).error <= 1e-5


def test_what_cannot_be_copied_is_named() -> None:
    model = body()
    model[0].lock = (x for x in "no deepcopy of a generator")
    with pytest.raises(SecateursError, match="attribute 'lock' of a Conv2d cannot"):
        prune(model)


# -- nothing is compared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda y: None, "returns no tensors"),
        (lambda y: {"loss": float(y.shape[0])}, "returns no tensors"),
        (lambda y: torch.zeros(3), "outputs do not depend on its parameters"),
        (lambda y: [torch.arange(4.0), y.new_ones(2)], "outputs do not depend on its parameters"),
    ],
)
def test_outputs_that_prove_nothing(then: Callable[[Tensor], Any], message: str) -> None:
    model = net(then)
    with pytest.raises(VerificationError, match=f"Nothing can be verified: .*{message}"):
        verify(model, planned(model), image())


@pytest.mark.parametrize(
    "then",
    [
        lambda y: y[y > 1e6],
        lambda y: {"boxes": y.new_zeros(0, 4), "scores": y.flatten()[y.flatten().sort()[1]][:0]},
        lambda y: y.argmax(1),
        lambda y: y * 0,
        lambda y: (y.detach() + 1000).clamp(max=1).relu() * 0,
        lambda y: y.numpy(),
        lambda y: torch.from_numpy(y.numpy() * 2),
        lambda y: SimpleNamespace(found=[SimpleNamespace(y=y)]),
        lambda y: (row for row in y),
        lambda y: torch.fft.fft(y),
        lambda y: torch.where(y > 0, y, float("-inf")),
        lambda y: torch.where(y > 0, y, float("nan")),
        lambda y: torch.where(y > 0, y, -1e9),
        lambda y: y.to_sparse(),
        lambda y: y.flatten().topk(3),
    ],
    ids=[
        "no detections", "sorted", "argmax", "zero", "dead", "numpy", "from numpy", "objects", "generator", "complex",
        "infinite", "nan", "filled", "sparse", "topk",
    ],
)  # fmt: skip
def test_a_wrong_cut_shows_in_outputs_of_any_kind(then: Callable[[Tensor], Any]) -> None:
    model = net(then)
    plan = planned(net(lambda y: y))
    assert verify(model, plan, image()) <= 1e-5
    with pytest.raises(VerificationError, **WRONG):  # type: ignore[call-overload]
        verify(model, wrongly(plan), image())


# -- choices -------------------------------------------------------------------------------------------------------------


def detections(y: Tensor) -> dict[str, Tensor]:
    """Boxes, of which some are suppressed: the last digits of two scores decide which."""
    scores, order = y.flatten(1).sort(1, descending=True)
    left = (scores * 1e7).floor() % 2 == 0
    return {"scores": scores[left], "labels": order[left], "most": left.sum(1)}


@pytest.mark.parametrize(
    "then",
    [
        detections,
        lambda y: y.flatten().argsort() % 7,
        lambda y: torch.round(y * 1e7) % 2,
        lambda y: y.mean(1)[(y.mean(1) * 1e7).long() % 2 == 0],
        lambda y: y * (1.0 if int(float(y.sum()) * 1e7) % 2 else -1.0),
    ],
    ids=["suppression", "order", "rounding", "integers", "control flow"],
)
def test_the_networks_choose_alike(then: Callable[[Tensor], Any]) -> None:
    model, plan = net(then), planned(net(lambda y: y))
    x = image()
    assert verify(model, plan, x) <= 1e-5
    with pytest.raises(VerificationError, **WRONG):  # type: ignore[call-overload]
        verify(model, wrongly(plan), x)


def test_what_comes_after_a_choice_is_compared() -> None:
    """The second stage is cut wrongly; the first, and what it chooses, are right."""

    def run(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        best = y.mean((2, 3)).argmax(1)
        return s.h(s.b(y * (best + 1).view(-1, 1, 1, 1)))

    torch.manual_seed(0)
    model = Net(run, a=conv(3, 8), b=conv(8, 6), h=head(6)).eval()
    plan = trace(model, image()).plan({"b": [0, 1, 2]})
    assert verify(model, plan, image()) <= 1e-5
    with pytest.raises(VerificationError, **WRONG):  # type: ignore[call-overload]
        verify(model, changed(plan, "h.1.weight" if "h.1.weight" in plan.kept else "h.2.weight", 1, (0, 1, 3)), image())


# -- as the user would run them --------------------------------------------------------------------------------------------


def test_a_forward_may_write_to_its_inputs() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 8), conv(8, 4)

        def forward(self, x: Tensor, boxes: list[Tensor]) -> Tensor:
            x.mul_(2)
            boxes[0] += 1
            return self.b(self.a(x)) * boxes[0]

    model, x, boxes = Writes().eval(), image(), [torch.ones(1)]
    plan = planned(Net(lambda s, x: s.b(s.a(x)), a=conv(3, 8), b=conv(8, 4)).eval())
    given = x.clone()
    assert verify(model, plan, (x, boxes)) <= 1e-5
    assert torch.equal(x, given)
    assert boxes == [torch.ones(1)]


def test_a_forward_may_write_to_its_parameters_and_buffers() -> None:
    class Clamps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale = conv(3, 8), conv(8, 4), nn.Parameter(torch.tensor(3.0))
            self.register_buffer("runs", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            self.scale.data.mul_(0.5)
            return self.b(self.a(x)) * self.scale

    model = Clamps().eval()
    plan = planned(Net(lambda s, x: s.b(s.a(x)), a=conv(3, 8), b=conv(8, 4)).eval())
    assert verify(model, plan, image()) <= 1e-5
    assert (model.scale.item(), model.runs.item()) == (3.0, 0.0)
    assert not any(name.startswith("_secateurs") for p in model.parameters() for name in vars(p))


def test_complex_parameters_and_inputs_stay_complex() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 8), conv(8, 4)
            self.filter = nn.Parameter(torch.randn(12, 7, dtype=torch.complex64))

        def forward(self, x: Tensor, phase: Tensor) -> Tensor:
            y = torch.fft.rfft2(self.a(x)) * self.filter * phase
            return self.b(torch.fft.irfft2(y, s=(12, 12)).half().float())  # float32 is inconclusive: float64 decides

    model = Spectral().eval()
    inputs = image(), torch.exp(1j * torch.rand(1))
    plan = trace(model, inputs).plan({"a": range(4)})
    assert verify(model, plan, inputs) <= 1e-5
    assert model.filter.dtype is torch.complex64


def test_all_random_states_are_left_alone() -> None:
    generator = torch.Generator().manual_seed(5)
    model = net(lambda y: y + torch.randn(1) + torch.randn(1, generator=generator) + random.random() + np.random.rand())
    states = torch.get_rng_state(), generator.get_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    assert verify(model, planned(net(lambda y: y)), image()) <= 1e-5
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(generator.get_state(), states[1])
    assert random.getstate() == states[2]
    assert np.array_equal(np.random.get_state()[1], states[3])  # type: ignore[index]


# -- costs ----------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("twins::thrice", mutates_args=())
def thrice(x: Tensor) -> Tensor:
    return x * 3


@thrice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_network_that_takes_more_than_the_graph_expects_is_refused() -> None:
    model = Net(lambda s, x: s.b(torch.ops.twins.thrice(s.a(x))), a=conv(3, 8), b=conv(8, 4)).eval()

    @register_rule(torch.ops.twins.thrice)
    def rule(t: Any, x: Tensor) -> Any:
        t.cost(t.width(x, 1), t.width(x, 1))  # 64, and 16 at half the width
        return t.labels(x)

    @torch.utils.flop_counter.register_flop_formula(torch.ops.twins.thrice)
    def flops(x: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 128

    try:
        with pytest.raises(VerificationError, match="multiply-accumulates on these inputs"):
            sc.prune(model, image(), "l1", sc.Budget(macs=0.6))
    except BudgetError:  # pragma: no cover
        raise
    finally:
        del rules.registry._RULES[torch.ops.twins.thrice]
        del torch.utils.flop_counter.flop_registry[torch.ops.twins.thrice]


# -- differences -----------------------------------------------------------------------------------------------------------


def test_differences() -> None:
    inf, nan = float("inf"), float("nan")
    t = torch.tensor
    assert apart(t([1.0, 2.0]), t([1.0, 4.0])) == 0.5
    assert apart(t([inf, 2.0]), t([inf, 4.0])) == 0.5
    assert apart(t([inf, 4.0]), t([-inf, 4.0])) == inf
    assert apart(t([nan, 2.0]), t([nan, 4.0])) == 0.5
    assert apart(t([nan, 4.0]), t([4.0, 4.0])) == inf
    assert apart(t([4.0, 4.0]), t([nan, 4.0])) == inf
    assert apart(t([-1e9, 2.0]), t([-1e9, 4.0])) == 0.5  # a fill is not the range
    assert apart(t([-1e9]), t([-1e9])) == 0
    assert apart(t([1 + 1j]), t([1 - 1j])) == pytest.approx(2**0.5)
    assert apart(t([1, 2]), t([1, 3])) == inf
    assert apart(torch.zeros(0), torch.zeros(0)) == 0
    assert apart(torch.zeros(1), torch.zeros(2)) == inf
    assert disagreement([t([inf]), t([2.0])], [t([inf]), t([2.0])], "masked") == 0
    with pytest.raises(VerificationError, match="not finite"):
        disagreement([t([nan])], [t([nan])], "masked")


def test_the_masked_network_shares_nothing_that_is_masked() -> None:
    model = net(lambda y: y)
    plan = planned(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    verify(model, plan, image())
    verify(model.double(), plan, image().double())
    assert all(torch.equal(v, state[k].double()) for k, v in model.state_dict().items())
    assert apply(model, plan)(image().double()).dtype is torch.float64


def test_attention_that_runs_fused_only_after_the_cut_is_counted_alike() -> None:
    """On CPUs attention is one fused op where the values are as wide as the queries, and products otherwise."""

    def forward(self: Any, x: Tensor) -> Tensor:
        t = self.stem(x).flatten(2).mT  # (N, tokens, C)
        q, k, v = (layer(t).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return t + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    layers = {"stem": conv(3, 4), "q": nn.Linear(4, 6), "k": nn.Linear(4, 6), "v": nn.Linear(4, 12)}
    model = Net(forward, **layers, out=nn.Linear(12, 4)).eval()
    result = sc.prune(model, image(), "l1", only=["v"], ratios={"v": 0.5}, check_speed=False)
    assert result.model.get_submodule("v").out_features == 6
    assert sc.count(result.model, image()).macs == result.after.macs
