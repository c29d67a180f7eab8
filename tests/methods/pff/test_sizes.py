"""Filters get back the size they had, and the network computes what it did."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods.pff.method import PFF
from secateurs.methods.pff.sizes import restore_, sizes, squares
from secateurs.testing.networks import randomize


def images(n: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A convolution with a bias and a norm, one whose norm comes before an addition, and one without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, eps=1e-2)
        self.c, self.fc = nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.a(x)))
        return self.fc(F.relu(self.c(F.relu(self.bn2(self.b(x)) + x))).mean((2, 3)))


class Shared(Net):
    """Two convolutions with one norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.a(x)))
        return self.fc(F.relu(self.c(F.relu(self.bn1(self.b(x)) + x))).mean((2, 3)))


NAMES = ["a.weight", "b.weight", "c.weight"]


def shrunk(kind: type[nn.Module]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network whose filters have become small, each by a factor of its own, one nearly and one quite nothing; and how
    large they were."""
    torch.manual_seed(0)
    model = randomize(kind(), 0).eval()
    first = squares(model, NAMES)
    with torch.no_grad():
        for name in NAMES:
            w = model.get_parameter(name)
            w.mul_(torch.linspace(0.02, 0.8, len(w)).view(-1, 1, 1, 1))
            w[1] *= 1e-4
            w[2] = 0
    return model, first


def test_sizes_come_back_and_nothing_else_changes() -> None:
    model, first = shrunk(Net)
    was = copy.deepcopy(model)
    assert restore_(model, first, {}, images(2)) == ["a.weight", "b.weight"]
    alive = torch.arange(6) != 2
    for name in NAMES[:2]:
        now, then = sizes(squares(model, NAMES), {}), sizes(first, {})
        torch.testing.assert_close(now[name][alive], then[name][alive])
        assert not model.get_parameter(name)[2].any()
    assert torch.equal(
        model.get_parameter("c.weight"), was.get_parameter("c.weight")
    )  # no norm takes a factor out again
    torch.testing.assert_close(model(images()), was(images()), rtol=1e-4, atol=1e-5)
    assert model.bn1.running_var.isfinite().all()


def test_training_goes_on_as_it_would_have() -> None:
    """With a batch's own statistics, which running ones that come from this batch stand for."""
    model, first = shrunk(Net)
    for norm in (model.bn1, model.bn2):
        norm.momentum = None  # their mean over all batches: of one, its own
        norm.reset_running_stats()
    model.train()(images(64))
    was = copy.deepcopy(model)
    assert restore_(model, first, {}, images(2))
    now, then = model.train()(images(64)), was.train()(images(64))
    torch.testing.assert_close(now, then, rtol=1e-3, atol=1e-3 * float(then.detach().abs().max()))


def test_what_counts_is_what_stays() -> None:
    model, first = shrunk(Net)
    kept = {"a.weight": torch.rand(6, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5}
    kept["a.weight"][3] = False
    restore_(model, first, kept, images(2))
    alive = (torch.arange(6) != 2) & (torch.arange(6) != 3)
    now = (model.get_parameter("a.weight") * kept["a.weight"][:, None]).flatten(1).norm(dim=1)
    then = (first["a.weight"] * kept["a.weight"]).sum((1, 2)).sqrt()
    torch.testing.assert_close(now[alive], then[alive])  # and not the norm that all stripes had


def test_a_shared_norm_is_left_alone() -> None:
    model, first = shrunk(Shared)
    was = copy.deepcopy(model.state_dict())
    assert restore_(model, first, {}, images(2)) == []
    assert all(torch.equal(was[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("penalty", ["skeleton", "group-lasso"])
def test_pruned_filters_are_as_large_as_before(penalty: str) -> None:
    torch.manual_seed(0)
    model = randomize(Net(), 0)
    batches = [(images(8, i), torch.arange(8) % 4) for i in range(4)]
    method = PFF(epochs=6, alpha=0.01, lr=1e-3, skeleton_lr=0.3, penalty=penalty)  # type: ignore[arg-type]
    pruner = sc.attach(model, images(1), method, sc.Budget(macs=0.5), steps=24, epoch_steps=4, data=batches)
    first = squares(model, NAMES)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for i in range(24):
        (F.cross_entropy(model(batches[i % 4][0]), batches[i % 4][1]) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    plan = pruner.plan()
    left = squares(sc.mask(model, plan), NAMES)
    masked, then = sizes(left, {}), sizes(first, {name: s > 0 for name, s in left.items()})
    for name in NAMES[:2]:
        stays = masked[name] > 0
        assert stays.any()
        torch.testing.assert_close(masked[name][stays], then[name][stays], rtol=1e-4, atol=0)
    assert bool((masked["c.weight"] < then["c.weight"]).any())


@pytest.mark.parametrize("penalty", ["skeleton", "group-lasso"])
@pytest.mark.parametrize("budget", [sc.Budget(macs=0.6), None])
def test_what_the_user_has_frozen_stays_as_it_is(penalty: str, budget: sc.Budget | None) -> None:
    """Beyond what is cut; the rest learns."""
    torch.manual_seed(0)
    model = randomize(Net(), 0).train()
    for layer in (model.a, model.bn1, model.c):
        layer.requires_grad_(False)
    model.bn1.eval()
    before, x, y = copy.deepcopy(model), images(), torch.arange(8) % 4
    method = PFF(penalty=penalty, **({} if budget else {"alpha": 0.03, "delta": 0.3}))
    pruner = sc.attach(model, x[:1], method, budget, steps=20, epoch_steps=5, data=[(x, y)])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(20):
        (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    plan = pruner.plan()
    found, wanted = (sc.apply(m, plan).state_dict() for m in (model, before))
    frozen = [name for name in found if name.startswith(("a.", "bn1.", "c.", "a/", "c/"))]
    assert len(frozen) >= 9
    assert all(torch.equal(found[name], wanted[name]) for name in frozen)
    assert not torch.equal(found["fc.weight"], wanted["fc.weight"])
