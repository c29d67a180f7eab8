"""Prune during training in a `transformers.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from torch import Tensor

from secateurs.errors import ConfigError, a_or_an
from secateurs.integrations.run import Pairs, PruningRun
from secateurs.plans import Plan
from secateurs.training import CheckpointStore

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ConfigError("This callback needs transformers. Run: pip install 'secateurs[transformers]'") from error

FOLDER = "secateurs"  # inside a checkpoint


class PruningCallback(TrainerCallback):
    """Prunes during the training of a `transformers.Trainer`:

        callback = PruningCallback("npn", sc.Budget(macs=0.5), network="model")
        trainer = callback.join(Trainer(model, args, train_dataset=images))
        trainer.train()
        callback.plan        # the kept channels; model.model is now the pruned network

    The settings are those of `secateurs.integrations.run.PruningRun`. `network` is the name of the CNN's attribute in the
    trained model, which takes the batch as keyword arguments and returns its loss. Batches are dicts: the targets have the
    key `labels`, and the other entries are inputs.

    Implementation: callbacks of transformers do not see the loss, so `join` adds the callback to the trainer and wraps the
    trainer's `compute_loss`, the source of every loss: the model's own, label smoothing's and
    `compute_loss_func`'s. (A hook on the model would miss the last two, and a `compute_loss_func` would replace the first.)
    The penalty is divided by the number of accumulated batches if the trainer does not do so. The pruner is stepped
    after each optimizer step, together with its own optimizer, whose gradients are first unscaled (fp16) and averaged over
    the processes. Training stops when the pruner is done, the network is cut when training ends, and the state that
    `resume_from_checkpoint` needs is saved in the trainer's checkpoints.

    Several processes: if a method freezes the network temporarily, as NPN does, pass
    `ddp_find_unused_parameters=True` in the TrainingArguments.
    """

    def __init__(self, method: Any, budget: Any = None, *, labels: str = "labels", **settings: Any) -> None:
        self.run = PruningRun(method, budget, **settings)
        self.labels = labels
        self._joined = False

    @property
    def plan(self) -> Plan | None:
        """The plan, once the pruner is done."""
        return self.run.plan

    def join(self, trainer: Trainer) -> Trainer:
        """Add the callback to this trainer. Returns the trainer."""
        if self._joined:
            raise ConfigError("This callback already prunes in another trainer: create a new one.")
        self._joined = True
        inner, inner_train = trainer.compute_loss, trainer.train

        def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            output = inner(model, inputs, *args, **kwargs)
            if not model.training:
                return output
            penalty = self.run.penalty()
            if _divided(trainer, kwargs.get("num_items_in_batch")):
                penalty = penalty / trainer.current_gradient_accumulation_steps
            if isinstance(output, tuple):
                return (output[0] + penalty, *output[1:])
            return output + penalty

        @wraps(inner_train)
        def train(*args: Any, **kwargs: Any) -> Any:
            try:
                return inner_train(*args, **kwargs)
            except BaseException:  # no callback is told
                self.run.abandon()
                raise

        trainer.compute_loss, trainer.train = compute_loss, train
        trainer.add_callback(self)
        return trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._joined:
            raise ConfigError("A callback cannot change the loss: call PruningCallback(…).join(trainer).")
        if args.n_gpu > 1:
            raise ConfigError("Several GPUs in one process (DataParallel) are not supported: launch with torchrun.")
        if self.run.cut and args.load_best_model_at_end:
            raise ConfigError("load_best_model_at_end would load weights from before the cut: pass cut=False.")
        loader = kwargs["train_dataloader"]
        self.run.check(loader, args.world_size)
        try:
            epoch_steps = math.ceil(len(loader) / args.gradient_accumulation_steps)
        except TypeError:
            epoch_steps = state.max_steps
        if state.global_step:
            folder = _checkpoint(args, state)
            found = CheckpointStore(folder / FOLDER).load()
            if found is None:
                raise ConfigError(f"{folder} was not saved by this callback during pruning: it cannot resume from it.")
            self.run.loaded = found[1]
        self.run.begin(
            kwargs["model"], steps=state.max_steps, epoch_steps=epoch_steps, batches=Pairs(loader, self._pair)
        )

        assert self.run.pruner is not None
        for network, _ in self.run.pruner.networks.values():  # may be copies of the model that do not take labels
            network.register_forward_pre_hook(self._without_labels, with_kwargs=True)

    def _without_labels(self, network: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {name: value for name, value in kwargs.items() if name != self.labels}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        scaler = getattr(kwargs.get("optimizer"), "scaler", None)
        self.run.before_step(1.0 if scaler is None else float(scaler.get_scale()))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.run.after_step([_plain(kwargs["optimizer"])]):
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.run.finish([_plain(kwargs["optimizer"])])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.run.active:
            CheckpointStore(_checkpoint(args, state) / FOLDER).save(state.global_step, self.run.state())

    def _pair(self, batch: Any) -> tuple[Any, Tensor]:
        if not isinstance(batch, Mapping) or self.labels not in batch:
            found = ", ".join(batch) if isinstance(batch, Mapping) else f"{a_or_an(type(batch).__name__)}"
            raise ConfigError(f"The training batches have no {self.labels!r} (found {found}): pass labels=….")
        inputs = {name: value for name, value in batch.items() if name != self.labels}
        alone = next(iter(inputs.values())) if len(inputs) == 1 and self.run.network is not None else None
        return inputs if alone is None else alone, batch[self.labels]


def _divided(trainer: Trainer, items: Any) -> bool:
    """Whether the loss is already divided by the number of accumulated batches, so the trainer does not divide it."""
    said = getattr(trainer, "loss_is_scaled_for_ga", None)
    if said is not None:
        return bool(said)
    return (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None


def _plain(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)  # unwrap accelerate's wrapper


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
