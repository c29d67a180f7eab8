"""A GPU is not waited for in each step: values are read from it at intervals, or where the next step depends on them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import secateurs as sc
from secateurs.data.augment import Augment, gather, generator
from secateurs.data.loader import ArraySource, Loader
from secateurs.devices import VARIABLE
from secateurs.methods import resolve
from secateurs.stripes.layout import dense
from secateurs.training import Engine, Hook, Recipe
from tests.syncs import DEVICE, Syncs
from tests.test_device_rule import network

STEPS = 20  # of an epoch, and the metrics are read at its end


class Counting(Hook):
    """How often the host waited in each step."""

    def __init__(self, found: Counter[str]) -> None:
        self.found, self.steps, self.before = found, list[Counter[str]](), Counter[str]()

    def before_batch(self, engine: Any, batch: Any) -> None:
        self.before = Counter(self.found)

    def after_step(self, engine: Any) -> None:
        self.steps.append(Counter(self.found) - self.before)

    @property
    def waits(self) -> list[int]:
        return [sum(step.values()) for step in self.steps]


def data(device: Any = DEVICE) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 3, 8, 8).to(device), torch.randint(0, 4, (8,)).to(device)) for _ in range(STEPS)]


def watched(monkeypatch: pytest.MonkeyPatch, found: Counter[str]) -> Counting:
    """A hook after those of every engine."""
    monkeypatch.setenv(VARIABLE, str(DEVICE))
    counting, made = Counting(found), Engine.__init__

    def init(self: Engine, *args: Any, hooks: Any = (), **kwargs: Any) -> None:
        made(self, *args, hooks=[*hooks, counting], **kwargs)

    monkeypatch.setattr(Engine, "__init__", init)
    return counting


@pytest.mark.parametrize("targets", ["indices", "shares", "own loss"])
def test_training(monkeypatch: pytest.MonkeyPatch, targets: str) -> None:
    with Syncs() as syncs:
        counting, batches = watched(monkeypatch, syncs.found), data()
        if targets != "indices":
            batches = [(x, F.one_hot(y.cpu(), 4).float().to(DEVICE)) for x, y in batches]
        loss = F.binary_cross_entropy_with_logits if targets == "own loss" else None
        recipe = Recipe(epochs=2, precision="fp32", ema=0.9)
        history = Engine(network().to(DEVICE), batches, recipe, loss=loss, device=DEVICE, progress=False).fit()
    assert counting.waits[0] > 0  # the first batch is looked at
    assert counting.waits[1:] == [0] * (2 * STEPS - 1), counting.steps
    assert [line["step"] for line in history] == [STEPS, 2 * STEPS]
    assert all(0 <= line["train_top1"] <= 100 for line in history)


def test_recovery_with_a_teacher_and_loaders_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with Syncs() as syncs:
        counting = watched(monkeypatch, syncs.found)
        images = torch.randint(0, 255, (8 * STEPS, 8, 8, 3), dtype=torch.uint8)
        source = ArraySource(images, torch.arange(8 * STEPS) % 4, device=DEVICE)
        loader = Loader(
            source, batch_size=8, mean=(0.5,) * 3, std=(0.2,) * 3, augment=Augment(2), shuffle=True, device=DEVICE
        )
        recover = sc.Recover(epochs=2, precision="fp32", mixup=0.2)
        inputs = torch.randn(1, 3, 8, 8).to(DEVICE)
        sc.prune(network(), inputs, "l1", sc.Budget(macs=0.6), loader, recover=recover, progress=False)
    assert len(counting.steps) == 2 * STEPS
    assert not any(counting.waits[1:]), counting.steps


def pruned(method: sc.Method) -> sc.Result:
    inputs = torch.randn(1, 3, 8, 8)
    return sc.prune(network(), inputs, method, sc.Budget(macs=0.6), data("cpu"), progress=False)


def events(result: sc.Result) -> list[Any]:
    """When the method did what, and the widths from then on."""
    return [(e["event"], e.get("step"), e.get("widths")) for e in result.history if "event" in e]


# The rest of the steps, by method: what is allowed is what the next step depends on.
METHODS = {
    "pff": ({"arrive": 0.1}, lambda waits: not any(waits[7:])),  # α follows the values until the units are chosen
    "npn": ({}, lambda waits: max(waits) <= 1 and not any(waits[21:])),  # λ follows the gates in the search
    "aofp": ({"search_cost": 6}, lambda waits: sum(map(bool, waits)) <= 8),  # where a step of a search may be complete
    "onestep": ({}, lambda waits: not any(waits[10:])),  # λ follows the gradient of the first ten steps
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_methods(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings, rest = METHODS[name]
    method = resolve(resolve(name), epochs=2, precision="fp32", **settings)
    here = pruned(method)
    with Syncs() as syncs:
        counting = watched(monkeypatch, syncs.found)
        there = pruned(method)
        plan = there.plan
    assert plan == here.plan  # whenever it was read
    assert events(there) == events(here)
    waits = [step - Counter({k: n for k, n in step.items() if "losses.py" in k}) for step in counting.steps]
    assert rest([sum(step.values()) for step in waits][1:]), counting.steps


def test_labels_out_of_range_on_the_device_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cross-entropy itself would end a process's use of its GPU."""
    with Syncs() as syncs:
        counting, batches = watched(monkeypatch, syncs.found), data()
        batches[5][1][3] = 4
        with pytest.raises(
            sc.DataError, match=r"Batches 0 to 19 of train: The data has a label 4, but the model has 4"
        ):
            Engine(
                network().to(DEVICE), batches, Recipe(epochs=1, precision="fp32"), device=DEVICE, progress=False
            ).fit()
    assert len(counting.steps) == STEPS
    assert not any(counting.waits[1:])


def test_a_loss_that_is_not_finite_is_reported_with_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    with Syncs():
        monkeypatch.setenv(VARIABLE, str(DEVICE))
        batches = data()
        batches[7][0][:] = float("nan")
        engine = Engine(
            network().to(DEVICE), batches, Recipe(epochs=1, precision="fp32"), device=DEVICE, progress=False
        )
        with pytest.raises(sc.TrainingError, match="in epoch 1, batch 7"):
            engine.fit()


def test_augmentation_on_the_device_is_that_of_the_cpu() -> None:
    images = torch.randint(0, 256, (40, 9, 7, 3), generator=generator(1), dtype=torch.uint8)
    draws = Augment(pad=4).draw(40, generator(2))
    here = gather(images, torch.arange(40), draws)
    with Syncs() as syncs:
        there = images.to(DEVICE)
        syncs.found.clear()
        found = gather(there, torch.arange(40).to(DEVICE, non_blocking=True), draws)
        assert not syncs.found
        assert torch.equal(found.cpu(), here)
        assert syncs.found  # it counts what it should


def test_stripes_are_trained_without_waiting() -> None:
    kept = torch.rand(6, 3, 3) < 0.4
    weight = torch.randn(int(kept.sum()), 5)
    with Syncs() as syncs:
        places, there = kept.to(DEVICE), weight.to(DEVICE)
        syncs.found.clear()
        full = dense(places, there)
        assert not syncs.found
        assert torch.equal(full.permute(0, 2, 3, 1)[places].cpu(), weight)
    weight.requires_grad_()
    dense(kept, weight).square().sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, 2 * weight.detach())
