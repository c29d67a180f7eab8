"""Networks that people use: traced, cut at random to 60% of all their channels, verified, costed, trained."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from secateurs.graph import count
from secateurs.graph.attributes import disagreements
from secateurs.graph.reasons import OUTPUT
from secateurs.plans import trace
from secateurs.surgery import apply, verify
from secateurs.testing.networks import randomize
from secateurs.zoo.vision import timm, torchvision
from tests.networks import fraction

# Resolution, and the share of channels that can be cut, the classes aside. On this image, inception_v3's auxiliary head does
# not run to its end.
TORCHVISION = {
    "convnext_tiny": (64, 0.86), "densenet121": (64, 1.0), "efficientnet_b0": (64, 1.0), "googlenet": (96, 1.0),
    "inception_v3": (128, 0.99), "mnasnet0_5": (64, 1.0), "mobilenet_v2": (64, 1.0), "mobilenet_v3_small": (64, 1.0),
    "regnet_x_400mf": (64, 1.0), "regnet_y_400mf": (64, 1.0), "resnet18": (64, 1.0), "resnet50": (64, 1.0),
    "resnext50_32x4d": (64, 1.0), "shufflenet_v2_x0_5": (64, 0.99), "squeezenet1_1": (64, 1.0),
}  # fmt: skip
TIMM = {
    "cspresnet50": (64, 0.84), "dla34": (64, 1.0), "dpn68": (64, 0.8), "ecaresnet26t": (64, 0.5),
    "ese_vovnet19b_dw": (64, 1.0),
    "ghostnet_100": (64, 1.0), "hrnet_w18_small": (64, 1.0), "mobilenetv4_conv_small": (64, 1.0),
    "mobileone_s0": (64, 1.0), "nf_resnet26": (64, 0.0), "repvgg_a0": (64, 1.0), "res2net50_26w_4s": (64, 0.8),
    "resnest14d": (64, 1.0), "selecsls42": (64, 1.0), "skresnet18": (64, 0.8), "xception41": (64, 1.0),
}  # fmt: skip


def check(model: nn.Module, x: torch.Tensor, share: float) -> Any:
    model = randomize(model).eval()
    graph = trace(model, x)
    assert graph.cost() == count(model, x)
    inner = [g for g in graph.groups if g.reason != OUTPUT]
    assert sum(g.size for g in inner if g.prunable) >= share * sum(g.size for g in inner)
    kept = fraction(graph, 0.6)
    plan = graph.plan(kept)
    assert verify(model, plan, x) <= 1e-5
    small = apply(model, plan)
    assert disagreements(small) == []
    assert graph.cost({g: len(k) for g, k in kept.items()}) == count(small, x)
    return small


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    size, share = TORCHVISION[name]
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision().models.get_model(name, weights=None, **options)
    small = check(model, torch.randn(1, 3, size, size), share)
    if name == "googlenet":
        # Its auxiliary heads, which only run in training, were cut along.
        out = small.train()(torch.randn(2, 3, 96, 96))
        assert [o.shape for o in out] == [(2, 1000)] * 3


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    torch.manual_seed(0)
    size, share = TIMM[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        model = timm().create_model(name, pretrained=False)
    check(model, torch.randn(1, 3, size, size), share)


def test_windows_of_a_transformer() -> None:
    """Masks and tables of positions by window and by head hide no channels: all widths but those of the heads can be cut."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (3, 6),
        "window_size": 7,
        "num_classes": 5,
    }
    timm()
    from timm.models.swin_transformer import SwinTransformer

    model = check(SwinTransformer(img_size=112, patch_size=4, **options), torch.randn(1, 3, 112, 112), 0.4)
    graph = trace(model, torch.randn(1, 3, 112, 112), allow_inexact=True)
    assert [g.name for g in graph.groups if not g.prunable] == [
        *(f"layers.{i}.blocks.{j}.attn.qkv" for i in range(2) for j in range(2)),
        "head.fc",
    ]
