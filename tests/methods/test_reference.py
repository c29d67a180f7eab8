"""Criteria against references in float64 on a network with every kind of layer, and what must not matter to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task
from secateurs.methods.registry import resolve

N, SIZE = 24, 6
NEW = ("group-l1", "group-l2", "lamp", "fpgm", "coring", "variance", "fisher", "group-taylor", "damage")
BY_DATA = ("variance", "fisher", "group-taylor", "damage")
UNLABELED = ("group-l1", "group-l2", "lamp", "fpgm", "coring", "variance", "damage")


class Mixed(nn.Module):
    """A sum, a grouped and a depthwise convolution, a transposed one, and a linear layer that reads every position; no norms
    where `norms` is False."""

    def __init__(self, norms: bool) -> None:
        super().__init__()
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d if norms else lambda n: nn.Identity()
        self.a, self.na = nn.Conv2d(3, 8, 3, padding=1), norm(8)
        self.b, self.nb = nn.Conv2d(8, 8, 1), norm(8)
        self.grouped, self.ng = nn.Conv2d(8, 12, 3, padding=1, groups=2), norm(12)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12, padding=1)
        self.up = nn.ConvTranspose2d(12, 5, 2, stride=2)
        self.fc, self.out = nn.Linear(5 * 9, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.na(self.a(x)))
        x = F.relu(x + self.nb(self.b(x)))
        x = F.relu(self.ng(self.grouped(x)))
        x = F.relu(self.up(F.relu(self.depthwise(x))))
        x = F.adaptive_avg_pool2d(x, 3)
        return self.out(F.relu(self.fc(x.flatten(1))))


def model(norms: bool = True) -> Mixed:
    torch.manual_seed(0)
    found = Mixed(norms)
    with torch.no_grad():
        for module in found.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return found.eval()


def batches(labels: bool = True) -> list[Any]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(N, 3, SIZE, SIZE, generator=g)
    y = torch.randint(3, (N,), generator=g)
    return [(x[i : i + 8], y[i : i + 8]) if labels else x[i : i + 8] for i in range(0, N, 8)]


def task(net: nn.Module, labels: bool = True) -> Task:
    x = torch.zeros(1, 3, SIZE, SIZE)
    return Task(
        net, sc.trace(net, x), sc.Budget(macs=0.5), "all", data=sc.Data(train=batches(labels)), example_inputs=x
    )


def scores(method: str | Criterion, t: Task) -> dict[str, Tensor]:
    found: dict[str, Tensor] = resolve(method).scores(t)  # type: ignore[attr-defined]
    return found


def together() -> tuple[Tensor, Tensor]:
    x, y = zip(*batches(), strict=True)
    return torch.cat(x).double(), torch.cat(y)


# -- weights -----------------------------------------------------------------------------------------------------------


def group_magnitude(net: Mixed, p: int) -> dict[str, Tensor]:
    """By layer, as one would write it down for this network."""
    w = {name: (x.double().abs() ** p).detach() for name, x in net.named_parameters()}
    halves = (
        torch.arange(12).view(2, 6).T
    )  # the grouped convolution's channels are cut in pairs, if the next one reads both
    assert halves.shape == (6, 2)
    norm = {name: w.get(f"{name}.weight", torch.zeros(())) for name in ("na", "nb", "ng")}
    a = (
        w["a.weight"].sum((1, 2, 3))
        + w["b.weight"].sum((1, 2, 3))
        + w["b.weight"].sum((0, 2, 3))
        + norm["na"]
        + norm["nb"]
    )
    reads = w["grouped.weight"].sum((0, 2, 3))  # (4,): both of its groups read the k-th channel of their half
    a = (a[:4] + a[4:]) + reads
    g = (
        w["grouped.weight"].sum((1, 2, 3))
        + norm["ng"]
        + w["depthwise.weight"].sum((1, 2, 3))
        + w["up.weight"].sum((1, 2, 3))
    )
    g = g[:6] + g[6:]
    up = w["up.weight"].sum((0, 2, 3)) + w["fc.weight"].view(6, 5, 9).sum((0, 2))
    fc = w["fc.weight"].sum(1) + w["out.weight"].sum(0)
    return {"a": a, "grouped": g, "up": up, "fc": fc}


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("p", [1, 2])
def test_group_magnitudes(p: int, norms: bool) -> None:
    net = model(norms)
    found, wanted = scores(f"group-l{p}", task(net)), group_magnitude(net, p)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(found[name].double(), values, rtol=1e-5, atol=1e-6)


def test_lamp_is_a_share_of_the_larger() -> None:
    net = model()
    found = scores("lamp", task(net))
    for name, squares in group_magnitude(net, 2).items():
        wanted = [float(s / squares[squares >= s].sum()) for s in squares]
        assert found[name].tolist() == pytest.approx(wanted, rel=1e-5)
        assert found[name].max() == 1


def test_lamp_of_equal_and_of_dead_channels() -> None:
    from secateurs.methods.group_norms import relative_to_larger

    assert relative_to_larger(torch.tensor([2.0, 2, 2])).tolist() == pytest.approx([1 / 3, 1 / 2, 1])
    assert relative_to_larger(torch.zeros(3)).tolist() == [0, 0, 0]


def test_fpgm_is_the_sum_of_distances() -> None:
    net = model()
    found = scores("fpgm", task(net))["fc"]
    w = net.fc.weight.detach().double()
    assert found.tolist() == pytest.approx([sum(float((u - v).norm()) for v in w) for u in w])
    # Of coupled layers, distances are those of all filters of a channel together.
    rows = torch.cat([net.a.weight.detach().flatten(1), net.b.weight.detach().flatten(1)], 1).double()
    rows = torch.cat([rows[:4], rows[4:]], 1)
    wanted = [sum(float((u - v).norm()) for v in rows) for u in rows]
    assert scores("fpgm", task(net))["a"].tolist() == pytest.approx(wanted)


def test_fpgm_of_duplicates() -> None:
    """Duplicates score the same, and 0 where there is nothing else; large norms make no difference."""
    net = model()
    with torch.no_grad():
        net.fc.weight[1:] = net.fc.weight[0] + 100
        net.fc.weight[0] += 100
    assert scores("fpgm", task(net))["fc"].tolist() == [0] * 6
    with torch.no_grad():
        net.fc.weight[5] += 1
    found = scores("fpgm", task(net))["fc"]
    assert found[:5].tolist() == [found[0]] * 5
    assert 0 < found[0] < found[5]


def overlap(one: np.ndarray, other: np.ndarray, rank: int) -> float:
    """The similarity of two filters, written out: their HOSVDs axis by axis."""
    found = []
    for axis in range(one.ndim):
        u, v = (
            np.linalg.svd(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1), full_matrices=False)[0][:, :rank]
            for w in (one, other)
        )
        found.append(float(np.trace(u @ u.T @ v @ v.T)) / u.shape[1])
    return float(np.mean(found))


@pytest.mark.parametrize("rank", [1, 2])
def test_coring_is_how_unlike_a_filter_is_to_the_others(rank: int) -> None:
    net = model()
    found = scores(sc.CORING(rank=rank), task(net))

    def wanted(*layers: Tensor) -> list[float]:
        tensors = [[w.numpy() for w in layer.detach().double()] for layer in layers]
        n = len(tensors[0])
        pairs = [[float(np.mean([overlap(t[i], t[j], rank) for t in tensors])) for j in range(n)] for i in range(n)]
        return [1 - (sum(row) - row[i]) / (n - 1) for i, row in enumerate(pairs)]

    assert found["fc"].tolist() == pytest.approx(wanted(net.fc.weight))
    assert found["up"].tolist() == pytest.approx(wanted(net.up.weight.movedim(1, 0)))
    assert (found["fc"] > 0).all()
    assert (found["fc"] <= 1).all()


def test_coring_does_not_depend_on_norms_and_cuts_copies_first() -> None:
    net = model()
    before = scores("coring", task(net))["fc"]
    with torch.no_grad():
        net.fc.weight.mul_(torch.tensor([-3.0, 0.1, 1, -1, 7, 2])[:, None])
    assert scores("coring", task(net))["fc"].tolist() == pytest.approx(before.tolist())
    with torch.no_grad():
        net.fc.weight[2] = -2 * net.fc.weight[4]
    assert set(scores("coring", task(net))["fc"].argsort()[:2].tolist()) == {2, 4}
    with torch.no_grad():
        net.fc.weight[0] = 0
    found = scores("coring", task(net))["fc"]
    assert found.argmin() == 0
    assert found[0] == 0


# -- activations and gradients -----------------------------------------------------------------------------------------


def reads(net: Mixed, x: Tensor) -> dict[str, Tensor]:
    """What each group's only or first reader reads: (N, C, positions) in float64."""
    seen: dict[str, Tensor] = {}
    names = {net.fc: "up", net.out: "fc", net.up: "grouped"}
    handles = [m.register_forward_pre_hook(lambda m, a: seen.__setitem__(names[m], a[0])) for m in names]
    net(x)
    for handle in handles:
        handle.remove()
    return {"up": seen["up"].view(N, 5, 9), "fc": seen["fc"][..., None], "grouped": seen["grouped"].flatten(2)}


@pytest.mark.parametrize("norms", [True, False])
def test_variance_of_what_is_read(norms: bool) -> None:
    net = model(norms)
    found = scores("variance", task(net))
    seen = reads(net.double(), together()[0])
    for name in ("fc", "grouped"):  # pairs of the grouped convolution are averaged
        values = seen[name].transpose(0, 1).flatten(1).var(1, correction=0)
        values = values.view(2, 6).mean(0) if name == "grouped" else values
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-7)
    each = seen["up"].var(0, correction=0).mean(1)  # a position of a flattened map is an input of its own
    torch.testing.assert_close(found["up"], each, rtol=1e-4, atol=1e-7)


def test_variance_does_not_hang_on_how_examples_are_batched_nor_on_their_mean() -> None:
    net = model()
    t = task(net)
    whole = sc.Data(train=[tuple(torch.cat(x) for x in zip(*batches(), strict=True))])
    one = scores("variance", replace(t, data=whole))
    for name, values in scores("variance", t).items():
        torch.testing.assert_close(values, one[name])
    with torch.no_grad():
        net.out.bias += 1  # reads nothing of it
        net.fc.bias += 1000  # every activation is above zero, and far from it
    assert float(scores("variance", task(net))["fc"].max()) < 10


@pytest.mark.parametrize("norms", [True, False])
def test_fisher_is_the_mean_square_of_each_examples_gate_gradient(norms: bool) -> None:
    net = model(norms)
    found = scores("fisher", task(net))
    net, (x, y) = net.double(), together()
    total = torch.zeros(6, dtype=torch.float64)
    for i in range(N):
        gate = torch.ones(6, dtype=torch.float64, requires_grad=True)
        hook = net.out.register_forward_pre_hook(lambda m, a, gate=gate: (a[0] * gate,))
        total += torch.autograd.grad(F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), gate)[0].square()
        hook.remove()
    torch.testing.assert_close(found["fc"], total, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("norms", [True, False])
def test_group_taylor_is_the_sum_over_weights(norms: bool) -> None:
    net = model(norms)
    found = scores("group-taylor", task(net))
    net, (x, y) = net.double(), together()
    F.cross_entropy(net(x), y, reduction="sum").backward()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((p * p.grad).abs())
    for name, values in group_magnitude(net, 1).items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-6)


# -- what holds for all of them ----------------------------------------------------------------------------------------


def permuted(net: Mixed, order: Tensor) -> Mixed:
    """The same function with the hidden units of `fc` in another order."""
    with torch.no_grad():
        net.fc.weight.copy_(net.fc.weight[order])
        net.fc.bias.copy_(net.fc.bias[order])
        net.out.weight.copy_(net.out.weight[:, order])
    return net


@pytest.mark.parametrize("method", NEW)
def test_the_order_of_channels_does_not_matter(method: str) -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    before, after = scores(method, task(model())), scores(method, task(permuted(model(), order)))
    torch.testing.assert_close(after["fc"], before["fc"][order], rtol=1e-4, atol=1e-7)
    for name in ("a", "grouped", "up"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("method", NEW)
def test_every_kind_of_layer(method: str, norms: bool) -> None:
    """Scores for every group, finite and not all equal, and the network as it was."""
    net = model(norms)
    state = {name: x.clone() for name, x in net.state_dict().items()}
    for name, values in scores(method, task(net)).items():
        assert values.isfinite().all(), name
        assert len(values.unique()) > 1, name
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("method", UNLABELED)
def test_labels_are_not_needed_where_they_are_not_read(method: str) -> None:
    net, x = model(), torch.zeros(1, 3, SIZE, SIZE)
    data = sc.Data(train=batches(labels=False)) if method in BY_DATA else None
    result = sc.prune(net, x, method, sc.Budget(macs=0.6), data, scope="all", progress="silent")
    assert result.after.macs <= 0.6 * result.before.macs


@pytest.mark.parametrize("method", BY_DATA)
def test_data_is_asked_for(method: str) -> None:
    with pytest.raises(sc.ConfigError, match=rf"{method} runs the network on examples: pass data="):
        sc.prune(model(), torch.zeros(1, 3, SIZE, SIZE), method, sc.Budget(macs=0.6), scope="all")
