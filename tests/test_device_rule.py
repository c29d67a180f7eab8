"""The device rule: model, inputs and data may each be anywhere, and nothing of the caller's is moved.

Everything runs on a fake device, on which mixing fails as on a GPU (`fakedevice.py`), and on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.devices import VARIABLE
from secateurs.methods import resolve
from secateurs.testing.networks import randomize
from tests.fakedevice import DEVICE, FakeDevice

QUICK = {"epochs": 1, "lr": 0.01, "precision": "fp32", "examples": 8, "calibration": 8}


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The accelerator of this machine."""
    if request.param == "cuda":
        yield "cuda:0"
        return
    monkeypatch.setenv(VARIABLE, str(DEVICE))
    with FakeDevice():
        yield str(DEVICE)


def network() -> nn.Module:
    torch.manual_seed(0)
    return randomize(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )
    )  # fmt: skip


def batches(n: int = 2) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))) for _ in range(n)]


def configured(name: str) -> sc.Method:
    method = resolve(name)
    return resolve(method, **{k: v for k, v in QUICK.items() if k in type(method).model_fields})


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().cpu().clone() for name, x in model.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def pruned(name: str, model_at: str, inputs_at: str, data_at: str, device: str | None, **more: Any) -> sc.Result:
    """A pruned network. Nothing of what was given has moved or changed."""
    model, inputs = network().to(model_at), torch.randn(1, 3, 8, 8).to(inputs_at)
    data = [(x.to(data_at), y.to(data_at)) for x, y in batches()]
    before = everything(model)
    result = sc.prune(
        model, inputs, configured(name), sc.Budget(macs=0.6), sc.Data(data, data), device=device, progress=False, **more
    )
    assert {str(x.device) for x in (*model.parameters(), *model.buffers())} == {model_at}
    assert (str(inputs.device), {str(x.device) for pair in data for x in pair}) == (inputs_at, {data_at})
    assert_same(everything(model), before)
    assert {str(x.device) for x in (*result.model.parameters(), *result.model.buffers())} == {model_at}
    assert result.error <= 1e-5
    return result


@pytest.mark.parametrize("name", sc.methods())
def test_every_method_prunes_and_recovers_wherever_things_are(name: str, there: str) -> None:
    if name == "damage" and there == str(DEVICE):
        pytest.skip("works inside of an op, where the fake cannot say on which device a tensor is")
    recover = [sc.Mimic(epochs=1, precision="fp32"), sc.Recover(epochs=1, precision="fp32")]
    plain = pruned(name, "cpu", "cpu", "cpu", "cpu", recover=recover)
    for places in (("cpu", "cpu", "cpu"), (there, "cpu", "cpu"), ("cpu", there, there)):
        moved = pruned(name, *places, None, recover=recover)
        if there != str(DEVICE):
            continue
        assert moved.plan == plain.plan
        # The fake computes as the CPU does, but training on the CPU is in channels_last.
        torch.testing.assert_close(everything(moved.model), everything(plain.model), rtol=1e-3, atol=1e-4)
    pruned(name, there, "cpu", there, "cpu")


def test_without_data_the_work_is_done_where_the_model_is(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    scores = sc.L1.scores

    def watched(self: sc.L1, task: Any) -> Any:
        seen.update(str(p.device) for p in task.model.parameters())
        return scores(self, task)

    monkeypatch.setattr(sc.L1, "scores", watched)
    for place in ("cpu", there):
        seen.clear()
        sc.prune(network().to(place), torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.6))
        assert seen == {place}
    sc.prune(network(), torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.6), batches())
    assert seen == {there}


@pytest.mark.parametrize(("model_there", "inputs_there"), [(False, True), (True, False), (True, True)])
def test_the_steps_one_by_one_take_inputs_from_anywhere(model_there: bool, inputs_there: bool, there: str) -> None:
    model_at, inputs_at = there if model_there else "cpu", there if inputs_there else "cpu"
    model, inputs = network().to(model_at), torch.randn(1, 3, 8, 8).to(inputs_at)
    graph = sc.trace(model, inputs)
    plan = graph.plan({"0": range(5)})
    assert sc.verify(model, plan, inputs) <= 1e-5
    assert graph.cost_of(plan) == sc.count(sc.apply(model, plan), inputs)
    assert {str(p.device) for p in sc.mask(model, plan).parameters()} == {model_at}
    wide = sc.widen(model, inputs, 1.5)
    assert {str(p.device) for p in wide.parameters()} == {model_at}
    kept = torch.ones(8, 3, 3, dtype=torch.bool)
    kept[:, 0] = False
    stripes = graph.plan({}, stripes={"3.weight": kept})
    small = sc.apply(model, stripes)
    sc.verify(model, stripes, inputs)
    sc.tune(small, inputs, rounds=1)


def test_a_trace_on_real_values_takes_inputs_from_anywhere(there: str) -> None:
    class Valued(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x if x.sum() > 1e9 else -x)  # which no shape-only run can answer

    for place in ("cpu", there):
        assert any(g.prunable for g in sc.trace(Valued().to(place), torch.randn(1, 3, 8, 8)).groups)


@pytest.mark.parametrize("name", ["aofp", "npn", "pff", "onestep"])
def test_a_loop_of_the_users_own(name: str, there: str) -> None:
    """The model is where the user trains it; inputs to trace with and data to measure on are elsewhere."""
    model = network().to(there).train()
    optimizer = torch.optim.SGD(list(model.parameters()), lr=0.01, momentum=0.9)
    pruner = sc.attach(
        model, torch.randn(1, 3, 8, 8), configured(name), sc.Budget(macs=0.6), steps=2, epoch_steps=2, data=batches()
    )
    for x, y in batches():
        loss = F.cross_entropy(model(x.to(there)), y.to(there)) + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    sc.cut_(model, pruner.plan(), optimizer)
    assert {x.device for x in (*model.parameters(), *model.buffers())} == {torch.device(there)}
    assert {v.device for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)} <= {
        torch.device(there)
    }
    F.cross_entropy(model(batches()[0][0].to(there)), batches()[0][1].to(there)).backward()
    optimizer.step()


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("name", ["l1", "aofp", "npn", "pff", "onestep"])
def test_a_run_resumes_on_another_device(name: str, back: bool, there: str, tmp_path: Path) -> None:
    """Interrupted in the second of two steps: the first one's checkpoint is read on the other device."""
    steps = 0

    def interrupted(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal steps
        if torch.is_grad_enabled():
            steps += 1
            if steps == 2:
                raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    def run(place: str, **more: Any) -> sc.Result:
        return pruned(name, "cpu", "cpu", "cpu", place, recover=recover, folder=tmp_path, save_steps=1, **more)

    places = ("cpu", there) if back else (there, "cpu")
    recover = sc.Recover(epochs=1, precision="fp32", channels_last=False, ema=0.5)
    with pytest.raises(KeyboardInterrupt):
        run(places[0], loss=interrupted)
    assert list(tmp_path.glob("*/checkpoints/step-000000001"))
    resumed = run(places[1], resume=True, loss=F.cross_entropy)
    if there != str(DEVICE):
        return
    plain = pruned(name, "cpu", "cpu", "cpu", "cpu", recover=recover, loss=F.cross_entropy)
    assert resumed.plan == plain.plan
    torch.testing.assert_close(everything(resumed.model), everything(plain.model), rtol=1e-3, atol=1e-4)


def test_a_model_that_moves_under_its_pruner_is_told_so(there: str) -> None:
    model = network()
    sc.attach(
        model, torch.randn(1, 3, 8, 8), configured("npn"), sc.Budget(macs=0.6), steps=2, epoch_steps=2, data=batches()
    )
    model.to(there)
    with pytest.raises(sc.ConfigError, match=rf"on cpu when the pruner was attached, and is now on {there}"):
        model(torch.randn(2, 3, 8, 8).to(there))


def test_a_model_on_two_devices_is_refused(there: str) -> None:
    model = network()
    model[0].to(there)
    with pytest.raises(sc.ConfigError, match=rf"spread over {there} and cpu: move it to one device first"):
        sc.prune(model, torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.6))


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(sc.ConfigError, match="meta device"):
        sc.prune(network().to("meta"), torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.6))


def test_a_device_that_cannot_be_used_is_said_before_any_work() -> None:
    for device in ("cuda:99", "fridge", "xpu"):
        with pytest.raises(sc.ConfigError, match=f"device=.{device}. cannot be used here"):
            sc.prune(network(), torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.6), batches(), device=device)


def test_the_fake_refuses_what_a_gpu_refuses(there: str) -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    model.to(there)
    with pytest.raises(RuntimeError, match="same device"):
        model(x)
    out = model(x.to(there))
    with pytest.raises(RuntimeError, match="same device"):
        F.cross_entropy(out, torch.zeros(2, dtype=torch.long))
    with pytest.raises(TypeError, match="to numpy"):
        out.detach().numpy()
    assert out.cpu().device == torch.device("cpu")
    assert torch.zeros(2, device=there).device == out.new_zeros(2).device == torch.zeros_like(out).device == out.device
