"""One-step pruning: the importance vectors, the crucial layers, what is cut."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods.criteria import norms
from secateurs.methods.method import Task
from secateurs.methods.onestep.layers import find_layers, scored
from secateurs.methods.onestep.method import OneStepPruner
from secateurs.methods.select import Widths
from secateurs.recovery import recover
from secateurs.recovery.features import by_name, feature_maps
from secateurs.recovery.mimic import choose
from secateurs.report import listing
from secateurs.testing.networks import data, images, network, randomize


class Plain(nn.Module):
    """Three convolutions, and the same network with factors on their outputs written by hand."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 5, 6, 7]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths[1:])
        self.fc = nn.Linear(7, 4)

    def forward(self, x: Tensor, beta: list[Tensor] | None = None) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))  # (N, C, H, W): the paper's β acts here, behind batch norm
            x = F.relu(x if beta is None else x * beta[i].abs()[:, None, None])
        return self.fc(x.mean((2, 3)))


def plain(dtype: torch.dtype = torch.float64) -> Plain:
    torch.manual_seed(0)
    return randomize(Plain()).eval().to(dtype)


def attached(model: nn.Module, inputs: Tensor, method: sc.OneStep, budget: sc.Budget | None, **options: Any) -> Any:
    scope = options.pop("scope", "internal")
    history: list[dict[str, Any]] = []
    pruner = method.attach(Task(model, sc.trace(model, inputs), budget, scope, data(), 0, inputs, log=history.append))
    pruner.history = history
    return pruner


# -- importance vectors -------------------------------------------------------------------------------------------------


def test_gates_are_the_papers_betas_and_so_is_their_gradient() -> None:
    model, x = plain(), images(4).double()
    y = torch.tensor([0, 1, 2, 3])
    pruner = attached(model, x[:1], sc.OneStep(lam=0.3), sc.Budget(macs=0.5))
    pruner.importance.double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        pruner.importance.offset.copy_(torch.randn(18, generator=g, dtype=torch.float64) * 0.9)  # some β are negative
    beta = [(1 + b).detach().requires_grad_() for b in pruner.importance.offset.split([5, 6, 7])]
    by_hand = copy.deepcopy(plain())
    expected = F.cross_entropy(by_hand(x, beta), y) + 0.3 * sum(b.abs().sum() for b in beta)
    loss = F.cross_entropy(model(x), y) + pruner.penalty()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(pruner.importance.offset.grad, torch.cat([b.grad for b in beta]), rtol=1e-9, atol=1e-12)

    def at(offset: Tensor) -> float:
        with torch.no_grad():
            pruner.importance.offset.copy_(offset)
            return float(F.cross_entropy(model(x), y) + pruner.penalty())

    start, step = pruner.importance.offset.detach().clone(), 1e-6
    for i in (0, 6, 17):  # finite differences
        e = torch.zeros_like(start)
        e[i] = step
        slope = (at(start + e) - at(start - e)) / (2 * step)
        assert slope == pytest.approx(float(pruner.importance.offset.grad[i]), rel=1e-5)


def test_only_beta_moves() -> None:
    """Weights, statistics and modes of the network are what they were, to the bit, and so is what it computes."""
    model = network("residual")
    model.blocks[0].append(nn.Dropout(0.9))
    before = copy.deepcopy(model.state_dict())
    asked = [p.requires_grad for p in model.parameters()]
    x = images(4)
    pruner = sc.attach(
        model, x[:1], sc.OneStep(), sc.Budget(macs=0.5), data=data(), steps=4, epoch_steps=2, scope="all"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    model.train()
    modes = [m.training for m in model.modules()]
    for x, y in data(4).train:
        loss = F.cross_entropy(model(x), y) + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        assert modes == [m.training for m in model.modules()]
    assert pruner.done
    assert all((np.abs(b - 1) > 1e-4).all() for b in pruner.beta().values())
    pruner.plan()
    assert modes == [m.training for m in model.modules()]
    assert asked == [p.requires_grad for p in model.parameters()]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_lambda_presses_all_betas_down() -> None:
    """With λ far above the gradients every β falls by about lr in each step: Adam."""
    model = network()
    pruner = sc.attach(
        model, images(1), sc.OneStep(lam=1000, lr=1e-3), sc.Budget(macs=0.5), data=data(), steps=4, epoch_steps=4
    )
    for x, y in data(4).train:
        (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        pruner.step()
    for beta in pruner.beta().values():
        np.testing.assert_allclose(beta, 1 - 4e-3, atol=1e-5)


def test_a_step_that_overflows_is_not_measured() -> None:
    """A loss scaler skips the first steps of float16: λ would be infinite."""
    model = plain(torch.float32)
    pruner = attached(model, images(1), sc.OneStep(), sc.Budget(macs=0.5))
    pruner.begin(20, 20)
    x, y = data(1).train[0]
    for scale, measured in ((1e38, 0), (1.0, 1)):
        (scale * 1e3 * F.cross_entropy(model(x), y)).backward()
        pruner.penalty().backward()
        pruner.importance.offset.grad = None
        pruner.step(own=False)
        assert len(pruner.slopes) == measured
        assert math.isfinite(pruner.lam)


@pytest.mark.parametrize("l1", ["sum", "mean"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_lambda_is_a_multiple_of_the_gradients_size(l1: str, scale: float) -> None:
    """Whatever the network's outputs are scaled by, and the loss (as in float16)."""
    sizes = []
    for factor in (1.0, 3.0):
        model = plain(torch.float32)
        with torch.no_grad():
            model.fc.weight *= factor
        pruner = attached(model, images(1), sc.OneStep(strength=2, l1=l1), sc.Budget(macs=0.5))
        pruner.begin(20, 20)
        by_hand = []
        for x, y in data(12).train[:12]:
            loss = F.cross_entropy(model(x[:4]), y[:4])
            (grad,) = torch.autograd.grad(loss, pruner.importance.offset, retain_graph=True)
            by_hand.append(float(grad.abs().mean()))
            (scale * (loss + pruner.penalty())).backward()
            pruner.importance.offset.grad = None  # β stays where it is
            pruner.step(own=False)
        assert len(pruner.slopes) == 3
        assert pruner.slopes == pytest.approx(by_hand[:3], rel=1e-3)
        pressure = pruner.lam / (1 if l1 == "sum" else 18)
        assert pressure == pytest.approx(2 * sum(by_hand[:3]) / 3, rel=1e-3)
        sizes.append(pressure)
    assert sizes[1] != pytest.approx(sizes[0], rel=0.05)


def test_lambda_does_not_depend_on_the_length_of_the_run() -> None:
    """Nor on the learning rate, which follows from it. The original's answers are met exactly at β = 1, without a gradient."""
    original, found, sizes = plain(torch.float32), [], []
    for x, _ in data(3).train[:3]:
        beta = [torch.full([width], 0.98, requires_grad=True) for width in (5, 6, 7)]
        loss = F.cross_entropy(original(x, beta), original(x).softmax(1).detach())
        sizes.append(float(torch.cat(torch.autograd.grad(loss, beta)).abs().mean()))
    for steps in (20, 2000, 200_000):
        model = plain(torch.float32)
        pruner = attached(model, images(1), sc.OneStep(), sc.Budget(macs=0.5))
        pruner.begin(steps, 20)
        for x, _ in data(12).train[:12]:
            with torch.no_grad():
                answers = original(x).softmax(1)
            (F.cross_entropy(model(x), answers) + pruner.penalty()).backward()
            pruner.step()
        found.append(pruner.lam)
        with torch.no_grad():  # only what is measured is lowered
            pruner.importance.offset.zero_()
            torch.testing.assert_close(model(x), original(x))
    assert found == pytest.approx([3 * sum(sizes) / 3] * 3, rel=1e-3)


def test_a_beta_can_fall_to_zero_however_short_the_run_is() -> None:
    """The learning rate is one over the number of steps."""
    model = network()
    for steps in (4, 8):
        pruner = sc.attach(
            model, images(1), sc.OneStep(lam=1000), sc.Budget(macs=0.5), data=data(), steps=steps, epoch_steps=steps
        )
        for x, y in data(steps).train[:steps]:
            (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
            pruner.step()
        assert pruner.done
        assert all((np.abs(b) < 1e-4).all() for b in pruner.beta().values())
        pruner.plan()


@pytest.mark.parametrize(
    ("name", "scope", "warned"),
    [("resnet20", "all", True), ("resnet20", "internal", False), ("vgg16", "all", False)],
)
def test_a_scope_without_effect_is_told(name: str, scope: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    """ResNet-20's shortcuts are padded: the last layer's channels are those of all stages, and the last layer is crucial."""
    torch.manual_seed(0)
    model, x = sc.build(f"zoo:{name}").eval(), torch.zeros(1, 3, 32, 32)
    plan = attached(model, x, sc.OneStep(crucial=1, cost=0), sc.Budget(macs=0.5), scope=scope).plan()
    graph = sc.trace(model, x)
    assert all(graph[name].internal for name in plan.groups)
    assert ("scope 'all' has no effect" in caplog.text) == warned


def test_mean_l1_does_not_grow_with_the_network() -> None:
    model = plain(torch.float32)
    for kind, expected in (("sum", 18 * 0.5), ("mean", 0.5)):
        pruner = attached(model, images(1), sc.OneStep(lam=0.5, l1=kind), sc.Budget(macs=0.5))
        assert pruner.penalty().item() == pytest.approx(expected)
        pruner.finish()


def test_ranks_survive_differences_that_float32_would_round_away() -> None:
    """Near 1 float32 knows no step below 6e-8."""
    pruner = attached(plain(torch.float32), images(1), sc.OneStep(crucial=2), sc.Budget(macs=0.5))
    with torch.no_grad():
        pruner.importance.offset[:5] = 1e-9 * torch.tensor([3.0, 1, 5, 2, 4])
    assert list(np.argsort(pruner.beta()["convs.0"])) == [1, 3, 0, 4, 2]


def test_presets_are_the_papers() -> None:
    cifar, imagenet = sc.OneStep.preset("cifar"), sc.OneStep.preset("imagenet")
    assert (cifar.lam, cifar.lr, cifar.epochs) == (1.0, 1e-5, 15)
    assert (imagenet.lam, imagenet.lr, imagenet.epochs) == (0.1, 1e-4, 10)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"crucial": 0}, "at least 1"),
        ({"rate": 0.5}, "greater than or equal to 1"),
        ({"lam": 0}, "greater than 0"),
        ({"beta": 1}, "lam"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(sc.ConfigError, match=says):
        sc.OneStep(**settings)


# -- layers -------------------------------------------------------------------------------------------------------------


def layers_of(model: nn.Module, x: Tensor) -> Any:
    graph = sc.trace(model, x)
    return find_layers(model, graph, scored(graph), x)


def test_coupled_convolutions_are_one_layer_and_its_node_is_the_junction() -> None:
    model, x = sc.build("zoo:resnet20").eval(), torch.randn(1, 3, 32, 32)
    found = layers_of(model, x)
    assert len(found.all) == 9 + 3
    nodes = {layer.name: layer.node for layer in found.all if layer.junction}
    assert nodes == {"layer1.2.conv2": "layer1", "layer2.2.conv2": "layer2", "layer3.2.conv2": "layer3"}
    inner = next(layer for layer in found.all if layer.name == "layer2.1.conv1")
    assert (inner.node, inner.junction, inner.groups) == ("layer2.1.conv2:input", False, ("layer2.1.conv1",))
    assert (found.final.name, found.final.node) == ("layer3.2.conv2", "layer3")
    assert len(found.final.groups) == 3  # 16 channels of the first stage, 16 and 32 that were padded
    assert found.usual() == 3
    assert found.classifier == ()


@pytest.mark.parametrize("spec", ["zoo:resnet20", "zoo:resnet56"])
def test_junctions_are_crucial_before_any_other_layer(spec: str) -> None:
    """Whatever the scores: here every inner layer has larger ones."""
    model, x = sc.build(spec).eval(), torch.randn(1, 3, 32, 32)
    pruner = attached(model, x, sc.OneStep(), sc.Budget(macs=0.5))
    inner = {g.name.replace(".", "_"): 1.5 for g in pruner.groups if g.internal}
    betas(pruner, **inner)
    assert pruner.finish().nodes == ("layer1", "layer2", "layer3")
    again = attached(model, x, sc.OneStep(crucial=4), sc.Budget(macs=0.5))
    betas(again, **{**inner, "layer2_1_conv1": 1.6})
    assert again.finish().nodes == ("layer1", "layer2.1.conv2:input", "layer2", "layer3")


def test_hidden_layers_of_the_classifier_are_none_to_mimic() -> None:
    found = layers_of(sc.build("zoo:alexnet_bn").eval(), torch.randn(1, 3, 32, 32))
    assert found.classifier == ("classifier.1", "classifier.4")
    assert (found.final.name, found.final.node) == ("features.14", "features.16")


def test_hidden_layers_of_the_classifier_stay_whole_where_the_budget_lets_them() -> None:
    torch.manual_seed(0)
    model = sc.build("zoo:alexnet_bn").eval()
    for budget, whole in ((sc.Budget(macs=0.5), True), (sc.Budget(params=0.05), False)):
        pruner = attached(model, VGG, sc.OneStep(), budget)
        betas(pruner)
        groups = pruner.plan().groups
        hidden = [n for n in ("classifier.1", "classifier.4") if len(groups.get(n, range(1024))) == 1024]
        assert hidden == (["classifier.1", "classifier.4"] if whole else [])


def test_a_node_is_not_what_was_pooled_or_blown_up_and_comes_out_of_the_non_linearity() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(20), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    found = layers_of(model, torch.randn(1, 3, 8, 8))
    assert [layer.node for layer in found.all] == ["2", "6"]


SPECS = {  # spec: input size, usual number of nodes, the last one
    "zoo:vgg16": (32, 3, "features.42"),
    "zoo:resnet56": (32, 3, "layer3"),
    "zoo:googlenet": (32, 4, "inception5"),
    "torchvision:resnet50": (64, 4, "layer4"),
    "torchvision:densenet121": (64, 4, "features"),
    "torchvision:mobilenet_v2": (64, 4, "features"),
    "torchvision:googlenet": (64, 4, "inception5b"),
    "timm:mobilenetv3_small_100": (64, 4, "blocks"),
}


@pytest.mark.parametrize("scope", ["internal", "all"])
@pytest.mark.parametrize("spec", SPECS)
def test_nodes_are_found_on_every_kind_of_network(spec: str, scope: Any) -> None:
    """Whatever β says, at half the MACs: the method's nodes keep their shape in the cut network."""
    if not spec.startswith("zoo") and importlib.util.find_spec(spec.partition(":")[0]) is None:
        pytest.skip("needs the vision extra")
    size, usual, last = SPECS[spec]
    torch.manual_seed(0)
    model, x = sc.build(spec).eval(), torch.randn(1, 3, size, size)
    pruner = attached(model, x, sc.OneStep(cost=0), sc.Budget(macs=0.5), scope=scope)
    with torch.no_grad():
        pruner.importance.offset.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    selection = pruner.finish()
    plan, nodes = selection.plan(pruner.task.graph), selection.nodes
    assert len(nodes) == usual
    assert nodes[-1] == last
    small = sc.apply(model, plan)
    before, after = by_name(feature_maps(model, x)), by_name(feature_maps(small, x))
    assert [before[n].shape for n in nodes] == [after[n].shape for n in nodes]
    assert choose(sc.Mimic(), small, model, x, nodes) == tuple(nodes)
    batch = torch.randn(2, 3, size, size), torch.randint(0, 10, (2,))
    (line,) = recover(
        small, [batch], sc.Mimic(steps=1), teacher=model, example_inputs=x, nodes=nodes, progress="silent"
    )
    assert line["nodes"] == list(nodes)


# -- which are crucial --------------------------------------------------------------------------------------------------


def betas(pruner: OneStepPruner, **scores: float) -> dict[str, np.ndarray]:
    with torch.no_grad():
        for group, part in zip(pruner.groups, pruner.importance.offset.split(pruner.gates.sizes), strict=True):
            part.copy_(torch.linspace(-0.01, 0.01, group.size) + scores.get(group.name.replace(".", "_"), 1.0) - 1)
    return pruner.beta()


VGG = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vgg(**settings: Any) -> Any:
    torch.manual_seed(0)
    settings = {"prior": 0, "cost": 0} | settings
    return attached(sc.build("zoo:vgg16").eval(), VGG, sc.OneStep(**settings), sc.Budget(macs=0.5))


@pytest.mark.parametrize(("function", "count"), [("kl", 3), ("js", 3), ("mse", 1), ("l1", 1)])
def test_one_crucial_layer_is_one_node_to_mimic(function: Any, count: int) -> None:
    """For a distance; a divergence needs two nodes, and takes the ends of the stages, of which it is one."""
    model = sc.build("zoo:resnet20")
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pruner = attached(model, x, sc.OneStep(crucial=1, cost=0), sc.Budget(macs=0.5))
    plan = pruner.plan()
    (node,) = pruner.history[0]["nodes"]
    found = choose(sc.Mimic(function=function), sc.apply(model, plan), model, x, (node,))
    assert found[-1] == node
    assert len(found) == count


def test_the_last_layer_is_forced_in_and_the_lowest_dropped() -> None:
    pruner = vgg()
    beta = betas(pruner, features_3=1.3, features_7=1.2, features_10=1.1, features_40=0.5)
    names = [layer.name for layer in pruner.layers.crucial(beta, None)]
    assert names == ["features.40", "features.3", "features.7"]  # of three: features.10 gives way
    assert [x.name for x in pruner.layers.crucial(beta, 2)] == ["features.40", "features.3"]
    assert [x.name for x in pruner.layers.crucial(beta, 4)][-1] == "features.10"
    named = pruner.layers.crucial(beta, ("features.14", "features.3"))
    assert [x.name for x in named] == ["features.40", "features.3", "features.14"]
    with pytest.raises(sc.ConfigError, match=r"'features.2' is not a convolution that can be scored.*features\."):
        pruner.layers.crucial(beta, ("features.2",))


def test_scores_are_means() -> None:
    pruner = vgg()
    beta = betas(pruner, features_0=1.25)
    layer = pruner.layers.all[0]
    assert layer.score(beta) == pytest.approx(1.25, abs=1e-6)  # 64 channels; a sum would be 80
    assert pruner.layers.all[-1].score(beta) == pytest.approx(1.0, abs=1e-6)


def test_crucial_layers_stay_whole_and_the_rest_is_ranked_together() -> None:
    pruner = vgg(crucial=3, ranking="global")
    beta = betas(pruner, features_3=1.3, features_7=1.2, features_24=0.8)
    plan = pruner.plan()
    kept = {name: len(k) for name, k in plan.groups.items()}
    assert not {"features.3", "features.7", "features.40"} & {
        n for n, k in kept.items() if k < pruner.task.graph[n].size
    }
    assert kept["features.24"] == 52  # all of its β are below everyone else's: a tenth of 512, rounded up
    graph = pruner.task.graph
    dead = [b for n, k in plan.groups.items() for b in np.delete(beta[n], k)]
    alive = [b for n, k in plan.groups.items() if n != "features.24" for b in beta[n][list(k)]]
    assert max(dead) <= min(alive) + 1e-3  # but for what is given back at the end
    assert graph.cost(kept).macs <= 0.5 * graph.cost().macs
    note = next(h for h in pruner.history if h["event"] == "crucial")
    assert list(note["layers"]) == ["features.40", "features.3", "features.7"]
    assert note["nodes"] == ["features.5", "features.9", "features.42"]
    assert note["released"] == []


def test_crucial_layers_are_released_for_a_budget_that_could_not_be_met() -> None:
    """The least precious first, and no more than needed."""
    graph = sc.trace(sc.build("zoo:vgg16"), VGG)
    floor = {g.name: -(-g.size // 10) for g in graph.groups if g.prunable}

    def least(*whole: str) -> int:
        return graph.cost({**floor, **{n: graph[n].size for n in whole}}).macs

    order = ["features.40", "features.3", "features.24", "features.17"]
    for many in (4, 3, 2, 1, 0):
        again = vgg(crucial=4)
        betas(again, features_3=1.3, features_24=1.2, features_17=1.1)
        object.__setattr__(again.task, "budget", sc.Budget(macs=least(*order[:many])))
        lines: list[str] = []
        again.log = lines.append
        selection = again.finish()
        plan = selection.plan(again.task.graph)
        released = again.history[-1]["released"]
        assert released == order[many:][::-1]
        assert [line.partition(", crucial")[0] for line in lines] == [f"onestep: {listing(released)}"] * bool(released)
        assert all(len(k) == (graph[n].size if n in order[:many] else floor[n]) for n, k in plan.groups.items())
        assert len(selection.nodes) == many


def test_rate_is_the_papers_fixed_ratio() -> None:
    """Every layer that is not crucial keeps an eighth (sec. 4.1), by β."""
    pruner = attached(sc.build("zoo:vgg16").eval(), VGG, sc.OneStep(rate=8, crucial=2, prior=0), None)
    beta = betas(pruner, features_3=1.3)
    selection = pruner.finish().channels
    assert set(selection) == {g.name for g in pruner.task.groups} - {"features.3", "features.40"}
    for name, kept in selection.items():
        assert len(kept) == len(beta[name]) // 8
        assert set(kept) == set(np.argsort(-beta[name])[: len(kept)])


def test_a_rate_and_a_budget_are_not_for_the_same_run() -> None:
    model, x = network(), images(1)
    with pytest.raises(sc.ConfigError, match=r"onestep needs exactly one of a budget and OneStep\(rate="):
        sc.prune(model, x, sc.OneStep(rate=2), sc.Budget(macs=0.5), data=data())
    with pytest.raises(sc.ConfigError, match=r"onestep needs exactly one of a budget and OneStep\(rate="):
        sc.prune(model, x, "onestep", data=data())
    result = sc.prune(model, x, sc.OneStep(rate=2, epochs=1, crucial=2), data=data(), progress="silent")
    halves = [len(kept) for kept in result.plan.groups.values()]
    assert halves
    assert all(2 * len(k) == sc.trace(model, x)[n].size for n, k in result.plan.groups.items())


def test_ranking_by_layer_cuts_all_by_the_same_share() -> None:
    pruner = vgg(ranking="layer", crucial=2)
    betas(pruner, features_3=1.3, features_24=0.5)
    plan = pruner.plan()
    shares = [len(k) / pruner.task.graph[n].size for n, k in plan.groups.items()]
    assert max(shares) - min(shares) < 0.05


def test_fold_keeps_the_factors() -> None:
    """The cut network then computes what the gated one did with its closed channels at zero."""
    model, x = plain(torch.float32), images(3)
    pruner = attached(model, x[:1], sc.OneStep(fold=True, crucial=2), sc.Budget(macs=0.6))
    beta = {n: torch.from_numpy(b).float() for n, b in betas(pruner, convs_0=1.4, convs_1=0.7).items()}
    plan = pruner.plan()
    for name, kept in plan.groups.items():
        dead = [i for i in range(len(beta[name])) if i not in kept]
        beta[name][dead] = 0
    expected = plain(torch.float32)(x, [beta[f"convs.{i}"] for i in range(3)])
    torch.testing.assert_close(sc.apply(model, plan).eval()(x), expected, rtol=1e-4, atol=1e-5)


def test_a_search_that_fails_at_its_end_leaves_an_ordinary_network() -> None:
    model, x = plain(torch.float32), images(3)
    pruner = attached(model, x[:1], sc.OneStep(), sc.Budget(macs=0.6))
    with torch.no_grad():
        pruner.importance.offset.fill_(float("nan"))
    with pytest.raises(sc.TrainingError, match="not finite"):
        pruner.finish()
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(x), plain(torch.float32)(x))


def test_a_network_without_convolutions_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(2, 3, 2, 2)
    with pytest.raises(sc.ConfigError, match="convolutions"):
        sc.prune(model, x, "onestep", sc.Budget(macs=0.5), data=[(x, torch.tensor([0, 1]))])


@pytest.mark.parametrize(("distil", "lam"), [(0, 1e-3), (1, None)])
def test_the_choice_depends_on_what_the_channels_are_for(distil: float, lam: float | None) -> None:
    """Labels are the network's own answers, and these hang on one channel of the second layer."""
    model = plain(torch.float32)
    with torch.no_grad():
        model.convs[2].weight[:, [0, 1, 3, 4, 5]] *= 1e-4
        model.fc.weight *= 30
        model.fc.bias.zero_()
        batches = [(x, model(x).argmax(1)) for x in (images(16, i) for i in range(8))]
    result = sc.prune(
        model, images(1),
        sc.OneStep(epochs=10, lam=lam, lr=1e-2, crucial=("convs.0", "convs.2"), prior=0, distil=distil),
        sc.Budget(macs=0.4), data=batches, progress="silent",
    )  # fmt: skip
    assert list(result.plan.groups["convs.1"]) == [2]


# -- the whole run ------------------------------------------------------------------------------------------------------


class Stop(BaseException):
    """Stands for a kill: nothing catches it."""


class Fragile:
    """Batches that stop after so many, over all phases of a run."""

    def __init__(self, loader: Any, left: int) -> None:
        self.loader, self.left = loader, left

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def iter_from(self, start: int) -> Any:
        for batch in self.loader.iter_from(start):
            self.left -= 1
            if self.left < 0:
                raise Stop
            yield batch

    def __iter__(self) -> Any:
        return self.iter_from(0)


def run(folder: Path, left: int = 10**9, resume: bool = False) -> sc.Result:
    from tests.test_resume_prune import loader

    torch.manual_seed(0)
    model = sc.build("zoo:small_cnn", num_classes=4)
    source = loader()
    phases = [sc.Mimic(epochs=2, ema=0.5), sc.Distil(epochs=1, lr=0.01), sc.Recover(epochs=1, lr=0.01)]
    return sc.prune(
        model, torch.zeros(1, 3, 32, 32), sc.OneStep(epochs=2, cost=0), sc.Budget(macs=0.5),
        sc.Data(train=Fragile(source.train, left), val=source.val), phases, folder=folder, resume=resume, save_steps=2,
        progress="silent", calibrate=source.val,  # not of the batches that are counted
    )  # fmt: skip


def history(result: sc.Result) -> list[Any]:
    return [{k: v for k, v in h.items() if "second" not in k} for h in result.history]


def test_stopped_in_any_phase_and_resumed_it_ends_where_it_would_have(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert [p.name for p in sorted((tmp_path / "whole").iterdir())] == [
        "prune", "recover-1-mimic", "recover-2-distil", "recover-3-finetune",
    ]  # fmt: skip
    seen = []
    for lives in ((3, 7, 4, 9, 5), (9, 14), (30, 7)):
        folder = tmp_path / str(lives)
        for i, left in enumerate(lives):
            with pytest.raises(Stop):
                run(folder, left, resume=i > 0)
            seen.append(sorted(p.name for p in folder.iterdir())[-1])
        again = run(folder, resume=True)
        assert again.plan.to_json() == whole.plan.to_json()
        assert history(again) == history(whole)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name]), name
    assert len(set(seen)) == 4  # every phase was stopped in


def test_widths_of_an_empty_selection(tmp_path: Path) -> None:
    """Where every group is crucial and the budget lets them all stay, nothing is cut."""
    model = network("depthwise")
    graph = sc.trace(model, images())
    names = tuple(n for g in graph.groups if g.prunable for n in g.producers[:1])
    result = sc.prune(
        model, images(), sc.OneStep(epochs=1, crucial=names), sc.Budget(macs=1.0), data=data(), progress="silent"
    )
    assert result.after.macs == result.before.macs
    assert Widths(graph, [], sc.Budget(macs=1.0)).fits(np.array([], dtype=np.int64))


def test_norms_and_costs_count_in_the_ranking() -> None:
    """Within a group, |β| times the norm decides; more is cut of the groups whose channels cost more."""
    widths = []
    for cost in (0.0, 0.25):
        pruner = vgg(crucial=1, prior=1.0, cost=cost)
        with torch.no_grad():
            pruner.importance.offset.zero_()  # all β are alike: the norms decide
        selection = pruner.finish().channels
        for group in pruner.task.groups:
            size = norms(group, pruner.model, 2)
            kept = torch.zeros(group.size, dtype=torch.bool)
            kept[torch.from_numpy(selection.get(group.name, np.arange(group.size)))] = True
            if not kept.all():
                assert size[kept].min() >= size[~kept].max()
        widths.append({name: len(k) for name, k in selection.items()})
    prices = dict(zip((g.name for g in pruner.task.groups), pruner.task.widths.prices(), strict=True))
    cheap, dear = min(widths[0], key=lambda n: prices[n]), max(widths[0], key=lambda n: prices[n])
    assert widths[1][cheap] > widths[0][cheap]
    assert widths[1][dear] < widths[0][dear]


def test_prices_are_what_channels_save() -> None:
    """Relative to the mean; of two limits, each counts by how much has to go."""
    model = plain(torch.float32)
    graph = sc.trace(model, images(1))
    base = graph.cost()
    for budget in (sc.Budget(macs=0.5), sc.Budget(macs=0.9, params=0.4), sc.Budget(params=0.7)):
        task = Task(model, graph, budget)
        want = []
        for g in task.groups:
            fewer = graph.cost({g.name: g.size - 1})
            shares, goals = budget.shares(fewer, base), budget.shares(budget.limits(base), base)
            want.append(sum((1 - goals[n]) * (1 - shares[n]) for n in goals))
        mean = sum(w * g.size for w, g in zip(want, task.groups, strict=True)) / sum(g.size for g in task.groups)
        np.testing.assert_allclose(task.widths.prices(), np.array(want) / mean)
    assert Task(model, graph, None).widths.prices().tolist() == [1] * len(task.groups)


def test_the_original_teaches_which_channels_matter() -> None:
    """Its class probabilities take the place of the labels: these have no effect on β, unless `distil=0`."""

    def beta(distil: float, wrong: bool) -> dict[str, np.ndarray]:
        model = plain(torch.float32)
        batches = [(x, (torch.arange(len(x)) + wrong) % 4) for x, _ in data().train]
        found: list[dict[str, np.ndarray]] = []

        class Watched(sc.OneStep):
            def attach(self, task: Task) -> OneStepPruner:
                pruner = super().attach(task)
                finish = pruner.finish
                pruner.finish = lambda: (found.append(pruner.beta()), finish())[1]  # type: ignore[method-assign]
                return pruner

        method = Watched(epochs=2, distil=distil, crucial=1)
        sc.prune(model, images(1), method, sc.Budget(macs=0.7), data=batches, progress="silent")
        return found[0]

    for distil, same in ((1.0, True), (0.0, False)):
        one, other = beta(distil, False), beta(distil, True)
        assert all(np.allclose(one[n], other[n], atol=1e-7) for n in one) == same
