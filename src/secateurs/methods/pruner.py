"""Methods that prune during training: a `Pruner` is attached to a model, stepped after each batch, and returns a plan."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property, wraps
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from secateurs.devices import device_of
from secateurs.errors import ConfigError, Setting
from secateurs.methods.method import Method, Task, undefined
from secateurs.methods.selection import Selection
from secateurs.plans import Plan
from secateurs.presets import Auto
from secateurs.recovery.distil import Distilling
from secateurs.recovery.recipes import Recover
from secateurs.recovery.teacher import TeacherHook
from secateurs.report import count
from secateurs.training import Engine, Hook, Part, Recipe, processes
from secateurs.training.eager import EagerHook
from secateurs.training.run import TrainingRun
from secateurs.training.runtime import wait_for_everyone
from secateurs.training.state import misfit


class Pruner:
    """A pruning run on `task.model`. Step-based, so that it works with any training loop:

        loss = criterion(model(x), y) + pruner.penalty()
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        pruner.step()
        if pruner.done: break
    secateurs.cut_(model, pruner.plan(), optimizer)

    In float16 with a gradient scaler, the loop is: `scaler.step(optimizer); optimizer.zero_grad(); pruner.step(scaler=scaler);
    scaler.update()`.

    networks: the pruner's own networks by name, each with its optimizer. The engine steps them in its loop;
    `step` steps them in a loop of the user's own, and first averages their gradients over the processes.
    """

    networks: Mapping[str, tuple[nn.Module, Optimizer]] = {}
    captures = False  # whether the model can be compiled while it is pruned
    _taken = 0  # steps in this process …
    _asked = False  # … and whether any of their losses had the penalty

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.penalty is not Pruner.penalty and not hasattr(cls.penalty, "asking"):  # its own, or a mixin's
            cls.penalty = _asking(cls.penalty)  # type: ignore[assignment, method-assign]

    def __init__(self, task: Task) -> None:
        self.task = task
        self.steps = 0  # optimizer steps taken
        self.total = 0  # steps to take
        self.epoch_steps = 1
        self.wrapped: Mapping[
            str, Part
        ] = {}  # the networks as the engine calls them, for example wrapped in DistributedDataParallel
        self.mean: Callable[[Tensor], Tensor] = lambda x: x  # over all processes
        self.rank, self.processes = 0, 1
        self.log: Callable[[str], None] = lambda line: None  # reports a line of text
        self.share = (0, 1)  # (rank, world size) if batches of the data are still to be split between processes
        self.history: list[dict[str, Any]] = []  # the method's history, if nothing else records it
        self._averaged = False  # whether the gradients of `networks` are those of all processes
        self._plan: Plan | None = None
        self._guard: EagerHook | None = None

    def begin(self, total: int, epoch_steps: int) -> None:
        """Set the length of the run in optimizer steps, and the steps per epoch."""
        self.total, self.epoch_steps = total, max(1, epoch_steps)
        if self._guard is None:
            self._guard = EagerHook(self.task.model, _Stays(device_of(self.task.model)))

    def penalty(self) -> Tensor | float:
        """The penalty to add to the loss of the last batch."""
        return 0.0

    def step(self, *, own: bool = True, scaler: torch.amp.GradScaler | None = None) -> None:
        """Call after each optimizer step, in every process.

        own: also step the pruner's own networks. scaler: what scaled the loss, if anything did; call `scaler.update()` then.
        """
        if own:
            self.average()
            for _network, optimizer in self.networks.values():
                if scaler is None:
                    optimizer.step()
                elif any(p.grad is not None for g in optimizer.param_groups for p in g["params"]):
                    scaler.step(optimizer)
                optimizer.zero_grad()
            self._averaged = False
        self._taken += not self.done
        self.steps += 1
        self.advance()

    def join(self) -> None:
        """Decide with the other processes from now on, if there are any."""
        if (world := processes.world()) > 1:
            device = device_of(self.task.model)
            self.mean, self.processes, self.rank = lambda x: processes.mean(x, device), world, dist.get_rank()

    @torch.no_grad()
    def average(self) -> None:
        """Average the gradients of the pruner's own networks over the processes, once per step."""
        if self._averaged or processes.world() == 1:
            return
        for _, optimizer in self.networks.values():
            for p in [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]:
                p.grad = self.mean(torch.zeros_like(p) if p.grad is None else p.grad)  # some may have one, others none
        self._averaged = True

    def warn(self, line: str) -> None:
        """Report a sentence now, and in the result's warnings; of a loop of the user's own, in `history`."""
        self.log(line)
        self.task.warn(line)

    def advance(self) -> None:
        """The method's work after step number `steps`."""

    @cached_property
    def met(self) -> bool:
        """Whether the network is within the budget and the user's limits as it is: nothing is cut then, and nothing trained."""
        widths = self.task.widths
        return widths.budget is not None and bool((widths.most == widths.sizes).all()) and widths.fits(widths.sizes)

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return self.met or 0 < self.total <= self.steps

    def finish(self) -> Selection:
        """Detach everything from the model, and return the channels to keep. The model's weights are
        then those that the plan applies to."""
        if self._guard is not None:
            self._guard.remove()
        if missed := self._missed():
            self.warn(f"{type(self).__name__}: {missed}")
        return self._finish()

    def _missed(self) -> str:
        """What the training loop omitted, if that kept the search from working; empty if nothing."""
        if self.met or not self.total:
            return ""
        steps = count(self.total, "step")
        if not self.steps:
            return f"step() was never called, so nothing was searched. Call it after each of the optimizer's {steps}."
        if self._taken and not self._asked and type(self).penalty is not Pruner.penalty:
            return (
                "penalty() was never called, so nothing drove the search to the budget. Add pruner.penalty() to the loss of "
                "each batch."
            )
        if not self.done:
            return (
                f"the search ended after {self.steps} of {steps}, and the cut may lose more accuracy than after all of them. "
                "Run the loop until pruner.done is True, or attach the pruner for fewer steps."
            )
        return ""

    @abstractmethod
    def _finish(self) -> Selection:
        """The method's implementation of `finish`."""

    def plan(self) -> Plan:
        """`finish`, as a plan: apply it to the model, or cut the model in place with its optimizer. Ends the run;
        a second call returns the same plan."""
        if self._plan is None:
            selection = Selection.of(self.finish(), f"{type(self).__name__}._finish")
            self._plan = selection.plan(self.task.graph, allow_inexact=True)
            self.task.check_kept(self._plan, type(self).__name__)
        return self._plan

    def state(self) -> dict[str, Any]:
        """The state that `load` needs to resume in another process: tensors and JSON-serializable values.

        The keys, the kinds of values and the shapes of tensors are always the same. A value that is created
        later is None, an empty dict or an empty list before.
        """
        return {"steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def _asking(penalty: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The method that also notes that it was called."""

    @wraps(penalty)
    def asked(self: Pruner) -> Any:
        self._asked = True
        return penalty(self)

    asked.asking = True  # type: ignore[attr-defined]
    return asked


class _Stays:
    """Check that the model is still on the device of the pruner's own tensors, for a clear message."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if (now := device_of(model)) != self.device:
            raise ConfigError(
                f"The model was on {self.device} when the pruner was attached, and is now on {now}: move it first, then "
                "attach the pruner."
            )


class PrunerHook(Hook):
    """Runs a pruner in the engine's loop."""

    def __init__(self, pruner: Pruner, settings: Mapping[str, Any]) -> None:
        self.pruner, self.settings = pruner, settings
        self.captures = pruner.captures

    def start(self, engine: TrainingRun) -> None:
        if engine.total is None:
            raise ConfigError(
                f"{self.settings.get('method', 'The method')} must know the length of training, and this data has no length: "
                f"set the method's steps_per_epoch=…, or pass batches as a list, or an object with __len__."
            )
        networks = self.pruner.networks.items()
        self.pruner.wrapped = {name: engine.add_network(name, net, optimizer) for name, (net, optimizer) in networks}
        if engine.world > 1:
            self.pruner.mean = lambda x: engine.sum(x.to(engine.device)).to(x.device) / engine.world
        self.pruner.rank, self.pruner.processes = engine.rank, engine.world
        self.pruner.log = engine.report.line
        self.pruner.share = engine.runtime.share(engine.train_data)
        self.pruner.begin(engine.total, engine.per_epoch or 1)
        if self.pruner.met:
            self.pruner.log(f"{self.settings.get('method', 'The method')}: the budget is already met")

    def penalty(self, engine: TrainingRun) -> Tensor | float:
        return self.pruner.penalty()

    def after_step(self, engine: TrainingRun) -> None:
        trainable = [p.requires_grad for p in engine.model.parameters()]
        self.pruner.step(own=False)
        if trainable != [p.requires_grad for p in engine.model.parameters()]:
            engine.rebind()

    def done(self, engine: TrainingRun) -> bool:
        return self.pruner.done

    def state(self) -> dict[str, Any]:
        return {"settings": self.settings, "pruner": self.pruner.state()}

    def load(self, state: dict[str, Any]) -> None:
        if fault := misfit(state, {"settings": {}, "pruner": self.pruner.state()}, "PrunerHook"):
            raise ValueError(fault)
        then, now = state["settings"], self.settings
        changed = [f"{k} ({then.get(k)!r} then, {now.get(k)!r} now)" for k in now if now.get(k) != then.get(k)]
        if changed:
            raise ConfigError(f"The checkpoint is from another run, which differs in {', '.join(changed)}.")
        self.pruner.load(state["pruner"])


class TrainingMethod(Method):
    """Base class of methods that prune during training. `select` runs the engine; `attach` is for a loop of the user's own."""

    reads_labels: ClassVar[bool] = True
    quick: ClassVar[bool] = False

    steps_per_epoch: int | None = Field(
        None, ge=1, description="batches per epoch, for data without an end or to shorten an epoch"
    )
    compile: Auto = Field(
        "auto",
        description="whether to torch.compile the network, where the method allows it, on a GPU with CUDA graphs: true, false, "
        "or auto, on a GPU in one process for long training",
    )

    @property
    def measures(self) -> bool:
        """Whether the pruner itself runs the network on training batches, before or after the training."""
        return False

    def before(self, epochs: float) -> TrainingMethod:
        """The method with the settings that it has before so many epochs of recovery."""
        return self

    def recipe(self, task: Task) -> Recipe:
        """The recipe that the network trains with while it is pruned."""
        raise undefined(self, "recipe(task)", "secateurs.training.Recipe(…), how the network trains while it is pruned")

    def attach(self, task: Task) -> Pruner:
        """Start pruning `task.model`, in place."""
        raise undefined(self, "attach(task)", "a Pruner of task.model")

    def teachers(self, task: Task) -> list[TeacherHook]:
        """Hooks through which the original teaches the network while it is pruned. Called before `attach`."""
        return []

    def check(self, task: Task) -> None:
        if task.data is None:
            raise ConfigError(f"{self.name} prunes during training: pass data=….")

    def select(self, task: Task) -> Selection:
        # All processes are there when the method is attached: what it measures then, they measure together.
        wait_for_everyone(task.engine_options.get("device"))
        teachers = self.teachers(task)  # first: their copies of the network are those of the original, without masks
        pruner = self.attach(task)
        budget = None if task.budget is None else task.budget.record()
        own = self.model_dump(mode="json", exclude={"compile"})  # with which the run is the same
        settings = {**own, "method": self.name, "budget": budget, "scope": task.scope}
        settings["limits"] = {n: [b.least, b.most, b.held] for n, b in task.bounds.items()} or None
        recipe = self.recipe(task).model_copy(update={"steps_per_epoch": self.steps_per_epoch})
        if self.compile != "auto":
            recipe = recipe.model_copy(update={"compile": self.compile and pruner.captures})
        engine = Engine(
            task.model, task.data, recipe, hooks=[*teachers, PrunerHook(pruner, settings)], seed=task.seed, title=self.name,
            labels=self.reads_labels, **task.engine_options,
        )  # fmt: skip
        try:
            for line in engine.fit(resume=task.resume):
                task.log({**line, "phase": self.name})
        finally:
            for teacher in teachers:
                teacher.close()
        return Selection.of(pruner.finish(), f"{type(pruner).__name__}._finish")


def taught(share: float) -> Any:
    """The setting of `Taught`, with this default."""
    return Field(
        default=share,
        ge=0,
        le=1,
        description="weight of the original's class probabilities in the loss, in `prune`; by default 0 if the outputs are not "
        "the logits of classes",
    )


class Taught(TrainingMethod):
    """Base class of such methods in which the original may teach the network while it is pruned, and whose length follows from
    that of the recovery.

    share: the fraction of all training, pruning and recovery, that pruning takes by default.
    most: epochs of pruning by default, if there is no recovery or a long one.
    """

    share: ClassVar[float] = 0.3
    most: ClassVar[float]

    epochs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="epochs of pruning; default: a share of the epochs of pruning and recovery together, up to a maximum",
    )
    distil: float = taught(0.0)

    @property
    def reads_labels(self) -> bool:  # type: ignore[override]
        """Whether the loss has a part that is not the original's."""
        return self.distil < 1

    @property
    def length(self) -> float:
        """Epochs of pruning."""
        return self.most if self.epochs is None else self.epochs

    def before(self, epochs: float) -> TrainingMethod:
        if self.epochs is not None or epochs <= 0:
            return self
        return self.model_copy(update={"epochs": min(self.most, epochs * self.share / (1 - self.share))})

    def teachers(self, task: Task) -> list[TeacherHook]:
        if self.distil == 0:
            return []
        required, off = "distil" in self.model_fields_set, Setting("distil", 0, type(self))
        teacher = task.model if task.teacher is None else task.teacher
        return [Distilling(task.model, teacher, Recover(share=self.distil), required=required, off=off)]
