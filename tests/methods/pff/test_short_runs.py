"""PFF in short runs: what keeps the search from destroying the network, and what it says of what it cut."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.methods.pff.phases import Held, ceiling, faded
from secateurs.methods.pff.pruner import PFFPruner
from secateurs.methods.pff.skeleton import Skeleton
from secateurs.testing.networks import randomize
from tests.methods.pff.test_pff import NETWORKS, attached, batches, block, images, task, train


def chosen(model: nn.Module, steps: int = 20, **options: Any) -> tuple[PFFPruner, np.ndarray]:
    """A short run, and the stripes that stay."""
    pruner = attached(model, sc.Budget(macs=0.5), steps=steps, **options)
    train(model, pruner, steps, lr=0.05)
    return pruner, pruner.stays.numpy()


# -- the search --------------------------------------------------------------------------------------------------------


def test_a_nudge_of_the_weights_changes_next_to_nothing() -> None:
    model, nudged = block(), block()
    with torch.no_grad():
        for p in nudged.parameters():
            p.mul_(1 + 1e-7)
    (_, one), (_, two) = chosen(model), chosen(nudged)
    assert 0.2 < one.mean() < 0.8
    assert (one != two).mean() <= 0.01


def test_without_time_to_learn_the_norms_decide() -> None:
    """As in the one-shot criterion."""
    model = block()
    want = sc.L2Stripes().select(task(model, sc.Budget(macs=0.5)))
    pruner = attached(model, sc.Budget(macs=0.5), steps=10, arrive=0.1, skeleton_lr=1e-9)
    train(model, pruner, 1, lr=1e-9)
    for name, kept in pruner.stripes.split(pruner.stays.numpy()).items():
        assert (kept == want.stripes[name]).all(), name


def test_alpha_is_limited_by_the_gradient_that_opposes_it() -> None:
    model = block()
    pruner = attached(model, sc.Budget(macs=0.5), steps=200, limit=2.0, arrive=0.5)
    seen: list[float] = []
    assert pruner.alpha == 0  # while the gradient is measured
    for _ in range(60):
        train(model, pruner, 1)
        seen.append(pruner.alpha)
    assert isinstance(pruner.measure, Skeleton)
    assert pruner.controller is not None
    assert seen[:9] == [0.0] * 9
    assert 0 < max(seen) <= pruner.controller.most < pruner._guess(1.0)
    free = attached(block(), sc.Budget(macs=0.5), steps=200, limit=None, arrive=0.5)
    assert free.alpha == pytest.approx(free._guess(free._needed()))
    assert free.alpha > pruner.controller.most
    assert (pruner._scores() > 0.5 * pruner.measure.prior.numpy()).mean() > 0.9  # nothing was destroyed


def test_no_run_is_too_short_for_the_limit() -> None:
    model = block()
    pruner = attached(model, sc.Budget(macs=0.5), steps=12, arrive=0.5)
    assert pruner.alpha == 0
    train(model, pruner, 1)
    assert pruner.controller is not None
    assert 0 < pruner.alpha <= pruner.controller.most < 0.1 * pruner._guess(1.0)


def test_values_stop_at_zero() -> None:
    model = block()
    pruner = attached(model, sc.Budget(macs=0.5), steps=100, limit=None, skeleton_lr=0.5, arrive=0.5)
    lowest = 0.0
    for _ in range(40):
        train(model, pruner, 1)
        lowest = min(lowest, float(pruner.measure.values.detach().min()))  # type: ignore[attr-defined]
    assert lowest == 0.0
    assert bool((pruner.measure.values == 0).any())  # type: ignore[attr-defined]


# -- phases ------------------------------------------------------------------------------------------------------------


def test_phases_by_hand() -> None:
    assert [faded(a, 0.6) for a in (0.0, 0.1, 0.39, 0.5, 1.0)] == pytest.approx([0.4, 0.4, 0.4, 0.75, 1.0])
    assert [ceiling(0.2, 0.1, 0.4, p) for p in (0.0, 0.1, 0.25, 0.4, 1.0)] == pytest.approx([0.2, 0.2, 0.1, 0, 0])
    recipe = Held(epochs=3, schedule="cosine", hold=0.6)
    assert [recipe.factor(d, 3 * d) for d in (0, 0.3, 0.6, 0.8, 1.0)] == pytest.approx([1, 1, 1, 0.5, 0])
    assert Held(epochs=3, schedule="cosine").factor(0.5, 1.5) == pytest.approx(0.5)


def test_the_learning_rate_is_held_under_control_until_the_shape_is_final() -> None:
    half, free = (task(block(), budget) for budget in (sc.Budget(macs=0.5), None))
    assert sc.PFF(arrive=0.2, fixed=0.5).recipe(half).hold == 0.5
    assert sc.PFF(hold=False).recipe(half).hold == 0
    assert sc.PFF(alpha=1e-4).recipe(half).hold == 0
    assert sc.PFF().recipe(free).hold == 0  # nothing is controlled without a budget


def test_the_rest_of_the_run_trains_the_network_that_is_returned() -> None:
    model = block()
    pruner = attached(model, sc.Budget(macs=0.5), steps=60, arrive=0.2, fixed=0.5)
    train(model, pruner, 31)
    x, before = images(4), copy.deepcopy(model).eval()(images(4))
    plan = pruner.plan()
    assert sc.verify(model, plan, images(2)) <= 1e-5
    torch.testing.assert_close(sc.apply(model, plan).eval()(x), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"penalty": "group-lasso"}])
def test_channels_that_have_to_go_as_well_are_not_cut_cold(options: dict[str, Any]) -> None:
    """In the bottleneck most of the work is in 1×1 convolutions: stripes alone can't meet the budget."""
    model = NETWORKS["bottleneck"](0)
    pruner = attached(model, sc.Budget(macs=0.3), steps=60, **options)
    train(model, pruner, 60, lr=0.01)
    plan = pruner.plan()
    assert {"0", "6"} <= set(plan.groups)
    (note,) = [h for h in pruner.history if h.get("event") == "stripes"]
    assert note["cut"] <= 1e-4
    assert note["channels"] < note["of_channels"]


# -- what is reported --------------------------------------------------------------------------------------------------


def finished(pruner: PFFPruner) -> tuple[list[str], dict[str, Any]]:
    said: list[str] = []
    pruner.log = said.append
    pruner.finish()
    (note,) = [h for h in pruner.history if h.get("event") == "stripes"]
    return said, note


def test_what_a_fixed_alpha_drops_is_reported() -> None:
    pruner = attached(block(), alpha=0.0, delta=0.3)
    with torch.no_grad():
        pruner.measure.values[54:80] = 0.25  # type: ignore[attr-defined]
    said, note = finished(pruner)
    assert note["cut"] > 0.01
    assert note["largest"] == 0.25
    share = f"{note['macs']:.1%} of the MACs. This changes the output by {note['cut']:.1%} of its range."
    (cut,) = [line for line in said if line.startswith("pff cut")]
    assert cut.startswith("pff cut 26 of 201 stripes with values up to 0.2500, and 2 channels, which leaves ")
    assert cut.endswith(share)


def test_an_alpha_that_does_not_meet_the_budget_is_reported() -> None:
    model = block()
    pruner = attached(model, sc.Budget(macs=0.5), alpha=1e-5, steps=8)
    train(model, pruner, 8, lr=1e-3)
    said, note = finished(pruner)
    assert said[0].startswith(
        "pff: alpha=1e-05 left 100.0% of the stripes at or above delta=0.05. The budget was met by cutting"
    )
    assert note["below"] == 0
    assert note["largest"] > 0.9


def test_a_run_under_control_has_nothing_to_report() -> None:
    model = block()
    pruner = attached(model, sc.Budget(macs=0.5), steps=60)
    train(model, pruner, 60, lr=1e-3)
    said, note = finished(pruner)
    assert said == []
    assert note["cut"] <= 1e-4


def test_live_acts_after_each_step() -> None:
    model = block()
    pruner = attached(model, alpha=0.0, live=True, steps=1000)
    for step in range(3):
        with torch.no_grad():
            pruner.measure.values[60 + step] = 0.01  # type: ignore[attr-defined]
        pruner.step()
        assert (pruner.measure.values[60 : 61 + step] == 0).all()  # type: ignore[attr-defined]


# -- presets, and difficult networks -----------------------------------------------------------------------------------


def test_the_papers_settings() -> None:
    paper = sc.PFF.preset("paper")
    recipe = paper.recipe(task(block(), None))
    assert [recipe.lr * recipe.factor(e / 160, e) for e in (0, 79, 80, 119, 120, 159)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    pruner = attached(block(), **paper.presets["paper"])
    assert pruner.alpha == 1e-5
    assert (pruner._scores() == 1).all()
    assert sc.PFF.preset("released").live
    assert sc.PFF.preset("group-lasso").penalty == "group-lasso"


class Plain(nn.Sequential):
    """Without batch norm."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 24, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
        )


@pytest.mark.parametrize("macs", [0.5, 0.1, 0.05])
@pytest.mark.parametrize("options", [{}, {"penalty": "group-lasso"}, {"skeleton": "position"}])
@pytest.mark.parametrize("kind", ["plain", "block", "small_cnn"])
def test_small_budgets_and_networks_without_batch_norm(kind: str, options: dict[str, Any], macs: float) -> None:
    torch.manual_seed(0)
    model = randomize(Plain(), 0) if kind == "plain" else NETWORKS[kind](0)
    result = sc.prune(
        model, images(1), sc.PFF(epochs=6, lr=0.01, **options), sc.Budget(macs=macs), data=batches(), progress="silent"
    )
    assert result.after.macs <= macs * result.before.macs
    assert result.error <= 1e-5
    assert bool(result.model(images()).isfinite().all())
    graph = sc.trace(model, images(1))
    widths = {g.name: g.size for g in graph.groups if g.prunable and g.internal}
    if macs >= 0.1:
        assert all(len(result.plan.groups.get(g, range(n))) >= 0.1 * n for g, n in widths.items())
