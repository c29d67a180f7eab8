"""Pruning in a Lightning Trainer is pruning in a plain loop."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import secateurs as sc
from tests.integrations.networks import BUDGET, METHOD, cnn, images, pruning, reference, same, trained_by

try:
    from secateurs.integrations.lightning import PruningCallback
except sc.ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)

L = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")

callback = functools.partial(pruning, PruningCallback)


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = cnn()
        self.seen = []

    def training_step(self, batch, index):
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        return {"loss": loss} if index % 2 else loss

    def validation_step(self, batch, index):
        self.seen.append(float(F.cross_entropy(self.model(batch[0]), batch[1])))

    def configure_optimizers(self):
        self.sgd = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return self.sgd


def loader(**options) -> DataLoader:
    return DataLoader(TensorDataset(*images()), batch_size=8, **options)


def trainer(callback, tmp_path: Path, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"enable_model_summary": False, "default_root_dir": tmp_path, "max_epochs": 4}
    return L.Trainer(callbacks=[callback], **{**quiet, **options})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_same_as_a_plain_loop(tmp_path: Path, accumulate: int) -> None:
    module, pruner = Module(), callback()
    trainer(pruner, tmp_path, accumulate_grad_batches=accumulate).fit(module, loader(), loader())
    small, plan = reference(METHOD, BUDGET, epochs=4, accumulate=accumulate)
    assert pruner.plan == plan
    same(module.model, small, rtol=1e-5, atol=1e-6)
    x = images()[0]
    assert sc.count(module.model, x[:1]).macs <= 0.6 * sc.count(cnn(), x[:1]).macs
    assert "training_step" not in vars(module)
    assert len(module.seen) == 4 * 4 + 2  # and Lightning's two batches of sanity checks
    # The optimizer went along, and goes on.
    assert trained_by(module.sgd, module)
    module.sgd.zero_grad()
    module.training_step((x, images()[1]), 0).backward()
    module.sgd.step()


def test_without_cutting(tmp_path: Path) -> None:
    module, pruner = Module(), callback(cut=False)
    trainer(pruner, tmp_path).fit(module, loader())
    assert module.model[0].out_channels == 8
    assert sc.apply(module.model, pruner.plan)[0].out_channels < 8
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())


def test_stops_when_done_or_goes_on_with_the_cut_network(tmp_path: Path) -> None:
    module, pruner = Module(), callback(steps=8)
    run = trainer(pruner, tmp_path)
    run.fit(module, loader())
    assert run.global_step == 8
    module, pruner = Module(), callback(steps=8, stop=False)
    run = trainer(pruner, tmp_path)
    run.fit(module, loader())
    assert run.global_step == 16
    assert module.model[0].out_channels == len(next(iter(pruner.plan.groups.values()))) < 8


def test_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole, first, second = callback(), callback(), callback()
    module = Module()
    trainer(whole, tmp_path).fit(module, loader())

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 8:
                trainer.save_checkpoint(tmp_path / "half.ckpt")
                raise KeyboardInterrupt

    half = trainer(first, tmp_path, barebones=False)
    half.callbacks.append(Stop())
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        half.fit(Module(), loader())
    again = Module()
    trainer(second, tmp_path).fit(again, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert second.plan == whole.plan
    same(again.model, module.model)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_after_an_exception_the_network_is_plain(tmp_path: Path, kind: type[BaseException]) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 5:
                raise kind

    module, pruner = Module(), callback()
    run = trainer(pruner, tmp_path)
    run.callbacks.append(Stop())
    with pytest.raises((kind, SystemExit)):
        run.fit(module, loader())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())
    assert all(p.requires_grad for p in module.parameters())
    fresh = Module()
    fresh.load_state_dict(module.state_dict())
    x = images()[0]
    torch.testing.assert_close(module.eval().model(x), fresh.eval().model(x))
    trainer(pruner, tmp_path).fit(module.train(), loader())
    assert module.model[0].out_channels < 8


def test_half_precision_scales_the_pruners_gradients_back(tmp_path: Path) -> None:
    module, pruner = Module(), callback()
    trainer(pruner, tmp_path, precision="bf16-mixed").fit(module, loader())
    assert pruner.plan is not None
    run = pruner.run
    run.plan, (_, optimizer) = None, run.pruner.networks["pruner"]
    learned = [p for g in optimizer.param_groups for p in g["params"]]
    for p in learned:
        p.grad = torch.full_like(p, 8.0)
    run.before_step(4.0)
    assert all(bool((p.grad == 2).all()) for p in learned)
    learned[0].grad[0] = torch.inf
    run.before_step(4.0)
    assert all(p.grad is None for p in learned)


def test_what_cannot_work_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(sc.ConfigError, match="l1 does not prune during training"):
        callback("l1")
    with pytest.raises(sc.ConfigError, match=r"scope='inner' is not a valid scope.*internal"):
        callback(scope="inner")
    with pytest.raises(sc.ConfigError, match=r"no network 'net'.*Its submodules are model"):
        trainer(callback(network="net"), tmp_path).fit(Module(), loader())
    module = Module()
    module.automatic_optimization = False
    with pytest.raises(sc.ConfigError, match="automatic optimization"):
        trainer(callback(), tmp_path).fit(module, loader())
    with pytest.raises(sc.ConfigError, match="Pruning needs the number of training steps"):
        trainer(callback(), tmp_path, max_epochs=-1).fit(Module(), loader())
    odd = DataLoader([{"x": 1}] * 4, batch_size=2)
    with pytest.raises(sc.ConfigError, match=r"not pairs.*as data=…"):
        trainer(callback(), tmp_path).fit(Module(), odd)
