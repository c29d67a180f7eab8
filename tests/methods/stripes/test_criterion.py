"""The one-shot criterion: the stripes with the smallest relative norms are cut, to the budget, without data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import Task
from secateurs.methods.stripes.blocks import blocks
from secateurs.methods.stripes.select import Left, Stripes, kernels
from secateurs.stripes import StripeConv2d
from secateurs.testing.networks import images, network


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
    (conv_only(1, kernel_size=5), 1, "2 Conv1d"),
    (conv_only(3, kernel_size=3), 3, "2 Conv3d"),
    (conv_only(2, kernel_size=1), 2, r"2 of 1×1"),
    (conv_only(2, kernel_size=3, padding=1, padding_mode="reflect"), 2, r"1 with padding_mode='reflect', 1 of 1×1"),
])  # fmt: skip
@pytest.mark.parametrize("method", ["l2-stripes", "pff"])
def test_what_has_no_stripes_is_told_what_has(method: str, model: nn.Module, dims: int, found: str) -> None:
    x = torch.randn(2, 3, *[8] * dims)
    with pytest.raises(
        sc.ConfigError, match=rf"the network has {found}\).*cut from nn\.Conv2d with a kernel larger than 1×1"
    ):
        sc.prune(model, x, method, sc.Budget(macs=0.5), [(x, torch.tensor([0, 1]))], device="cpu")


@pytest.mark.parametrize("budget", [sc.Budget(macs=0.5), sc.Budget(params=0.3), sc.Budget(macs=0.12)])
def test_blocks_keep_the_same_positions(budget: sc.Budget) -> None:
    """A block's stripes at one position stay or go together, and their mean norm decides."""
    model = network("residual")
    result = sc.prune(model, images(1), sc.L2Stripes(block=4), budget)
    assert budget.allows(result.after, result.before)
    assert result.error <= 1e-5
    shapes = kernels(task(model, budget))
    for name, own in blocks(model, shapes, 4).items():
        kept = torch.zeros(shapes[name][0], shapes[name][1] * shapes[name][2], dtype=torch.bool)
        kept.view(-1)[list(result.plan.stripes.get(name, range(kept.numel())))] = True
        for b in range(int(own.max()) + 1):
            inside = kept[torch.from_numpy(own == b)]
            inside = inside[inside.any(1)]
            assert (inside == inside[:1]).all()
