"""EPruner from a network to a selection, and the weights that recovery begins from."""

from __future__ import annotations

import functools
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import Selection
from secateurs.methods.epruner.affinity import Affinities, Measure
from secateurs.methods.epruner.counts import exemplars_of
from secateurs.methods.epruner.weights import project, sparse_projection
from secateurs.methods.method import Task
from secateurs.testing.checks import steps_that_fit
from secateurs.testing.networks import randomize
from tests import localdata

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0, classes: int = 10) -> nn.Module:
    """A small network whose filters come in bunches, as those of a trained one do."""
    torch.manual_seed(seed)
    model = randomize(sc.build("zoo:small_cnn", num_classes=classes), seed).eval()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 4:
                centers = p[torch.randint(len(p) // 3, (len(p),), generator=g)]
                p.copy_(centers + 0.4 * p.std() * torch.randn(p.shape, generator=g))
    return model


def select(model: nn.Module, method: sc.EPruner, budget: sc.Budget | None = None, scope: str = "internal") -> sc.Result:
    return sc.prune(model, IMAGE, method, budget, scope=scope)


def sklearn_exemplars(filters: Tensor, beta: float) -> list[int]:
    """The released code's call."""
    cluster = pytest.importorskip("sklearn.cluster")
    x = filters.double().numpy()
    similar = -pytest.importorskip("scipy.spatial.distance").cdist(x, x, "sqeuclidean")
    preference = beta * np.median(similar, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cluster.AffinityPropagation(affinity="precomputed", random_state=0, preference=preference).fit(similar)
    return sorted(int(i) for i in found.cluster_centers_indices_)


class TestWhichFiltersStay:
    def test_needs_beta_or_a_budget_and_not_both(self) -> None:
        with pytest.raises(sc.ConfigError, match=r"needs a budget, for example Budget\(macs=0\.5\), or EPruner\(beta="):
            select(network(), sc.EPruner(), None)
        with pytest.raises(
            sc.ConfigError,
            match=r"EPruner\(beta=0\.7\) and budget are mutually exclusive: each sets how much epruner prunes",
        ):
            select(network(), sc.EPruner(beta=0.7), sc.Budget(macs=0.5))

    @pytest.mark.parametrize("settings", [{"beta": 0}, {"beta": -1}, {"init": "zeros"}, {"damping": 1}, {"gamma": 1}])
    def test_settings_are_checked(self, settings: dict[str, object]) -> None:
        with pytest.raises(sc.ConfigError, match=rf"{next(iter(settings))}.*settings are: beta"):
            sc.EPruner(**settings)

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("beta", [0.5, 0.8, 1.0])
    def test_exemplars_are_scikit_learns(self, beta: float, bias: bool) -> None:
        """On the coupled channels too: one data point made of all their filters."""
        model = network()
        result = select(model, sc.EPruner.preset("paper", beta=beta, bias=bias, inner=False), scope="all")
        graph = sc.trace(model, IMAGE)
        groups = [g for g in graph.groups if g.prunable]
        assert any(len(g.producers) > 1 for g in groups)
        for g in groups:
            expected = sklearn_exemplars(g.filters(model, bias), beta)
            assert list(result.plan.groups.get(g.name, range(g.size))) == expected
        record = dict(result.history[0])
        represented = record.pop("groups")
        for g in groups:  # each by the exemplar that is nearest to it
            kept, filters = list(result.plan.groups.get(g.name, range(g.size))), g.filters(model, bias).double()
            nearest = torch.cdist(filters, filters[kept]).argmin(1)
            assert represented[g.name] == [kept[k] for k in nearest.tolist()]
        assert record == {
            "event": "exemplars",
            "beta": beta,
            "kept": sum(len(result.plan.groups.get(g.name, range(g.size))) for g in groups),
            "of": sum(g.size for g in groups),
        }

    def test_larger_beta_keeps_fewer(self) -> None:
        kept = [select(network(), sc.EPruner(beta=b)).after.macs for b in (0.05, 0.2, 0.9, 2.0, 8.0)]
        assert kept == sorted(kept, reverse=True)
        assert kept[0] > 2 * kept[-1]

    def test_layers_have_widths_of_their_own(self) -> None:
        model = network()
        plan = select(model, sc.EPruner(widths="beta"), sc.Budget(macs=0.4)).plan
        graph = sc.trace(model, IMAGE)
        shares = [len(kept) / graph[name].size for name, kept in plan.groups.items()]
        assert np.ptp(shares) > 0.02

    @pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.15])
    def test_budget_finds_beta(self, share: float) -> None:
        """The exemplars of the β on record are all kept, and little else: the last step is trimmed."""
        model = network()
        paper = sc.EPruner.preset("paper")
        result = select(model, paper, sc.Budget(macs=share))
        assert result.after.macs <= share * result.before.macs
        again = select(model, sc.EPruner.preset("paper", beta=result.history[0]["beta"] + 1e-6))
        graph = sc.trace(model, IMAGE)
        assert not list(steps_that_fit(graph, result.plan, sc.Budget(macs=share), "internal"))
        step = 0
        for g in graph.groups:
            mine, theirs = (len(r.plan.groups.get(g.name, range(g.size))) for r in (result, again))
            assert theirs <= mine
            step += mine - theirs
        assert step <= 0.15 * sum(g.size for g in graph.groups)
        assert again.after.macs <= result.after.macs

    @pytest.mark.parametrize("convergence", [15, None])
    def test_a_budget_below_what_any_beta_gives(self, convergence: int | None) -> None:
        """One channel a group: there is always a β, or else the best exemplar of each, for the lowest budget there is."""
        model = network()
        graph = sc.trace(model, IMAGE)
        lowest = graph.cost({g.name: 1 for g in graph.groups if g.prunable and g.internal})
        result = select(model, sc.EPruner(convergence=convergence), sc.Budget(macs=lowest.macs))
        assert result.after.macs == lowest.macs

    def test_dead_filters_are_one_exemplar_at_most(self) -> None:
        """A quarter of a layer's filters are zero, bias and all: they are copies of one point."""
        model = network()
        with torch.no_grad():
            model.conv1.weight[::4] = 0
        kept = select(model, sc.EPruner(beta=0.8)).plan.groups["conv1"]
        assert sum(k % 4 == 0 for k in kept) <= 1

    def test_all_filters_dead(self) -> None:
        model = network()
        with torch.no_grad():
            model.conv1.weight.zero_()
        result = select(model, sc.EPruner(), sc.Budget(macs=0.5))
        assert result.after.macs <= 0.5 * result.before.macs
        assert len(select(model, sc.EPruner(beta=0.7)).plan.groups["conv1"]) == 1

    def test_weights_that_are_not_finite(self) -> None:
        model = network()
        with torch.no_grad():
            model.conv1.weight[0, 0, 0, 0] = float("inf")
        with pytest.raises(sc.VerificationError, match=r"conv1\.weight of the model has .* infinite"):
            select(model, sc.EPruner(beta=0.7))

    def test_bias_is_part_of_the_filter(self) -> None:
        model = nn.Sequential(*(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)))
        with torch.no_grad():
            model[0].weight.copy_(model[0].weight[:1].expand(6, 3, 1, 1))
            model[0].bias.copy_(torch.tensor([0.0, 0.1, 0.2, 9.0, 9.1, 9.2]))
        kept = select(model, sc.EPruner(beta=0.5)).plan.groups["0"]
        assert {k // 3 for k in kept} == {0, 1}
        assert len(select(model, sc.EPruner(beta=0.5, bias=False)).plan.groups["0"]) == 1


class TestAsManyExemplarsAsWanted:
    """Widths come from the budget; what fills them are exemplars, whatever the widths are."""

    @pytest.mark.parametrize("measure", ["distance", "residual"])
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
    def test_every_filter_that_stays_is_an_exemplar(self, measure: Measure, share: float) -> None:
        """Of some β for its layer, or nearly the best choice of so many: better than most at random, and than the first."""
        filters = [g.filters(network()) for g in sc.trace(network(), IMAGE).groups if g.prunable and g.internal]
        affinities = Affinities(filters, measure=measure)
        counts = [max(1, round(share * n)) for n in affinities.sizes]
        found = exemplars_of(affinities, counts, lambda part, betas: part.exemplars(betas))
        assert [len(k) for k in found] == counts
        for i, (n, kept) in enumerate(zip(affinities.sizes, found, strict=True)):
            similar = affinities.similar(i)
            worth = similar[:, kept].max(1).sum()
            draws = [np.random.default_rng(s).permutation(n)[: len(kept)] for s in range(50)]
            assert worth >= np.quantile([similar[:, k].max(1).sum() for k in draws], 0.9)
            assert worth > similar[:, : len(kept)].max(1).sum()

    def test_the_exemplars_of_a_beta_where_there_is_one(self) -> None:
        affinities = Affinities([g.filters(network()) for g in sc.trace(network(), IMAGE).groups if g.prunable])
        expected = affinities.exemplars(0.7)
        found = exemplars_of(affinities, [len(k) for k in expected], lambda part, betas: part.exemplars(betas))
        same = [list(a) == b.tolist() for a, b in zip(found, expected, strict=True)]
        assert sum(same) >= len(same) - 1  # a plateau may have more than one clustering

    @pytest.mark.parametrize("grow", [True, False])
    def test_between_two_clusterings(self, grow: bool) -> None:
        """Two clusters and an outlier; no β has three exemplars."""
        points = torch.tensor([[0.0], [0.1], [5.0], [5.2], [9.0]])
        affinities = Affinities([points])
        sets = {True: [0, 2], False: [0, 1, 2, 4]}

        def find(part: Affinities, betas: list[float]) -> list[Tensor]:
            return [torch.tensor(sets[grow]) if grow or betas[0] < 1 else torch.tensor([0])]

        (kept,) = exemplars_of(affinities, [3], find)
        assert kept.tolist() == [0, 2, 4]

    def test_alignment_is_filled_with_exemplars(self) -> None:
        model = network()
        for method in (sc.EPruner(), sc.EPruner.preset("paper")):
            plan = sc.prune(model, IMAGE, method, sc.Budget(macs=0.5, align=8)).plan
            graph = sc.trace(model, IMAGE)
            filters = {name: graph[name].filters(model) for name in plan.groups}
            measure: Measure = method.similarity or "residual"
            affinities = Affinities(list(filters.values()), measure=measure)
            for i, (name, kept) in enumerate(plan.groups.items()):
                assert len(kept) % 8 == 0 or len(kept) == graph[name].size
                similar = affinities.similar(i)
                assert similar[:, list(kept)].max(1).sum() > similar[:, : len(kept)].max(1).sum()

    def test_widths_are_uniform_unless_beta_is_common(self) -> None:
        model = network()
        sizes = {g.name: g.size for g in sc.trace(model, IMAGE).groups}
        spread = [
            np.ptp([len(k) / sizes[name] for name, k in select(model, method, sc.Budget(macs=0.4)).plan.groups.items()])
            for method in (sc.EPruner(), sc.EPruner(widths="beta"))
        ]
        assert spread[0] < 0.05 < spread[1]

    def test_late_layers_have_a_beta_of_their_own(self) -> None:
        """As the released code's VGG-16: the first layers at β, the last ones at a larger one."""
        model = network()
        names = [g.name for g in sc.trace(model, IMAGE).groups if g.prunable and g.internal]
        early, late, both = (
            select(model, sc.EPruner.preset("paper", **settings)).plan.groups
            for settings in ({"beta": 0.5}, {"beta": 0.8}, {"beta": 0.5, "late": 1.6, "late_from": 0.6})
        )
        first = round(0.6 * len(names))
        assert 0 < first < len(names)
        assert [both[n] for n in names] == [(early if i < first else late)[n] for i, n in enumerate(names)]
        budget = select(model, sc.EPruner.preset("vgg16"), sc.Budget(macs=0.4))
        assert budget.after.macs <= 0.4 * budget.before.macs

    def test_inner_channels_are_those_between_two_layers(self) -> None:
        """In GoogLeNet the first convolutions of branches with more than one."""
        model = sc.build("zoo:googlenet").eval()
        graph = sc.trace(model, IMAGE[:1])
        task = Task(model, graph, sc.Budget(macs=0.6))
        paper = sc.EPruner.preset("paper")
        names = set(paper.select(task).channels)
        assert all(re.search(r"branch(2\.0|3\.[03])$", name) for name in names)
        assert len(names) == 27
        paper.feasible(task)
        with pytest.raises(sc.BudgetError):
            paper.feasible(Task(model, graph, sc.Budget(macs=0.05)))


class TestWeightsToBeginFrom:
    """Section III-C and Table V."""

    BUDGET = sc.Budget(macs=0.4)

    @functools.cached_property
    def model(self) -> nn.Module:
        return network()

    def prune(self, init: str, seed: int = 0) -> sc.Result:
        return sc.prune(self.model, IMAGE, sc.EPruner(init=init), self.BUDGET, seed=seed)

    def test_exemplar_is_what_the_cut_leaves(self) -> None:
        result = self.prune("exemplar")
        for key, value in sc.apply(self.model, result.plan).state_dict().items():
            assert torch.equal(result.model.state_dict()[key], value), key
        kept = list(result.plan.kept["conv2.weight"][1])
        assert torch.equal(result.model.conv2.weight, self.model.conv2.weight[:, kept])

    def test_merging_copies_changes_nothing(self) -> None:
        """Filters that are multiples of others, their batch norms too: the exemplars stand for them exactly."""
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 8, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)),
        ).eval()
        scale = torch.linspace(0.5, 1.5, 6)
        with torch.no_grad():
            model[0].weight[6:] = model[0].weight[:6] * scale.view(6, 1, 1, 1)
            model[1].running_var[:6].uniform_(0.5, 2)
            model[1].running_var[6:] = model[1].running_var[:6]
            model[1].weight[:6].uniform_(0.5, 2)
            model[1].weight[6:] = model[1].weight[:6]
        for method in (sc.EPruner(), sc.EPruner(init="exemplar")):
            task = Task(model, sc.trace(model, IMAGE), sc.Budget(macs=0.5))
            groups = {"0": np.arange(6), "3": np.arange(8)}
            small = sc.apply(model, task.graph.plan(groups))
            method.initialize(task, Selection(groups), small)
            same = torch.allclose(small(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-5)
            assert same == (method.init == "merge")

    @pytest.mark.parametrize("scope", ["internal", "all"])
    def test_merging_changes_consumers_only(self, scope: str) -> None:
        result = sc.prune(self.model, IMAGE, sc.EPruner(), self.BUDGET, scope=scope)
        sliced = sc.apply(self.model, result.plan).state_dict()
        changed = {k for k, v in result.model.state_dict().items() if not torch.equal(v, sliced[k])}
        assert changed
        assert changed <= {name for name, axis in result.plan.consumes}

    def test_merging_behind_a_flattened_map_and_a_transposed_convolution(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)),
        ).eval()
        with torch.no_grad():
            model[0].weight[4:], model[0].bias[4:] = 2 * model[0].weight[:4], 2 * model[0].bias[:4]
            model[2].weight[:, 3:], model[2].bias[3:] = 3 * model[2].weight[:, :3], 3 * model[2].bias[:3]
        task = Task(model, sc.trace(model, IMAGE), self.BUDGET)
        groups = {"0": np.arange(4), "2": np.arange(3)}
        small = sc.apply(model, task.graph.plan(groups))
        sc.EPruner().initialize(task, Selection(groups), small)
        assert torch.allclose(small(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-6)

    def test_l1_has_the_same_widths_and_the_largest_filters(self) -> None:
        exemplar, largest = self.prune("exemplar"), self.prune("l1")
        assert exemplar.plan != largest.plan
        graph = sc.trace(self.model, IMAGE)
        for name, kept in largest.plan.groups.items():
            assert len(kept) == len(exemplar.plan.groups[name])
            norms = graph[name].filters(self.model).abs().sum(1)
            assert set(kept) == set(norms.topk(len(kept)).indices.tolist())
        assert largest.after.macs == exemplar.after.macs

    @pytest.mark.parametrize("init", ["random", "projection"])
    def test_seeded_and_only_where_the_cut_was(self, init: str) -> None:
        torch.manual_seed(1)
        one, other, again = self.prune(init), self.prune(init, 1), self.prune(init)
        assert one.plan == other.plan == self.prune("exemplar").plan
        sliced = sc.apply(self.model, one.plan).state_dict()
        changed = set()
        for key, value in one.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[key])
            assert value.shape == sliced[key].shape
            assert value.isfinite().all()
            if not torch.equal(value, sliced[key]):
                changed.add(key)
                if value.ndim == 4:
                    assert not torch.equal(value, other.model.state_dict()[key])
        whole = {n for n, p in self.model.named_parameters() if n not in one.plan.kept}
        assert whole
        assert not changed & whole
        assert all(key in one.plan.kept for key in changed)
        reads = {name for name, axis in one.plan.consumes if axis == 1}
        assert reads <= changed  # every layer that lost inputs
        if init == "projection":
            assert changed == reads

    def test_random_has_the_scale_of_a_new_network(self) -> None:
        result = self.prune("random")
        for name, module in result.model.named_modules():
            touched = any(f"{name}.{leaf}" in result.plan.kept for leaf, _ in module.named_parameters(recurse=False))
            if touched and isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all()
                assert not module.bias.any()
                assert not module.running_mean.any()
                assert (module.running_var == 1).all()
            elif touched and isinstance(module, nn.Conv2d):
                w = module.weight
                assert w.std().item() == pytest.approx((2 / w[0].numel()) ** 0.5, rel=0.15)

    def test_random_leaves_a_network_that_can_learn(self) -> None:
        """Norms and activations with one number per channel are new, not zero."""
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 12, 3), nn.GroupNorm(12, 12), nn.PReLU(12)),
            *(nn.Conv2d(12, 12, 3), nn.InstanceNorm2d(12, affine=True), nn.ReLU()),
            *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
        )
        result = sc.prune(model, IMAGE, sc.EPruner(init="random", beta=1.1))
        small = result.model.train()
        small(IMAGE).square().sum().backward()
        assert set(result.plan.groups) == {"0", "3"}
        assert all(p.grad.abs().sum() > 0 for n, p in small.named_parameters() if not re.search("[03].bias", n))
        assert small[1].weight.tolist() == [1.0] * small[1].num_channels

    def test_projection_of_a_transposed_convolution_runs_along_its_inputs(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 12, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
        )
        result = sc.prune(model, IMAGE, sc.EPruner(init="projection"), sc.Budget(macs=0.3))
        inputs, outs = (list(result.plan.kept["2.weight"][a]) for a in (0, 1))
        assert result.model[2].weight.shape[:2] == (len(inputs), len(outs))
        # Each output's filter was projected by itself: zeroing another's weights leaves it as it was.
        changed = model[2].weight.detach().clone()
        changed[:, outs[0]] = 0
        twin = nn.Sequential(*model[:2], nn.ConvTranspose2d(16, 12, 3), *model[3:])
        twin[2].load_state_dict({"weight": changed, "bias": model[2].bias.detach()})
        small = sc.apply(twin, result.plan)
        selection = Selection(result.plan.groups)
        project(Task(twin, sc.trace(twin, IMAGE), self.BUDGET), selection, small)
        assert not small[2].weight[:, 0].any()
        assert torch.equal(small[2].weight[:, 1:], result.model[2].weight[:, 1:])

    def test_projection_is_sparse_and_keeps_distances(self) -> None:
        """Johnson and Lindenstrauss: squared distances are kept on average, and the more closely the more dimensions."""
        generator = torch.Generator().manual_seed(0)
        n, points = 576, torch.randn(12, 576, generator=generator)
        far = torch.pdist(points)
        spread = []
        for k in (72, 288):
            ratios = []
            for _ in range(30):
                matrix = sparse_projection(n, k, generator)
                nonzero = matrix[matrix != 0]
                assert (matrix != 0).float().mean().item() == pytest.approx(n**-0.5, rel=0.2)
                assert nonzero.abs().unique().numel() == 1
                assert nonzero.sign().mean().abs() < 0.15
                ratios.append((torch.pdist(points @ matrix) / far).square())
            found = torch.stack(ratios)
            assert found.mean().item() == pytest.approx(1, abs=0.03)
            spread.append(found.std().item())
        assert spread[1] < 0.65 * spread[0]  # it falls with the root of k: 0.5
        assert spread[0] < 0.3

    def test_projection_of_the_network_keeps_the_filters_distances(self) -> None:
        ratios = []
        for seed in range(10):
            result = self.prune("projection", seed)
            rows = list(result.plan.kept["plain.3.weight"].get(0, range(40)))
            old = self.model.plain[3].weight.detach()[rows].flatten(1)
            ratios.append((torch.pdist(result.model.plain[3].weight.detach().flatten(1)) / torch.pdist(old)).square())
        assert torch.stack(ratios).mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("name", "beta"), [("resnet20", 0.6), ("resnet56", 0.56), ("vgg16", 0.75)])
class TestTrainedNetworks:
    def model(self, name: str) -> nn.Module:
        path = localdata.checkpoint(name)
        if path is None:
            pytest.skip(localdata.MISSING)
        model = sc.build(f"zoo:{name}")
        state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(Path(path)).items()}
        model.load_state_dict(state)
        return model.eval()

    def test_exemplars_are_scikit_learns(self, name: str, beta: float) -> None:
        model = self.model(name)
        graph = sc.trace(model, IMAGE[:1])
        plan = sc.prune(model, IMAGE[:1], sc.EPruner.preset("paper", beta=beta)).plan
        groups = [g for g in graph.groups if g.prunable and g.internal and g.size <= 256]
        assert len(groups) == {"resnet20": 9, "resnet56": 27, "vgg16": 7}[name]
        for g in groups:
            kept = list(plan.groups.get(g.name, range(g.size)))
            assert kept == sklearn_exemplars(g.filters(model), beta), g.name

    def test_budget(self, name: str, beta: float) -> None:
        model = self.model(name)
        result = sc.prune(model, IMAGE[:1], "epruner", sc.Budget(macs=0.4))
        assert 0.39 < result.after.macs / result.before.macs <= 0.4
        assert result.error <= 1e-5


def test_only_convolutions_as_in_the_paper() -> None:
    """As the method's page says: the classifier's hidden layers stay whole, the last convolution does not."""
    model, x = sc.build("zoo:alexnet_bn"), torch.zeros(1, 3, 32, 32)
    method = sc.EPruner.preset("paper", beta=1.0)
    assert {"features.14", "classifier.1"} <= sc.prune(model, x, method, progress="silent").plan.groups.keys()
    choices: list[dict[str, Any]] = [{"only": [nn.Conv2d]}, {"exclude": "classifier.*"}]
    for limits in choices:
        kept = sc.prune(model, x, method, progress="silent", **limits).plan.groups
        assert "features.14" in kept
        assert all(name.startswith("features.") for name in kept)
