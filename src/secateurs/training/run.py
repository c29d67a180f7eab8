"""A training run: the state of the engine's loop, which hooks can read and change."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from secateurs.devices import channels_last_
from secateurs.errors import ConfigError, Setting, TrainingError
from secateurs.graph.copies import copied
from secateurs.surgery import cut_
from secateurs.training import batches as B
from secateurs.training import metrics as M
from secateurs.training.checkpoint import CheckpointStore
from secateurs.training.checks import Check
from secateurs.training.losses import CrossEntropy, Loss
from secateurs.training.objective import Objective
from secateurs.training.options import check_options, check_recipe
from secateurs.training.parts import Part, make_optimizer
from secateurs.training.progress import Mode, Reporter
from secateurs.training.recipe import Recipe
from secateurs.training.runtime import Runtime, trackers, written


class TrainingRun:
    """A training run as hooks see it: the model, data, device and progress.

    model, optimizer, ema; device, rank, world; step (optimizer steps taken), total (steps to take; None if unknown), epoch,
    batch (position in the data); parts, history, syncing; report.line(text).
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        recipe: Recipe,
        *,
        loss: Loss | None = None,
        objective: Objective | None = None,
        hooks: Sequence[Any] = (),
        seed: int = 0,
        device: str | torch.device | None = None,
        folder: str | os.PathLike[str] | None = None,
        checkpoints: CheckpointStore | None = None,
        save_steps: int | None = None,
        save_seconds: float | None = None,
        progress: Mode | bool = "auto",
        track: Sequence[Any] = (),
        title: str = "training",
        labels: bool = True,
    ):
        self.objective = objective or Objective(loss=loss)
        check_recipe(recipe, self.objective)
        check_options(
            hooks=hooks, progress=progress, save_steps=save_steps, save_seconds=save_seconds, track=track, folder=folder
        )
        self.model, self.recipe, self.hooks, self.seed = model, recipe, list(hooks), seed
        self.labels = labels and recipe.reads_labels
        self.train_data, self.val_data = B.split_data(data)
        self.loss = self.objective.loss or CrossEntropy(recipe.label_smoothing)
        self.folder = Path(folder) if folder is not None else None
        self.checkpoints, self.save_steps, self.save_seconds = checkpoints, save_steps, save_seconds
        self.report = Reporter(progress, title)
        self.track = trackers(track)
        self.step = self.epoch = self.batch = 0
        self.history: list[dict[str, Any]] = []
        self.plans: list[Any] = []
        self.parts: dict[str, Part] = {}
        self.ema: nn.Module | None = None
        self.syncing = True  # False for all batches of an accumulated step except the last
        self._device = device
        self._runtime: Runtime | None = None
        self._uncaptured = True  # whether the network has not run since it was wrapped
        self._done = False
        self._resumed = False  # whether the run was resumed and has not read a batch since
        self._micro = 0  # batches since the last step
        self._by_class: bool | None = None  # whether the last batch was classified
        self._pending: deque[tuple[int, torch.Tensor]] = deque()
        self._sums = [0.0] * 4  # of this epoch: loss, top-1 hits, images, images with a label
        self._seconds = 0.0

    # -- queries ---------------------------------------------------------------------------------------

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.parts["main"].optimizer

    @property
    def runtime(self) -> Runtime:
        """The runtime. It is created on first use, because it may start process groups."""
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
        """Return the tensor summed over all processes."""
        return self.runtime.sum(tensor)

    def evaluate(self, model: nn.Module | None = None, data: Any = None) -> M.Metrics:
        """Return the figures on the validation data in the training precision, with the EMA weights if there are any."""
        source = self.val_data if data is None else data
        if source is None:
            raise ConfigError("There is no validation data: pass Data(train=..., val=...).")
        model = model or self.ema or self.model
        return M.evaluate(
            model.to(self.device),
            source,
            device=self.device,
            objective=self.objective,
            default=self.loss,
            precision=self.runtime.precision,
            channels_last=self.runtime.channels_last,
            reduce=self.sum,
            share=self.runtime.share(source),
        )

    def beside(self, net: nn.Module) -> nn.Module:
        """Return the callable for a network that runs next to the trained one without gradients: compiled if that one is."""
        return net

    def clear_gradients(self) -> None:
        """Set the gradients of all networks to None."""
        for part in self.parts.values():
            part.optimizer.zero_grad(set_to_none=True)

    # -- for hooks that change what is trained -----------------------------------------------------------------------

    def add_parameters(self, params: Iterable[nn.Parameter], **options: Any) -> None:
        """Add parameters outside the model to its optimizer. Options: lr, weight_decay…, scheduled=False for a constant
        lr, which the schedule does not change. The hook that owns the parameters must save them."""
        group = {"weight_decay": 0.0, "lr": self.recipe.lr, **options, "params": list(params)}
        group["initial_lr"] = group["lr"]
        self.optimizer.add_param_group(group)

    def add_network(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> Part:
        """Add a second network with its own optimizer. It is prepared, stepped (while `part.active`), scheduled and saved like
        the model. Call `part.net` in `before_batch`. Set `engine.parts["main"].active = False` to train only this network."""
        if name in self.parts:
            raise ConfigError(f"a network named '{name}' already exists")
        part = Part(name, module.to(self.device), optimizer)
        self.parts[name] = part
        part.net = self.runtime.wrap(part.module)
        return part

    def cut(self, plan: Any) -> None:
        """Cut the model in place, with its optimizer state and EMA. Training continues."""
        cut_(self.model, plan, self.optimizer)
        if self.ema is not None:
            cut_(self.ema, plan)
        self.plans.append(plan)
        self.rebind()

    def rebind(self) -> None:
        """Update optimizers and wrappers. Call this after parameters were replaced, frozen or unfrozen."""
        self.runtime.release()
        self.parts["main"].refresh()
        for part in self.parts.values():
            part.net = self.runtime.wrap(part.module)
        self._uncaptured = True

    # -- set-up ------------------------------------------------------------------------------------------------------

    def _setup(self) -> None:
        if self.parts:
            raise TrainingError(
                "This engine has already trained: create a new one (and call fit with ",
                Setting("resume", True),
                " to resume).",
            )
        self.model.to(self.device)
        if self.runtime.channels_last:
            channels_last_(self.model)
        restart_averages_(self.model)
        if self.recipe.ema:
            self.ema = copied(self.model).requires_grad_(False)
        self.total, self.per_epoch = B.measure(self.recipe, self.train_data)
        self.recipe = self.recipe.settled(self.total)
        self.parts["main"] = Part("main", self.model, make_optimizer(self.model.parameters(), self.recipe))
        self.parts["main"].net = self.runtime.wrap(self.model)
        self._check = Check(self.model, "train")
        self._check_val()
        if self.track:
            with written(self.folder):
                self.runtime.accelerator.init_trackers("secateurs", config=self.recipe.model_dump(mode="json"))

    def _check_val(self) -> None:
        """Check validation data now instead of after an epoch. Not if the model has hooks: they belong to a method, which has
        checked the data, or to the user, and must not see batches that are not part of training."""
        if (self.recipe.epochs or 0) > 1:
            B.check_again(self.val_data)
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in self.model.modules())
        if self.val_data is not None and not isinstance(self.val_data, Iterator) and not hooked:
            self.evaluate(self.model, [B.first(self.val_data, "val")])


def restart_averages_(model: nn.Module, batches: int = 0) -> None:
    """Make norms with `momentum=None`, whose statistics are the mean over all batches so far, count so many batches. The many
    of an earlier training would outweigh those of the weights that are trained now."""
    for norm in model.modules():
        if isinstance(norm, _NormBase) and norm.momentum is None and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(batches)
