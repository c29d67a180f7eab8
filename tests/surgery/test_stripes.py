"""Plans with stripes: masked ≡ sliced, the cost to the digit, compaction, optimizers, JSON, and what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import PlanError
from secateurs.masking import mask
from secateurs.plans import Plan, trace
from secateurs.plans.plan import _digest
from secateurs.stripes import StripeConv2d
from secateurs.surgery import apply, cut_, verify
from secateurs.testing.networks import randomize
from tests.networks import CASES, image


class Two(nn.Module):
    """Two convolutions with all that a kernel can have, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, (3, 5), padding=(2, 4), dilation=2, bias=False)
        self.c = nn.Conv2d(8, 6, 2, padding="same")
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x)))
        x = F.relu(self.b(x) + x)
        return self.fc(self.c(x).mean((2, 3)))


def two(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize(Two(), seed).eval()


def x(n: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 15, 14, generator=torch.Generator().manual_seed(seed))


def some(shape: tuple[int, ...], share: float, seed: int = 0) -> np.ndarray:
    kept = np.random.default_rng(seed).random(shape) < share
    kept.flat[0] = True
    return kept


def only(shape: tuple[int, ...], rows: Any, columns: Any) -> np.ndarray:
    """All filters keep this block of the kernel."""
    kept = np.zeros(shape, dtype=bool)
    kept[:, rows, columns] = True
    return kept


# -- masked ≡ sliced, and the cost -------------------------------------------------------------------------------------


def test_kernels_are_the_plain_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(8, 6, 3), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.LazyLinear(2),
    )  # fmt: skip
    model(x())
    assert trace(model, x()).kernels == {"0.weight": (8, 3, 3), "4.weight": (4, 1, 1)}
    shared = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
    shared[1].weight = shared[0].weight
    assert trace(shared, x()).kernels == {}


def test_a_weight_that_other_code_reads_keeps_its_stripes() -> None:
    """A decoder that is the encoder transposed reads the encoder's weight, which a stripe convolution does not have."""
    model = CASES["tied_transpose"].make()
    assert trace(model, image()).kernels == {}
    assert sc.prune(model, image(), "l2", sc.Budget(macs=0.6)).plan.stripes == {}
    with pytest.raises(sc.ConfigError, match="no convolution that stripes can be cut from"):
        sc.prune(model, image(), "l2-stripes", sc.Budget(macs=0.6))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([n for n, c in CASES.items() if c.prunable]),
    share=st.sampled_from([0.05, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_structure_with_channels_and_stripes_cut(name: str, share: float, seed: int) -> None:
    torch.manual_seed(seed)
    model, draw, inputs = CASES[name].make(), np.random.default_rng(seed), CASES[name].inputs()
    graph = trace(model, inputs)
    groups = [g for g in graph.groups if g.prunable]
    channels = {g.name: draw.permutation(g.size)[: draw.integers(2, g.size + 1)] for g in groups if g.size > 2}
    stripes = {w: draw.random(shape) < share for w, shape in graph.kernels.items()}
    for kept in stripes.values():
        kept.reshape(len(kept), -1)[:, 0] = True  # whichever filters stay, one has a stripe
    plan = graph.plan(channels, stripes=stripes)
    assert verify(model, plan, inputs) <= 1e-5
    widths = {n: len(k) for n, k in plan.groups.items()}
    left = {w: len(k) for w, k in plan.stripes.items()}
    found = sc.count(apply(model, plan), inputs)
    assert graph.cost(widths, left) == found
    again = Plan.from_json(plan.to_json())
    assert again == plan


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_strides_dilation_and_same_padding(name: str, share: float) -> None:
    model = two()
    graph = trace(model, x())
    weight = f"{name}.weight"
    plan = graph.plan({}, stripes={weight: some(graph.kernels[weight], share)})
    assert verify(model, plan, x()) <= 1e-5
    small = apply(model, plan)
    assert isinstance(small.get_submodule(name), StripeConv2d)
    assert isinstance(model.get_submodule(name), nn.Conv2d)  # the given one is as it was
    whole = graph.cost()
    left = graph.cost(stripes={weight: len(plan.stripes[weight])})
    assert left == sc.count(small, x())
    gone = int(np.prod(graph.kernels[weight])) - len(plan.stripes[weight])
    assert whole.params - left.params == gone * model.get_parameter(weight).shape[1]


def test_masked_is_zero_where_stripes_are_gone() -> None:
    model = two()
    graph = trace(model, x())
    kept = some((8, 3, 5), 0.4)
    masked = mask(model, graph.plan({}, stripes={"b.weight": kept}))
    expected = model.b.weight * torch.from_numpy(kept)[:, None]
    assert torch.equal(masked.b.weight, expected)
    assert torch.equal(masked.a.weight, model.a.weight)


def test_places_and_bools_say_the_same() -> None:
    graph = trace(two(), x())
    kept = some((8, 3, 3), 0.4)
    plans = [graph.plan({}, stripes={"a.weight": k}) for k in (kept, np.flatnonzero(kept), torch.from_numpy(kept))]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].stripes["a.weight"] == tuple(np.flatnonzero(kept))


def test_a_layer_that_keeps_all_is_left_alone() -> None:
    graph = trace(two(), x())
    plan = graph.plan({}, stripes={"a.weight": np.ones((8, 3, 3), bool)})
    assert not plan.stripes
    assert json.loads(plan.to_json())["version"] == 1  # so that older versions read it


# -- compaction --------------------------------------------------------------------------------------------------------


BLOCKS = [
    ("a", slice(1, 2), slice(None), (1, 3), (0, 1)),
    ("a", slice(None), slice(1, 2), (3, 1), (1, 0)),
    ("a", slice(1, 2), slice(1, 2), (1, 1), (0, 0)),
    ("a", slice(0, 2), slice(0, 2), (2, 2), None),
    ("a", slice(2, 3), slice(0, 1), (1, 1), None),
    ("b", slice(1, 2), slice(1, 4), (1, 3), (0, 2)),
    ("b", slice(0, 1), slice(2, 5), (1, 3), None),
    ("c", slice(0, 1), slice(0, 1), (1, 1), (0, 0)),
    ("c", slice(1, 2), slice(0, 2), (1, 2), None),
]


@pytest.mark.parametrize(("name", "rows", "columns", "kernel", "padding"), BLOCKS)
def test_a_block_becomes_a_plain_convolution(name: str, rows: Any, columns: Any, kernel: Any, padding: Any) -> None:
    """padding: where one figure for each direction will do; None where the sides differ."""
    model = two()
    graph = trace(model, x())
    weight = f"{name}.weight"
    plan = graph.plan({}, stripes={weight: only(graph.kernels[weight], rows, columns)})
    small = apply(model, plan)
    made = small.get_submodule(name)
    if padding is None:
        assert [type(m) for m in made] == [nn.ZeroPad2d, nn.Conv2d]
        made = made[1]
    else:
        assert type(made) is nn.Conv2d
        assert made.padding == padding
    assert made.kernel_size == kernel
    assert torch.equal(made.weight, model.get_parameter(weight)[:, :, rows, columns])
    assert verify(model, plan, x()) <= 1e-5
    assert sc.count(small, x()) == graph.cost(stripes={weight: len(plan.stripes[weight])})
    for seed in range(3):
        torch.testing.assert_close(small(x(2, seed)), mask(model, plan)(x(2, seed)), rtol=1e-4, atol=1e-5)


def test_filters_without_stripes_give_what_a_zero_filter_gives() -> None:
    model = two()
    graph = trace(model, x())
    kept = np.ones((8, 3, 3), bool)
    kept[[2, 5]] = False
    plan = graph.plan({}, stripes={"a.weight": kept})
    small = apply(model, plan)
    assert isinstance(small.a, StripeConv2d)
    out = small.a(x())
    assert torch.equal(out[:, 2], model.a.bias[2].expand_as(out[:, 2]))
    assert verify(model, plan, x()) <= 1e-5


def test_stripes_of_channels_that_go_go_along() -> None:
    model = CASES["chain"].make().eval()
    graph = trace(model, image())
    kept = some((8, 3, 3), 0.5)
    plan = graph.plan({"a": [0, 3, 4]}, stripes={"a.weight": kept})
    filters = np.array(plan.stripes["a.weight"]) // 9
    assert set(filters) <= {0, 3, 4}
    assert verify(model, plan, image()) <= 1e-5
    small = apply(model, plan)
    assert isinstance(small.a, StripeConv2d)
    assert small.a.weight.shape == (len(filters), 3)
    whole = np.zeros((8, 3, 3), bool)
    whole[[0, 3, 4]] = True
    plain = graph.plan({"a": [0, 3, 4]}, stripes={"a.weight": whole})
    assert not plain.stripes
    assert type(apply(model, plain).a) is nn.Conv2d


# -- in place, with an optimizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=0.01)
])  # fmt: skip
@pytest.mark.parametrize("block", [False, True])
def test_training_goes_on_as_if_the_rest_were_masked(make: Any, block: bool) -> None:
    """The cut network and its masked twin, whose dropped stripes are held at zero, take the same steps."""
    model = two().train()
    graph = trace(model, x())
    kept = only((8, 3, 3), slice(0, 3), slice(1, 3)) if block else some((8, 3, 3), 0.4)
    plan = graph.plan({}, stripes={"a.weight": kept, "b.weight": some((8, 3, 5), 0.5)})
    optimizer = make(model.parameters())
    loss_of(model).backward()
    optimizer.step()
    twin = mask(model, plan)
    other = make(twin.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    holes = {n: twin.get_parameter(n) for n in plan.stripes}
    alive = {n: torch.from_numpy(k)[:, None] for n, k in {"a.weight": kept, "b.weight": some((8, 3, 5), 0.5)}.items()}
    for n, w in twin.named_parameters():
        w.grad = model.get_parameter(n).grad.clone()
    assert cut_(model, plan, optimizer) is model
    for _ in range(3):
        for m, o in ((model, optimizer), (twin, other)):
            o.step()
            o.zero_grad()
            with torch.no_grad():
                for n, w in holes.items():
                    w.mul_(alive[n])
            loss_of(m).backward()
    torch.testing.assert_close(model(x()), twin(x()), rtol=1e-4, atol=1e-5)
    weight = model.a[1].weight if block else model.a.weight
    assert any(p is weight for g in optimizer.param_groups for p in g["params"])
    assert any(p is (model.a[1] if block else model.a).bias for g in optimizer.param_groups for p in g["params"])
    assert len(optimizer.state) == len(list(model.parameters()))


def loss_of(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(x()), torch.tensor([0, 1]))


def test_state_of_another_shape_stops_the_cut_before_it_begins() -> None:
    model = two()
    graph = trace(model, x())
    plan = graph.plan({}, stripes={"a.weight": some((8, 3, 3), 0.4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.a.weight] = {"rows": torch.zeros(8, 3)}
    with pytest.raises(PlanError, match="keeps 'rows' of shape"):
        cut_(model, plan, optimizer)
    assert type(model.a) is nn.Conv2d


# -- what is refused ---------------------------------------------------------------------------------------------------


BAD = [
    ({"a": [0]}, "not the weight of a convolution.*a.weight"),
    ({"fc.weight": [0]}, "not the weight of a convolution"),
    ({"a.weight": []}, "The plan would keep no stripe of a.weight"),
    ({"a.weight": np.zeros((8, 3, 3), bool)}, "The plan would keep no stripe of a.weight"),
    ({"a.weight": np.ones((8, 3), bool)}, r"have shape \(8, 3\), .* are \(8, 3, 3\)"),
    ({"a.weight": [0, 72]}, "must be in 0…71"),
    ({"a.weight": [-1]}, "must be in 0…71"),
    ({"a.weight": [3, 3]}, "repeat"),
    ({"a.weight": [0.5]}, "bools of shape"),
    ({"a.weight": 3}, "bools of shape"),
]


@pytest.mark.parametrize(("stripes", "message"), BAD)
def test_bad_stripes(stripes: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        trace(two(), x()).plan({}, stripes=stripes)


def test_nothing_left_of_the_filters_that_stay() -> None:
    model = CASES["chain"].make()
    kept = np.zeros((8, 3, 3), bool)
    kept[7] = True
    with pytest.raises(PlanError, match=r"The plan would keep no stripe of a\.weight"):
        trace(model, image()).plan({"a": [0, 1]}, stripes={"a.weight": kept})


def test_cost_of_an_unknown_kernel() -> None:
    with pytest.raises(PlanError, match="a is not a convolution that stripes can be cut from"):
        trace(two(), x()).cost(stripes={"a": 3})


def test_a_plan_for_another_network() -> None:
    plan = trace(two(), x()).plan({}, stripes={"a.weight": some((8, 3, 3), 0.4)})
    other = two()
    other.a = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect")
    for change in (apply, mask, cut_):
        with pytest.raises(PlanError, match=r"not a plain convolution.*another network"):
            change(other, plan)
    other.a = nn.Conv2d(3, 9, 3)
    with pytest.raises(PlanError, match=r"expects a\.weight of shape"):
        apply(other, plan)


FORGED = [
    (lambda b: b["stripes"].update({"a.weight": [5, 3]}), "in ascending order"),
    (lambda b: b["stripes"].update({"a.weight": [3, 720]}), "must be in"),
    (lambda b: b["stripes"].update({"a.weight": []}), r"field 'stripes\.a\.weight': list should have at least 1 item"),
    (lambda b: b["stripes"].update({"fc.weight": [0]}), "gives its shape as None"),
    (lambda b: b["stripes"].update({"a.weight": "ab"}), r"field 'stripes\.a\.weight'.*got 'ab'"),
    (lambda b: b.update(stripes=[1]), "field 'stripes'"),
    (lambda b: b["stripes"].update({"a.weight": list(range(72))}), "keeps all of them"),
    (
        lambda b: (b["kept"].update({"a.weight": {"0": [0, 1]}}), b["stripes"].update({"a.weight": [18]})),
        "filters that are cut",
    ),
]


@pytest.mark.parametrize(("change", "message"), FORGED)
def test_a_forged_file(change: Any, message: str) -> None:
    """With a digest that fits."""
    plan = trace(two(), x()).plan({}, stripes={"a.weight": some((8, 3, 3), 0.4)})
    body = json.loads(plan.to_json())
    assert body["version"] == 2
    body.pop("digest")
    change(body)
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps({**body, "digest": _digest(body)}))


def test_half_precision() -> None:
    model = two().to(torch.bfloat16)
    plan = trace(model, x().bfloat16()).plan({}, stripes={"b.weight": some((8, 3, 5), 0.4)})
    assert verify(model, plan, x()) <= 1e-5
    assert {p.dtype for p in apply(model, plan).parameters()} == {torch.bfloat16}


# -- a network whose stripes are cut already ---------------------------------------------------------------------------


def test_channels_that_a_stripe_convolution_reads_may_be_cut() -> None:
    model = CASES["chain"].make().eval()
    graph = trace(model, image())
    small = apply(model, graph.plan({}, stripes={"b.weight": some(graph.kernels["b.weight"], 0.5)}))
    again = trace(small, image())
    assert isinstance(small.b, StripeConv2d)
    assert again.cost() == sc.count(small, image())
    assert again["a"].prunable
    assert str(again["b"].reason) == "its filters have different stripes: cut channels before stripes"
    assert set(again.kernels) == {"a.weight"}
    plan = again.plan({"a": [1, 4, 6]}, stripes={"a.weight": some((8, 3, 3), 0.5)})
    assert verify(small, plan, image()) <= 1e-5
    least = apply(small, plan)
    assert (least.b.in_channels, least.b.weight.shape[1]) == (3, 3)
    assert sc.count(least, image()) == again.cost_of(plan)
    optimizer = torch.optim.SGD(small.parameters(), 0.1, momentum=0.9)
    small(image()).sum().backward()
    optimizer.step()
    cut_(small, plan, optimizer)
    assert optimizer.state[small.b.weight]["momentum_buffer"].shape == small.b.weight.shape
    torch.testing.assert_close(small.eval()(image()).shape, least(image()).shape)


def test_a_network_of_stripes_alone_costs_what_it_costs() -> None:
    model = two()
    graph = trace(model, x())
    plan = graph.plan({}, stripes={w: some(shape, 0.5) for w, shape in graph.kernels.items()})
    small = apply(model, plan)
    assert trace(small, x()).cost() == sc.count(small, x()) == graph.cost_of(plan)


# -- what else the network has -----------------------------------------------------------------------------------------


class Listed(nn.Module):
    """A network that calls its layers from a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.layers = [self.a, self.b]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


@pytest.mark.parametrize("kept", [some((6, 3, 3), 0.5), only((6, 3, 3), slice(0, 2), slice(0, 2))])
def test_layers_in_a_plain_list_are_replaced_there_too(kept: np.ndarray) -> None:
    model = Listed().eval()
    plan = trace(model, x()).plan({}, stripes={"a.weight": kept})
    assert verify(model, plan, x()) < 1e-5
    small = cut_(model, plan)
    assert small.layers[0] is small.a
    assert type(small.a) is not nn.Conv2d


@pytest.mark.parametrize("kept", [some((6, 3, 3), 0.5), only((6, 3, 3), slice(0, 2), slice(0, 2))])
def test_hooks_and_attributes_of_the_user_stay(kept: np.ndarray) -> None:
    model, seen = Listed().eval(), []
    handle = model.a.register_forward_hook(lambda module, args, out: seen.append(type(module)))
    model.a.stage = "stem"  # type: ignore[assignment]
    plan = trace(model, x()).plan({}, stripes={"a.weight": kept})
    for small in (apply(model, plan), cut_(model, plan)):
        seen.clear()
        small(x())
        assert seen == [type(small.a)]
        assert small.a.stage == "stem"
    handle.remove()
    model(x())
    assert len(seen) == 1


def test_a_convolution_whose_forward_was_replaced_keeps_its_stripes() -> None:
    model = Listed().eval()
    model.a.forward = lambda x, run=model.a.forward: 2 * run(x)  # type: ignore[method-assign]
    assert list(trace(model, x()).kernels) == ["b.weight"]
