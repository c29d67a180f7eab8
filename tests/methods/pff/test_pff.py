"""PFF: eq. 1 and 2 by hand, the threshold, budgets to a stripe, what dies, and runs that go on."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import Task
from secateurs.methods.pff.control import Controller
from secateurs.methods.pff.method import PFF, PFFPruner
from secateurs.methods.pff.skeleton import Norms, Skeleton
from secateurs.methods.stripes.blocks import Blocks, blocks
from secateurs.methods.stripes.select import Left, Stripes
from secateurs.stripes import StripeConv2d
from secateurs.testing.networks import network, randomize
from secateurs.testing.state import State


def images(n: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batches(count: int = 4, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [(images(rows, i), torch.arange(rows) % 4) for i in range(count)]


class Block(nn.Module):
    """A residual block with a projection, between a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.a, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.bn2 = nn.Conv2d(8, 10, (1, 3), padding=(0, 1)), nn.BatchNorm2d(10)
        self.project = nn.Conv2d(6, 10, 1)
        self.c = nn.Conv2d(10, 5, 3)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = self.bn2(self.b(F.relu(self.bn1(self.a(x)))))
        return self.fc(F.relu(self.c(F.relu(y + self.project(x)))).mean((2, 3)))


def block(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize(Block(), seed)


def task(model: nn.Module, budget: sc.Budget | None = None, scope: Any = "internal") -> Task:
    return Task(model, sc.trace(model, images(1)), budget, scope, example_inputs=images(2))


def attached(
    model: nn.Module, budget: sc.Budget | None = None, steps: int = 40, scope: Any = "internal", **options: Any
) -> PFFPruner:
    pruner = sc.attach(
        model, images(1), PFF(**options), budget, steps=steps, epoch_steps=10, data=batches(), scope=scope
    )
    assert isinstance(pruner, PFFPruner)
    return pruner


def train(model: nn.Module, pruner: PFFPruner, steps: int, lr: float = 0.05) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    model.train()
    for i in range(steps):
        x, y = batches()[i % 4]
        (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    return optimizer


KERNELS = {"stem.weight": (6, 3, 3), "a.weight": (8, 3, 3), "b.weight": (10, 1, 3), "c.weight": (5, 3, 3)}


WHOLE = 1000  # more filters than a layer has: all of them are one block


def grouped(model: nn.Module, size: int, kernels: Any = KERNELS) -> Blocks | None:
    return None if size == 1 else blocks(model, kernels, size)


# -- the skeleton (eq. 1) ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, WHOLE])
def test_the_network_computes_with_weight_times_value(size: int) -> None:
    model, twin = block().eval(), block().eval()
    shared = grouped(model, size)
    skeleton = Skeleton(model, KERNELS, shared)
    assert torch.equal(model(images()), twin(images()))
    with torch.no_grad():
        skeleton.values.copy_(torch.randn(skeleton.values.shape))
        at = 0
        for name, (o, h, w) in KERNELS.items():
            own = shared[name] if shared else np.arange(o)
            n = (own.max() + 1) * h * w
            weight = twin.get_parameter(name)
            for f in range(o):
                for i in range(h):
                    for j in range(w):
                        weight[f, :, i, j] *= skeleton.values[at + (own[f] * h + i) * w + j]
            at += n
        assert at == skeleton.values.numel()
    torch.testing.assert_close(model(images()), twin(images()))
    skeleton.finish_()
    torch.testing.assert_close(model(images()), twin(images()))
    for name in KERNELS:
        assert torch.equal(model.get_parameter(name), twin.get_parameter(name))


def test_both_are_trained() -> None:
    """∂L/∂value is ⟨weight, ∂L/∂product⟩, and ∂L/∂weight is value · ∂L/∂product."""
    model, twin = block().train(), block().train()
    skeleton = Skeleton(model, KERNELS)
    with torch.no_grad():
        skeleton.values.uniform_(0.5, 1.5)
    product = dict(zip(KERNELS, skeleton.values.detach().split([72 * 6 // 8, 72, 30, 45]), strict=True))
    for name, shape in KERNELS.items():
        twin.get_parameter(name).data.mul_(product[name].view(shape)[:, None])
    for m in (model, twin):
        F.cross_entropy(m(images()), torch.arange(8) % 4).backward()
    parts = dict(zip(KERNELS, skeleton.values.grad.split([54, 72, 30, 45]), strict=True))
    for name, shape in KERNELS.items():
        w, g = model.get_parameter(name), twin.get_parameter(name).grad
        torch.testing.assert_close(parts[name], (w * g).sum(1).flatten(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(w.grad, g * product[name].view(shape)[:, None], rtol=1e-4, atol=1e-6)


def test_no_trace_is_left() -> None:
    model = block()
    before = State.of(model)
    skeleton = Skeleton(model, KERNELS)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 4, 16, 16))  # in the middle of a forward
    assert isinstance(model.stem.weight, nn.Parameter)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        skeleton.values.fill_(2)
    torch.testing.assert_close(copied.eval()(images()), model.eval()(images()))  # a copy goes by the same values
    skeleton.values.data.fill_(1)
    skeleton.finish_()
    model.train()
    before.assert_same(model)


def test_penalty_by_hand() -> None:
    model = block()
    pruner = attached(model, alpha=0.01)
    with torch.no_grad():
        pruner.measure.values.normal_()
    want = 0.01 * sum(abs(v) for v in pruner.measure.values.tolist())
    torch.testing.assert_close(pruner.penalty(), torch.tensor(want))
    pruner = attached(block(), alpha=0.01, skeleton="position")
    values = pruner.measure.values
    assert values.numel() == 9 + 9 + 3 + 9
    with torch.no_grad():
        values.normal_()
    torch.testing.assert_close(pruner.penalty(), torch.tensor(0.01 * sum(abs(v) for v in values.tolist())))


def test_one_step_is_the_subgradient() -> None:
    """Without a loss a value goes towards zero by lr · α in the first step."""
    pruner = attached(block(), alpha=0.3, skeleton_lr=0.1)
    with torch.no_grad():
        pruner.measure.values[:3] = torch.tensor([0.5, -0.5, 0.0])
    pruner.penalty().backward()
    pruner.step()
    torch.testing.assert_close(pruner.measure.values[:3].detach(), torch.tensor([0.47, -0.47, 0.0]))


# -- the threshold -----------------------------------------------------------------------------------------------------


def test_without_a_budget_delta_decides() -> None:
    model = block()
    pruner = attached(model, alpha=0.0, delta=0.1, floor=0)
    with torch.no_grad():
        values = pruner.measure.values.uniform_(-0.3, 0.3)
        values[:54] = 0.01  # the stem would be empty
        values[20] = 0.02
    alive = values.abs() >= 0.1
    twin = copy.deepcopy(model).eval()
    expected = twin(images())
    plan = pruner.plan()
    torch.testing.assert_close(model.eval()(images()), expected)  # merged
    assert plan.stripes["stem.weight"] == (20,)
    dead = set(np.arange(8)[~alive[54:126].view(8, 9).any(1).numpy()])
    want = [54 + i for i in np.flatnonzero(alive[54:126].numpy())]
    assert [54 + i for i in plan.stripes["a.weight"]] == want
    assert set(plan.groups.get("a", range(8))) == set(range(8)) - dead
    (note,) = [h for h in pruner.history if h.get("event") == "stripes"]
    assert note["of"] == 54 + 72 + 30 + 45
    assert note["kept"] == sum(len(plan.stripes[w]) for w in KERNELS)


def test_filters_without_stripes_take_their_channels_along_where_the_group_allows() -> None:
    model = block()
    pruner = attached(model, alpha=0.0)
    with torch.no_grad():
        for part, shape in zip(pruner.measure.values.split([54, 72, 30, 45]), KERNELS.values(), strict=True):
            part.view(shape)[1] = 0.001
    plan = pruner.plan()
    assert {g for g in plan.groups if 1 not in plan.groups[g]} == {"stem", "a", "c"}
    # b's filter is coupled with the projection's, which has no skeleton: it stays, and says its bias.
    assert not {"b", "project"} & set(plan.groups)
    assert not {3, 4, 5} & set(plan.stripes["b.weight"])
    assert sc.verify(model, plan, images(2)) <= 1e-5


@pytest.mark.parametrize("scope", ["internal", "all"])
def test_a_channel_on_a_shortcut_goes_with_the_last_of_its_filters(scope: str) -> None:
    model = network("residual")
    pruner = attached(model, alpha=0.0, scope=scope)
    parts = pruner.stripes.split(np.arange(len(pruner.stripes)))
    dead = [parts[w][f] for w in ("conv1.weight", "blocks.0.3.weight", "blocks.1.3.weight") for f in (2, 5)]
    with torch.no_grad():
        pruner.measure.values[np.concatenate([d.ravel() for d in dead[:-1]])] = 0.0
    plan = pruner.plan()
    stream = next(g.name for g in pruner.task.graph.groups if not g.internal)
    gone = set(range(12)) - set(plan.groups.get(stream, range(12)))
    assert gone == ({2} if scope == "all" else set())  # 5 lives on in one of the three
    assert not set(range(18, 27)) & set(plan.stripes.get("blocks.1.3.weight", ()))
    assert ("blocks.1.3.weight" in plan.stripes) == (scope == "internal")
    assert sc.verify(model, plan, images(2)) <= 1e-5


def test_what_removing_constants_changed_is_on_record() -> None:
    model = block()
    pruner = attached(model, alpha=0.0)
    with torch.no_grad():
        pruner.measure.values[54:63] = 0.001  # filter 0 of a
        model.bn1.bias[0] = 3.0  # and yet it says something
    said: list[str] = []
    pruner.log = said.append
    pruner.finish()
    (note,) = [h for h in pruner.history if h.get("event") == "stripes"]
    assert note["change"] > 1e-3
    assert any(f"changes the output by {note['change']:.1e}" in line for line in said)
    model = block()
    pruner = attached(model, alpha=0.0)
    with torch.no_grad():
        pruner.measure.values[54:63] = 0.001
        model.bn1.weight[0] = model.bn1.bias[0] = 0.0
    pruner.finish()
    (note,) = [h for h in pruner.history if h.get("event") == "stripes"]
    assert note["change"] < 1e-6


def test_what_is_read_of_a_filter_that_has_to_go_fades_out() -> None:
    """Its norm would compensate for small weights, so its consumers read less and less of it, and finally nothing."""
    model = block()
    pruner = attached(model, sc.Budget(macs=0.6), steps=120, arrive=1 / 3, fixed=1 / 3, skeleton_lr=1e-6)
    with torch.no_grad():
        pruner.measure.values[54:63] = 0.01  # filter 0 of a, which b reads
    scales: list[float] = []
    first = model.b.weight[:, 0].norm().item()
    for i in range(12):
        train(model, pruner, 10, lr=1e-4)
        scales.append(model.b.weight[:, 0].norm().item() / first)
        assert i < 4 or int(pruner._to_go()[0][54:63].sum()) == 9
    assert scales[:4] == pytest.approx([1.0] * 4, abs=0.02)
    assert scales[4:7] == pytest.approx([0.75, 0.5, 0.25], abs=0.1)  # nothing after two thirds of the training
    assert scales[7:] == pytest.approx([0.0] * 5, abs=1e-6)
    pruner.finish()
    (note,) = [h for h in pruner.history if h.get("event") == "stripes"]
    assert note["change"] <= 1e-6


def test_where_nothing_is_cut_it_says_why() -> None:
    pruner, said = attached(block(), alpha=1e-5, steps=8), []
    pruner.log = said.append
    pruner.finish()
    assert said[1:] == [  # after that no step was taken
        "pff removed no stripes: every value is at least delta=0.05. Raise alpha=1e-05, train longer, or set a budget."
    ]


# -- live --------------------------------------------------------------------------------------------------------------


def test_live_what_is_dead_stays_dead_and_says_nothing() -> None:
    model = block()
    pruner = attached(model, alpha=0.0, live=True, steps=20, delta=0.05)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    model.train()
    dead = slice(54, 63)  # filter 0 of a
    for i in range(12):
        x, y = batches()[i % 4]
        (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if i == 5:
            with torch.no_grad():
                pruner.measure.values[dead] = 0.04
                pruner.measure.values[70] = -0.04
        pruner.step()
        if i >= 5:
            assert (pruner.measure.values[dead] == 0).all()
            assert pruner.measure.values[70] == 0
            assert (model.b.weight[:, 0] == 0).all()
        elif i:
            assert (model.b.weight[:, 0] != 0).any()
    twin = copy.deepcopy(model).eval()
    before = twin(images())
    plan = pruner.plan()
    assert 0 not in plan.groups["a"]
    assert 70 - 54 not in plan.stripes["a.weight"]
    (note,) = [h for h in pruner.history if h.get("event") == "stripes"]
    assert note["change"] <= 1e-6
    torch.testing.assert_close(sc.apply(model, plan).eval()(images()), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"skeleton": "position"}, {"penalty": "group-lasso"}])
def test_live_never_kills_more_than_the_budget_asks_for(options: dict[str, Any]) -> None:
    model = block()
    budget = sc.Budget(macs=0.6)
    pruner = attached(model, budget, live=True, steps=200, alpha=0.05, skeleton_lr=0.2, delta=0.2, **options)
    base = pruner.task.graph.cost().macs
    train(model, pruner, 60, lr=0.02)
    killed = int((~pruner.alive).sum())
    assert killed > 0
    with_one_more = Left(*[getattr(pruner.stripes.left(pruner.alive.numpy()[pruner.stripes.unit], pruner._scores()), f)
                           for f in ("alive", "channels", "widths", "counts")])  # fmt: skip
    assert pruner.stripes.cost(with_one_more).macs > 0.4 * base
    twin = copy.deepcopy(model).eval()
    before = twin(images())
    plan = pruner.plan()
    left = pruner.task.graph.cost_of(plan).macs
    assert left <= 0.6 * base
    if pruner.stripes.fits(with_one_more):  # then all that the plan cuts was zero already
        torch.testing.assert_close(sc.apply(model, plan).eval()(images()), before, rtol=1e-4, atol=1e-4)


# -- budgets -----------------------------------------------------------------------------------------------------------


NETWORKS: dict[str, Any] = {
    "block": block,
    "small_cnn": lambda seed: randomize(sc.build("zoo:small_cnn", num_classes=4), seed),
    "bottleneck": lambda seed: randomize(
        nn.Sequential(
            *(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(4, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
        ),
        seed,
    ),
}


def standing(stripes: Stripes, left: Left) -> np.ndarray:
    """Filters whose channels stay: (filters,)."""
    stays = np.ones(stripes.filters, dtype=bool)
    for makers, kept in zip(stripes.makers, left.channels, strict=True):
        stays[makers[~kept].ravel()] = False
    return stays


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(list(NETWORKS)), seed=st.integers(0, 99), share=st.floats(0.01, 1.0),
    size=st.sampled_from([1, 1, 3, WHOLE]), what=st.sampled_from(["macs", "params"]), align=st.sampled_from([1, 1, 4]),
    floor=st.sampled_from([0.0, 0.02, 0.2]),
)  # fmt: skip
def test_a_budget_is_met_to_a_stripe(
    kind: str, seed: int, share: float, size: int, what: str, align: int, floor: float
) -> None:
    model = NETWORKS[kind](seed)
    graph = sc.trace(model, images(1))
    budget = sc.Budget(**{what: share}, align=align)
    job = Task(model, graph, budget, "all", example_inputs=images(1))
    whole = size == WHOLE
    try:
        PFF(skeleton="position" if whole else "stripe", block=1 if whole else size, floor=floor).feasible(job)
    except sc.BudgetError:
        return
    kernels = {n: s for n, s in graph.kernels.items() if s[1] * s[2] > 1}
    stripes = Stripes(job, kernels, grouped(model, size, kernels), floor)
    scores = np.random.default_rng(seed).random(stripes.units)
    worth = [g.filters(model).abs().mean(1).numpy() for g in job.groups]
    left, delta = stripes.select_within_budget(scores, lambda: worth)
    plan = stripes.selection(left).plan(graph)
    cost, base = graph.cost_of(plan), graph.cost()
    assert cost == stripes.cost(left) == sc.count(sc.apply(model, plan), images(1))
    assert budget.allows(cost, base)
    for w, (o, h, kw) in kernels.items():
        possible = int(stripes.split(np.isin(stripes.filter, np.flatnonzero(standing(stripes, left))))[w].sum())
        assert len(plan.stripes.get(w, range(o * h * kw))) >= max(1, min(possible, floor * o * h * kw))
    for g in job.groups:
        n = len(plan.groups.get(g.name, range(g.size)))
        assert n == g.size or n % align == 0
    # No stripe of a filter that stays could have been kept as well.
    stays = standing(stripes, left)
    for u in np.unique(stripes.unit[~left.alive & stays[stripes.filter]]):
        back = (stripes.unit == u) & stays[stripes.filter]
        more = left.alive | back
        counts = np.bincount(stripes.layer[more], minlength=len(kernels))
        assert not stripes.fits(Left(more, left.channels, left.widths, counts))
    # Nor a channel that no stripes belong to.
    for i, (kept, makers) in enumerate(zip(left.channels, stripes.makers, strict=True)):
        if not makers.size and not kept.all():
            wider = left.widths.copy()
            wider[i] = min(wider[i] + budget.align, len(kept))
            assert not stripes.fits(Left(left.alive, left.channels, wider, left.counts))
    # The ranking decides: whatever is above the threshold, and whose filter stays, is kept.
    assert left.alive[stays[stripes.filter] & (scores[stripes.unit] > delta)].all()
    standing_filters = stripes.split(stays[stripes.filter])
    for name, kept in stripes.split(left.alive).items() if stripes.blocks else ():
        for b in np.unique(stripes.blocks[name]):
            own = kept[(stripes.blocks[name] == b) & standing_filters[name][:, 0, 0]]
            assert (own == own[:1]).all()


def test_channels_go_where_stripes_alone_would_not_do() -> None:
    """In the bottleneck most of the work is in 1×1 convolutions."""
    model = NETWORKS["bottleneck"](0)
    result = sc.prune(model, images(1), PFF(epochs=1), sc.Budget(macs=0.3), data=batches(), progress="silent")
    base = result.before.macs
    assert 0.25 * base < result.after.macs <= 0.3 * base
    assert {"0", "6"} <= set(result.plan.groups)


def test_where_no_channel_may_be_cut() -> None:
    """All of them lie on a shortcut: stripes may go all the same."""

    class Straight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.fc((x + self.b(x)).mean((2, 3)))

    torch.manual_seed(0)
    result = sc.prune(Straight(), images(1), PFF(epochs=1), sc.Budget(macs=0.2), data=batches(), progress="silent")
    assert not result.plan.groups
    assert 0.15 * result.before.macs < result.after.macs <= 0.2 * result.before.macs
    with pytest.raises(sc.BudgetError, match=r"lowest budget that can be met is macs=0\.0188"):
        sc.prune(Straight(), images(1), PFF(epochs=1, floor=0), sc.Budget(macs=0.01), data=batches())
    with pytest.raises(sc.BudgetError, match=r"lowest budget that can be met is macs=0\.0373"):  # 2 of 54, not 1
        sc.prune(Straight(), images(1), PFF(epochs=1), sc.Budget(macs=0.01), data=batches())


def test_what_a_layer_keeps_in_any_case_is_not_faded_out() -> None:
    model = block()
    pruner = attached(model, sc.Budget(macs=0.5), steps=40, floor=0.05, arrive=0.5, cost=0)
    with torch.no_grad():
        pruner.measure.values[:54] = torch.linspace(0.01, 0.02, 54)  # the stem's all lie below any threshold
    train(model, pruner, 40, lr=1e-3)
    plan = pruner.plan()
    stays = len(plan.stripes["stem.weight"])
    kept = sc.mask(model, plan).stem.weight.detach()  # (6, 3, 3, 3)
    # The floor, and some of these cheap ones that still fit, however rounding went.
    assert 3 <= int(kept.abs().sum(1).gt(0).sum()) <= stays <= 9


def test_needed_by_brute_force() -> None:
    model = block()
    stripes = Stripes(task(model, sc.Budget(macs=0.5)), KERNELS)
    scores = np.random.default_rng(1).random(stripes.units)
    found = stripes.needed(scores, lambda: pytest.fail("stripes will do"))

    def fits(threshold: float) -> bool:
        return stripes.fits(stripes.left(scores > threshold, scores))

    ordered = [0.0, *np.sort(scores)]
    assert found == next(t for t in ordered if fits(t))


# -- α under control ---------------------------------------------------------------------------------------------------


def test_control_by_hand() -> None:
    control = Controller(0.01, delta=0.1, arrive=0.5, gain=6, rate=0.0)
    assert control.target(0) == 1
    assert control.target(0.25) == pytest.approx(0.55)
    assert control.target(0.8) == pytest.approx(0.1)
    assert control.update(0.55, 0.25) == pytest.approx(0.01)
    assert control.update(0.65, 0.25) == pytest.approx(0.01 * np.exp(0.6))
    assert control.update(0.30, 0.25) == pytest.approx(0.01 * np.exp(-1.5))
    assert control.update(1.0, 0.4) == pytest.approx(0.01 * np.exp(1.5))  # bounded
    assert control.update(1.0, 0.5) == 0  # settled
    control.most = 0.001
    assert control.update(0.55, 0.25) == 0.001  # limited
    control = Controller(0.01, delta=0.1, arrive=0.5, first=0.7)
    assert [control.target(p) for p in (0, 0.25, 0.5)] == pytest.approx([0.7, 0.4, 0.1])
    learning = Controller(0.01, delta=0.1, arrive=0.5, rate=0.2)
    for _ in range(1000):
        learning.update(1.0, 0.49)
    assert learning.base == pytest.approx(np.log(0.01) + 3)


@pytest.mark.parametrize("options", [{}, {"live": True}, {"skeleton": "position"}])
def test_control_brings_the_budget_about(options: dict[str, Any]) -> None:
    """At the end what has to go is below δ, and pressed on, and the rest is not."""
    model = block()
    pruner = attached(model, sc.Budget(macs=0.6), steps=300, skeleton_lr=0.05, **options)
    train(model, pruner, 300, lr=0.05)
    scores = pruner._scores()
    assert pruner.stripes.needed(scores, pruner._channel_scores) <= 0.06
    doomed = pruner._to_go()[0].numpy()
    assert 0.1 < doomed.mean() < 0.9
    assert scores[doomed].max() == 0
    assert scores[~doomed].min() > 0
    before = copy.deepcopy(model).eval()(images())
    plan = pruner.plan()
    assert sc.verify(model, plan, images(2)) <= 1e-5
    (note,) = [h for h in pruner.history if h.get("event") == "stripes"]
    if note["change"] == 0:  # the cut takes away what was nothing
        torch.testing.assert_close(sc.apply(model, plan).eval()(images()), before, rtol=1e-3, atol=1e-4)


def test_group_lasso_presses_stripes_to_nothing() -> None:
    model = block()
    pruner = attached(model, sc.Budget(macs=0.6), steps=300, penalty="group-lasso")
    assert (pruner._scores() < 0.05).mean() < 0.02
    train(model, pruner, 300, lr=0.05)
    assert (pruner._scores() < 0.05).mean() > 0.1
    assert sc.verify(model, pruner.plan(), images(2)) <= 1e-5


def test_a_fixed_alpha_is_left_alone() -> None:
    pruner = attached(block(), sc.Budget(macs=0.6), alpha=0.02)
    train(pruner.model, pruner, 20)
    assert pruner.alpha == 0.02
    assert not pruner._to_go()[0].any()
    assert attached(block(), None).alpha == 1e-5  # the paper's


# -- the alternatives --------------------------------------------------------------------------------------------------


def test_shape_wise_layers_end_as_smaller_convolutions() -> None:
    model = block()
    pruner = attached(model, alpha=0.0, skeleton="position")
    with torch.no_grad():
        values = pruner.measure.values
        values[:9] = torch.tensor([0.0, 0, 0, 1, 1, 1, 0, 0, 0])
        values[9:18] = torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0, 0])
    plan = pruner.plan()
    small = sc.apply(model, plan)
    assert type(small.stem) is nn.Conv2d
    assert (small.stem.kernel_size, small.stem.padding) == ((1, 3), (0, 1))
    assert (small.a.kernel_size, small.a.padding) == ((1, 1), (0, 0))
    assert sc.verify(model, plan, images(2)) <= 1e-5


@pytest.mark.parametrize("size", [1, 3, WHOLE])
def test_group_lasso_looks_at_norms(size: int) -> None:
    model = block()
    before = State.of(model)
    shared = grouped(model, size)
    norms = Norms(model, KERNELS, shared)
    found = norms.strength()
    before.assert_same(model)
    w = model.a.weight.detach()
    own = shared["a.weight"] if shared else np.arange(8)
    by_hand = torch.cat([w[own == b].square().sum(1).mean(0).sqrt().flatten() for b in range(own.max() + 1)])
    start = 9 * (shared["stem.weight"].max() + 1 if shared else 6)
    torch.testing.assert_close(found[start : start + by_hand.numel()], by_hand / by_hand.mean())
    found.sum().backward()
    assert model.a.weight.grad.abs().sum() > 0
    before = norms.strength().detach()
    model.zero_grad()
    (norms.pull * norms.strength()).sum().backward()
    with torch.no_grad():  # a small step along the penalty's gradient takes the same off all of them
        for name in KERNELS:
            w = model.get_parameter(name)
            w -= 1e-3 * w.grad
    torch.testing.assert_close(before - norms.strength().detach(), torch.full_like(before, 1e-3), rtol=0.01, atol=1e-6)
    some = torch.arange(len(found)) % 2 == 0
    norms.limit_(some, 0.5)
    now = norms.strength().detach()
    torch.testing.assert_close(now[some], (before - 1e-3)[some].clamp(max=0.5), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(now[~some], (before - 1e-3)[~some], rtol=1e-3, atol=1e-4)
    norms.silence_(torch.ones(found.shape, dtype=torch.bool))
    assert (model.a.weight == 0).all()
    model.zero_grad()
    norms.strength().sum().backward()
    assert model.a.weight.grad.isfinite().all()


def test_training_the_skeleton_alone() -> None:
    model = block()
    model.stem.weight.requires_grad_(False)  # the user's own
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    pruner = attached(model, alpha=0.0, train="skeleton", skeleton_lr=0.5)
    train(model, pruner, 8)
    for name in KERNELS:
        assert torch.equal(model.get_parameter(name), first[name]), name
    for name in ("bn1.weight", "fc.weight", "project.weight"):
        assert not torch.equal(model.get_parameter(name), first[name]), name
    assert not torch.equal(pruner.measure.values, torch.ones_like(pruner.measure.values))
    pruner.finish()
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["stem.weight"]


# -- whole runs --------------------------------------------------------------------------------------------------------


def prune(**options: Any) -> sc.Result:
    torch.manual_seed(0)
    model = sc.build("zoo:small_cnn", num_classes=4)
    return sc.prune(
        model, images(1), PFF(epochs=3, **options.pop("method", {})), sc.Budget(macs=0.5), data=batches(),
        progress="silent", **options,
    )  # fmt: skip


def test_in_a_loop_of_ones_own() -> None:
    model = block()
    pruner = attached(model, sc.Budget(macs=0.5), steps=20)
    optimizer = train(model, pruner, 20)
    assert pruner.done
    plan = pruner.plan()
    macs = pruner.task.graph.cost_of(plan).macs
    assert sc.cut_(model, plan, optimizer) is model
    assert sc.count(model, images(1)).macs == macs
    assert any(isinstance(m, StripeConv2d) for m in model.modules())
    F.cross_entropy(model(images()), torch.arange(8) % 4).backward()
    optimizer.step()
    assert len(optimizer.state) == len(list(model.parameters()))


def test_a_copy_that_was_made_meanwhile_is_refused() -> None:
    """An average of the network (EMA) would lack the values that are merged into the network's weights."""
    model = network("residual")
    pruner = sc.attach(model, images(1), PFF(alpha=1e-3), steps=4, epoch_steps=4, data=batches())
    ema = torch.optim.swa_utils.AveragedModel(model)
    train(model, pruner, 4)
    ema.update_parameters(model)
    ema(images(2))  # with the values as they are
    plan = pruner.plan()
    model(images(2))
    with pytest.raises(sc.TrainingError, match=r"made while pff was attached .*\(EMA\), after plan\(\)"):
        ema(images(2))
    sc.cut_(model, plan)
    later = torch.optim.swa_utils.AveragedModel(model)
    assert torch.equal(later.eval()(images(2)), model.eval()(images(2)))


@pytest.mark.parametrize("method", [
    {}, {"live": True}, {"skeleton": "position"}, {"penalty": "group-lasso", "live": True}, {"train": "skeleton"},
])  # fmt: skip
def test_resumed_is_uninterrupted(method: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prune(method=method)
    for at in (1, 7):
        folder = tmp_path / str(at)
        advance = PFFPruner.advance

        def dying(self: PFFPruner, at: int = at, advance: Any = advance) -> None:
            advance(self)
            if self.steps == at + 1:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(PFFPruner, "advance", dying)
            with pytest.raises(KeyboardInterrupt):
                prune(method=method, folder=folder, save_steps=1)
        again = prune(method=method, folder=folder, save_steps=1, resume=True)
        assert again.plan.to_json() == whole.plan.to_json()
        for key, value in whole.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[key], value), key


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(sc.ConfigError, match="no convolution that stripes can be cut from"):
        sc.prune(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                 images(1), "pff", sc.Budget(macs=0.5), data=batches())  # fmt: skip
    with pytest.raises(sc.ConfigError, match=r"PFF\(train='skeleton'\) requires PFF\(penalty='skeleton'\)"):
        prune(method={"penalty": "group-lasso", "train": "skeleton"})
    for bad in ({"delta": 0}, {"alpha": -1}, {"skeleton": "filter"}, {"arrive": 0}):
        with pytest.raises(sc.ConfigError, match="settings are"):
            PFF(**bad)
    with pytest.raises(sc.ConfigError, match="pass data="):
        sc.prune(block(), images(1), "pff", sc.Budget(macs=0.5))


# -- blocks of filters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["skeleton", "group-lasso"])
def test_blocks_keep_the_same_positions(penalty: str) -> None:
    model = block()
    pruner = attached(model, sc.Budget(macs=0.5), steps=40, block=3, penalty=penalty)
    own = pruner.stripes.blocks
    assert own is not None
    assert sorted(np.bincount(own["a.weight"])) == [2, 3, 3]
    train(model, pruner, 40)
    plan = pruner.plan()
    graph = pruner.task.graph
    assert sc.verify(model, plan, images(2)) <= 1e-5
    assert sc.count(sc.apply(model, plan), images(1)) == graph.cost_of(plan)
    assert graph.cost_of(plan).macs <= 0.5 * graph.cost().macs
    shapes = 0
    for name, (o, h, w) in KERNELS.items():
        kept = torch.zeros(o, h * w, dtype=torch.bool)
        kept.view(-1)[list(plan.stripes.get(name, range(o * h * w)))] = True
        for b in range(int(own[name].max()) + 1):
            inside = kept[torch.from_numpy(own[name] == b)]
            inside = inside[inside.any(1)]  # a filter may have gone with its channel
            assert (inside == inside[:1]).all(), (name, b)
            shapes += bool(len(inside)) and not bool(inside.all())
    assert shapes > 3


def test_a_run_with_blocks_resumes() -> None:
    def run(stop: int | None) -> sc.Plan:
        model = block()
        pruner = attached(model, sc.Budget(macs=0.5), steps=24, block=3)
        if stop is None:
            train(model, pruner, 24)
            return pruner.plan()
        optimizer = train(model, pruner, stop)
        again = block()
        resumed = attached(again, sc.Budget(macs=0.5), steps=24, block=3)
        again.load_state_dict(model.state_dict())
        resumed.load(copy.deepcopy(pruner.state()))
        for name, (_, own) in resumed.networks.items():
            own.load_state_dict(pruner.networks[name][1].state_dict())
        other = torch.optim.SGD(again.parameters(), 0.05, momentum=0.9)
        other.load_state_dict(optimizer.state_dict())
        again.train()
        for i in range(stop, 24):
            x, y = batches()[i % 4]
            (F.cross_entropy(again(x), y) + resumed.penalty()).backward()
            other.step()
            other.zero_grad()
            resumed.step()
        return resumed.plan()

    whole = run(None)
    assert run(1) == whole
    assert run(8) == whole


def test_blocks_are_of_similar_filters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 10, 3, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(0.01)
        model[0].weight[::2, :, 0] = 1  # the even filters see the first row, the odd ones the last column
        model[0].weight[1::2, :, :, 2] = 1
    own = blocks(model, ["0.weight"], 5)["0.weight"]
    assert len(set(own[::2])) == len(set(own[1::2])) == 1
    assert own[0] != own[1]
    assert np.bincount(blocks(model, ["0.weight"], 4)["0.weight"]).tolist() == [4, 4, 2]


def test_blocks_by_position_are_refused() -> None:
    with pytest.raises(sc.ConfigError, match=r"block=4.* requires .*skeleton"):
        sc.prune(block(), images(1), PFF(block=4, skeleton="position"), sc.Budget(macs=0.5), data=batches())
