"""The pruner network: it finds the deepest features of any network, and leaves the network as it is."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods.npn.network import PrunerNetwork, deepest, some_images
from tests.networks import Net

CLASSES = 4


def images(n: int = 8, seed: int = 0, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def conv(n: int, m: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n, m, 3, padding=1, bias=False), nn.BatchNorm2d(m), nn.ReLU())


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def unet(s: Any, x: Tensor) -> Tensor:
    high = s.down(x)
    low = F.interpolate(s.low(F.max_pool2d(high, 2)), scale_factor=2.0)
    return s.out(s.up(torch.cat([high, low], 1))).mean((2, 3))


def supervised(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return pooled(s.one(y)) + pooled(s.two(s.b(y)))


# name → (network, the layer whose input is the deepest, its features)
NETWORKS: dict[str, tuple[Any, str | None, int]] = {
    "convolution and batch norm last": (
        lambda: Net(lambda s, x: pooled(s.n(s.c(s.a(x)))), a=conv(3, 8), c=nn.Conv2d(8, CLASSES, 1), n=nn.BatchNorm2d(CLASSES)),
        "c", 8,
    ),
    "summed deep supervision": (
        lambda: Net(supervised, a=conv(3, 8), b=conv(8, 12), one=nn.Conv2d(8, CLASSES, 1), two=nn.Conv2d(12, CLASSES, 1)),
        "two", 12,
    ),
    "view on the output": (
        lambda: Net(
            lambda s, x: s.fc(pooled(s.b(s.a(x)))).view(-1, CLASSES, 2).sum(2), a=conv(3, 8), b=conv(8, 12),
            fc=nn.Linear(12, 2 * CLASSES),
        ),
        "fc", 12,
    ),
    "concatenated heads": (
        lambda: Net(
            lambda s, x: torch.cat([s.one(s.a(x)), s.two(s.a(x))], 1).mean((2, 3)), a=conv(3, 8), one=nn.Conv2d(8, 1, 1),
            two=nn.Conv2d(8, CLASSES - 1, 3, padding=1),
        ),
        "two", 8,
    ),
    "two heads": (
        lambda: Net(
            lambda s, x: (lambda y: (s.one(pooled(y)), s.two(y)))(s.b(s.a(x))), a=conv(3, 8), b=conv(8, 12),
            one=nn.Linear(12, CLASSES), two=nn.Conv2d(12, 2, 1),
        ),
        "two", 12,
    ),
    "U-Net": (lambda: Net(unet, down=conv(3, 8), low=conv(8, 16), up=conv(24, 8), out=nn.Conv2d(8, CLASSES, 1)), "out", 8),
    "no classifier": (lambda: Net(lambda s, x: pooled(s.b(s.a(x))), a=conv(3, 8), b=conv(8, CLASSES)), "b.0", 8),
    "a classifier that is no module": (
        lambda: Net(
            lambda s, x: F.linear(pooled(s.b(s.a(x))), s.w), a=conv(3, 8), b=conv(8, 12),
            w=nn.Parameter(torch.randn(CLASSES, 12)),
        ),
        "b.0", 8,
    ),
    "no layer that is a module": (
        lambda: Net(
            lambda s, x: pooled(F.conv2d(F.relu(F.conv2d(x, s.v)), s.w)), v=nn.Parameter(torch.randn(8, 3, 3, 3)),
            w=nn.Parameter(torch.randn(CLASSES, 8, 3, 3)),
        ),
        None, CLASSES,
    ),
}  # fmt: skip


def first(outputs: Any) -> Tensor:
    return outputs[0] if isinstance(outputs, tuple) else outputs


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("gates", ["batch", "sample"])
def test_any_network_is_pruned(kind: str, gates: Any) -> None:
    build, layer, size = NETWORKS[kind]
    if "no " in kind and "module" in kind and gates == "sample":
        pytest.skip("gates per sample need modules")
    torch.manual_seed(0)
    model = build()
    found = deepest(model, images(1))
    assert (found.layer, found.size) == (layer, size)
    data = [(images(8, i), torch.arange(8) % CLASSES) for i in range(2)]
    pruner = sc.attach(
        model, images(1), sc.NPN(gates=gates), sc.Budget(macs=0.6), steps=4, epoch_steps=2, data=data, scope="all"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    heads = copy.deepcopy(pruner.network.heads.weight)  # type: ignore[attr-defined]
    model.train()
    for x, y in data * 2:
        (F.cross_entropy(first(model(x)), y) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    assert not torch.equal(heads, pruner.network.heads.weight)  # type: ignore[attr-defined]
    plan = pruner.plan()
    before = sc.count(model, images(1)).macs
    assert sc.verify(model, plan, images(2)) <= 1e-5
    assert sc.count(sc.apply(model, plan), images(1)).macs <= 0.6 * before


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_copy_computes_what_the_network_computes(kind: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[kind][0]().eval()
    before = copy.deepcopy(model.state_dict())
    pruner = PrunerNetwork(model, images(1), torch.full((11,), 2.5), torch.Generator().manual_seed(0)).eval()
    x = images(3)
    with torch.no_grad():
        assert torch.equal(first(pruner.net(x)), first(model(x)))
        logits = pruner(x)
    assert logits.shape == (3, 11)
    assert (logits - 2.5).abs().max() < 0.1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    # No parameter waits for a gradient that never comes: DistributedDataParallel would.
    pruner(x).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in pruner.parameters())


LAYERS = {
    "torchvision:resnet18": ("fc", 512),
    "torchvision:squeezenet1_1": ("classifier.1", 512),
    "torchvision:googlenet": ("fc", 1024),  # not those of its auxiliary classifiers
    "torchvision:mobilenet_v2": ("classifier.1", 1280),
    "timm:mobilenetv3_small_050": ("classifier", 1024),
    "timm:resnet10t": ("fc", 512),
}


@pytest.mark.parametrize("spec", LAYERS)
def test_the_deepest_features_are_found(spec: str) -> None:
    if importlib.util.find_spec(spec.partition(":")[0]) is None:
        pytest.skip("not installed")
    options: dict[str, Any] = {"init_weights": False} if spec.endswith("googlenet") else {}
    torch.manual_seed(0)
    model = sc.build(spec, num_classes=7, **options).eval()
    found = deepest(model, images(1, size=64))
    assert (found.layer, found.size) == LAYERS[spec]


def test_features_of_tokens_are_averaged_over_the_tokens() -> None:
    model = Net(lambda s, x: s.fc(s.a(x).flatten(2).transpose(1, 2)).mean(1), a=conv(3, 8), fc=nn.Linear(8, CLASSES))
    pruner = PrunerNetwork(model, images(1), torch.zeros(5), torch.Generator()).eval()
    assert (pruner.at.layer, pruner.at.size) == ("fc", 8)
    with torch.no_grad():
        torch.testing.assert_close(pruner.features(images(3)), pooled(pruner.net.a(images(3))))  # type: ignore[operator]


def test_a_network_without_features_is_refused() -> None:
    model = Net(lambda s, x: F.conv2d(x, s.w).sum(), w=nn.Parameter(torch.randn(4, 3, 3, 3)))
    with pytest.raises(sc.ConfigError, match="a convolution or linear layer as a module, or with an output of shape"):
        deepest(model, images(1))


def test_the_pruner_sees_some_of_the_images() -> None:
    x, mask, scale = images(8), torch.arange(8), torch.tensor(2.0)
    args, named = some_images((x, [mask, scale]), {"flag": True}, 0.25)
    assert torch.equal(args[0], x[[0, 4]])
    assert args[1][0].tolist() == [0, 4]
    assert args[1][1] is scale
    assert named == {"flag": True}
    assert len(some_images(([*x],), {}, 0.25)[0][0]) == 8  # images or batches: nothing tells
    for rows, fraction, count in ((8, 0.75, 6), (8, 0.4, 4), (8, 1.0, 8), (4, 0.25, 2), (5, 0.25, 2), (1, 0.25, 1)):
        assert len(some_images((x[:rows],), {}, fraction)[0][0]) == count  # a batch norm needs two
