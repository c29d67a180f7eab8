"""The one engine for everything that trains."""

from __future__ import annotations

import copy
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.errors import ConfigError, SecateursError, TrainingError
from secateurs.training import batches as B
from secateurs.training import metrics as M
from secateurs.training import resume as R
from secateurs.training.checkpoint import CheckpointStore
from secateurs.training.checks import Check
from secateurs.training.hooks import Hook
from secateurs.training.parts import Part, average_, make_optimizer
from secateurs.training.processes import LostError
from secateurs.training.progress import Mode, Reporter, summary
from secateurs.training.recipe import Recipe
from secateurs.training.runtime import Runtime, written
from secateurs.training.seeds import borrowed, seed_all
from secateurs.training.syncnorm import synchronised

ADVICE = " Look for bad values in that batch, lower lr, or set clip_norm."  # where the loss is not finite


class Engine:
    """Trains `model` on `data` as `recipe` says: `Engine(model, data, recipe).fit()`.

    `data`: an iterable of (inputs, targets) batches, a function that returns one, or an object with `.train`, `.val`.
    `loss(outputs, targets) -> scalar` gets the model's raw outputs (default: cross-entropy, auxiliary heads included).
    `folder`: where `metrics.jsonl` goes. `checkpoints` are saved at every epoch's end, and every `save_steps` steps and
    `save_seconds` seconds if given. `track`: accelerate's trackers ("tensorboard", "wandb"…, or objects).

    For hooks: `model`, `optimizer`, `ema`, `device`, `rank`, `world`, `step` (optimizer steps taken), `total` (steps to
    take, None if unknown), `epoch`, `batch` (position in the data), `parts`, `history`, `syncing`, `report.line(text)`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        recipe: Recipe,
        *,
        loss: M.Loss | None = None,
        hooks: Sequence[Hook] = (),
        seed: int = 0,
        device: str | torch.device | None = None,
        folder: str | os.PathLike[str] | None = None,
        checkpoints: CheckpointStore | None = None,
        save_steps: int | None = None,
        save_seconds: float | None = None,
        progress: Mode | bool = "auto",
        track: Sequence[Any] = (),
        title: str = "training",
    ):
        if loss is not None and recipe.label_smoothing:
            raise ConfigError("label_smoothing belongs to the default loss: build it into your own one instead")
        if save_steps is not None and save_steps < 1:
            raise ConfigError(f"save_steps={save_steps}: must be at least 1")
        self.model, self.recipe, self.hooks, self.seed = model, recipe, list(hooks), seed
        self.train_data, self.val_data = B.split_data(data)
        self.loss = loss or M.CrossEntropy(recipe.label_smoothing)
        self.folder = Path(folder) if folder is not None else None
        self.checkpoints, self.save_steps, self.save_seconds = checkpoints, save_steps, save_seconds
        self.report = Reporter(progress, title)
        self.track = tuple(track)
        self.step = self.epoch = self.batch = 0
        self.history: list[dict[str, Any]] = []
        self.plans: list[Any] = []
        self.parts: dict[str, Part] = {}
        self.ema: nn.Module | None = None
        self.syncing = True  # False for the batches of an accumulated step but the last
        self._device = device
        self._runtime: Runtime | None = None
        self._done = False
        self._resumed = False  # and no batch read since
        self._micro = 0  # batches since the last step
        self._pending: deque[tuple[int, torch.Tensor]] = deque()
        self._sums = [0.0, 0.0, 0.0]  # of this epoch: loss, top-1 hits, images
        self._seconds = 0.0

    # -- what everyone may ask ---------------------------------------------------------------------------------------

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.parts["main"].optimizer

    @property
    def runtime(self) -> Runtime:
        """Made when first asked for: it may start process groups."""
        if self._runtime is None:
            self._runtime = Runtime(self.model, self.recipe, self._device, self.track, self.folder)
            if self._runtime.rank:
                self.report.mode = "silent"
        return self._runtime

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def rank(self) -> int:
        return self.runtime.rank

    @property
    def world(self) -> int:
        return self.runtime.world

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor summed over all processes."""
        return self.runtime.sum(tensor)

    def evaluate(self, model: nn.Module | None = None, data: Any = None) -> M.Metrics:
        """Top-1, top-5, loss on the validation data, in the precision of training; of the EMA weights if any."""
        source = self.val_data if data is None else data
        if source is None:
            raise ConfigError("There is no validation data: pass Data(train=..., val=...).")
        model = model or self.ema or self.model
        return M.evaluate(
            model.to(self.device),
            source,
            device=self.device,
            loss=self.loss,
            precision=self.runtime.precision,
            channels_last=self.runtime.channels_last,
            reduce=self.sum,
            share=self.runtime.share(source),
        )

    # -- for hooks that change what is trained -----------------------------------------------------------------------

    def add_parameters(self, params: Iterable[nn.Parameter], **options: Any) -> None:
        """Parameters outside the model join its optimizer. Options: lr, weight_decay…, scheduled=False for a lr that
        the schedule leaves alone. The hook that owns them saves them."""
        group = {"weight_decay": 0.0, "lr": self.recipe.lr, **options, "params": list(params)}
        group["initial_lr"] = group["lr"]
        self.optimizer.add_param_group(group)

    def add_network(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> Part:
        """A second network with its own optimizer: prepared, stepped (while `part.active`), scheduled and saved like
        the model. Call `part.net` in `before_batch`; set `engine.parts["main"].active = False` to train it alone."""
        if name in self.parts:
            raise ConfigError(f"there is a network '{name}' already")
        part = Part(name, module.to(self.device), optimizer)
        self.parts[name] = part
        part.net = self.runtime.wrap(part.module)
        return part

    def cut(self, plan: Any) -> None:
        """Cuts the model in place, optimizer state and EMA along with it, and goes on."""
        from secateurs.surgery import cut_

        cut_(self.model, plan, self.optimizer)
        if self.ema is not None:
            cut_(self.ema, plan)
        self.plans.append(plan)
        self.rebind()

    def rebind(self) -> None:
        """After parameters were replaced, frozen or thawed: optimizers and wrappers are made to fit again."""
        self.runtime.release()
        self.parts["main"].refresh()
        for part in self.parts.values():
            part.net = self.runtime.wrap(part.module)

    # -- set-up ------------------------------------------------------------------------------------------------------

    def _setup(self) -> None:
        if self.parts:
            raise TrainingError("This engine has trained already: make a new one (with resume=True to go on).")
        self.model.to(self.device)
        if self.runtime.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.recipe.ema:
            self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.parts["main"] = Part("main", self.model, make_optimizer(self.model.parameters(), self.recipe))
        self.parts["main"].net = self.runtime.wrap(self.model)
        self.total, self.per_epoch = B.measure(self.recipe, self.train_data)
        self._check = Check(self.model, "train")
        self._check_val()
        if self.track:
            with written(self.folder):
                self.runtime.accelerator.init_trackers("secateurs", config=self.recipe.model_dump(mode="json"))

    def _check_val(self) -> None:
        """Find out now, not after an epoch, if validation data does not fit. Hooks on the model are a method's, which has
        checked the data, or the user's: neither is to see batches that training does not have."""
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in self.model.modules())
        if self.val_data is not None and not isinstance(self.val_data, Iterator) and not hooked:
            self.evaluate(self.model, [B.first(self.val_data, "val")])

    # -- training ----------------------------------------------------------------------------------------------------

    def fit(self, *, resume: bool = False) -> list[dict[str, Any]]:
        """Trains and returns the history, one dict per epoch (what `metrics.jsonl` holds).

        `resume` goes on from the newest whole checkpoint, if there is one, to the very weights that an uninterrupted
        run would have got (bit for bit on a CPU). Raises TrainingError when the loss is not finite or a checkpoint
        can't be written, DataError when the data runs out.
        """
        try:
            with borrowed():
                self._fit(resume)
        except (RuntimeError, SecateursError) as error:  # a lost process may look like inputs that do not fit
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
            self.train_data, seed=self.seed, epoch=self.epoch, start=self.batch, limit=limit, replay=replay
        ):
            batch = self._check.fit(B.share(raw, *share), index)
            with self._check.running(batch, index):
                batch = M.place(batch, self.device, self.runtime.channels_last, self.loss)
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
                with self._check.running(batch, index):
                    outputs, loss = M.forward(main.net, batch, self.loss, self.recipe.mixup)
                for hook in self.hooks:
                    loss = hook.loss(self, loss, outputs, batch.targets)
            rows = batch.targets.shape[0]
            figures = torch.stack(
                [loss.detach().float() * rows, *M.hits(outputs, batch.targets).float(), loss.new_tensor(rows)]
            )
            share = 1.0 / self.recipe.accumulate
            if self.world > 1:  # processes may hold unlike numbers of rows: weigh them, so that the mean is the batch's
                figures = self.sum(figures)
                loss = loss * (rows * self.world / figures[2])
            loss = loss * share if share != 1 else loss
            self.runtime.accelerator.backward(self.runtime.scaler.scale(loss) if self.runtime.scaler else loss)
        self._pending.append((index, figures))
        self._drain(0 if self.device.type == "cpu" else 2)  # a GPU is not made to wait for its own loss
        if self.syncing and self.world > 1:
            for part in self.parts.values():
                part.average_guests(self.sum, self.world)
        for hook in self.hooks:
            hook.after_backward(self)
        if self.syncing:
            self._step()

    def _together(self, stack: ExitStack) -> None:
        for part in self.parts.values():
            if not self.syncing:
                stack.enter_context(self.runtime.accelerator.no_sync(part.net))
            if self.recipe.sync_norm and not self.recipe.compile:  # compiled, it would be compiled anew every step
                stack.enter_context(synchronised(part.module))

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
        for part in self.parts.values():
            part.optimizer.zero_grad(set_to_none=True)
        self._micro = 0
        self.step += 1
        if self.ema is not None and self.parts["main"].active:
            average_(self.ema, self.model, self.recipe.ema)
        for hook in self.hooks:
            hook.after_step(self)

    def _drain(self, keep: int) -> None:
        """Reads the figures of batches that the device is through with. A loss that is not finite ends the run."""
        while len(self._pending) > keep:
            index, figures = self._pending.popleft()
            values = figures.tolist()
            if not math.isfinite(values[0]):
                raise TrainingError(
                    f"The loss is {values[0] / values[2]} in epoch {self.epoch + 1}, batch {index}: training stopped."
                    f"{R.last_checkpoint(self)}{ADVICE}"
                )
            self._sums = [a + b for a, b in zip(self._sums, values, strict=True)]

    def _show(self) -> None:
        if self._sums[2]:
            lost, right, n = self._sums
            self.report.update(self.step, self.epoch, lost / n, 100 * right / n, n / max(self._seconds, 1e-9))

    def _end_epoch(self) -> None:
        lost, right, n = self._sums
        line: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step, "lr": self.optimizer.param_groups[0]["lr"]}
        line |= {"train_loss": lost / n, "train_top1": 100 * right / n}
        line |= {"images_per_second": n / max(self._seconds, 1e-9), "seconds": self._seconds}
        seed_all(self.seed, "epoch end", self.epoch)
        if self.val_data is not None:
            found = self.evaluate()
            line |= {"val_loss": found.loss, "val_top1": found.top1, "val_top5": found.top5}
        for name, source in (("skipped", self.train_data), ("val_skipped", self.val_data)):
            if skipped := getattr(source, "skipped", 0):  # images that can't be read
                line[name] = skipped
        for hook in self.hooks:
            hook.epoch_end(self, line)
        self._done = self._done or any(hook.done(self) for hook in self.hooks)
        self.history.append(line)
        self.epoch, self.batch, self._sums, self._seconds = self.epoch + 1, 0, [0.0, 0.0, 0.0], 0.0
        self._save()  # before the line is out: a log never runs ahead of what a resumed run knows
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
        if self.world > 1:  # clocks differ: any process that finds it is time decides for all
            late = float(self.sum(torch.tensor([late], device=self.device)))
        return late > 0

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        self._drain(0)  # never save weights that a bad batch has reached
        state = R.snapshot(self)
        if self.rank == 0:
            self.checkpoints.save(self.step, state)
        self.runtime.wait()
        self._saved_at = time.monotonic()

    @torch.no_grad()
    def _finish(self) -> None:
        """The model is left as an ordinary one: EMA weights in it, usual layout, no wrapper."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.state_dict())
        if self.runtime.channels_last:
            self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.runtime.release()
        for part in self.parts.values():
            part.net = part.module
        if self.track:
            with written(self.folder):
                self.runtime.accelerator.end_training()
        self.runtime.wait()
