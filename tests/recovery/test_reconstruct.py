"""Reconstruction: least squares, layers as linear maps, networks that run in step, the phase as a whole."""

from __future__ import annotations

import copy
import json
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sc
import secateurs.recovery as R
from secateurs.recovery.reconstruct.equations import Moments, Rows
from secateurs.recovery.reconstruct.layers import Geometry, sampled
from secateurs.recovery.reconstruct.lockstep import Coroutine
from secateurs.recovery.reconstruct.run import reconstruct_
from secateurs.recovery.reconstruct.walk import Targets, Walk
from secateurs.stripes import StripeConv2d

QUIET: dict[str, Any] = {"progress": "silent", "device": "cpu"}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- least squares -------------------------------------------------------------------------------------------------------


def ridge(x: Tensor, y: Tensor, old: Tensor, strength: float, free: int) -> Tensor:
    """The same problem as one call of lstsq: the penalty as further rows."""
    n = x.shape[1]
    scale = strength * x[:, : n - free].square().sum() / (n - free)
    penalty = torch.eye(n, dtype=x.dtype)[: n - free] * scale.sqrt()
    return (
        old
        + torch.linalg.lstsq(
            torch.cat([x, penalty]), torch.cat([y - x @ old, torch.zeros(n - free, y.shape[1])])
        ).solution
    )


@pytest.mark.parametrize("kind", [Moments, Rows])
@pytest.mark.parametrize(("samples", "inputs"), [(50, 7), (6, 20)])
@pytest.mark.parametrize("free", [0, 1])
def test_both_forms_solve_what_lstsq_solves(kind: type, samples: int, inputs: int, free: int) -> None:
    x, y, old = (
        normal(*s, seed=i).double() for i, s in enumerate([(2, samples, inputs), (2, samples, 3), (2, inputs, 3)])
    )
    if free:
        x[:, :, -1] = 1
    equations = Moments(2, inputs, 3, free) if kind is Moments else Rows(free)
    for part in range(0, samples, 4):  # batch by batch
        equations.add(x[:, part : part + 4], y[:, part : part + 4])
    found = equations.solve(old, 0.01)
    for g in range(2):
        assert torch.allclose(found[g], ridge(x[g], y[g], old[g], 0.01, free), atol=1e-9)
    assert torch.allclose(equations.loss(found), (x @ found - y).square().sum(1), atol=1e-9)
    assert torch.allclose(equations.spread(), (y - y.mean(1, keepdim=True)).square().sum(1), atol=1e-9)


def test_a_problem_without_a_solution_is_nan() -> None:
    equations = Moments(1, 3, 1)
    equations.add(torch.full((1, 5, 3), torch.nan), torch.zeros(1, 5, 1))
    assert equations.solve(torch.zeros(1, 3, 1).double(), 1e-3).isnan().all()


# -- layers --------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    axes=st.integers(1, 3), groups=st.integers(1, 3), each=st.integers(1, 3), outs=st.integers(1, 3), data=st.data(),
    transposed=st.booleans(),
)  # fmt: skip
def test_a_convolution_is_a_matrix_product_at_each_position(
    axes: int, groups: int, each: int, outs: int, data: Any, transposed: bool
) -> None:
    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.tuples(*[st.integers(low, high)] * axes)))

    kernel, stride, dilation, padding = sizes(1, 3), sizes(1, 2), sizes(1, 2), sizes(0, 1)
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{axes}d")
    conv = kind(groups * each, groups * outs, kernel, stride, padding, groups=groups, dilation=dilation, bias=False)
    x = normal(2, groups * each, *(5 + s for s in sizes(0, 2)))
    try:
        with torch.no_grad():
            y = conv(x)
    except RuntimeError:  # the kernel is larger than the input
        return
    geometry = Geometry(groups, kernel, stride, padding, dilation, transposed)
    total = y[0, 0].numel()
    at = torch.randint(total, (2, 4), generator=torch.Generator().manual_seed(0))
    rows = geometry.read(x, at, y.shape[2:])  # (G, N · P, n)
    matrix = geometry.matrix(conv.weight.detach())  # (G, O / G, n)
    expected = sampled(y, at).view(8, groups, outs).transpose(0, 1)
    assert torch.allclose(rows @ matrix.mT, expected, atol=1e-5)
    assert torch.equal(geometry.weight(matrix, conv.weight), conv.weight)


# -- coroutines ----------------------------------------------------------------------------------------------------------


def test_coroutines_run_one_at_a_time_and_pass_on_errors() -> None:
    told: list[Any] = []

    def work(name: str, run: Coroutine) -> None:
        for i in range(2):
            told.append((name, i))
            run.pause((name, i))
        if name == "b":
            raise ValueError("b fails")

    a, b = (Coroutine(lambda run, n=n: work(n, run)) for n in "ab")  # type: ignore[misc]
    assert [a.resume(), b.resume(), a.resume(), b.resume()] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert told == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert a.resume() is None
    with pytest.raises(ValueError, match="b fails"):
        b.resume()


def test_an_abandoned_coroutine_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    run = Coroutine(lambda run: run.pause(1))
    run.resume()
    run.close()
    assert threading.active_count() == before


# -- networks ------------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two layers of any kind; channel 3 of the first is a linear combination of the others."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        with torch.no_grad():
            for p in first.parameters():
                axis = 1 if isinstance(first, nn.modules.conv._ConvTransposeNd) and p.ndim > 1 else 0
                q = p.movedim(axis, 0)
                q[3] = 0.5 * q[0] - 2 * q[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


NETWORKS: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 6), nn.Linear(6, 3), (5,)),
    "linear over tokens": (nn.Linear(5, 6), nn.Linear(6, 3, bias=False), (4, 5)),
    "2-d": (nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 3, 3, bias=False), (2, 7, 7)),
    "2-d, strided and dilated": (nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 3, 2, 1, 2), (2, 9, 9)),
    "1-d": (nn.Conv1d(2, 6, 3, bias=False), nn.Conv1d(6, 3, 3), (2, 12)),
    "3-d": (nn.Conv3d(1, 6, 1), nn.Conv3d(6, 3, (2, 1, 2)), (1, 3, 4, 4)),
    "reflected padding": (nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect"), (2, 7, 7)),
    "transposed": (nn.ConvTranspose2d(2, 6, 2, 2), nn.ConvTranspose2d(6, 3, 3, 2, 1), (2, 4, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_channel_that_the_others_span_is_recovered(name: str) -> None:
    torch.manual_seed(0)
    first, second, shape = NETWORKS[name]
    model = Two(copy.deepcopy(first), copy.deepcopy(second)).eval()
    x = normal(64, *shape)
    graph = sc.trace(model, x[:2])
    group = next(g.name for g in graph.groups if g.size == 6)
    plan = graph.plan({group: [0, 1, 2, 4, 5]})
    small = sc.apply(model, plan)
    given = copy.deepcopy(model.state_dict())
    found = reconstruct_(small, model, plan, [x], positions=20, ridge=1e-10, seed=0)
    with torch.no_grad():
        error = (small(x) - model(x)).norm() / model(x).norm()
    assert error < 1e-5
    (layer,) = found.values()
    assert layer.before > 0.01
    assert layer.after < 1e-8
    assert all(torch.equal(v, given[k]) for k, v in model.state_dict().items())


def test_a_grouped_convolution_solves_each_group() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 4, 3, groups=2)
    model = nn.Sequential(first, second).eval()
    with torch.no_grad():
        for p in first.parameters():  # the last channel that each group reads
            p[3], p[7] = p[0] - p[1], 2 * p[5] + p[6]
    x = normal(64, 2, 8, 8)
    graph = sc.trace(model, x[:2])
    plan = graph.plan({graph.groups[0].name: [0, 1, 2]})
    small = sc.apply(model, plan)
    reconstruct_(small, model, plan, [x], positions=20, ridge=1e-10, seed=0)
    with torch.no_grad():
        assert torch.allclose(small(x), model(x), atol=1e-4)


def test_more_inputs_than_samples() -> None:
    """The dual: 12 samples are fitted, and only along what they span."""
    torch.manual_seed(0)
    model = Two(nn.Linear(80, 40), nn.Linear(40, 3)).eval()
    x = normal(6, 80)
    graph = sc.trace(model, x[:2])
    plan = graph.plan({next(g.name for g in graph.groups if g.size == 40): range(2, 40)})
    small = sc.apply(model, plan)
    before = copy.deepcopy(small.second.weight.detach())
    reconstruct_(small, model, plan, [x], positions=12, ridge=1e-9, seed=0)
    with torch.no_grad():
        assert torch.allclose(small(x), model(x), atol=1e-4)
        change = small.second.weight - before
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 3


def test_stripes_are_solved_over_the_positions_that_each_filter_keeps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()
    x = normal(64, 2, 8, 8)
    graph = sc.trace(model, x[:2])
    kept = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.6
    kept[1] = kept[0]  # two filters with the same positions
    plan = graph.plan({graph.groups[0].name: [0, 1, 2, 4]}, stripes={"2.weight": kept.numpy()})
    small = sc.apply(model, plan)
    assert isinstance(small[2], StripeConv2d)
    reconstruct_(small, model, plan, [x], positions=64, ridge=1e-9, seed=0)
    with torch.no_grad():
        hidden = F.relu(small[0](x))
        patches = F.unfold(hidden, 3, padding=1).transpose(1, 2).reshape(-1, 4, 9)
        wanted = model(x).flatten(2).transpose(1, 2).reshape(-1, 4)
        ones = torch.ones(len(patches), 1)
        for o in range(4):
            inputs = torch.cat([patches[:, :, kept[o].flatten()].flatten(1), ones], 1)
            best = torch.linalg.lstsq(inputs.double(), wanted[:, o : o + 1].double()).solution
            found = small(x)[:, o].flatten()
            assert torch.allclose(found, (inputs.double() @ best)[:, 0].float(), atol=2e-3)


class Residual(nn.Module):
    def __init__(self, blocks: int = 4, width: int = 8, hidden: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Block(width, hidden) for _ in range(blocks)))
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


def residual(seed: int = 0) -> tuple[nn.Module, sc.Plan, Tensor]:
    """A network with statistics of its own, a plan that cuts half of each block, and images."""
    torch.manual_seed(seed)
    model = Residual()
    x = normal(256, 3, 10, 10, seed=seed)
    with torch.no_grad():
        for part in x.split(64) * 4:
            model(part)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(0.5 + torch.rand(len(m.weight)))
                m.bias.normal_(0, 0.3)
    graph = sc.trace(model.eval(), x[:2])
    return model, graph.plan({g.name: range(6) for g in graph.groups if g.size == 12 and g.prunable}), x


class Projected(nn.Module):
    """As in torchvision: the projection of the shortcut runs last, so that it can correct what the block misses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Block(8, 12)
        self.down, self.norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.block.bn1(self.block.conv1(x))
        y = self.block.bn2(self.block.conv2(F.relu(y)))
        y += self.norm(self.down(x))
        return y


def test_of_two_summands_the_later_corrects_the_earlier() -> None:
    torch.manual_seed(0)
    model, x = Projected(), normal(128, 3, 8, 8)
    with torch.no_grad():
        model(x)
        model.eval()
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(0.5 + torch.rand(len(m.weight)))
    graph = sc.trace(model, x[:2])
    plan = graph.plan({g.name: range(g.size // 2) for g in graph.groups if g.prunable})
    assert {"down.weight", "block.conv2.weight"} <= plan.kept.keys()
    small = sc.apply(model, plan).eval()
    found = reconstruct_(small, model, plan, [x], positions=64, ridge=1e-6, seed=0)
    assert list(found) == ["block.conv1.weight", "block.conv2.weight", "down.weight"]
    # The block cannot be improved by what the projection reads, once the projection has been solved for the sum.
    with torch.no_grad():
        left = (small(x) - model(x)).movedim(1, 0).flatten(1)  # (8, n)
        read = F.relu(small.stem(x)).movedim(1, 0).flatten(1)
        read = torch.cat([read, torch.ones(1, read.shape[1])])
        explained = torch.linalg.lstsq(read.T, left.T).solution.T @ read
    assert explained.norm() < 0.02 * left.norm()


def error(small: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - model(x)).norm() / model(x).norm())


def test_what_the_shortcut_carries_is_compensated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan, x = residual()
    new = normal(128, 3, 10, 10, seed=9)
    cut = sc.apply(model, plan).eval()
    small, plain = copy.deepcopy(cut), copy.deepcopy(cut)
    reconstruct_(small, model, plan, [x], positions=50, ridge=1e-3, seed=0)
    monkeypatch.setattr(Targets, "before_norm", lambda self, other: torch.zeros_like(other))
    reconstruct_(plain, model, plan, [x], positions=50, ridge=1e-3, seed=0)
    assert error(small, model, new) < 0.9 * error(plain, model, new) < 0.9 * error(cut, model, new)


def test_statistics_are_exact_for_the_images() -> None:
    model, plan, x = residual()
    small = sc.apply(model, plan).eval()
    reconstruct_(small, model, plan, [x[:100], x[100:]], positions=12, ridge=1e-3, seed=0)
    seen: dict[str, Tensor] = {}
    for name, m in small.named_modules():
        if isinstance(m, nn.BatchNorm2d):
            m.register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0]}))
    with torch.no_grad():
        small(x)
    for name, m in small.named_modules():
        if isinstance(m, nn.BatchNorm2d) and name not in ("norm", "blocks.0.bn1"):  # which no cut reaches
            rows = seen[name].transpose(0, 1).flatten(1).double()
            assert torch.allclose(m.running_mean.double(), rows.mean(1), atol=1e-5)
            assert torch.allclose(m.running_var.double(), rows.var(1), rtol=1e-4)


def test_prune_reconstructs_without_labels_and_says_so() -> None:
    model, _, x = residual()
    data = sc.Data(train=list(x.split(64)))
    recover = [sc.Reconstruct(images=200), sc.Mimic(steps=1, steps_per_epoch=1)]
    results = [sc.prune(model, x[:2], "l2", sc.Budget(macs=0.6), data, recover[:n], **QUIET) for n in (1, 1, 2)]
    first, again, longer = results
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    )
    told = next(h for h in first.history if h.get("event") == "reconstructed")
    assert told["images"] == 200
    assert [layer["weight"] for layer in told["layers"]] == [f"blocks.{i}.conv2.weight" for i in range(4)]
    assert all(layer["after"] <= layer["before"] for layer in told["layers"])
    assert longer.history[-1]["epoch"] == 1
    calibrated = sc.prune(model, x[:2], "l2", sc.Budget(macs=0.6), data, **QUIET).model
    new = normal(128, 3, 10, 10, seed=9)
    assert error(first.model, model, new) < error(calibrated, model, new)


def test_images_of_several_sizes() -> None:
    torch.manual_seed(0)
    model = Two(nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 3, 3, bias=False)).eval()
    batches = [normal(32, 2, *size, seed=i) for i, size in enumerate([(7, 7), (12, 5), (6, 9)])]
    graph = sc.trace(model, batches[0][:2])
    plan = graph.plan({next(g.name for g in graph.groups if g.size == 6): [0, 1, 2, 4, 5]})
    small = sc.apply(model, plan)
    reconstruct_(small, model, plan, batches, positions=8, ridge=1e-10, seed=0)
    assert all(error(small, model, x) < 1e-5 for x in batches)


def test_inputs_that_are_of_all_images() -> None:
    """A temperature, a step of diffusion: tensors without an axis of images."""

    class Scaled(Two):
        def forward(self, scale: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x * scale)

    torch.manual_seed(0)
    model = Scaled(nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 3, 3, bias=False)).eval()
    scale, images = torch.tensor(0.5), normal(64, 2, 7, 7)
    graph = sc.trace(model, (scale, images[:2]))
    small, losses = sc.apply(model, plan := graph.plan({graph.groups[0].name: [0, 1, 2, 4, 5]})), []
    for _ in range(2):
        with torch.no_grad():
            losses.append(float(F.mse_loss(small(scale, images), model(scale, images))))
        reconstruct_(small, model, plan, [(scale, images)], positions=8, ridge=1e-6, seed=0)
    assert losses[1] < 0.5 * losses[0]


class Picks(nn.Module):
    """Takes four positions of each image by their scores, as detectors take boxes, in one of two ways."""

    def __init__(self, sorts: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.score = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.head, self.sorts = nn.Linear(8, 3), sorts

    def forward(self, images: list[Tensor]) -> Tensor:
        x = F.relu(self.norm(self.conv(torch.stack(images))))  # (N, 8, H, W)
        score = self.score(x).flatten(2)  # (N, 4, positions)
        order = score.sum(1).topk(4).indices if self.sorts else score.argmax(2)
        rows = x.flatten(2).transpose(1, 2)  # (N, positions, 8)
        return self.head(rows[torch.arange(len(rows))[:, None], order])


@pytest.mark.parametrize("sorts", [True, False])
def test_images_in_lists_and_rows_that_are_picked_by_values(sorts: bool) -> None:
    """Other rows are picked in the cut network, so that the original's outputs are no targets."""
    torch.manual_seed(0)
    model = Picks(sorts).eval()
    data = [(normal(9, 2, 7, 7, seed=i), torch.zeros(9)) for i in range(4)]
    result = sc.prune(
        model, ([*data[0][0][:2]],), "l2", recover=sc.Reconstruct(images=36), data=data, ratios={"conv": 0.5},
        forward=lambda net, batch: (net([*batch[0]]), batch[1]), progress="silent",
    )  # fmt: skip
    (found,) = [h for h in result.history if h["event"] == "reconstructed"]
    assert (found["images"], [layer["weight"] for layer in found["layers"]]) == (36, ["score.weight"])
    assert found["layers"][0]["after"] < found["layers"][0]["before"]


class Keeps(Residual):
    """Holds activations: in variables, in an attribute, and as its output."""

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.norm(self.stem(x)))
        self.last = y
        held = [y]
        for block in self.blocks:
            held.append(block(held[-1]))
        return self.fc(held[-1].mean((2, 3))), held[1].transpose(2, 3)


def test_activations_are_freed_once_nothing_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Keeps().eval()
    x = normal(96, 3, 10, 10)
    graph = sc.trace(model, x[:2])
    plan = graph.plan({g.name: range(6) for g in graph.groups if g.size == 12 and g.prunable})
    most: list[int] = []
    settle = Walk._settle

    def watched(self: Walk, norm: Any) -> None:
        most.append(sum({s._cdata: s.nbytes() for s in (x.untyped_storage() for x in seen if x.ndim == 4)}.values()))
        settle(self, norm)

    seen: list[Tensor] = []
    small, plain = sc.apply(model, plan).eval(), sc.apply(model, plan).eval()
    for block in small.blocks:
        block.register_forward_hook(lambda m, args, out: seen.append(out))
    with monkeypatch.context() as m:
        m.setattr(Walk, "_settle", watched)
        reconstruct_(small, model, plan, [x], positions=12, ridge=1e-3, seed=0)
    block = 4 * 96 * 8 * 100
    assert 0 < most[-1] <= 2.1 * block  # of four: what the network returns, and what the last block reads
    monkeypatch.setattr("secateurs.recovery.reconstruct.walk.LARGE", 1 << 40)
    reconstruct_(plain, model, plan, [x], positions=12, ridge=1e-3, seed=0)
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in small.state_dict().items())
    assert small.last.abs().sum() > 0
    assert all(torch.isfinite(x.sum()) for x in seen)  # they have their memory again


def test_layers_that_cannot_be_solved_keep_their_weights() -> None:
    model, plan, x = residual()
    small = sc.apply(model, plan).eval()
    with torch.no_grad():
        model.blocks[0].conv2.weight[0] = torch.inf  # the targets are not finite
    before = copy.deepcopy(small.state_dict())
    (told,) = R.recover(small, [x], sc.Reconstruct(images=64), teacher=model, plan=plan, **QUIET)
    assert not any(layer["solved"] for layer in told["layers"])
    json.dumps(told, allow_nan=False)
    assert all(v.isfinite().all() for v in small.state_dict().values())
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items() if k.endswith("weight"))


class Depends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return self.third(y) + self.second(y) if x.mean() < 5 else self.third(y)


def test_layers_that_depend_on_the_images_are_an_error() -> None:
    model = Depends().eval()
    x = torch.cat([normal(32, 4), 100 + normal(32, 4), normal(32, 4)])
    graph = sc.trace(model, x[:32])
    plan = graph.plan({graph.groups[0].name: range(4)})
    with pytest.raises(sc.ConfigError, match="same layers for all images"):
        reconstruct_(sc.apply(model, plan), model, plan, [x], positions=1, ridge=1e-3, seed=0)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"images": 1}, "images"),
        ({"positions": 0}, "positions"),
        ({"ridge": 0}, "ridge"),
        ({"epochs": 3}, "not a valid setting"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(sc.ConfigError, match=match):
        sc.Reconstruct(**wrong)


def test_recover_alone_needs_the_original_and_the_plan() -> None:
    model, plan, x = residual()
    small = sc.apply(model, plan)
    with pytest.raises(sc.ConfigError, match="plan"):
        R.recover(small, [x], sc.Reconstruct(), teacher=model, **QUIET)
