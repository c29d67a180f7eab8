from __future__ import annotations

import copy
import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs.recovery as R
import secateurs.training as T
from secateurs.errors import ConfigError, DataError, TrainingError
from secateurs.plans import trace
from secateurs.training.ema import average_
from secateurs.training.losses import AUX_WEIGHT, heads

from .helpers import Noisy, batches, data, engine, net, same


def recipe(**settings: Any) -> R.Recover:
    return R.Recover(**{"epochs": 2, "precision": "fp32", **settings})


def bare_loop(model: nn.Module, train: list, recipe: R.Recover, epochs: int) -> None:
    weights = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": norms}], lr=recipe.lr, momentum=0.9
    )
    step, total = 0, epochs * len(train)
    model.train()
    for _ in range(epochs):
        for x, y in train:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * recipe.factor(step / total, 0)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1


def test_equals_a_bare_loop_to_the_bit() -> None:
    ours, theirs = net(dropout=0), net(dropout=0)
    settings = recipe(lr=0.1, channels_last=False)
    history = R.recover(ours, data(), settings, device="cpu", progress="silent")
    bare_loop(theirs, batches(), recipe(lr=0.1), 2)
    assert same(ours, theirs)
    assert [line["epoch"] for line in history] == [1, 2]


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "ema": 0.9, "mixup": 0.4, "clip_norm": 1.0}])
def test_same_seed_same_weights(settings: dict) -> None:
    runs = []
    for seed in (1, 1, 2):
        model = net()
        engine(model, Noisy(batches()), recipe(**settings), seed=seed).fit()
        runs.append(model)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_the_users_generators_come_back() -> None:
    model = net()
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    engine(model, Noisy(batches())).fit()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_accumulated_halves_are_the_whole_batch() -> None:
    def plain() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 4))

    whole = batches(3)
    halves = [(x[i : i + 4], y[i : i + 4]) for x, y in whole for i in (0, 4)]
    a, b = plain(), plain()
    engine(a, whole, recipe(lr=0.1)).fit()
    e = engine(b, halves, recipe(lr=0.1, accumulate=2))
    e.fit()
    assert e.step == 6
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    c = plain()  # an incomplete last group is a step of its own, of the mean over what it has
    e = engine(c, halves[:5], recipe(epochs=1, accumulate=4, lr=0.1))
    e.fit()
    assert e.step == 2


def test_weight_decay_spares_norms_and_biases() -> None:
    for decay_norm, expected in ((False, 0.0), (True, 0.1)):
        e = engine(net(), data(), recipe(weight_decay=0.1, decay_norm=decay_norm, epochs=1))
        e.fit()
        by_kind = {g["kind"]: g for g in e.optimizer.param_groups}
        assert by_kind["weight"]["weight_decay"] == 0.1
        assert by_kind["norm"]["weight_decay"] == expected
        assert all(p.ndim <= 1 for p in by_kind["norm"]["params"])


def test_ema_ends_in_the_model_and_is_what_is_evaluated() -> None:
    model = net()
    e = engine(model, data(), recipe(ema=0.5))
    history = e.fit()
    assert e.ema is not None
    assert same(model, e.ema)
    assert history[-1]["val_top1"] == e.evaluate(model).top1
    other = net()
    average_(other, model, 0.0)
    assert same(other, model)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_learns_and_leaves_a_plain_model(precision: str) -> None:
    model = net(0)
    history = engine(model, batches(6), recipe(epochs=6, lr=0.2, precision=precision)).fit()
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in model.parameters())
    assert "forward" not in vars(model)


@pytest.mark.parametrize(("precision", "fast", "said"), [("bf16", False, 1), ("bf16", True, 0), ("auto", False, 0)])
def test_a_cpu_without_bfloat16(
    precision: str, fast: bool, said: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("secateurs.training.precision.bf16_is_fast", lambda device: fast)
    e = engine(net(), data(), recipe(precision=precision))
    assert e.runtime.precision == ("fp32" if precision == "auto" else "bf16")
    assert caplog.text.count("trains several times as slowly as 'fp32'") == said


def test_metrics_file_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = engine(net(), data(), folder=tmp_path, progress="lines", title="tune").fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history
    wanted = "epoch step lr train_loss train_top1 val_loss val_top1 val_top5 images_per_second seconds"
    assert set(wanted.split()) == set(lines[0])
    shown = capsys.readouterr()
    assert "tune  epoch 2" in shown.err
    assert shown.out == ""


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        engine(net(), data(), folder=tmp_path / "file").fit()


def test_bar(capsys: pytest.CaptureFixture[str]) -> None:
    engine(net(), data(), progress="bar").fit()
    assert "epoch 2" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="choose auto"):
        engine(net(), data(), progress="loud")


def test_nan_names_the_batch_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    train = batches(6)
    poisoned = [*train[:4], (train[4][0] * float("nan"), train[4][1]), train[5]]

    class Poison:
        epoch = 0

        def __len__(self) -> int:
            return 6

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Any:
            return iter(poisoned if self.epoch == 1 else train)

    store = T.CheckpointStore(tmp_path, keep=5)
    with pytest.raises(TrainingError, match=r"loss is nan in epoch 2, batch 4.*step-000000010"):
        engine(net(), Poison(), checkpoints=store, save_steps=2).fit()
    assert store.steps() == [2, 4, 6, 8, 10]


def test_evaluate_by_hand() -> None:
    model, val = net(), batches(3, rows=5, seed=9)
    model.train()
    found = T.evaluate(model, val)
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(x) for x, _ in val])
    y = torch.cat([y for _, y in val])
    assert found.examples == 15
    assert found.top1 == pytest.approx(100 * (logits.argmax(1) == y).float().mean().item())
    assert found.top5 == 100
    assert found.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert T.evaluate(model, lambda: iter(val)).top1 == found.top1


def test_outputs_of_any_shape() -> None:
    main, aux = torch.randn(2, 4), torch.randn(2, 4)
    named = namedtuple("GoogLeNetOutputs", "logits aux_logits2 aux_logits1")
    y = torch.tensor([0, 1])
    ce = F.cross_entropy
    for outputs in (main, (main,), {"logits": main}, (main, [torch.zeros(1)])):
        assert torch.equal(T.CrossEntropy()(outputs, y), ce(main, y))
    for outputs in (named(main, aux, None), (main, aux), {"logits": main, "aux": aux}):
        assert torch.equal(T.CrossEntropy()(outputs, y), ce(main, y) + AUX_WEIGHT * ce(aux, y))
    with pytest.raises(TrainingError, match="without logits"):
        heads({"boxes": main})


class Recorder(T.Hook):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, engine: T.Engine) -> None:
        self.calls.append("start")

    def epoch_start(self, engine: T.Engine) -> None:
        self.calls.append("epoch_start")

    def before_batch(self, engine: T.Engine, batch: T.Batch) -> None:
        self.calls.append("before_batch")

    def loss(self, engine: T.Engine, loss: torch.Tensor, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        self.calls.append("loss")
        return loss

    def after_backward(self, engine: T.Engine) -> None:
        self.calls.append("after_backward" if engine.syncing else "(more)")

    def after_step(self, engine: T.Engine) -> None:
        assert all(p.grad is None for p in engine.model.parameters())
        self.calls.append("after_step")

    def epoch_end(self, engine: T.Engine, metrics: dict[str, Any]) -> None:
        self.calls.append("epoch_end")
        metrics["mine"] = 1

    def done(self, engine: T.Engine) -> bool:
        return engine.step == 3


def test_hooks_are_called_in_order_and_may_end_training() -> None:
    hook = Recorder()
    history = engine(net(), batches(6), recipe(epochs=9, accumulate=2), hooks=[hook]).fit()
    batch = ["before_batch", "loss"]
    assert hook.calls == [
        "start",
        "epoch_start",
        *([*batch, "(more)", *batch, "after_backward", "after_step"] * 3),
        "epoch_end",
    ]
    assert history[0]["mine"] == 1
    assert len(history) == 1


class Cutter(T.Hook):
    """Cuts half of the first convolution away in the middle of training."""

    def after_step(self, engine: T.Engine) -> None:
        if engine.step == 4:
            before = engine.optimizer.state[engine.model[0].weight]["momentum_buffer"].clone()
            graph = trace(engine.model, torch.zeros(1, 3, 8, 8))
            group = next(g for g in graph.groups if g.prunable)
            engine.cut(graph.plan({group.name: range(4)}))
            after = engine.optimizer.state[engine.model[0].weight]["momentum_buffer"]
            assert torch.equal(after, before[:4])


def test_cut_in_the_middle_of_training() -> None:
    model = net()
    e = engine(model, data(), recipe(ema=0.9, clip_norm=1.0), hooks=[Cutter()])
    history = e.fit()
    assert model[0].weight.shape[0] == 4
    assert e.step == 12
    assert np.isfinite(history[-1]["val_loss"])
    assert {id(p) for p in model.parameters()} == {id(p) for p in e.parts["main"].parameters()}


def test_rebind_takes_up_replaced_parameters() -> None:
    class Replace(T.Hook):
        def after_step(self, engine: T.Engine) -> None:
            if engine.step == 3:
                engine.model[9] = nn.Linear(8, 4, bias=False)
                engine.rebind()

    model = net()
    e = engine(model, data(), hooks=[Replace()])
    e.fit()
    assert [id(p) for p in e.parts["main"].parameters()].count(id(model[9].weight)) == 1
    assert {id(p) for p in e.optimizer.state} == {id(p) for p in model.parameters()}


class Gates(T.Hook):
    """A learned factor per class outside the model, and a second network with its own optimizer, in turns by epoch."""

    def start(self, engine: T.Engine) -> None:
        self.gate = nn.Parameter(torch.ones(4))
        engine.add_parameters([self.gate], lr=0.5, scheduled=False)
        torch.manual_seed(0)
        pruner = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        self.part = engine.add_network("pruner", pruner, torch.optim.Adam(pruner.parameters(), lr=1e-3))

    def epoch_start(self, engine: T.Engine) -> None:
        engine.parts["main"].active = engine.epoch % 2 == 1

    def before_batch(self, engine: T.Engine, batch: T.Batch) -> None:
        self.logits = self.part.net(batch.inputs)

    def loss(self, engine: T.Engine, loss: torch.Tensor, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs * self.gate * self.logits.sigmoid(), targets)

    def state(self) -> dict[str, Any]:
        return {"gate": self.gate.detach()}

    def load(self, state: dict[str, Any]) -> None:
        self.gate.data.copy_(state["gate"])


def test_a_second_network_trains_in_turns() -> None:
    model, hook = net(0), Gates()
    frozen = {}

    class Watch(T.Hook):
        def epoch_end(self, engine: T.Engine, metrics: dict[str, Any]) -> None:
            frozen[engine.epoch] = (
                [p.detach().clone() for p in engine.model.parameters()],
                hook.part.module[1].weight.clone(),
            )

    start = [p.detach().clone() for p in model.parameters()]
    e = engine(model, batches(), hooks=[hook, Watch()])
    e.fit()
    assert all(map(torch.equal, start, frozen[0][0]))
    assert not all(map(torch.equal, start, frozen[1][0]))
    assert not torch.equal(frozen[0][1], frozen[1][1])
    assert e.optimizer.param_groups[-1]["lr"] == 0.5
    assert not torch.equal(hook.gate, torch.ones(4))


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        engine(net(), data(), recipe(label_smoothing=0.1), loss=T.CrossEntropy())
    with pytest.raises(ConfigError, match="CheckpointStore"):
        engine(net(), data()).fit(resume=True)
    with pytest.raises(ConfigError, match="no validation data"):
        engine(net(), batches()).evaluate()
    e = engine(net(), data())
    e.fit()
    with pytest.raises(TrainingError, match="already trained"):
        e.fit()
    for name in ("nosuchtracker", "aim"):
        with pytest.raises(ConfigError, match=name):
            engine(net(), data(), track=(name,), folder=tmp_path).fit()


def test_no_training_at_all() -> None:
    model = net()
    assert engine(model, data(), recipe(epochs=0)).fit() == []
    assert same(model, net())


def test_figures_go_to_a_tracker(tmp_path: Path) -> None:
    from accelerate.tracking import GeneralTracker

    seen: list[Any] = []

    class Mine(GeneralTracker):
        name, requires_logging_directory, main_process_only = "mine", False, True
        tracker = None

        def __init__(self) -> None:
            super().__init__()

        def store_init_configuration(self, values: dict) -> None:
            seen.append(values["lr"])

        def log(self, values: dict, step: int | None, **kwargs: Any) -> None:
            seen.append((step, values["val_top1"]))

    history = engine(net(), data(), R.Recover(epochs=2, lr=0.5), track=(Mine(),)).fit()
    assert seen == [0.5, *((line["step"], line["val_top1"]) for line in history)]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 7, 1]), r"The data has a label 7, but the model has 5 classes \(0…4\)"),
        (torch.tensor([0, -1, 1]), r"The data has a label -1, but the model has 5 classes"),
        (torch.tensor([0.0, 1.0, 2.0]), r"targets are \(3,\) float32, for outputs of shape \(3, 5\): pass class"),
        (torch.rand(3, 4), r"targets are \(3, 4\) float32, for outputs of shape \(3, 5\)"),
    ],
)
def test_targets_that_do_not_fit(targets: torch.Tensor, message: str) -> None:
    class Five(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(2, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    batch = (torch.randn(3, 2), targets)
    with pytest.raises(DataError, match=message):
        engine(Five(), [batch]).fit()
    with pytest.raises(DataError, match=message):
        T.evaluate(Five(), [batch])


def test_targets_that_fit() -> None:
    logits = torch.randn(3, 5)
    loss = T.CrossEntropy()
    expected = F.cross_entropy(logits, torch.tensor([0, 4, 1]))
    for kind in (torch.uint8, torch.int16, torch.int32, torch.int64):
        assert torch.equal(loss(logits, torch.tensor([0, 4, 1], dtype=kind)), expected)
    ignored = torch.tensor([0, -100, 1])
    assert torch.equal(loss(logits, ignored), F.cross_entropy(logits, ignored))
    assert loss(logits, torch.softmax(logits, 1)).isfinite()
    loss.check(torch.tensor([0, 255], dtype=torch.uint8)[:1])
    with pytest.raises(DataError, match="a label 255"):  # what is asked before a batch goes to a GPU
        loss.check(torch.tensor([0, 255], dtype=torch.uint8))


def test_no_channels_last_where_pytorch_goes_wrong_with_it() -> None:
    """One input channel, uneven strides, an output one column wide."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 12, 5, stride=(1, 2), padding=(0, 1)), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
    )
    train = [(torch.randn(10, 1, 11, 4), torch.arange(10) % 4) for _ in range(4)]
    twin = copy.deepcopy(model)
    for each, layout in ((model, "auto"), (twin, False)):
        T.Engine(each, train, recipe(lr=0.05, channels_last=layout, precision="fp32"), progress="silent").fit()
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_loss_that_nothing_is_trained_by() -> None:
    with pytest.raises(ConfigError, match="depends on no parameter that is trained"):
        engine(net().requires_grad_(False), data(), recipe()).fit()
    detached = T.Objective(step=lambda model, batch: model(batch[0]).detach().mean())
    with pytest.raises(ConfigError, match=r"without detach\(\)"):
        engine(net(), data(), recipe(), objective=detached).fit()


def test_a_penalty_is_minimized_but_not_reported() -> None:
    """But for one that is not finite, which ends training."""

    class Penalty(T.Hook):
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def penalty(self, engine: T.Engine) -> torch.Tensor:
            return self.factor * engine.model[9].weight.square().sum()

    found = []
    for factor in (0.0, 1000.0):
        model = net()
        (line,) = engine(model, batches(), recipe(epochs=1, lr=1e-4), hooks=[Penalty(factor)]).fit()
        found.append((line["train_loss"], float(model[9].weight.detach().norm())))
    (plain, whole), (penalized, less) = found
    assert abs(penalized - plain) < 1
    assert less < 0.9 * whole
    with pytest.raises(TrainingError, match="The loss is nan in epoch 1, batch 0"):
        engine(net(), batches(), recipe(epochs=1), hooks=[Penalty(float("nan"))]).fit()
