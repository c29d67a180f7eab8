"""The cut and the mask: what they change and what they leave alone; and an optimizer that goes on regardless."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from secateurs.errors import PlanError
from secateurs.masking import mask
from secateurs.plans import Plan, trace
from secateurs.surgery import apply, cut_
from secateurs.widening import widened
from tests.networks import CASES, Net, chain, conv, half, head, image

EXACT = [n for n, c in CASES.items() if c.prunable]


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All that could change, bit by bit."""
    state: dict[str, Any] = {k: v.clone() for k, v in model.state_dict(keep_vars=False).items()}
    for n, p in model.named_parameters():
        state[f"{n} itself"] = (id(p), p._version, p.requires_grad, id(p.grad), p.stride())
        state[f"{n} grad"] = None if p.grad is None else p.grad.clone()
    for n, b in model.named_buffers():
        state[f"{n} itself"] = (id(b), b._version)
    for n, m in model.named_modules():
        plain = {k: v for k, v in vars(m).items() if isinstance(v, bool | int | float | str | tuple)}
        state[f"{n} module"] = (id(m), type(m), plain, sorted(vars(m)))
    return state


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    def equal(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, Tensor) else x == y

    return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)


def planned(name: str = "chain") -> tuple[nn.Module, Plan]:
    model = CASES[name].make()
    graph = trace(model, CASES[name].inputs())
    return model, graph.plan(half(graph))


def expected(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """What the plan says, taken by plain indexing; a tied tensor has several names."""
    old = model.state_dict()
    state = dict(old)
    for name, axes in plan.kept.items():
        for tied in [n for n, x in old.items() if x.data_ptr() == old[name].data_ptr()]:
            for axis, kept in axes.items():
                state[tied] = state[tied].index_select(axis, torch.tensor(kept))
    return state


@pytest.mark.parametrize("use", [apply, mask])
@pytest.mark.parametrize("name", EXACT)
def test_the_model_is_untouched(name: str, use: Callable[[nn.Module, Plan], nn.Module]) -> None:
    model, plan = planned(name)
    model.train()
    for m in list(model.children())[:1]:
        m.eval()
    for p in list(model.parameters())[::2]:
        p.grad = torch.ones_like(p)
    before = fingerprint(model)
    made = use(model, plan)
    assert same(fingerprint(model), before)
    assert {n: m.training for n, m in made.named_modules()} == {n: m.training for n, m in model.named_modules()}
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers()) if x.numel()}
    with torch.no_grad():
        for x in (*made.parameters(), *made.buffers()):
            assert x.untyped_storage().data_ptr() not in own
            x.zero_()
    assert same(fingerprint(model), before)


@pytest.mark.parametrize("name", EXACT)
def test_every_tensor_is_the_slice_that_the_plan_names(name: str) -> None:
    model, plan = planned(name)
    wanted = expected(model, plan)
    small = apply(model, plan)
    assert small.state_dict().keys() == wanted.keys()
    assert all(torch.equal(v, wanted[k]) for k, v in small.state_dict().items())
    assert cut_(model, plan) is model
    assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", EXACT)
def test_only_consumers_are_masked(name: str) -> None:
    model, plan = planned(name)
    masked = mask(model, plan).state_dict()
    for key, old in model.state_dict().items():
        wanted = old.clone()
        for param, axis in plan.consumes:
            if param == key or old.data_ptr() == model.state_dict()[param].data_ptr():
                gone = sorted(set(range(old.shape[axis])) - set(plan.kept[param][axis]))
                wanted.index_fill_(axis, torch.tensor(gone), 0)
        assert torch.equal(masked[key], wanted)


def test_attributes_of_modules_follow() -> None:
    model, plan = planned("grouped")
    small = apply(model, plan)
    assert (small.b.in_channels, small.b.out_channels, small.b.groups) == (8, 8, 4)
    assert "Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=4)" in repr(small)
    model, plan = planned("depthwise_separable")
    small = apply(model, plan)
    assert (small.b.in_channels, small.b.out_channels, small.b.groups) == (4, 4, 4)
    assert small.n.num_features == 4
    assert small.h[2].in_features == 4
    model, plan = planned("prelu")
    assert apply(model, plan).n.num_parameters == 4
    model, plan = planned("group_norm_per_channel")
    assert (apply(model, plan).n.num_groups, apply(model, plan).n.num_channels) == (4, 4)


def test_everything_else_is_copied() -> None:
    model = chain().eval()
    model.note = {"classes": ["cat", "dog"], "mean": torch.tensor([0.5])}
    model.register_buffer("hidden", torch.arange(3), persistent=False)
    model.b.weight.requires_grad_(False)
    seen: list[tuple[int, ...]] = []
    model.a.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    model.h.favorite = model.a.weight  # registers it a second time, under another name
    model.listed = [model.nb.weight]  # a plain reference
    graph = trace(model, image())
    seen.clear()
    small = apply(model, graph.plan({"a": [0, 1, 2], "b": [1, 3]}))
    small(image())
    assert seen == [(2, 3, 12, 12)]
    assert small.note["classes"] == ["cat", "dog"]
    assert small.note["classes"] is not model.note["classes"]
    assert small.note["mean"] is not model.note["mean"]
    assert torch.equal(small.hidden, model.hidden)
    assert "hidden" not in small.state_dict()
    assert not small.b.weight.requires_grad
    assert small.a.weight.requires_grad
    assert small.h.favorite is small.a.weight
    assert small.listed[0] is small.nb.weight


def test_what_is_tied_stays_tied() -> None:
    model, plan = planned("tied_weights")
    for cut in (apply(model, plan), mask(model, plan), cut_(copy.deepcopy(model), plan)):
        assert cut.c.weight is cut.b.weight
        assert cut.c.bias is not cut.b.bias
    shared = chain()
    shared.again = shared.b
    graph = trace(shared, image())
    small = apply(shared, graph.plan(half(graph)))
    assert small.again is small.b


def test_memory_format_and_precision_are_kept() -> None:
    model = chain().to(memory_format=torch.channels_last).half()
    graph = trace(model, image().half())
    small = apply(model, graph.plan(half(graph)))
    assert small.b.weight.is_contiguous(memory_format=torch.channels_last)
    assert {p.dtype for p in small.parameters()} == {torch.float16}


def test_a_cut_network_trains() -> None:
    for name in EXACT:
        model, plan = planned(name)
        small = apply(model, plan).float().train()
        inputs = CASES[name].inputs()
        if isinstance(inputs, Tensor) and "op_without" not in name:
            out = small(inputs.float())
            out = out[1] if isinstance(out, tuple) else out
            out.pow(2).mean().backward()
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in small.parameters())


# -- in place, with an optimizer --------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "fused adam": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
}


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """As people do: no weight decay on what has one axis, and the layers in an order of their own."""
    params = list(model.parameters())[::-1]
    return [
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in params if p.ndim > 1], "lr": 0.02},
    ]


def steps(model: nn.Module, optimizer: Optimizer, n: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        optimizer.zero_grad()
        x, y = torch.randn(4, 3, 12, 12, generator=g), torch.randint(0, 5, (4,), generator=g)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on(name: str) -> None:
    """After the cut every step is bit-equal to that of a new optimizer which was given the sliced state."""
    model = chain().train()
    optimizer = OPTIMIZERS[name](groups(model))
    steps(model, optimizer, 3, seed=0)
    graph = trace(model, image())
    plan = graph.plan(half(graph))

    small = apply(model, plan)
    fresh = OPTIMIZERS[name](groups(small))
    state = copy.deepcopy(optimizer.state_dict())
    names = {id(p): n for n, p in model.named_parameters()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    shapes = {n: p.shape for n, p in model.named_parameters()}
    for i, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == shapes[order[i]]:
                for axis, kept in plan.kept.get(order[i], {}).items():
                    entries[key] = entries[key].index_select(axis, torch.tensor(kept))
    fresh.load_state_dict(state)

    assert cut_(model, plan, optimizer) is model
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(g["params"]) for g in fresh.param_groups]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert set(optimizer.state) <= set(model.parameters())
    assert optimizer.param_groups[1]["lr"] == 0.02
    ours, theirs = optimizer.state_dict(), fresh.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for i, entries in theirs["state"].items():
        assert ours["state"][i].keys() == entries.keys()
        for key, value in entries.items():
            assert torch.equal(torch.as_tensor(ours["state"][i][key]), torch.as_tensor(value)), (order[i], key)
    steps(model, optimizer, 2, seed=1)
    steps(small, fresh, 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), small.state_dict().values(), strict=True))


def test_gradients_are_cut_along() -> None:
    model = chain().train()
    F.cross_entropy(model(image()), torch.tensor([0, 1])).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    graph = trace(model, image())
    plan = graph.plan(half(graph))
    cut_(model, plan)
    for n, p in model.named_parameters():
        wanted = grads[n]
        for axis, kept in plan.kept.get(n, {}).items():
            wanted = wanted.index_select(axis, torch.tensor(kept))
        assert torch.equal(p.grad, wanted)
    torch.optim.SGD(model.parameters(), 0.1).step()


def test_an_optimizer_before_its_first_step_and_one_of_a_part() -> None:
    model = chain().train()
    optimizer = torch.optim.Adam(model.b.parameters(), 0.01)
    graph = trace(model, image())
    cut_(model, graph.plan(half(graph)), optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.b.parameters()]
    assert not optimizer.state
    steps(model, optimizer, 1, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: torch.optim.Adafactor(p, 0.01),
            r"keeps 'row_var' of shape \(8, 3, 3, 1\) for a\.weight of shape \(8, 3, 3, 3\)",
        ),
        (lambda p: torch.optim.LBFGS(p, 0.01), "LBFGS keeps one history for all parameters"),
    ],
    ids=["adafactor", "lbfgs"],
)
def test_all_or_nothing(make: Callable[[Any], Optimizer], message: str) -> None:
    model = Net(lambda s, x: s.h(F.relu(s.a(x))), a=conv(3, 8, bias=False), h=head(8)).train()
    optimizer = make(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(image()), torch.tensor([0, 1]))
        loss.backward()
        return loss

    optimizer.step(closure)
    graph = trace(model, image())
    plan = graph.plan({"a": [0, 1, 2]})
    before, states = fingerprint(model), {id(p): id(s) for p, s in optimizer.state.items()}
    with pytest.raises(PlanError, match=message):
        cut_(model, plan, optimizer)
    assert same(fingerprint(model), before)
    assert {id(p): id(s) for p, s in optimizer.state.items()} == states
    optimizer.step(closure)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, other = (Net(lambda s, x: s.h(F.relu(s.a(x))), a=conv(3, 8, bias=False), h=head(8)) for _ in range(2))
    plan, before = trace(model, image()).plan({"a": [0, 1, 2]}), fingerprint(model)
    mine, foreign = (torch.optim.SGD(m.parameters(), 0.1) for m in (model, other))
    for given in (foreign, [mine, foreign]):
        with pytest.raises(PlanError, match=r"The optimizer \(SGD\) has none of this model's parameters"):
            cut_(model, plan, given)
    assert same(fingerprint(model), before)


def test_modules_without_tensors_know_how_many_channels_they_get() -> None:
    """PyTorch warns at every forward pass if `num_features` is another number. Warnings are errors in tests."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.Conv2d(8, 8, 3), nn.GroupNorm(8, 8, affine=False), nn.ReLU(),
        nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6, affine=False, track_running_stats=False), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 2),
    )  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    graph = trace(model, x, allow_inexact=True)
    small = apply(model, graph.plan({"0": range(5), "2": [1, 2, 7], "5": [0, 4]}, allow_inexact=True))
    assert small(x).shape == (2, 2)
    assert (small[1].num_features, small[3].num_channels, small[3].num_groups, small[6].num_features) == (5, 3, 3, 2)
    assert small[9].normalized_shape == (2,)
    assert "InstanceNorm2d(5," in repr(small)
    wide, *_ = widened(model[:6], x, {"0": 12, "2": 10})
    assert (wide[1].num_features, wide[3].num_groups) == (12, 10)
    assert wide.eval()(x).shape == (2, 6, 4, 4)
    assert "InstanceNorm2d(8," in repr(model)


class Weight(nn.Parameter):
    """A user's own type of parameter."""


@pytest.mark.parametrize("stripes", [{}, {"a.weight": np.eye(3, dtype=bool)[None].repeat(8, 0)}], ids=["", "stripes"])
def test_parameters_keep_their_attributes_and_gradient_hooks(stripes: dict[str, np.ndarray]) -> None:
    model = Net(lambda s, x: s.h(F.relu(s.a(x))), a=conv(3, 8, bias=False), h=head(8))
    steps_of: list[tuple[int, ...]] = []
    model.a.weight.decay = 0.0
    handle = model.a.weight.register_hook(lambda g: g * 0)
    model.a.weight.register_post_accumulate_grad_hook(lambda p: steps_of.append(tuple(p.shape)))
    cut_(model, trace(model, image()).plan({"a": [0, 1, 2]}, stripes=stripes))
    model(image()).sum().backward()
    assert model.a.weight.decay == 0.0
    assert steps_of == [tuple(model.a.weight.shape)]
    assert not model.a.weight.grad.any()
    handle.remove()
    model(image()).sum().backward()
    assert model.a.weight.grad.any()


def test_parameters_keep_their_type() -> None:
    model = Net(lambda s, x: s.h(F.relu(s.a(x))), a=conv(3, 8), h=head(8))
    model.a.weight = Weight(model.a.weight.detach(), requires_grad=False)
    plan = trace(model, image()).plan({"a": [0, 1, 2]})
    for cut in (apply(model, plan), cut_(model, plan)):
        assert type(cut.a.weight) is Weight
        assert not cut.a.weight.requires_grad
        assert "a.weight" in dict(cut.named_parameters())


def test_tensors_are_replaced_wherever_the_network_holds_them() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        x = F.conv2d(x, s.held.weight, padding=1)
        return s.h(F.conv_transpose2d(x, s.__dict__["tied"], padding=1).relu() + s.a(x).mean())

    model = Net(forward, a=conv(8, 3), b=conv(3, 8, bias=False), h=head(3))
    model.held = SimpleNamespace(weight=model.b.weight)
    model.__dict__["tied"] = model.b.weight
    plan = trace(model, image()).plan({"b": [0, 1, 2]})
    wanted = apply(model, plan)(image())
    assert torch.equal(cut_(model, plan)(image()), wanted)
    assert model.held.weight is model.b.weight
    assert model.__dict__["tied"] is model.b.weight


def test_state_that_an_optimizer_keeps_in_lists_is_cut_too() -> None:
    model = Net(lambda s, x: s.h(F.relu(s.a(x))), a=conv(3, 8), h=head(8))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    plan = trace(model, image()).plan({"a": [0, 1, 2]})
    weight = model.a.weight
    optimizer.state[weight]["past"] = [weight.detach() + 1, weight.detach() + 2]
    cut_(model, plan, optimizer)
    assert torch.equal(optimizer.state[model.a.weight]["past"][1], model.a.weight + 2)
    optimizer.state[model.a.weight]["preconditioners"] = [torch.eye(3), torch.eye(3)]
    with pytest.raises(PlanError, match=r"keeps 'preconditioners' of shape \(3, 3\) for a\.weight"):
        cut_(model, trace(model, image()).plan({"a": [0, 1]}), optimizer)
