"""What tracing finds in little networks, one for each structure; what users may add; and the corners of tracing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.errors import TraceError
from secateurs.graph import count, register_rule, rules
from secateurs.graph.inputs import call
from secateurs.graph.reasons import OUTPUT
from secateurs.plans import trace
from secateurs.surgery import apply, verify
from tests.networks import CASES, SPLIT, Net, chain, conv, half, head, image


@pytest.mark.parametrize("name", CASES)
def test_structure(name: str) -> None:
    case = CASES[name]
    model, inputs = case.make(), case.inputs()
    graph = trace(model, inputs)

    found = {g.name: g for g in graph.groups if g.reason != OUTPUT}
    assert {n: g.size for n, g in found.items() if g.prunable} == case.prunable
    stays = {n: g for n, g in found.items() if not g.prunable}
    assert {n: g.size for n, g in stays.items()} == {n: size for n, (size, _) in case.stays.items()}
    for n, (_, reason) in case.stays.items():
        assert str(stays[n].reason).startswith(reason)
        assert not (stays[n].exact and reason.startswith("inexact"))
    if case.shortcut is not None:
        assert {n for n, g in found.items() if not g.internal} == set(case.shortcut)

    assert graph.cost() == count(model, inputs)
    kept = half(graph)
    plan = graph.plan(kept)
    assert verify(model, plan, inputs) <= 1e-5
    assert graph.cost({n: len(k) for n, k in kept.items()}) == count(apply(model, plan), inputs)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if any("inexact" in r for _, r in c.stays.values())])
def test_inexact_groups_are_cut_on_request(name: str) -> None:
    case = CASES[name]
    model, inputs = case.make(), case.inputs()
    graph = trace(model, inputs, allow_inexact=True)
    for group, (_, reason) in case.stays.items():
        assert graph[group].prunable == reason.startswith("inexact")
    kept = half(graph)
    plan = graph.plan(kept)
    assert not plan.exact
    small = apply(model, plan)
    assert all(torch.isfinite(x).all() for x in [call(small, inputs)])
    assert graph.cost({n: len(k) for n, k in kept.items()}) == count(small, inputs)


ACTIVATIONS = """
    CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish ReLU ReLU6 RReLU SELU SiLU Sigmoid
    Softplus Softshrink Softsign Tanh Tanhshrink PReLU Identity Dropout Dropout2d AlphaDropout
""".split()  # noqa: SIM905
IN_PLACE = "CELU ELU Hardsigmoid Hardswish Hardtanh LeakyReLU Mish ReLU ReLU6 RReLU SELU SiLU".split()  # noqa: SIM905


@pytest.mark.parametrize("real", [False, True], ids=["meta", "real"])
@pytest.mark.parametrize(
    "layer", [getattr(nn, n)() for n in ACTIVATIONS] + [getattr(nn, n)(inplace=True) for n in IN_PLACE], ids=repr
)
def test_every_activation_keeps_its_channels(layer: nn.Module, real: bool) -> None:
    """Real values, not shapes alone, dispatch to other ops now and then."""

    def run(s: Any, x: Tensor) -> Tensor:
        assert not real or x.sum() != 0  # needs values
        return s.h(s.b(s.a(x)))

    model = Net(run, a=conv(3, 8), b=layer, h=head(8)).eval()
    graph = trace(model, image())
    assert graph["a"].prunable
    assert verify(model, graph.plan(half(graph)), image()) <= 1e-5


@pytest.mark.parametrize("name", sorted(CASES))
def test_real_values_give_the_same_groups(name: str) -> None:
    """The same network behind a forward that reads its input's values, so that no meta tensors can be used."""
    case = CASES[name]
    model, inputs = case.make(), case.inputs()
    expected = trace(model, inputs)
    run = type(model).forward

    class Reading(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            first = next(iter((*args, *kwargs.values())))
            assert float(first.sum()) != 0
            return run(self, *args, **kwargs)

    model.__class__ = Reading
    found = trace(model, inputs)
    assert [(g.name, g.size, g.prunable) for g in found.groups] == [
        (g.name, g.size, g.prunable) for g in expected.groups
    ]
    assert found.cost() == expected.cost()


# -- rules of one's own ------------------------------------------------------------------------------------------------


@torch.library.custom_op("networks::scale", mutates_args=())
def scale(x: Tensor, factor: Tensor) -> Tensor:
    return x * factor.view(-1, 1, 1)


@scale.register_fake
def _(x: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(x)


def scaled() -> nn.Module:
    model = Net(
        lambda s, x: s.h(torch.ops.networks.scale(s.a(x), s.f)), a=conv(3, 8), h=head(8), f=nn.Parameter(torch.rand(8))
    )
    return model.eval()


@pytest.fixture
def scale_rule() -> Any:
    @register_rule(torch.ops.networks.scale)
    def rule(t: Any, x: Tensor, factor: Tensor) -> Any:
        t.unify(t.axis(x, 1), factor)
        return t.labels(x)

    yield rule
    del rules.registry._RULES[torch.ops.networks.scale]


def test_an_unknown_op_freezes_what_it_touches() -> None:
    model = scaled()
    graph = trace(model, image())
    assert str(graph["a"].reason) == "op networks.scale has no rule"
    assert verify(model, graph.plan({}), image()) == 0


def test_a_rule_of_the_users(scale_rule: Any) -> None:
    model = scaled()
    graph = trace(model, image())
    assert {s.param for s in graph["a"].slots} == {"a.weight", "a.bias", "f", "h.2.weight"}
    assert graph["a"].prunable
    assert verify(model, graph.plan({"a": [1, 5, 6]}), image()) <= 1e-5


def test_a_second_rule_is_refused_unless_asked_for(scale_rule: Any) -> None:
    with pytest.raises(ValueError, match=r"networks\.scale already has a rule: .*rule"):
        register_rule(torch.ops.networks.scale)(lambda t, x, factor: None)
    with pytest.raises(ValueError, match="already has a rule"):
        register_rule(torch.ops.aten.convolution)(lambda t, *args: None)

    @register_rule(torch.ops.networks.scale, replace=True)
    def stricter(t: Any, x: Tensor, factor: Tensor) -> None:
        t.freeze(t.labels(x), "it is delicate")

    assert str(trace(scaled(), image())["a"].reason) == "it is delicate"


# -- constants and computed figures ------------------------------------------------------------------------------------


def test_the_reason_names_the_line() -> None:
    model = Net(lambda s, x: s.h(torch.cat(s.a(x).split([3, 5], 1)[::-1], 1)), a=conv(3, 8), h=head(8))
    group = trace(model, image())["a"]
    assert str(group.reason).startswith(
        "its 8 channels are all coupled to each other: aten.split_with_sizes (test_rules.py:"
    )


def test_the_reason_names_the_layer_of_pytorch_that_has_the_constant() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Net(lambda s, x: s.h(s.t(*[s.a(x).flatten(2).mT] * 3)[0].mean(1)), a=conv(3, 8), t=layer, h=nn.Linear(8, 4))
    found = str(trace(model, image())["a"].reason)
    assert found.startswith("a size is a constant in the code of layer t, MultiheadAttention (test_rules.py:")
    own = Net(lambda s, x: s.h(s.a(x).view(len(x), 8, -1).mean(2)), a=conv(3, 8), h=nn.Linear(8, 4))
    assert str(trace(own, image())["a"].reason).startswith("a size is a constant in the code (test_rules.py:")


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum, torch.amax])
def test_a_reduction_before_a_layer_reads_the_channels_is_the_reason(reduce: Any) -> None:
    model = Net(lambda s, x: s.h(reduce(s.b(s.a(x)).unflatten(1, (4, -1)), 2)), a=conv(3, 8), b=conv(8, 8), h=head(4))
    for inexact in (False, True):
        group = trace(model, image(), allow_inexact=inexact)["b"]
        name = f"aten.{reduce.__name__}"
        assert str(group.reason).startswith(
            f"no layer reads its channels one by one: {name} over channels changes with"
        )
    dead = Net(lambda s, x: (s.b(s.a(x)), s.h(s.a(x)))[1], a=conv(3, 8), b=conv(8, 8), h=head(8))
    assert str(trace(dead, image())["b"].reason) == "no layer reads it"


def test_channels_that_are_shuffled_again_and_again_become_one() -> None:
    """ShuffleNet's stages: the halves are mixed after each block."""

    def run(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        for layer in s.layers:
            kept, changed = y.chunk(2, 1)
            y = torch.cat([kept, layer(changed)], 1)
            y = y.view(y.shape[0], 2, y.shape[1] // 2, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        return s.h(y)

    model = Net(run, a=conv(3, 12), layers=nn.ModuleList(conv(6, 6) for _ in range(4)), h=head(12)).eval()
    stream = trace(model, image())["a"]
    assert (stream.size, stream.coupled) == (1, 12)
    assert stream.reason is not None
    assert str(stream.reason).startswith("its 12 channels are all coupled to each other: aten.")
    assert "aten.view (test_rules.py:" in str(stream.reason)
    once = Net(lambda s, x: s.h(F.channel_shuffle(s.a(x), 3)), a=conv(3, 12), h=head(12)).eval()
    assert (trace(once, image())["a"].size, trace(once, image())["a"].coupled) == (4, 3)


def test_constants_in_one_layer_do_not_freeze_another() -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        p, q = s.a(x).chunk(2, 1)
        y = s.b(p * q)
        u, v = y.split([4, 4], 1)  # a constant
        return s.h(s.c(u * v))

    model = Net(run, a=conv(3, 8), b=conv(4, 8), c=conv(4, 6), h=head(6)).eval()
    graph = trace(model, image())
    assert [(g.name, g.size, g.prunable) for g in graph.groups] == [
        ("a", 4, True), ("b", 4, False), ("c", 6, True), ("h.2", 5, False),
    ]  # fmt: skip
    assert str(graph["b"].reason).startswith(SPLIT)
    assert verify(model, graph.plan(half(graph)), image()) <= 1e-5


# -- the corners of tracing --------------------------------------------------------------------------------------------


class Remembers(nn.Module):
    """Keeps activations on itself, as YOLO heads do with their grids, and counts how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = conv(3, 8), head(8)
        self.grid: Tensor | None = None
        self.seen = 0
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None or self.grid.shape != x.shape[2:]:
            self.grid = torch.arange(x.shape[2], device=x.device)
        self.seen += 1
        self.last = x.mean().reshape(1)
        y = self.a(x)
        self.features = y
        return self.h(y)


def test_the_model_is_left_as_it_was() -> None:
    model = Remembers()
    model.a.eval()
    model.h[2].weight.grad = torch.ones(5, 8)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    params = [id(p) for p in model.parameters()]
    flags = {n: m.training for n, m in model.named_modules()}
    trace(model, image())
    assert model.grid is None
    assert model.seen == 0
    assert not hasattr(model, "features")
    assert {n: m.training for n, m in model.named_modules()} == flags
    assert [id(p) for p in model.parameters()] == params
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.h[2].weight.grad is not None
    assert torch.is_grad_enabled()


def test_it_is_left_as_it_was_when_it_does_not_run() -> None:
    model = Net(lambda s, x: s.b(s.a(x)), a=conv(3, 8), b=conv(4, 4)).train()
    with pytest.raises(TraceError, match="does not run on these example inputs: "):
        trace(model, image())
    assert model.training
    assert model.a.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (image(channels=4), "does not run on these example inputs"),
        ({"y": image()}, "does not run on these example inputs: TypeError"),
        ((image(), image()), "does not run on these example inputs: TypeError"),
        (None, "The example inputs are None: pass a tensor"),
    ],
    ids=["shape", "name", "number", "none"],
)
def test_inputs_that_do_not_fit(inputs: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(chain(), inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_that_cannot_be_read() -> None:
    with pytest.raises(TraceError, match="TorchScript"):
        trace(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), image())
    with pytest.raises(TraceError, match=r"0\.weight is uninitialized"):
        trace(nn.Sequential(nn.LazyConv2d(4, 3)), image())
    with pytest.raises(TraceError, match=r"DataParallel is a wrapper: pass .*\(model\.module\)"):
        trace(nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3))), image())
    with pytest.raises(TraceError, match=r"was compiled .*\(model\._orig_mod\), and call torch\.compile"):
        trace(torch.compile(chain()), image())  # type: ignore[arg-type]


class Auxiliary(nn.Module):
    """A second head that only works in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h, self.aux = conv(3, 8), conv(8, 8), head(8), head(8, 3)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        out = self.h(self.b(y))
        return (out, self.aux(y)) if self.training else out


def test_auxiliary_heads_are_cut_along() -> None:
    model = Auxiliary().eval()
    graph = trace(model, image())
    assert set(graph["a"].consumers) == {"b", "aux.2"}
    assert graph.cost() == count(model, image())  # macs of inference, all parameters
    plan = graph.plan(half(graph))
    small = apply(model, plan).train()
    out, aux = small(image())
    assert out.shape == (2, 5)
    assert aux.shape == (2, 3)
    assert graph.cost({"a": 4, "b": 4}) == count(small, image())


def test_a_training_forward_that_wants_more_is_followed_to_there() -> None:
    class Wants(Auxiliary):
        def forward(self, x: Tensor, target: Any = None) -> Any:
            if self.training:
                y = self.aux(F.relu(self.a(x)))
                assert isinstance(target, dict)
                return F.cross_entropy(y, target["classes"])
            return super().forward(x)

    model = Wants().eval()
    graph = trace(model, image())
    assert graph["a"].prunable
    assert graph["a"].consumers == ("b", "aux.2")
    assert [w for w in graph.warnings if "does not run on the example inputs (AssertionError" in w]
    assert verify(model, graph.plan(half(graph)), image()) <= 1e-5


def test_output_that_is_a_dataclass() -> None:
    @dataclass
    class Out:
        logits: Tensor
        features: list[Tensor]

    def run(s: Any, x: Tensor) -> Out:
        y = s.a(x)
        return Out(s.h(s.b(y)), [y])

    model = Net(run, a=conv(3, 8), b=conv(8, 6), h=head(6)).eval()
    graph = trace(model, image())
    assert graph["a"].reason == OUTPUT
    assert graph["b"].prunable
    assert verify(model, graph.plan(half(graph)), image()) <= 1e-5


def test_a_layer_that_runs_only_elsewhere_is_left_alone() -> None:
    model = Net(lambda s, x: s.h(s.a(x)), a=conv(3, 8), h=head(8), idle=conv(8, 8)).eval()
    graph = trace(model, image())
    assert "idle" not in {g.name for g in graph.groups}
    assert graph.cost() == count(model, image())
    assert apply(model, graph.plan(half(graph))).idle.weight.shape == (8, 8, 3, 3)


def test_tracing_twice_and_in_training_gives_the_same() -> None:
    for name in ("residual", "channel_shuffle", "grouped"):
        model = CASES[name].make()
        first = trace(model, image())
        model.train()
        second = trace(copy.deepcopy(model), image())
        assert [(g.name, g.size, g.reason) for g in first.groups] == [(g.name, g.size, g.reason) for g in second.groups]
        for a, b in zip(first.groups, second.groups, strict=True):
            assert [(s.param, s.axis, s.index.tolist()) for s in a.slots] == [
                (s.param, s.axis, s.index.tolist()) for s in b.slots
            ]
