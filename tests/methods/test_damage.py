"""Least-squares damage against least squares solved anew for every selection."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods.damage import Damage, inputs
from secateurs.methods.damage.removal import System, greedy
from secateurs.methods.method import Task

M = 200


def samples(n: int, seed: int = 0) -> Tensor:
    """(M, n): correlated, and not centered."""
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(M, n, generator=g, dtype=torch.float64) @ torch.randn(n, n, generator=g, dtype=torch.float64)
    return mixed + torch.randn(n, generator=g, dtype=torch.float64)


def weight(n: int, outputs: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(n, outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def system(x: Tensor, w: Tensor, columns: Tensor, ridge: float) -> System:
    x = x - x.mean(0)
    return System.of((x.mT @ x / len(x))[None], w[None], columns[None], ridge)


def missed(x: Tensor, w: Tensor, gone: Sequence[int], ridge: float) -> float:
    """The least of ‖x·w − x·v − c‖² + λ‖v − w‖² over v and c, as a share of the variance; v is zero for those that are gone,
    which have no penalty."""
    x = x - x.mean(0)
    left = [i for i in range(x.shape[1]) if i not in gone]
    penalty = ridge * float(x.square().sum(0).mean())
    a, target = x[:, left], x[:, list(gone)] @ w[list(gone)]
    step = torch.linalg.solve(a.mT @ a + penalty * torch.eye(len(left), dtype=x.dtype), a.mT @ target)
    found = (target - a @ step).square().sum() + penalty * step.square().sum()
    return float(found / (x @ w).square().sum())


@pytest.mark.parametrize("ridge", [1e-8, 1e-3, 0.1])
@pytest.mark.parametrize("b", [1, 3])
def test_the_first_and_all_later_channels(b: int, ridge: float) -> None:
    """Removing channels in any order adds up to the damage of all that are gone."""
    x, w = samples(5 * b), weight(5 * b)
    columns = torch.arange(5 * b).view(5, b)
    each = system(x, w, columns, ridge).damage(torch.arange(5))
    assert each.tolist() == pytest.approx([missed(x, w, columns[j].tolist(), ridge) for j in range(5)])
    for order in itertools.islice(itertools.permutations(range(5), 3), 0, None, 7):
        tried, total = system(x, w, columns, ridge), 0.0
        for j in order:
            total += float(tried.damage(torch.tensor([j])))
            tried.cut(j)
        assert total == pytest.approx(missed(x, w, columns[list(order)].flatten().tolist(), ridge), abs=1e-9)


def test_the_solution_is_that_of_least_squares() -> None:
    x, w = samples(6), weight(6)
    tried = system(x, w, torch.arange(6)[:, None], 1e-12)
    for j in (4, 1):
        tried.cut(j)
    left = [0, 2, 3, 5]
    centered = x - x.mean(0)
    wanted = torch.linalg.lstsq(centered[:, left], centered @ w).solution
    torch.testing.assert_close(tried.left[0][left], wanted, rtol=1e-6, atol=1e-6)
    assert tried.left[0][[4, 1]].abs().max() == 0


def test_greedy_takes_the_least_damage_next() -> None:
    x, w = samples(6), weight(6)
    found = greedy([system(x, w, torch.arange(6)[:, None], 1e-6)])
    gone: list[int] = []
    for j in found.argsort().tolist():
        rest = [i for i in range(6) if i not in gone]
        if len(rest) > 1:
            best = min(rest, key=lambda i: missed(x, w, [*gone, i], 1e-6))
            assert j == best
            added = missed(x, w, [*gone, j], 1e-6) - (missed(x, w, gone, 1e-6) if gone else 0)
            assert float(found[j]) >= added * (1 - 1e-6)
        gone.append(j)
    assert float(found.sum()) >= 1 - 1e-6  # without any channel nothing is explained


def test_a_dependent_channel_does_no_damage() -> None:
    x, w = samples(5), weight(5)
    x = torch.cat([x, (x[:, :1] - 2 * x[:, 3:4] + 7)], 1)
    w = torch.cat([w, torch.ones(1, 5, dtype=torch.float64)])
    found = greedy([system(x, w, torch.arange(6)[:, None], 1e-9)])
    assert float(found.min()) < 1e-9
    assert float(found.sort().values[1]) > 1e-5
    assert int(found.argmin()) in (0, 3, 5)


def test_constant_and_dead_channels_do_no_damage_whatever_their_weights() -> None:
    x, w = samples(5), 100 * weight(5)
    x[:, 1], x[:, 2] = 3.0, 0.0
    found = system(x, w, torch.arange(5)[:, None], 1e-3).damage(torch.arange(5))
    assert found[[1, 2]].tolist() == pytest.approx([0, 0], abs=1e-9)
    assert float(found[[0, 3, 4]].min()) > 1e-4


def test_a_layer_without_variance() -> None:
    found = greedy([system(torch.zeros(9, 4, dtype=torch.float64), weight(4), torch.arange(4)[:, None], 1e-3)])
    assert found.tolist() == pytest.approx([0] * 4, abs=1e-300)
    assert found.argsort().tolist() == [0, 1, 2, 3]


# -- on networks -------------------------------------------------------------------------------------------------------


class Readers(nn.Module):
    """Two layers read channels of `a`: a convolution with a stride, and a grouped or transposed one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 1)
        self.b = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.c = {
            "grouped": nn.Conv2d(6, 4, 3, groups=2, padding=1),
            "transposed": nn.ConvTranspose2d(6, 4, 2, stride=2),
            "transposed, grouped": nn.ConvTranspose2d(6, 4, 2, groups=2),
        }[kind]
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        return self.fc(torch.cat([torch.tanh(m(x)).mean((2, 3)) for m in (self.b, self.c)], 1))


def task(net: nn.Module, x: Tensor) -> Task:
    data = sc.Data(train=[x[:30], x[30:]])
    return Task(net, sc.trace(net, x[:1]), sc.Budget(macs=0.5), "all", data=data, example_inputs=x[:1])


@pytest.mark.parametrize("kind", ["grouped", "transposed", "transposed, grouped"])
def test_layers_by_their_outputs(kind: str) -> None:
    """The damage of the first channels, by solving for what the layers put out without them."""
    torch.manual_seed(0)
    net, x = Readers(kind).eval(), torch.randn(50, 2, 5, 5)
    t = task(net, x)
    method = Damage(positions=1000, ridge=1e-9)
    group = next(g for g in t.groups if g.name == "a")
    found = method.scores(t)["a"]
    net = net.double().requires_grad_(False)
    a = torch.tanh(net.a(x.double()))
    reading = group.slots[[s.param for s in group.slots].index("b.weight")]

    def share(layer: Any, gone: Sequence[int]) -> float:
        """The output's variance that no weight of the other channels explains, by a basis of all such outputs."""
        outputs, left = layer(a) - layer(0 * a), [c for c in range(6) if c not in gone]
        per = 6 // layer.groups
        total = 0.0
        for g in range(layer.groups):
            own = [c for c in left if g * per <= c < (g + 1) * per]
            maps = [_taps(layer, a[:, c : c + 1]) for c in own]
            basis = torch.cat(maps, 1) if maps else torch.zeros(outputs[:, 0].numel(), 0, dtype=torch.float64)
            wanted = outputs.transpose(0, 1).flatten(1).mT.view(-1, layer.groups, 4 // layer.groups)[:, g]
            basis, wanted = basis - basis.mean(0), wanted - wanted.mean(0)
            total += float((wanted - basis @ torch.linalg.lstsq(basis, wanted).solution).square().sum())
        whole = outputs.transpose(0, 1).flatten(1)
        return total / float((whole - whole.mean(1, keepdim=True)).square().sum())

    sizes = {j: reading.index[j].tolist() for j in range(group.size)}
    first = int(found.argmin())
    each = [share(net.b, gone) + share(net.c, gone) for gone in sizes.values()]
    assert first == min(range(group.size), key=each.__getitem__)
    assert float(found[first]) == pytest.approx(each[first], rel=1e-3)


def _taps(layer: Any, x: Tensor) -> Tensor:
    """What each position of a layer's kernel reads from one channel: (outputs, positions)."""
    found = []
    for k in itertools.product(*[range(n) for n in layer.kernel_size]):
        w = torch.zeros(1, 1, *layer.kernel_size, dtype=torch.float64)
        w[0, 0][k] = 1
        convolve = F.conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else F.conv2d
        found.append(convolve(x, w, stride=layer.stride, padding=layer.padding).flatten())
    return torch.stack(found, 1)


@pytest.mark.parametrize("outputs", [5, 200])
def test_wide_layers_scale_what_channels_contribute(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flattened map, by least squares for one factor for each channel; many outputs are projected."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(36, outputs), nn.Tanh())
    net = net.append(nn.Linear(outputs, 2)).eval()
    x = torch.randn(50, 2, 3, 3)
    with torch.no_grad():  # the second half of channel 1's contribution is channel 0's
        net[0].weight[1], net[0].bias[1] = net[0].weight[0], net[0].bias[0]
        net[3].weight.view(outputs, 4, 9)[:, 1] = 2 * net[3].weight.view(outputs, 4, 9)[:, 0]
    monkeypatch.setattr(inputs, "WIDE", 10)
    t = task(net, x)
    found = Damage(ridge=1e-9).scores(t)["0"]
    net = net.double().requires_grad_(False)
    a = net[:2](x.double()).flatten(2)  # (N, 4, 9)
    z = torch.stack([a[:, c] @ net[3].weight.view(outputs, 4, 9)[:, c].mT for c in range(4)])
    z = (z - z.mean(1, keepdim=True)).flatten(1).mT  # (samples · outputs, 4)
    order = found.argsort().tolist()
    assert order[0] in (0, 1)
    for k in range(1, 4):
        wanted = missed(z, torch.ones(4, 1, dtype=torch.float64), order[:k], 1e-9)
        assert float(found[order[:k]].sum()) == pytest.approx(wanted, rel=1e-4 if outputs <= 64 else 0.5, abs=1e-6)


def test_reconstruction_is_best_after_damage() -> None:
    """Two of six channels are sums of others: they go, though their weights are the largest."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(60, 8)
    with torch.no_grad():
        net[0].weight[4] = net[0].weight[0] + net[0].weight[1]
        net[0].weight[5] = 3 * net[0].weight[2] - net[0].weight[3]
        net[1].weight[:, 4:] *= 10
    t = replace(task(net, x), bounds={})
    scores = Damage(ridge=1e-8).scores(t)["0"]
    assert scores.sort().values[:2].tolist() == pytest.approx([0, 0], abs=1e-5)
    result = sc.prune(
        net, x[:1], Damage(ridge=1e-8), ratios={"0": 4 / 6}, data=sc.Data(train=[x]), recover=sc.Reconstruct(ridge=1e-8),
        progress="silent",
    )  # fmt: skip
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-2, atol=1e-2)


def test_readers_that_cannot_be_solved_are_named() -> None:
    class Code(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Parameter(torch.randn(6, 3))
            self.c = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(torch.relu(self.a(x)) @ self.b))

    x = torch.randn(50, 4)
    with pytest.raises(
        sc.ConfigError, match=r"damage: b, which reads the channels of a, is not the weight of a convol"
    ):
        Damage().scores(task(Code().eval(), x))
