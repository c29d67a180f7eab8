"""Criteria that torch-pruning has, too: the same numbers. Skipped without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
from secateurs.methods.method import Task
from secateurs.methods.registry import resolve

tp = pytest.importorskip("torch_pruning")

SIZE = 16


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = sc.build("zoo:resnet20", num_classes=10).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
    return model


def theirs(model: nn.Module, importance: Any) -> dict[str, torch.Tensor]:
    """By the first convolution of each block."""
    graph = tp.DependencyGraph().build_dependency(model, torch.zeros(1, 3, SIZE, SIZE))
    found = {}
    for name, module in model.named_modules():
        if name.endswith("conv1") and name != "conv1":
            group = graph.get_pruning_group(module, tp.prune_conv_out_channels, list(range(module.out_channels)))
            found[name] = importance(group).double()
    return found


@pytest.mark.parametrize(
    ("name", "importance"),
    [
        ("group-l1", tp.importance.GroupMagnitudeImportance(p=1, group_reduction="sum", normalizer=None)),
        ("group-l2", tp.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None)),
        ("lamp", tp.importance.LAMPImportance()),
        ("l1", tp.importance.GroupMagnitudeImportance(p=1, group_reduction="first", normalizer=None)),
        ("bn-scale", tp.importance.BNScaleImportance(normalizer=None)),
    ],
)
def test_by_weights(net: nn.Module, name: str, importance: Any) -> None:
    ours = resolve(name).scores(Task(net, sc.trace(net, torch.zeros(1, 3, SIZE, SIZE)), sc.Budget(macs=0.5)))
    compared = theirs(net, importance)
    assert compared
    for group, values in compared.items():
        torch.testing.assert_close(ours[group].double(), values, rtol=1e-4, atol=1e-7)


def test_by_gradients(net: nn.Module) -> None:
    """torch-pruning leaves batch norms out of this one, so they are taken out of ours."""
    x, y = torch.randn(12, 3, SIZE, SIZE), torch.arange(12) % 10
    t = Task(net, sc.trace(net, x[:1]), sc.Budget(macs=0.5), data=sc.Data(train=[(x, y)]))
    ours = resolve("group-taylor").scores(t)
    net.zero_grad()
    F.cross_entropy(net(x), y, reduction="sum").backward()
    compared = theirs(net, tp.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None))
    for group, values in compared.items():
        norm = net.get_submodule(group.replace("conv1", "bn1"))
        norms = (norm.weight * norm.weight.grad).abs().double()
        torch.testing.assert_close(ours[group] - norms.detach(), values, rtol=1e-3, atol=1e-5)
    net.zero_grad()
