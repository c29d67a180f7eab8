"""Prune during training in a Lightning `Trainer`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateurs.errors import ConfigError, a_or_an
from secateurs.integrations.run import Pairs, PruningRun
from secateurs.plans import Plan

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise ConfigError("This callback needs Lightning. Run: pip install 'secateurs[lightning]'") from error


class PruningCallback(Callback):
    """Prunes during a Trainer's training:

        callback = PruningCallback("npn", sc.Budget(macs=0.5), network="model")
        Trainer(max_epochs=10, callbacks=[callback]).fit(module, loader)
        callback.plan        # the kept channels; module.model is now the pruned network

    The settings are those of `secateurs.integrations.run.PruningRun`. `network` is the name of the CNN's attribute in the
    LightningModule.

    Implementation: `on_train_start` attaches the pruner, because the network is then on its device and the optimizers exist.
    The penalty is added to the result of `training_step`, which is wrapped during training. Hooks such as
    `on_before_backward` see the loss but cannot replace it, and a second backward pass would break gradient accumulation,
    mixed precision and DistributedDataParallel. This way, they all get a single loss. The pruner is stepped when
    `trainer.global_step` changes, once per accumulated step, together with its own optimizer. The optimizer's gradients are
    first unscaled (16-mixed) and averaged over the processes. Training stops when the pruner is done, the network is cut when
    training ends, and unfinished pruning resumes from Lightning's checkpoints.

    Several processes: if a method freezes the network temporarily, as NPN does, DistributedDataParallel must be configured
    with `strategy="ddp_find_unused_parameters_true"`.
    """

    def __init__(self, method: Any, budget: Any = None, **settings: Any) -> None:
        super().__init__()
        self.run = PruningRun(method, budget, **settings)
        self._seen = 0

    @property
    def plan(self) -> Plan | None:
        """The plan, once the pruner is done."""
        return self.run.plan

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise ConfigError(
                "This callback needs automatic optimization: in a training step with manual optimization, use "
                "secateurs.attach(…), as docs/training.md shows."
            )
        if len(trainer.optimizers) > 1 and self.run.cut:
            raise ConfigError("The module has several optimizers: pass cut=False, and cut it with .plan afterward.")
        steps = trainer.estimated_stepping_batches
        if self.run.steps is None and (steps == float("inf") or steps < 1):
            raise ConfigError(
                "Pruning needs the number of training steps: set the Trainer's max_steps=…, or pass steps=…."
            )
        batches = trainer.train_dataloader
        self.run.check(batches, trainer.world_size)
        accumulate = max(1, trainer.accumulate_grad_batches)
        count = trainer.num_training_batches
        epoch_steps = -(-int(count) // accumulate) if count != float("inf") else int(self.run.steps or steps)
        self.run.begin(
            pl_module, steps=int(self.run.steps or steps), epoch_steps=epoch_steps, batches=Pairs(batches, _pair)
        )
        self._seen = trainer.global_step
        self._wrap(pl_module)

    def _wrap(self, pl_module: LightningModule) -> None:
        inner = pl_module.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            penalty = self.run.penalty()
            if isinstance(output, dict):
                return {**output, "loss": output["loss"] + penalty}
            return output + penalty if isinstance(output, Tensor) else output

        pl_module.training_step = training_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.run.before_step(1.0 if scaler is None else float(scaler.get_scale()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        if self.run.after_step(trainer.optimizers):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.__dict__.pop("training_step", None)
        self.run.finish(trainer.optimizers)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        pl_module.__dict__.pop("training_step", None)
        self.run.abandon()

    def state_dict(self) -> dict[str, Any]:
        return self.run.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run.loaded = state_dict or None


def _pair(batch: Any) -> Any:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return tuple(batch)
    raise ConfigError(
        f"The training batches are not pairs (inputs, targets), but each {a_or_an(type(batch).__name__)}: pass such pairs "
        "as data=… for the method's measurements."
    )
