"""A loop of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateurs as sc
from secateurs.integrations.run import PruningRun
from tests.integrations.networks import cnn, images


def test_norms_learn_again_when_the_network_does_though_train_is_called_once() -> None:
    """NPN freezes them while the pruner learns alone."""
    model, (x, y) = cnn(), images(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = sc.attach(model, x[:1], "npn", sc.Budget(macs=0.6), steps=4, epoch_steps=2, data=[(x, y)])
    model.train()
    statistics = []
    for _ in range(4):
        (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        statistics.append(model[1].running_mean.clone())
    alone, joint = statistics[:2]
    assert torch.equal(alone, torch.zeros_like(alone))
    assert not torch.equal(joint, alone)
    assert pruner.done
    pruner.plan()


def test_a_callback_takes_limits() -> None:
    model, (x, y) = cnn(), images(8)
    run = PruningRun("aofp", sc.Budget(macs=0.7), exclude=[model[0]], data=[(x, y)], example_inputs=x[:1])
    run.begin(model, steps=1, epoch_steps=1, batches=[(x, y)])
    whole = model[0].weight.shape
    (F.cross_entropy(model(x), y) + run.penalty()).backward()
    run.after_step([])
    run.finish([])
    assert model[0].weight.shape == whole
    assert run.plan is not None
    assert run.plan.groups


@pytest.mark.parametrize("method", ["npn", "aofp", "onestep", "pff"])
def test_a_loop_that_leaves_the_search_out_is_warned(method: str, caplog: pytest.LogCaptureFixture) -> None:
    def said(steps: int, *, penalty: bool = True) -> list[str]:
        """What is logged of a loop that takes so many of two steps. It is in the history, too."""
        caplog.clear()
        model, (x, y) = cnn(), images(8)
        pruner = sc.attach(model, x[:1], method, sc.Budget(macs=0.6), steps=2, epoch_steps=1, data=[(x, y)])
        for _ in range(steps):
            loss = F.cross_entropy(model(x), y)
            (loss + pruner.penalty() if penalty else loss).backward()
            pruner.step()
        pruner.plan()
        logged = [record.message for record in caplog.records]
        assert all(line in [entry.get("text") for entry in pruner.history] for line in logged)
        return [line for line in logged if "Pruner: " in line]

    for steps, wanted in ((0, "step() was never called"), (1, "the search ended after 1 of 2 steps")):
        (line,) = said(steps)
        assert wanted in line
    assert not said(2)
    if method != "aofp":  # which has none
        (line,) = said(2, penalty=False)
        assert "penalty() was never called" in line


def test_asked_twice_it_is_the_same_plan() -> None:
    for method in ("npn", "aofp", "onestep", "pff"):
        model, (x, y) = cnn(), images(8)
        pruner = sc.attach(model, x[:1], method, sc.Budget(macs=0.6), steps=1, epoch_steps=1, data=[(x, y)])
        (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        pruner.step()
        plan = pruner.plan()
        assert pruner.plan() is plan
        sc.cut_(model, plan)
        assert pruner.plan() is plan


def test_a_gradient_scaler_scales_what_the_pruners_own_networks_learn_from() -> None:
    """With a power of two as the scale, in float32, every digit is that of a loop without a scaler."""
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1000)):
        model, (x, y) = cnn(), images(8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = sc.attach(model, x[:1], "npn", sc.Budget(macs=0.6), steps=8, epoch_steps=2, data=[(x, y)])
        model.train()
        for _ in range(8):
            loss = F.cross_entropy(model(x), y) + pruner.penalty()
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                if any(p.grad is not None for p in model.parameters()):  # NPN freezes the network by turns
                    scaler.step(optimizer)
            optimizer.zero_grad()
            pruner.step(scaler=scaler)
            if scaler is not None:
                scaler.update()
        own = next(iter(pruner.networks.values()))[0].state_dict()
        found.append({**model.state_dict(), **{f"own {name}": value.clone() for name, value in own.items()}})
        sc.cut_(model, pruner.plan(), optimizer)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=f"{name}: {{}}".format)


@pytest.mark.parametrize("method", ["npn", "aofp", "onestep"])
def test_an_average_made_before_the_pruner_is_cut_along(method: str) -> None:
    """At a decay of zero it is the model itself."""
    model, (x, y) = cnn(), images(32)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = sc.attach(model, x[:1], method, sc.Budget(macs=0.6), steps=8, epoch_steps=2, data=[(x, y)])
    model.train()
    for _ in range(8):
        (F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        ema.update_parameters(model)
    plan = pruner.plan()
    sc.cut_(model, plan, optimizer)
    sc.cut_(ema.module, plan)
    assert torch.equal(ema.eval()(x), model.eval()(x))


# -- data of any kind ---------------------------------------------------------------------------------------------------

NAMED = [
    {"image": torch.randn(8, 3, 16, 16), "mask": torch.zeros(8), "id": [str(i) for i in range(8)]} for _ in range(2)
]


@pytest.mark.parametrize("method", [sc.OneStep(), sc.PFF()], ids=lambda m: m.name)
def test_batches_that_the_model_does_not_take_need_a_function(method: Any) -> None:
    def attached(data: Any, **functions: Any) -> Any:
        model = sc.build("zoo:small_cnn", num_classes=4)
        options = {"steps": 2, "epoch_steps": 2, "data": data, **functions}
        return sc.attach(model, torch.randn(1, 3, 16, 16), method, sc.Budget(macs=0.6), **options)

    unnamed = [{"image": b["image"], "mask": b["mask"]} for b in NAMED]
    for data in (NAMED, unnamed):
        with pytest.raises(sc.DataError, match=r"Batch 0 of train does not fit the model.* forward="):
            attached(data)
    pruner = attached(NAMED, forward=lambda model, batch: (model(batch["image"]), batch["mask"]))
    for batch in NAMED:
        (pruner.task.model(batch["image"]).square().mean() + pruner.penalty()).backward()
        pruner.step()
    pruner.plan()
    assert any(entry.get("event") == "cost" for entry in pruner.history + getattr(pruner, "measured", []))


def test_what_does_not_measure_takes_any_data() -> None:
    model = sc.build("zoo:small_cnn", num_classes=4)
    sc.attach(model, torch.randn(1, 3, 16, 16), "npn", sc.Budget(macs=0.6), steps=2, epoch_steps=2, data=NAMED).plan()
