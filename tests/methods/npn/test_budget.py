"""NPN and its budget: met when the channels are fixed, held from then on; and what short and generous runs come to."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods.npn.policy import Policy
from secateurs.methods.npn.pruner import NPNPruner
from tests.methods.npn.test_npn import attached, batches, images, network

HALF = sc.Budget(macs=0.5)


def train(model: nn.Module, pruner: NPNPruner, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    data = batches()
    for i in range(steps):
        x, y = data[i % len(data)]
        (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()


@pytest.mark.parametrize("settings", [{}, {"gates": "sample"}, {"schedule": "ramp"}])
def test_the_budget_is_met_at_the_sharpening_and_held(settings: Any) -> None:
    """The network that trains is from then on the one that is cut: the end takes nothing from it."""
    model, pruner = attached(steps=20, epoch_steps=5, budget=HALF, **settings)
    train(model, pruner, 9)
    assert pruner.policy.kept is None
    train(model, pruner, 1)
    kept = pruner.policy.kept
    assert kept is not None
    widths = np.array([int(k.sum()) for k in kept.split(pruner.sizes)])
    assert pruner.widths.fits(widths)
    assert pruner.widths.cost(widths).macs > 0.45 * pruner.widths.base.macs
    heads = copy.deepcopy(pruner.network.state_dict())
    weights = copy.deepcopy(model.state_dict())
    assert not pruner.alone
    train(model, pruner, 10)
    assert torch.equal(pruner.policy.kept, kept)
    assert all(torch.equal(v, heads[k]) for k, v in pruner.network.state_dict().items())
    assert not torch.equal(weights["fc.weight"], model.state_dict()["fc.weight"])
    with torch.no_grad():
        gated = model.eval()(images(4, 9))
        small = sc.apply(model, pruner.plan()).eval()
        torch.testing.assert_close(small(images(4, 9)), gated, rtol=1e-4, atol=1e-5)
    found = pruner.plan().groups
    assert {g.name: len(found.get(g.name, range(g.size))) for g in pruner.groups} == {
        g.name: int(w) for g, w in zip(pruner.groups, widths, strict=True)
    }


def test_what_is_open_counts_as_the_network_sees_it() -> None:
    """Steeper once the sigmoid is sharp, and in whole alignment steps."""
    for align in (1, 4):
        _, pruner = attached(budget=sc.Budget(macs=0.6, align=align))
        policy: Policy = pruner.policy
        policy.logits = torch.where(torch.arange(len(policy.logits)) % 2 == 0, 0.4, -0.2)
        soft, sharp = policy.open(2.5), policy.open(30.0)
        sizes, half = pruner.widths.sizes, pruner.widths.aligned(pruner.widths.sizes // 2)
        assert np.allclose(sharp, half, atol=0.06)
        if align == 1:
            assert (soft > half - 0.06).all()
            assert not np.allclose(soft, half, atol=0.1)
        else:
            assert all(w % align == 0 or w == n for w, n in zip(soft, sizes, strict=True))


def test_gates_that_hardly_moved_cost_hardly_less() -> None:
    """Not a whole channel of every group."""
    _, pruner = attached(budget=HALF)
    pruner.policy.logits = pruner.policy.initial - 1e-3
    assert pruner.shares.of(pruner.policy.open(2.5)) == pytest.approx([1], abs=1e-3)


def test_the_pruner_keeps_its_learning_rate() -> None:
    """The network's is annealed."""
    rates: list[list[float]] = []

    class Watch(NPNPruner):
        def advance(self) -> None:
            super().advance()
            rates.append([g["lr"] for g in self.optimizer.param_groups])

    class Watched(sc.NPN):
        def attach(self, task: Any) -> Watch:
            return Watch(task, self)

    sc.prune(network(), images(1), Watched(epochs=2, pruner_lr=2e-3), HALF, data=batches(), progress="silent")
    assert all(r == rates[0] for r in rates)
    assert rates[0][0] == 2e-3


def test_one_policy_is_the_default() -> None:
    assert sc.NPN().gates == "batch"
    model, pruner = attached(budget=HALF)
    model.train()
    model(images())
    assert pruner._gate is not None
    assert pruner._gate.shape == (sum(pruner.sizes),)
    model.eval()
    with torch.no_grad():  # nor does an image's company matter
        torch.testing.assert_close(model(images(4))[:1], model(images(4)[:1]), rtol=1e-4, atol=1e-5)


def set_policy(pruner: NPNPruner, logits: Tensor) -> None:
    pruner.policy.logits = logits
    with torch.no_grad():
        pruner.network.heads.weight.zero_()
        pruner.network.heads.bias.copy_(logits)


@pytest.mark.parametrize("hold", [True, False])
def test_no_dead_channel_is_kept(hold: bool) -> None:
    """A budget that leaves room for channels whose gates are closed: they are opened again and train, or stay cut."""
    model, pruner = attached(budget=sc.Budget(macs=0.99), hold=hold)
    logits = pruner.policy.logits.clone()
    logits[: pruner.sizes[0] // 2] = -4.0
    set_policy(pruner, logits)
    before = copy.deepcopy(model)
    plan = pruner.plan()
    group = pruner.groups[0]
    kept = plan.groups.get(group.name, range(group.size))
    assert (len(kept) > group.size // 2) == hold
    for name in group.consumers:
        old, new = before.get_submodule(name).weight, model.get_submodule(name).weight  # type: ignore[union-attr]
        ratio = (new / old).flatten(2).mean(2).mean(0) if old.ndim > 2 else (new / old).mean(0)  # type: ignore[operator]
        assert ratio[list(kept)].min() > 0.5


def test_a_short_run_goes_through_all_phases_and_says_what_it_is() -> None:
    """Within one epoch: the pruner alone, both, the network with its channels fixed."""
    model = network()
    seen: list[tuple[bool, bool]] = []
    lines: list[str] = []

    class Watch(NPNPruner):
        def penalty(self) -> Tensor | float:
            seen.append((self.alone, self.holding))
            return super().penalty()

        def begin(self, total: int, epoch_steps: int) -> None:
            super().begin(total, epoch_steps)
            self.log = lines.append

    class Watched(sc.NPN):
        def attach(self, task: Any) -> Watch:
            return Watch(task, self)

    data = batches(16)
    result = sc.prune(model, images(1), Watched(epochs=1), sc.Budget(macs=0.3), data=data, progress="silent")
    assert (
        seen
        == [(True, False)] * 2 + [(False, False)] * 2 + [(True, False)] * 2 + [(False, False)] * 2 + [(False, True)] * 8
    )
    (gates,) = [h for h in result.history if h.get("event") == "gates"]
    assert gates["step"] == 8
    assert gates["short"] == (not 0.2 <= gates["macs"] <= 0.35)
    assert gates["short"] == bool(lines)
    assert list(result.warnings) == lines
    if lines:
        assert "npn: after its search of 8 steps, the open gates cost" in lines[0]
        assert "(budget 30.0%)" in lines[0]


def test_a_search_of_one_step_cuts_by_the_norms_and_says_so() -> None:
    lines: list[str] = []
    model, pruner = attached(steps=2, epoch_steps=2, budget=HALF)
    pruner.log = lines.append
    train(model, pruner, 1)
    (line,) = lines
    assert line.startswith("npn: after its search of 1 step, the open gates cost 100.0% of the macs (budget 50.0%).")
    assert pruner.found is not None
    assert pruner.found["short"]
    norm = network()
    for g, kept in zip(pruner.groups, pruner.policy.split(pruner.policy.kept).values(), strict=True):  # type: ignore[arg-type]
        size = g.filters(norm).norm(dim=1)
        if 0 < kept.sum() < g.size:
            assert size[kept > 0].mean() > size[kept == 0].mean()


def test_open_share_beside_the_budget_is_on_record() -> None:
    result = sc.prune(network(), images(1), sc.NPN(epochs=16), HALF, data=batches(), progress="silent")
    lines = [h for h in result.history if h.get("event") == "open"]
    assert [h["step"] for h in lines] == list(range(1, 33))[:: max(1, 32 // 20)] or len(lines) >= 20
    for h in lines:
        assert set(h["macs"]) == {"open", "decided", "target"}
        assert 0 < h["macs"]["open"] <= 1
        assert h["lam"] > 0
    assert lines[0]["macs"]["target"] > lines[-1]["macs"]["target"] == pytest.approx(0.5, abs=1e-3)


def test_no_layer_collapses() -> None:
    """Even if all of a layer's gates are closed and the budget is small."""
    _, pruner = attached(budget=sc.Budget(macs=0.3))
    logits = pruner.policy.logits.clone()
    logits[: pruner.sizes[0]] = -8.0
    set_policy(pruner, logits)
    kept = pruner.plan().groups[pruner.groups[0].name]
    assert len(kept) >= max(2, 0.1 * pruner.sizes[0])


def test_paper_preset() -> None:
    """As in the paper, the pruner trains to the end; with a budget, what is fixed at the sharpening stays within it."""
    paper = sc.NPN.preset("paper")
    assert (paper.gates, paper.penalty, paper.hold, paper.prior, paper.pruner_images) == ("batch", "count", False, 0, 1)
    settings = dict(sc.NPN.presets["paper"])
    model, pruner = attached(steps=20, epoch_steps=5, budget=HALF, **settings)
    train(model, pruner, 10)
    assert pruner.policy.kept is not None
    before = copy.deepcopy(pruner.network.heads.state_dict())
    train(model, pruner, 10)
    assert not torch.equal(before["bias"], pruner.network.heads.bias)
    plan = pruner.plan()
    assert sc.verify(model, plan, images(3)) <= 1e-5
    assert sc.count(sc.apply(model, plan), images(1)).macs <= 0.5 * sc.count(model, images(1)).macs


def test_preset_with_lambda_and_no_budget() -> None:
    result = sc.prune(
        network(), images(1), sc.NPN.preset("paper", epochs=4, lam=0.01), data=batches(), progress="silent"
    )
    assert result.error <= 1e-5


def test_lambda_that_closes_no_gate_is_said() -> None:
    model, pruner = attached(steps=4, epoch_steps=2, lam=1e-9)
    train(model, pruner, 4)
    assert not pruner.plan().kept
    assert [h["text"] for h in pruner.history if "text" in h] == [
        "npn closed no gates: raise lam=1e-09, or train longer."
    ]
