"""Rankings: what is compared with what, and what cost does to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Task
from secateurs.methods.ranking import per_cost, ranked, structure
from secateurs.testing.networks import images, network


def widths(result: sc.Result, graph: sc.ChannelGraph) -> dict[str, float]:
    """The share of its channels that each group keeps."""
    return {g.name: len(result.plan.groups.get(g.name, range(g.size))) / g.size for g in graph.groups if g.prunable}


class Given(Criterion):
    """Scores by hand: those of internal groups are ten times as large, in a steady order."""

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {
            g.name: (1 + 9 * g.internal) * torch.arange(1.0, g.size + 1) ** (i + 1) for i, g in enumerate(task.groups)
        }


def test_structures_of_a_resnet() -> None:
    """Blocks alike, whatever their width; streams by how many blocks add to them."""
    model = sc.build("zoo:resnet20")
    graph = sc.trace(model, torch.zeros(1, 3, 32, 32))
    by: dict[object, set[str]] = {}
    for g in graph.groups:
        if g.prunable:
            by.setdefault(structure(g, model), set()).add(g.name)
    inner = {g.name for g in graph.groups if g.internal and g.prunable}
    assert inner in by.values()
    assert len(inner) == 9
    assert sum(map(len, by.values())) == len([g for g in graph.groups if g.prunable])


def test_structures_by_kinds_of_layers_and_not_by_names() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1, bias=False)
            self.bare, self.depthwise = nn.Conv2d(6, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
            self.last, self.norm = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(8)
            self.fc = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.other(torch.relu(self.norm(self.stem(x))))
            x = self.last(self.depthwise(self.bare(x)))
            return self.fc(x.mean((2, 3)))

    model = Net().eval()
    graph = sc.trace(model, torch.zeros(1, 3, 16, 16))
    found = {g.name: structure(g, model) for g in graph.groups if g.prunable}
    assert found.keys() == {"stem", "other", "bare", "last"}
    assert len(set(found.values())) == 4  # a norm, none, a depthwise convolution between, a linear layer after
    plain = nn.Sequential(
        *[nn.Conv2d(n, n + 1, 3, padding=1) for n in range(2, 6)], nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    graph = sc.trace(plain, torch.zeros(1, 2, 8, 8))
    assert len({structure(g, plain) for g in graph.groups if g.prunable}) == 1


def test_isomorphic_keeps_the_same_share_of_each_structure() -> None:
    """Within a structure the scores decide; across them they are not compared."""
    model = sc.build("zoo:resnet20").eval()
    x = torch.zeros(1, 3, 32, 32)
    graph = sc.trace(model, x)
    result = sc.prune(model, x, Given(ranking="isomorphic"), sc.Budget(macs=0.4), scope="all")
    shares, alike = widths(result, graph), dict[object, list[sc.ChannelGroup]]()
    for g in graph.groups:
        if g.prunable:
            alike.setdefault(structure(g, model), []).append(g)
    found = {
        kind: sum(shares[g.name] * g.size for g in groups) / sum(g.size for g in groups)
        for kind, groups in alike.items()
    }
    assert len(found) > 1
    assert np.ptp(list(found.values())) < 0.08  # the last channels that fit, and the floor
    inner = [shares[g.name] for g in graph.groups if g.prunable and g.internal]
    assert np.ptp(inner) > 0.2  # and of single groups it is not


def test_ranks_go_from_the_lowest_of_a_structure_to_the_highest() -> None:
    model = network("residual")
    groups = [g for g in sc.trace(model, images(1)).groups if g.prunable]
    rng = np.random.default_rng(0)
    scores = [rng.random(g.size) * 10**i for i, g in enumerate(groups)]
    alone, *alike = ranked("isomorphic", groups, scores, model)
    assert sorted(alone) == [(i + 1) / 12 for i in range(12)]
    assert sorted(np.concatenate(alike)) == [(i + 1) / 32 for i in range(32)]
    for before, after in zip(scores, [alone, *alike], strict=True):
        assert (np.argsort(before) == np.argsort(after)).all()
    raw = ranked("isomorphic", groups, scores, model, comparable=True)
    assert raw[1].max() < raw[2].min() + 0.5 < 1.5  # those of the third group are on another scale, and stay on it
    assert ranked("global", groups, scores, model, comparable=True)[0] is scores[0]


@pytest.mark.parametrize("sign", [1, -1])
def test_cost_makes_costly_channels_go_first_whatever_the_sign(sign: int) -> None:
    scores = sign * np.array([1.0, 2.0])
    cheap, costly = per_cost(scores, 0.5, 1.0), per_cost(scores, 2.0, 1.0)
    assert (costly < cheap).all()
    assert (np.argsort(cheap) == np.argsort(scores)).all()
    assert (per_cost(scores, 2.0, 0.0) == scores).all()


class Even(Criterion):
    """All channels are worth the same."""

    def scores(self, task: Task) -> dict[str, Tensor]:
        return {g.name: torch.linspace(1, 1.001, g.size) for g in task.groups}


def test_cost_moves_the_cut_to_costly_layers() -> None:
    model = network()
    graph = sc.trace(model, images(1))
    even, by_cost = (sc.prune(model, images(), Even(cost=c), sc.Budget(macs=0.7), scope="all") for c in (0.0, 1.0))
    price = {g.name: graph.cost().macs - graph.cost({g.name: g.size - 1}).macs for g in graph.groups if g.prunable}
    costly = max(price, key=price.__getitem__)
    assert widths(by_cost, graph)[costly] < widths(even, graph)[costly]
    left = [sum(len(r.plan.groups.get(g.name, range(g.size))) for g in graph.groups) for r in (even, by_cost)]
    assert left[1] > left[0]  # more channels fit


@pytest.mark.parametrize("name", [n for n in sc.methods() if issubclass(type(sc.methods.resolve(n)), Criterion)])
def test_every_criterion_has_them(name: str) -> None:
    method = sc.methods.resolve(name, ranking="isomorphic", cost=0.5)
    assert (method.ranking, method.cost) == ("isomorphic", 0.5)
    with pytest.raises(sc.ConfigError, match="cost=-1"):
        sc.methods.resolve(name, cost=-1)
    with pytest.raises(sc.ConfigError, match="ranking='local'"):
        sc.methods.resolve(name, ranking="local")
