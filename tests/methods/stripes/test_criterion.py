"""The one-shot criterion: the stripes with the smallest relative norms are cut, to the budget, without data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import Task
from secateurs.methods.stripes.blocks import blocks
from secateurs.methods.stripes.select import Left, Stripes, kernels
from secateurs.report.shapes import pictures
from secateurs.stripes import StripeConv2d
from secateurs.testing.networks import images, network, randomize


def task(model: nn.Module, budget: sc.Budget) -> Task:
    return Task(model, sc.trace(model, images(1)), budget, example_inputs=images(1))


def norms(model: nn.Module, name: str) -> Tensor:
    """(filters, rows, columns)"""
    return model.get_parameter(name).detach().square().sum(1).sqrt()


def test_it_is_a_method_by_name_without_data() -> None:
    assert "l2-stripes" in sc.methods()
    model = network("residual")
    result = sc.prune(model, images(1), "l2-stripes", sc.Budget(macs=0.5))
    assert 0.48 * result.before.macs < result.after.macs <= 0.5 * result.before.macs
    assert any(isinstance(m, StripeConv2d) for m in result.model.modules())


def test_the_smallest_relative_norms_are_cut_from_all_layers_by_one_threshold() -> None:
    model = network("residual")
    with torch.no_grad():
        model.conv1.weight.mul_(100)  # a layer's scale does not matter
    plan = sc.prune(model, images(1), sc.L2Stripes(cost=0), sc.Budget(macs=0.6)).plan
    relative = {
        name: norms(model, name) / norms(model, name).mean() for name in kernels(task(model, sc.Budget(macs=1.0)))
    }
    kept, cut = [], []
    for name, n in relative.items():
        stays = torch.zeros(n.numel(), dtype=torch.bool)
        stays[list(plan.stripes.get(name, range(n.numel())))] = True
        kept.append(n.flatten()[stays])
        cut.append(n.flatten()[~stays])
        assert stays.sum() > 0
    # At the threshold, a cheaper stripe may stay where a dearer one no longer fits.
    assert torch.cat(cut).quantile(0.95) < torch.cat(kept).quantile(0.05)
    assert torch.cat(cut).max() < 1.05 * torch.cat(kept).min()


@pytest.mark.parametrize("limit", ["macs", "params"])
def test_more_is_cut_of_layers_whose_stripes_cost_more(limit: str) -> None:
    model, budget = network("residual"), sc.Budget(**{limit: 0.6})
    stripes = Stripes(task(model, budget), kernels(task(model, budget)))
    whole = stripes.left(np.ones(len(stripes), dtype=bool), np.ones(stripes.units))
    costs = []
    for i in range(len(stripes.sizes)):
        fewer = whole.counts.copy()
        fewer[i] -= 1
        left = Left(whole.alive, whole.channels, whole.widths, fewer)
        costs.append(getattr(stripes.cost(whole), limit) - getattr(stripes.cost(left), limit))
    worth = stripes.worth(0.25)
    np.testing.assert_allclose(worth / worth[0], (np.array(costs) / costs[0]) ** -0.25)
    assert stripes.worth(0).tolist() == [1] * len(costs)
    assert worth.max() > 1.1 * worth.min()

    def kept(cost: float) -> np.ndarray:
        plan = sc.prune(model, images(1), sc.L2Stripes(cost=cost), budget).plan
        return np.array(
            [len(plan.stripes.get(n, range(s))) / s for n, s in zip(stripes.kernels, stripes.sizes, strict=True)]
        )

    moved = kept(0.25) - kept(0)
    assert moved[worth == worth.min()].mean() < 0 < moved[worth == worth.max()].mean()


def test_the_same_share_of_every_layer() -> None:
    model = network("residual")
    method = sc.L2Stripes(ranking="layer")
    plan = sc.prune(model, images(1), method, sc.Budget(macs=0.5)).plan
    shares = [len(kept) / norms(model, name).numel() for name, kept in plan.stripes.items()]
    assert len(shares) == len(kernels(task(model, sc.Budget(macs=1.0))))
    assert max(shares) - min(shares) < 0.06


def test_a_filter_without_stripes_takes_its_channel_along() -> None:
    model = network("residual")
    with torch.no_grad():
        model.blocks[0][0].weight[3] *= 1e-3
    plan = sc.prune(model, images(1), "l2-stripes", sc.Budget(macs=0.6)).plan
    (gone,) = [set(range(16)) - set(kept) for name, kept in plan.groups.items() if len(kept) < 16]
    assert gone == {3}


def test_every_layer_keeps_the_floor() -> None:
    model = network("residual")
    with torch.no_grad():
        model.conv1.weight[:, :, 0] *= 1e-6
        model.conv1.weight[1:] *= 1e-6
    shape = tuple(norms(model, "conv1.weight").shape)
    plan = sc.prune(model, images(1), sc.L2Stripes(floor=0.5), sc.Budget(macs=0.6)).plan
    assert len(plan.stripes["conv1.weight"]) >= 0.5 * np.prod(shape)


def test_what_it_cannot_prune() -> None:
    pointwise = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(
        sc.ConfigError,
        match=r"l2-stripes found no convolution that stripes can be cut from \(the network has 2 of 1×1\)",
    ):
        sc.prune(pointwise, images(1), "l2-stripes", sc.Budget(macs=0.5))
    model = network("residual")
    with pytest.raises(sc.BudgetError, match="lowest budget that can be met"):
        sc.prune(model, images(1), sc.L2Stripes(floor=0.5), sc.Budget(macs=0.01))
    once = sc.prune(model, images(1), sc.L2Stripes(ranking="layer"), sc.Budget(macs=0.3)).model
    with pytest.raises(sc.ConfigError, match="only convolutions whose stripes are already cut"):
        sc.prune(once, images(1), "l2-stripes", sc.Budget(macs=0.5))
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(sc.ConfigError, match=r"l2-stripes: conv1\.weight has NaN"):
        sc.L2Stripes().select(task(model, sc.Budget(macs=0.5)))


def conv_only(dims: int, **options: Any) -> nn.Module:
    conv, pool = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "AdaptiveAvgPool"))
    return nn.Sequential(conv(3, 8, **options), nn.ReLU(), conv(8, 4, 1), pool(1), nn.Flatten(), nn.Linear(4, 4))


@pytest.mark.parametrize(("model", "dims", "found"), [
    (conv_only(1, kernel_size=1), 1, "2 of kernel size 1"),
    (conv_only(3, kernel_size=1), 3, "2 of 1×1×1"),
    (conv_only(2, kernel_size=1), 2, r"2 of 1×1"),
    (conv_only(2, kernel_size=3, padding=1, padding_mode="reflect"), 2, r"1 with padding_mode='reflect', 1 of 1×1"),
])  # fmt: skip
@pytest.mark.parametrize("method", ["l2-stripes", "pff"])
def test_what_has_no_stripes_is_told_what_has(method: str, model: nn.Module, dims: int, found: str) -> None:
    x = torch.randn(2, 3, *[8] * dims)
    with pytest.raises(
        sc.ConfigError, match=rf"the network has {found}\).*nn\.Conv3d with more than one kernel position"
    ):
        sc.prune(model, x, method, sc.Budget(macs=0.5), [(x, torch.tensor([0, 1]))], device="cpu")


@pytest.mark.parametrize("budget", [sc.Budget(macs=0.5), sc.Budget(params=0.3), sc.Budget(macs=0.12)])
def test_blocks_keep_the_same_positions(budget: sc.Budget) -> None:
    """A block's stripes at one position stay or go together, and their mean norm decides."""
    model = network("residual")
    result = sc.prune(model, images(1), sc.L2Stripes(block=4), budget)
    assert budget.allows(sc.count(result.model, images(1)), sc.count(model, images(1)))
    assert result.error <= 1e-5
    shapes = kernels(task(model, budget))
    for name, own in blocks(model, shapes, 4).items():
        kept = torch.zeros(shapes[name][0], shapes[name][1] * shapes[name][2], dtype=torch.bool)
        kept.view(-1)[list(result.plan.stripes.get(name, range(kept.numel())))] = True
        for b in range(int(own.max()) + 1):
            inside = kept[torch.from_numpy(own == b)]
            inside = inside[inside.any(1)]
            assert (inside == inside[:1]).all()


class Deep(nn.Module):
    """A network over one, two or three axes, with a shortcut, strides and kernels of several sizes."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv, norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"BatchNorm{axes}d")
        self.stem, self.bn0 = conv(3, 12, 3, stride=2, padding=1, bias=False), norm(12)
        self.a, self.bn1 = conv(12, 16, 3, padding=2, dilation=2, bias=False), norm(16)
        self.b, self.bn2 = conv(16, 12, (2, 3, 1)[-axes:] if axes > 1 else 5, padding="same"), norm(12)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x)).relu()
        y = self.bn2(self.b(self.bn1(self.a(x)).relu()))
        return self.fc((x + y).relu().flatten(2).mean(2))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("method", ["l2-stripes", sc.PFF(epochs=2), sc.PFF(epochs=1, skeleton="position")])
def test_kernels_with_any_number_of_axes(axes: int, method: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, *(12, 10, 8)[:axes])
    data = [(x, torch.arange(8) % 4)] * 4
    model = randomize(Deep(axes), 0).eval()
    result = sc.prune(model, x[:2], method, sc.Budget(macs=0.5), data, recover=None, device="cpu")
    graph, plan, base = sc.trace(model, x[:2]), result.plan, sc.count(model, x[:2])
    assert sc.verify(model, plan, x[:2]) <= 1e-5
    left = sc.count(result.model, x[:2])
    assert left == graph.cost_of(plan)
    assert left.macs <= 0.5 * base.macs
    # To within one stripe: that of all filters at one position if they are cut together.
    kinds = {w: plan.shapes[w] for w in plan.stripes}
    one = max(base.macs // int(np.prod((s[0], *s[2:]))) * (s[0] if getattr(method, "skeleton", "") == "position" else 1)
              for s in kinds.values())  # fmt: skip
    assert left.macs > 0.5 * base.macs - one
    if getattr(method, "skeleton", "") != "position":
        assert any(isinstance(m, sc.StripeConv) and m.axes == axes for m in result.model.modules())


@pytest.mark.parametrize("axes", [1, 3])
def test_artifacts_exports_and_pictures_of_any_number_of_axes(axes: int, tmp_path: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *(12, 10, 8)[:axes])
    result = sc.prune(randomize(Deep(axes), 0), x, "l2-stripes", sc.Budget(macs=0.5))
    again = sc.load(result.save(tmp_path / "run"), model=Deep(axes)).eval()
    with torch.no_grad():
        assert torch.equal(again(x), result.model.eval()(x))
    sc.export(result.model, tmp_path / "small.pt2", x)
    summary = json.loads((tmp_path / "run" / "card.json").read_text())["stripes"]
    assert all(np.array(layer["shares"]).shape == tuple(layer["kernel"]) for layer in summary)
    assert {len(layer["kernel"]) for layer in summary} == {axes}
    assert len(pictures(result.model, result.plan, tmp_path / "pictures")) == 3
