"""The training engine."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from secateurs.errors import ConfigError, DataError, NonFiniteLossError, SecateursError, Setting
from secateurs.seeds import preserve_rng_state, seed_all
from secateurs.training import batches as B
from secateurs.training import resume as R
from secateurs.training.capture import Compiler, wanted
from secateurs.training.ema import average_, decay_at
from secateurs.training.hooks import Hook
from secateurs.training.losses import CrossEntropy, labeled, to_device
from secateurs.training.metrics import topk_correct
from secateurs.training.processes import LostError
from secateurs.training.progress import summary
from secateurs.training.run import TrainingRun
from secateurs.training.runtime import written
from secateurs.training.syncnorm import synchronized

LATE = 32  # batches between reads of the metrics from a GPU, the only times that it is waited for


class Engine(TrainingRun):
    """Trains `model` on `data` with `recipe`: `Engine(model, data, recipe).fit()`.

    `data`: an iterable of (inputs, targets) batches, a function that returns one, or an object with `.train`, `.val`.
    `loss(outputs, targets) -> scalar` gets the model's raw outputs (default: cross-entropy, including auxiliary heads). It is
    short for `objective=Objective(loss=…)`. With other objectives, batches can hold anything; see `Objective`.
    `folder`: where `metrics.jsonl` is written. `checkpoints` are saved after every epoch, every `save_steps` steps and
    `save_seconds` seconds if set. `track`: accelerate's trackers ("tensorboard", "wandb"…, or objects). `labels=False`: hooks
    provide the whole loss, so batches may be inputs only, as with a recipe that does not read labels.

    For the interface of hooks, see `TrainingRun`.
    """

    _compiler: Compiler | None = None  # made at the first batch, if the networks are compiled

    # -- training ----------------------------------------------------------------------------------------------------

    def fit(self, *, resume: bool = False) -> list[dict[str, Any]]:
        """Train and return the history, one dict per epoch (the lines of `metrics.jsonl`).

        resume: resume from the newest valid checkpoint, if there is one. The run reaches the same weights as an
        uninterrupted run (bitwise on a CPU). Raises TrainingError if the loss is not finite or a checkpoint
        cannot be written, and DataError if the data is exhausted.
        """
        try:
            with preserve_rng_state():
                self._fit(resume)
        except (RuntimeError, SecateursError) as error:  # a lost process may look like invalid inputs
            peers = None if self._runtime is None else self._runtime.peers
            what = error.what if isinstance(error, LostError) else peers and peers.lost(error)
            if not what:
                raise
            at = f"{self.report.title}, epoch {self.epoch + 1}, step {self.step}"
            raise LostError(what, at, R.last_checkpoint(self) or " There is no checkpoint yet.") from error
        return self.history

    def _fit(self, resume: bool) -> None:
        seed_all(self.seed, "start")
        self._setup()
        for hook in self.hooks:
            hook.start(self)
        if resume:
            R.resume(self)
            self._resumed = True
        else:
            R.refuse_old(self)
        R.rewrite_log(self)
        self._done = self._done or any(hook.done(self) for hook in self.hooks)  # a run with nothing to do takes no step
        self._saved_at = time.monotonic()
        with self.report:
            self.report.start(self.total, self.step)
            while not self._over():
                self._epoch()
        self._finish()

    def _over(self) -> bool:
        if self._done:
            return True
        if self.total is not None:
            return self.step >= self.total
        return self.recipe.epochs is not None and self.epoch >= self.recipe.epochs

    def _epoch(self) -> None:
        seed_all(self.seed, "epoch", self.epoch)
        if self.batch == 0:
            for part in self.parts.values():
                part.module.train()
            for hook in self.hooks:
                hook.epoch_start(self)
        began = time.perf_counter()
        share = self.runtime.share(self.train_data)
        limit, replay = self.recipe.steps_per_epoch, self._resumed
        self._resumed = False
        for index, raw, last in B.walk(
            self.train_data, seed=self.seed, epoch=self.epoch, start=self.batch, limit=limit, replay=replay,
            labels=self.labels, whole=self.objective.whole,
        ):  # fmt: skip
            batch = self._check.fit(B.share(raw, *share), index)
            with self._check.running(batch, index):
                batch = to_device(batch, self.device, self.runtime.channels_last, self.loss)
            self._train_batch(index, batch, last)
            self.batch = index + 1
            if not self.syncing:
                continue
            now = time.perf_counter()
            self._seconds, began = self._seconds + now - began, now
            self._show()
            self._done = any(hook.done(self) for hook in self.hooks)
            if last or self._over():
                break
            if self._due():
                self._save()
        self._drain(0)
        self._seconds += time.perf_counter() - began
        self._end_epoch()

    def _train_batch(self, index: int, batch: B.Batch, last: bool) -> None:
        seed_all(self.seed, "step", self.epoch, index, self.rank)
        self._micro += 1
        self.syncing = last or self._micro == self.recipe.accumulate
        main = self.parts["main"]
        with ExitStack() as stack:
            if self.world > 1:
                self._together(stack)
            with self.runtime.autocast():
                for hook in self.hooks:
                    batch = hook.before_batch(self, batch) or batch
                if self._uncaptured and (index == 0 or not last):  # not for an incomplete batch
                    self._capture(batch)
                with self._check.running(batch, index):
                    outputs, targets, loss = self.objective.train(main.net, batch, self.loss, self.recipe.mixup)
                for hook in self.hooks:
                    loss = hook.loss(self, loss, outputs, targets)
                told = loss.detach().float()
                for hook in self.hooks:
                    if getattr(type(hook), "penalty", Hook.penalty) is not Hook.penalty:
                        loss = loss + hook.penalty(self)
            if not loss.requires_grad:
                raise ConfigError(
                    "The loss depends on no parameter that is trained: call requires_grad_(True) on what is to be trained, and "
                    "compute a loss of your own without detach() and no_grad()."
                )
            rows, right = batch.rows, self._right(batch, outputs, targets)
            lost = loss.detach().float()
            lost = torch.where(lost.isfinite(), told, lost)
            hits, known = lost.new_zeros(2) if right is None else right
            figures = torch.stack([lost * rows, hits, lost.new_full((), rows), known])
            share = 1.0 / self.recipe.accumulate
            if (
                self.world > 1
            ):  # processes may have different numbers of rows: weight them, so that the mean is the batch's
                figures = self.sum(figures)
                loss = loss * (rows * self.world / figures[2])
            loss = loss * share if share != 1 else loss
            self.runtime.accelerator.backward(self.runtime.scaler.scale(loss) if self.runtime.scaler else loss)
        self._pending.append((index, figures))
        self._drain(0 if self.device.type == "cpu" else LATE)
        if self.syncing and self.world > 1:
            for part in self.parts.values():
                part.average_guests(self.sum, self.world)
        for hook in self.hooks:
            hook.after_backward(self)
        if self.syncing:
            self._step()

    def _capture(self, batch: B.Batch) -> None:
        """Compile the networks if `wanted`."""
        self._uncaptured = False
        if self.world == 1 and not batch.whole and wanted(self):
            self._compiler = self._compiler or Compiler()
            self._compiler.compile_(self, batch.inputs)

    def beside(self, net: nn.Module) -> nn.Module:
        return net if self._compiler is None else self._compiler.beside(net, self.device)

    def _right(self, batch: B.Batch, outputs: Any, targets: Any) -> torch.Tensor | None:
        """Return the numbers of correctly classified examples and of those with a label, (2,); None if the task is not
        classification."""
        # Whether it is classification may depend on values, which are read from a GPU only once.
        known = self.device.type != "cpu" and self._by_class is not None
        counted = batch.labeled and not (known and not self._by_class)
        right = topk_correct(outputs, targets, known=known) if counted else None
        self._by_class = right is not None
        if right is None:
            return None
        return torch.stack([right[0], labeled(targets, batch.rows, self.objective.ignored, right)])

    def _together(self, stack: ExitStack) -> None:
        for part in self.parts.values():
            if not self.syncing:
                stack.enter_context(self.runtime.accelerator.no_sync(part.net))
            if self.recipe.sync_norm and self.recipe.compile is not True:  # it would be recompiled at every step
                stack.enter_context(synchronized(part.module))

    def _step(self) -> None:
        active = [p for p in self.parts.values() if p.active]
        done = self.step / self.total if self.total else 0.0
        position = float(self.step) if self.recipe.steps is not None else self.step / (self.per_epoch or 1)
        for part in active:
            part.set_lr(self.recipe.factor(done, position))
            grads = [p.grad for p in part.parameters() if p.grad is not None]
            if not grads:
                continue
            if self.runtime.scaler:
                self.runtime.scaler.unscale_(part.optimizer)
            if self._micro < self.recipe.accumulate:  # the last, incomplete group of an epoch
                torch._foreach_mul_(grads, self.recipe.accumulate / self._micro)
            if self.recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(part.parameters(), self.recipe.clip_norm)
            if self.runtime.scaler:
                self.runtime.scaler.step(part.optimizer)
            else:
                part.optimizer.step()
        if self.runtime.scaler:
            self.runtime.scaler.update()
        self.clear_gradients()
        self._micro = 0
        self.step += 1
        if self.ema is not None and self.parts["main"].active:
            average_(self.ema, self.model, decay_at(self.recipe.ema, self.step))
        for hook in self.hooks:
            hook.after_step(self)

    def _drain(self, keep: int) -> None:
        """Read the metrics if more than `keep` batches are pending. Raises TrainingError if the loss is not finite."""
        if len(self._pending) <= keep:
            return
        indices, figures = zip(*self._pending, strict=True)
        self._pending.clear()
        if isinstance(self.loss, CrossEntropy):
            try:
                self.loss.settle()
            except DataError as error:
                raise DataError(f"Batches {indices[0]} to {indices[-1]} of train: {error}") from error
        for index, values in zip(indices, torch.stack(figures).tolist(), strict=True):  # read at once
            if not math.isfinite(values[0]):
                value, epoch = values[0] / values[2], self.epoch + 1
                raise NonFiniteLossError(
                    f"The loss is {value} in epoch {epoch}, batch {index}: training stopped.{R.last_checkpoint(self)}",
                    hint=(
                        "Check that batch for bad values, lower ",
                        Setting("lr"),
                        ", or set ",
                        Setting("clip_norm"),
                        ".",
                    ),
                    value=value,
                    epoch=epoch,
                    batch=index,
                    checkpoint=R.last_path(self),
                )
            self._sums = [a + b for a, b in zip(self._sums, values, strict=True)]

    def _show(self) -> None:
        if self._sums[2]:
            lost, right, n, known = self._sums
            self.report.update(
                self.step,
                self.epoch,
                lost / n,
                100 * right / known if self._by_class and known else None,
                n / max(self._seconds, 1e-9),
            )

    def _end_epoch(self) -> None:
        lost, right, n, known = self._sums
        line: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step, "lr": self.optimizer.param_groups[0]["lr"]}
        line |= {"train_loss": lost / n} | ({"train_top1": 100 * right / known} if self._by_class and known else {})
        line |= {"images_per_second": n / max(self._seconds, 1e-9), "seconds": self._seconds}
        seed_all(self.seed, "epoch end", self.epoch)
        if self.val_data is not None:
            found = self.evaluate()
            figures = {"loss": found.loss, "top1": found.top1, "top5": found.top5, **found.metrics}
            line |= {f"val_{name}": value for name, value in figures.items() if value is not None}
        for name, source in (("skipped", self.train_data), ("val_skipped", self.val_data)):
            if skipped := getattr(source, "skipped", 0):  # images that cannot be read
                line[name] = skipped
        for hook in self.hooks:
            hook.epoch_end(self, line)
        self._done = self._done or any(hook.done(self) for hook in self.hooks)
        self.history.append(line)
        self.epoch, self.batch, self._sums, self._seconds = self.epoch + 1, 0, [0.0] * 4, 0.0
        self._save()  # before the line is written: the log is never ahead of the checkpoint
        R.append_log(self, line)
        if self.track:
            figures = {k: v for k, v in line.items() if isinstance(v, (int, float))}
            with written(self.folder):
                self.runtime.accelerator.log(figures, step=self.step)
        self.report.line(summary(line, self.report.title))

    def _due(self) -> bool:
        if self.checkpoints is None:
            return False
        if self.save_steps and self.step % self.save_steps == 0:
            return True
        if self.save_seconds is None:
            return False
        late = float(time.monotonic() - self._saved_at >= self.save_seconds)
        if self.world > 1:  # clocks differ, so all save if any process is due
            late = float(self.sum(torch.tensor([late], device=self.device)))
        return late > 0

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        self._drain(0)  # never save weights after a non-finite loss
        state = R.snapshot(self)
        if self.rank == 0:
            self.checkpoints.save(self.step, state)
        self.runtime.wait()
        self._saved_at = time.monotonic()

    @torch.no_grad()
    def _finish(self) -> None:
        """Restore an ordinary model: EMA weights, default memory format, no wrapper."""
        if self.ema is not None:
            average_(self.model, self.ema, 0.0)
        if self.runtime.channels_last:
            self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.runtime.release()
        for part in self.parts.values():
            part.net = part.module
        if self.track:
            with written(self.folder):
                self.runtime.accelerator.end_training()
        self.runtime.wait()
