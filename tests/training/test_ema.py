"""The moving average of the weights: what is averaged, evaluated, returned, saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateurs as sc
import secateurs.recovery as R
import secateurs.training as T
from secateurs.recovery import recover
from secateurs.training.ema import average_, decay_at

from .helpers import batches, data, engine, net, same
from .test_resume import Killed, Killer


class Reference(T.Hook):
    """PyTorch's own average, beside the engine's."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def start(self, engine: T.Engine) -> None:
        self.average = AveragedModel(engine.model, use_buffers=True)
        self.average.n_averaged += 1  # from the weights that it starts with

    def after_step(self, engine: T.Engine) -> None:
        self.average.multi_avg_fn = get_ema_multi_avg_fn(decay_at(self.decay, engine.step))
        self.average.update_parameters(engine.model)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("teacher", [False, True])
def test_it_is_pytorchs_average_in_every_precision_and_with_a_teacher(precision: str, teacher: bool) -> None:
    model, reference = net(), Reference(0.9)
    recipe = R.Recover(epochs=3, lr=0.05, ema=0.9, precision=precision, temperature=3.0)
    original = net(width=6).train() if teacher else None
    history = recover(model, data(), recipe, teacher=original, hooks=[reference], progress="silent", device="cpu")
    wanted = reference.average.module.state_dict()
    counters = {name: wanted.pop(name) for name in list(wanted) if "num_batches" in name}
    assert all(int(model.state_dict()[name]) == 18 for name in counters)  # numbers of batches are no averages
    for name, value in ((n, v) for n, v in model.state_dict().items() if n in wanted):
        torch.testing.assert_close(value, wanted[name], msg=f"{name}: {{}}".format)
        assert value.dtype == wanted[name].dtype
    assert history[-1]["val_loss"] == pytest.approx(engine(model, data()).evaluate(model).loss, rel=2e-2)


def test_a_short_run_is_no_average_of_what_it_started_from() -> None:
    """Six steps at a decay of 0.999 would leave 99.4% of the initial weights."""
    plain, averaged, start = net(0), net(0), net(0)
    for model, ema in ((plain, 0.0), (averaged, 0.999)):
        engine(model, batches(6), R.Recover(epochs=1, lr=0.2, ema=ema, schedule="constant", precision="fp32")).fit()
    moved = (plain[0].weight - start[0].weight).norm()
    assert (averaged[0].weight - start[0].weight).norm() > 0.5 * moved


def test_the_decay_grows_to_the_one_asked_for() -> None:
    found = [decay_at(0.99, step) for step in range(1, 2000)]
    assert found == sorted(found)
    assert found[0] < 0.2
    assert found[-1] == max(found) == 0.99


def test_tied_complex_unsaved_and_other_state() -> None:
    class Odd(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight
            self.z = nn.Parameter(torch.full((2,), complex(value, -value)))
            self.register_buffer("count", torch.tensor(int(value)))
            self.register_buffer("mask", torch.tensor([value > 1]))
            self.register_buffer("unsaved", torch.tensor(value), persistent=False)
            nn.init.constant_(self.a.weight, value)

        def get_extra_state(self) -> Any:
            return {"not": "a tensor"}

        def set_extra_state(self, state: Any) -> None:
            raise AssertionError

    ema, model = Odd(1.0), Odd(3.0)
    average_(ema, model, 0.75)
    assert ema.b.weight is ema.a.weight
    assert torch.equal(ema.a.weight, torch.full((2, 2), 1.5))  # once, not once per owner
    assert torch.equal(ema.z, torch.full((2,), complex(1.5, -1.5)))
    assert int(ema.count) == 3
    assert bool(ema.mask)
    assert float(ema.unsaved) == 3.0
    average_(ema, model, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(ema.parameters(), model.parameters(), strict=True))


def test_the_average_holds_no_teacher_of_its_own() -> None:
    """Hooks on the student were copied with it, and the teacher with them."""
    model, teacher = net(), net()
    seen: list[Any] = []

    class Look(T.Hook):
        def start(self, engine: T.Engine) -> None:
            seen.extend(hook for m in engine.ema.modules() for hook in m._forward_pre_hooks.values())  # type: ignore[union-attr]
            seen.extend(hook for m in engine.model.modules() for hook in m._forward_pre_hooks.values())

    recover(
        model, data(), R.Recover(epochs=1, ema=0.9), teacher=teacher, hooks=[Look()], progress="silent", device="cpu"
    )
    assert len({id(hook.__self__) for hook in seen}) == 1


@pytest.mark.parametrize("kind", [R.Recover, R.Mimic])
def test_a_taught_run_that_is_killed_resumes_bit_equal(kind: Any, tmp_path: Path) -> None:
    recipe = kind(epochs=2, ema=0.95, lr=0.02, precision="fp32")
    options = {"teacher": net(width=10), "example_inputs": batches(1)[0][0], "progress": "silent", "device": "cpu"}
    whole, parts = net(), net()
    recover(whole, data(), recipe, hooks=[Killer()], **options)
    store = T.CheckpointStore(tmp_path)
    with pytest.raises(Killed):
        recover(parts, data(), recipe, hooks=[Killer(8)], checkpoints=store, save_steps=3, **options)
    parts = net()
    recover(parts, data(), recipe, hooks=[Killer()], checkpoints=store, save_steps=3, resume=True, **options)
    assert same(whole, parts)


def test_pruned_with_it_the_averaged_weights_are_what_is_measured_and_returned() -> None:
    result = sc.prune(
        net(), batches(1)[0][0], "l1", sc.Budget(macs=0.6), sc.Data(batches(), val=batches(2, seed=1)),
        recover=sc.Recover(epochs=2, ema=0.9, precision="fp32"), progress="silent", device="cpu",
    )  # fmt: skip
    assert result.after.loss == pytest.approx(result.history[-1]["val_loss"], rel=1e-5)
    assert not any(p.grad is not None for p in result.model.parameters())
    assert all(p.requires_grad for p in result.model.parameters())


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan"), "much"])
def test_what_is_no_decay(value: Any) -> None:
    with pytest.raises(sc.ConfigError, match=r"ema=.*decay of the moving average"):
        sc.Recover(ema=value)


class Sized(nn.Module):
    """Its forward replaces buffers: by the input's size, by its dtype, by a tensor in place of None, by one for two names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        for name, persistent in (("grid", False), ("mean", True), ("one", True), ("other", True)):
            self.register_buffer(name, torch.zeros(2), persistent=persistent)
        self.register_buffer("late", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.grid, self.mean, self.late = torch.arange(x.shape[-1]), x.double().mean(0), x[0].clone()
        self.one = self.other = x[0, :2] + 1
        return x * self.weight


def test_buffers_that_the_forward_replaces_are_taken_over() -> None:
    ema, model = Sized(), Sized()
    for size in (3, 5, 5):
        model(torch.rand(4, size))
        model.weight.data += 1
        average_(ema, model, 0.5)
        assert {n: (x.shape, x.dtype) for n, x in ema.named_buffers(remove_duplicate=False)} == {
            n: (x.shape, x.dtype) for n, x in model.named_buffers(remove_duplicate=False)
        }
        assert torch.equal(ema.grid, torch.arange(size))
    assert ema.weight.item() == 0.5 * (0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 3) + 0.5 * 4
    assert not torch.equal(ema.late, model.late)  # of the same size as before: it is averaged
    assert ema.state_dict().keys() == model.state_dict().keys()
    del model._buffers["late"]
    average_(ema, model, 0.5)
    assert "late" not in ema._buffers


def test_norms_that_average_over_all_batches_average_over_those_of_the_run() -> None:
    """With momentum=None: of the statistics of a network that was trained for long, a run would otherwise change nothing."""
    model = net(dropout=0)
    for norm in (model[1], model[4]):
        norm.momentum = None
        norm.num_batches_tracked.fill_(50_000)
        norm.running_mean.fill_(9.0)
    means = []
    model[1].register_forward_pre_hook(lambda _, args: means.append(args[0].mean((0, 2, 3)).detach()))
    engine(model, batches()).fit()
    assert int(model[1].num_batches_tracked) == len(means) == 12
    torch.testing.assert_close(model[1].running_mean, torch.stack(means).mean(0))
