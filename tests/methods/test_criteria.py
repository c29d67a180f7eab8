"""The classic criteria against numbers worked out by hand."""

from __future__ import annotations

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


class Coupled(nn.Module):
    """`a` and `b` make the same two channels (a sum); `c` makes its own three."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
        self.na, self.nb = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.c, self.nc = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([3.0, -1.0]).view(2, 1, 1, 1))
            self.b.weight.copy_(torch.tensor([-4.0, 2.0]).view(2, 1, 1, 1))
            self.a.bias.fill_(100)
            self.c.weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 2.0], [-3.0, 4.0]]).view(3, 2, 1, 1))
            self.na.weight.copy_(torch.tensor([0.5, -1.5]))
            self.nb.weight.copy_(torch.tensor([1.5, 0.5]))
            self.nc.weight.copy_(torch.tensor([-0.1, 0.2, 0.3]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.na(self.a(x)) + self.nb(self.b(x)))
        return self.fc(F.relu(self.nc(self.c(x))).mean((2, 3)))


def task(model: nn.Module, x: Tensor, seed: int = 0) -> Task:
    return Task(model, sc.trace(model, x), sc.Budget(macs=0.5), scope="all", seed=seed)


def scores(method: str | Criterion, model: nn.Module, x: Tensor, seed: int = 0) -> dict[int, list[float]]:
    """By the group's size."""
    found = resolve(method).scores(task(model, x, seed))
    sizes = [len(v) for v in found.values()]
    assert len(set(sizes)) == len(sizes)
    return {len(v): [round(float(s), 5) for s in v] for v in found.values()}


X = torch.zeros(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("name", "coupled", "single"),
    [
        ("l1", [3 + 4, 1 + 2], [3, 2, 7]),
        ("l2", [5, 5**0.5], [5**0.5, 2, 5]),
        ("bn-scale", [(0.5 + 1.5) / 2, (1.5 + 0.5) / 2], [0.1, 0.2, 0.3]),
        ("index", [1, 0.5], [1, 2 / 3, 1 / 3]),
    ],
)
def test_by_hand(name: str, coupled: list[float], single: list[float]) -> None:
    """A channel that two layers make has the filters of both; biases don't count."""
    found = scores(name, Coupled(), X)
    assert found[2] == pytest.approx(coupled, abs=1e-4)
    assert found[3] == pytest.approx(single, abs=1e-4)


def test_a_coupled_channel_is_one_data_point() -> None:
    model = Coupled()
    group = next(g for g in sc.trace(model, X).groups if g.size == 2)
    assert group.filters(model, bias=False).tolist() == [[3, -4], [-1, 2]]
    assert sorted(group.filters(model, bias=True)[0].tolist()) == sorted([3, 100, -4, model.b.bias[0].item()])


def test_channels_that_are_several_indices_each() -> None:
    """Grouped convolutions: the k-th filters of both groups are one channel."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, groups=2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2, 3, 10, 20, 30]).view(6, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([1.0, 2, 3, -5, -6, -7]))
    assert scores("l1", model, X)[3] == [11, 22, 33]
    t = task(model, X)
    found = sc.BNScale()._scale(t.groups[0], t, {"1"})
    assert found.tolist() == [3, 4, 5]


def test_bn_scale_names_the_group_without_a_norm() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
    )
    without = next(g.name for g in sc.trace(model, X).groups if g.size == 5)
    with pytest.raises(
        sc.ConfigError, match=rf"no batch norm with a scale follows {without}\. Keep it whole with exclude="
    ):
        sc.prune(model, X, "bn-scale", sc.Budget(macs=0.5))


def test_random_hangs_on_the_seed_alone() -> None:
    one, same, other = (scores("random", Coupled(), X, seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert all(0 <= s < 1 for values in one.values() for s in values)


def two_layers(scale: float) -> nn.Module:
    """Two layers of four filters each, the second's weights `scale` times as large."""
    model = nn.Sequential(
        *(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([10.0, 10, 10, 10])[:, None, None, None].expand(4, 4, 1, 1))
        model[1].weight.copy_(scale * torch.tensor([1.0, 2, 30, 40])[:, None, None, None].expand(4, 4, 1, 1))
    return model


def cut(model: nn.Module, method: Criterion, share: float = 0.76) -> list[list[int]]:
    plan = sc.prune(model, torch.zeros(1, 4, 4, 4), method, sc.Budget(macs=share)).plan
    graph = sc.trace(model, torch.zeros(1, 4, 4, 4))
    return [list(plan.groups.get(g.name, range(g.size))) for g in graph.groups if g.prunable]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_global_ranking_compares_what_a_channel_is_in_its_layer(scale: float) -> None:
    """The second layer has two filters far below its mean: they go, at whatever scale its weights are."""
    assert cut(two_layers(scale), sc.L1()) == [[0, 1, 2, 3], [2, 3]]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_layer_ranking_takes_the_same_share_of_each(scale: float) -> None:
    first, second = cut(two_layers(scale), sc.L1(ranking="layer"), 0.7)
    assert abs(len(first) - len(second)) <= 1
    assert len(first) < 4 > len(second)
    assert second == [1, 2, 3][-len(second) :]


def test_layer_ranking_is_even_on_a_wide_network() -> None:
    torch.manual_seed(0)
    model = sc.build("zoo:vgg16", num_classes=4)
    result = sc.prune(model, torch.zeros(1, 3, 32, 32), sc.L2(ranking="layer"), sc.Budget(macs=0.25))
    graph = sc.trace(model, torch.zeros(1, 3, 32, 32))
    shares = [len(kept) / graph[name].size for name, kept in result.plan.groups.items()]
    assert np.ptp(shares) < 0.03
    assert 0.45 < np.mean(shares) < 0.55


def test_dead_layer_is_cut_first_and_never_emptied() -> None:
    model = two_layers(0.0)
    assert cut(model, sc.L1()) == [[0, 1, 2, 3], [0, 1]]


@pytest.mark.parametrize("name", ["l1", "coring", "epruner", "damage", "aofp"])
def test_weights_that_are_not_finite_are_named_before_any_work(name: str) -> None:
    model = two_layers(1.0)
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")

    class Unread:
        def __iter__(self) -> Any:
            raise AssertionError("read")

    with pytest.raises(
        sc.VerificationError, match=r"^1\.weight of the model has values that are NaN or infinite: chan"
    ):
        sc.prune(model, torch.randn(1, 4, 5, 5), name, sc.Budget(macs=0.5), Unread())


@pytest.mark.parametrize("name", ["damage", "taylor", "oracle"])
def test_examples_that_are_not_finite_are_named(name: str) -> None:
    batches = [(torch.randn(4, 4, 5, 5), torch.zeros(4, dtype=torch.long)) for _ in range(3)]
    batches[2][0][1, 0, 0, 0] = float("nan")
    with pytest.raises(sc.DataError, match=r"^Batch 2 of train: 1 of 400 values of its inputs are NaN"):
        sc.prune(two_layers(1.0), batches[0][0], name, sc.Budget(macs=0.5), batches, calibrate=False)


def test_settings_are_checked() -> None:
    with pytest.raises(sc.ConfigError, match=r"ranking='both'.*settings are: ranking"):
        sc.L1(ranking="both")
    with pytest.raises(sc.ConfigError, match="Did you mean l1"):
        resolve("l11")
    with pytest.raises(sc.ConfigError, match="ranking"):
        resolve(sc.L1(), ranking="both")
    with pytest.raises(sc.ConfigError, match=r"Damage\(ridge=inf\): must be a finite number"):
        sc.Damage(ridge=float("inf"))
