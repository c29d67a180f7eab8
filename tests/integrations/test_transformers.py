"""Pruning in a transformers.Trainer is pruning in a plain loop."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateurs as sc
from tests.integrations.networks import BUDGET, METHOD, cnn, images, pruning, reference, same, trained_by

try:
    from secateurs.integrations.transformers import PruningCallback
except sc.ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

callback = functools.partial(pruning, PruningCallback)


class Classifier(nn.Module):
    """As transformers want it: batches by name, the loss in the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = cnn()

    def forward(self, pixel_values, labels=None):
        logits = self.model(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Images(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.x, self.y = images()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i):
        return {"pixel_values": self.x[i], "labels": self.y[i]}


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(callback, tmp_path: Path, trainer_options=None, **options):
    model = Classifier()
    settings = {"per_device_train_batch_size": 8, "num_train_epochs": 4, "learning_rate": 0.05, "max_grad_norm": 0}
    settings |= {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1000}
    settings |= {"lr_scheduler_type": "constant", "output_dir": str(tmp_path), **options}
    arguments = transformers.TrainingArguments(**settings)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = InOrder(
        model,
        arguments,
        train_dataset=Images(),
        eval_dataset=Images(),
        optimizers=(sgd, None),
        **(trainer_options or {}),
    )
    return callback.join(run)


def loss_of_mine(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(
    ("accumulate", "own_loss"), [(1, False), (2, False), (2, True)], ids=["plain", "accumulated", "own loss"]
)
def test_same_as_a_plain_loop(tmp_path: Path, accumulate: int, own_loss: bool) -> None:
    pruner = callback()
    own = {"compute_loss_func": loss_of_mine} if own_loss else None
    run = trainer(pruner, tmp_path, own, gradient_accumulation_steps=accumulate)
    run.train()
    small, plan = reference(METHOD, BUDGET, epochs=4, accumulate=accumulate)
    assert pruner.plan == plan
    same(run.model.model, small, rtol=1e-5, atol=1e-6)
    assert trained_by(getattr(run.optimizer, "optimizer", run.optimizer), run.model)


def test_stops_when_done_or_goes_on_with_the_cut_network(tmp_path: Path) -> None:
    pruner = callback(steps=8)
    run = trainer(pruner, tmp_path)
    run.train()
    assert run.state.global_step == 8
    pruner = callback(steps=8, stop=False)
    run = trainer(pruner, tmp_path)
    run.train()
    assert run.state.global_step == 16
    assert run.model.model[0].out_channels < 8


def test_evaluation_has_no_penalty(tmp_path: Path) -> None:
    pruner = callback(cut=False)
    run = trainer(pruner, tmp_path, eval_strategy="epoch", per_device_eval_batch_size=32)
    run.train()
    last = [line["eval_loss"] for line in run.state.log_history if "eval_loss" in line]
    assert len(last) == 4
    plain = run.evaluate()["eval_loss"]
    x, y = images()
    with torch.no_grad():
        assert plain == pytest.approx(float(F.cross_entropy(run.model.eval().model(x), y)), rel=1e-5)


def test_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole, first, second = callback(), callback(), callback()
    run = trainer(whole, tmp_path / "a")
    run.train()

    class Stop(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    half = trainer(first, tmp_path / "b", save_strategy="steps", save_steps=8)
    half.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        half.train()
    again = trainer(second, tmp_path / "b")
    again.train(resume_from_checkpoint=True)
    assert second.plan == whole.plan
    same(again.model, run.model)


def test_what_cannot_work_is_said_before_training(tmp_path: Path) -> None:
    pruner = callback()
    run = trainer(pruner, tmp_path)
    with pytest.raises(sc.ConfigError, match="another trainer"):
        pruner.join(run)
    lonely = callback()
    run = trainer(callback(), tmp_path)
    run.add_callback(lonely)
    with pytest.raises(sc.ConfigError, match=r"join\(trainer\)"):
        run.train()
    with pytest.raises(sc.ConfigError, match=r"no 'classes' \(found .*labels.*pass labels="):
        trainer(callback(labels="classes"), tmp_path).train()


def test_a_model_that_computes_its_own_loss(tmp_path: Path) -> None:
    """The whole of a model of transformers, which gets its labels as well."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
    )
    model = transformers.ResNetForImageClassification(config)
    pruner = callback(sc.NPN(lr=0.05, gates="batch"), network=None, scope="all")
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no"
    )
    pruner.join(transformers.Trainer(model, arguments, train_dataset=Images())).train()
    assert any(len(kept) < size for kept, size in zip(pruner.plan.groups.values(), (8, 8, 16, 16), strict=False))
    with torch.no_grad():
        assert model(images()[0]).logits.shape == (32, 4)


def test_after_an_exception_the_network_is_plain(tmp_path: Path) -> None:
    class Stop(transformers.TrainerCallback):
        at = 5

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == self.at:
                raise KeyboardInterrupt

    pruner, stop = callback(), Stop()
    run = trainer(pruner, tmp_path)
    run.add_callback(stop)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in run.model.modules())
    assert all(p.requires_grad for p in run.model.parameters())
    stop.at = -1
    run.train()
    assert run.model.model[0].out_channels < 8
