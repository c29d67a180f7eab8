"""Methods that prune while training: a `Pruner` is attached to a model, stepped after each batch, and asked for a plan."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from secateurs.devices import device_of
from secateurs.errors import ConfigError
from secateurs.methods.method import Method, Task
from secateurs.methods.selection import Channels, Selection
from secateurs.plans import Plan
from secateurs.training import Engine, Hook, Part, Recipe
from secateurs.training.run import TrainingRun
from secateurs.training.state import misfit


class Pruner:
    """A pruning run in progress on `task.model`. Step-based, so that it goes along with any loop:

        loss = criterion(model(x), y) + pruner.penalty()
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        pruner.step()
        if pruner.done: break
    secateurs.cut_(model, pruner.plan(), optimizer)

    networks: networks of its own by name, each with the optimizer that trains it. Whoever runs the loop steps them: the
    engine does, and `step` does in a loop of the user's.
    """

    networks: Mapping[str, tuple[nn.Module, Optimizer]] = {}

    def __init__(self, task: Task) -> None:
        self.task = task
        self.steps = 0  # optimizer steps taken
        self.total = 0  # steps to take
        self.epoch_steps = 1
        self.wrapped: Mapping[str, Part] = {}  # the networks as the engine runs them, on several processes say
        self.mean: Callable[[Tensor], Tensor] = lambda x: x  # over all processes
        self.processes = 1
        self.log: Callable[[str], None] = lambda line: None  # to whoever watches the run
        self.share = (0, 1)  # rank and number of those that a batch of the data is yet to be split between
        self.history: list[dict[str, Any]] = []  # what the method has put on record, where nobody else keeps it
        self._plan: Plan | None = None
        self._guard: RemovableHandle | None = None

    def begin(self, total: int, epoch_steps: int) -> None:
        """How long the run will be, in optimizer steps, and how many of them make an epoch."""
        self.total, self.epoch_steps = total, max(1, epoch_steps)
        if self._guard is None:
            stays = _Stays(device_of(self.task.model))
            self._guard = self.task.model.register_forward_pre_hook(stays, prepend=True)

    def penalty(self) -> Tensor | float:
        """To be added to the loss of the batch that the model has just seen."""
        return 0.0

    def step(self, *, own: bool = True) -> None:
        """After each optimizer step. own: also step the pruner's own networks."""
        if own:
            for _network, optimizer in self.networks.values():
                optimizer.step()
                optimizer.zero_grad()
        self.steps += 1
        self.advance()

    def advance(self) -> None:
        """What the method does after step number `steps`."""

    @property
    def done(self) -> bool:
        """Nothing is left to do."""
        return 0 < self.total <= self.steps

    def finish(self) -> Selection:
        """Take everything off the model that was attached to it, and say which channels stay. The model's weights are
        then those that the plan is for."""
        if self._guard is not None:
            self._guard.remove()
        return self._finish()

    @abstractmethod
    def _finish(self) -> Selection:
        """`finish`, as the method does it."""

    def plan(self) -> Plan:
        """`finish`, as a plan: apply it to the model, or cut the model in place with its optimizer. The run is over then,
        and asked again it is the same plan."""
        if self._plan is None:
            self._plan = self.finish().plan(self.task.graph, allow_inexact=True)
        return self._plan

    def state(self) -> dict[str, Any]:
        """What `load` needs to resume in another process: tensors and JSON-able values.

        The keys are always the same, and so are the kinds of values and the shapes of tensors. Where something comes into
        being later it is None, an empty dict or a list before.
        """
        return {"steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class _Stays:
    """The pruner's own tensors are where the model was: said clearly, before some op says so."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, model: nn.Module, args: Any) -> None:
        if (now := device_of(model)) != self.device:
            raise ConfigError(
                f"The model was on {self.device} when the pruner was attached, and is on {now} now: move it first, and "
                "attach the pruner then."
            )


class PrunerHook(Hook):
    """A pruner in the engine's loop."""

    def __init__(self, pruner: Pruner, settings: Mapping[str, Any]) -> None:
        self.pruner, self.settings = pruner, settings

    def start(self, engine: TrainingRun) -> None:
        if engine.total is None:
            raise ConfigError(
                f"{self.settings.get('method', 'The method')} must know how long it trains, and this data has no length: "
                f"give the method steps_per_epoch=…, or pass batches as a list, or an object with __len__."
            )
        networks = self.pruner.networks.items()
        self.pruner.wrapped = {name: engine.add_network(name, net, optimizer) for name, (net, optimizer) in networks}
        self.pruner.mean = lambda x: engine.sum(x.to(engine.device)).to(x.device) / engine.world
        self.pruner.processes = engine.world
        self.pruner.log = engine.report.line
        self.pruner.share = engine.runtime.share(engine.train_data)
        self.pruner.begin(engine.total, engine.per_epoch or 1)

    def loss(self, engine: TrainingRun, loss: Tensor, outputs: Any, targets: Tensor) -> Tensor:
        return loss + self.pruner.penalty()

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
            raise ConfigError(f"The checkpoint is of another run, which differs in {', '.join(changed)}.")
        self.pruner.load(state["pruner"])


class TrainingMethod(Method):
    """A method that prunes while training. `select` runs it on the engine; `attach` gives it to a loop of the user's."""

    steps_per_epoch: int | None = Field(
        None, ge=1, description="batches that make an epoch, of data that has no end or is to be cut short"
    )

    def recipe(self) -> Recipe:
        """How the network trains meanwhile."""
        raise NotImplementedError

    def attach(self, task: Task) -> Pruner:
        """Start pruning `task.model`, in place."""
        raise NotImplementedError

    def check(self, task: Task) -> None:
        if task.data is None:
            raise ConfigError(f"{self.name} prunes while training: pass data=….")

    def select(self, task: Task) -> Selection:
        pruner = self.attach(task)
        budget = None if task.budget is None else asdict(task.budget)
        settings = {**self.model_dump(mode="json"), "method": self.name, "budget": budget, "scope": task.scope}
        recipe = self.recipe().model_copy(update={"steps_per_epoch": self.steps_per_epoch})
        engine = Engine(
            task.model, task.data, recipe, hooks=[PrunerHook(pruner, settings)], seed=task.seed, title=self.name,
            **task.engine_options,
        )  # fmt: skip
        for line in engine.fit(resume=task.resume):
            task.log(line)
        return pruner.finish()


def keep(scores: Mapping[str, np.ndarray], threshold: float) -> Channels:
    """Channels with a score of at least the threshold; of a group without any, the best one."""
    found: Channels = {}
    for name, s in scores.items():
        kept = np.flatnonzero(s >= threshold)
        found[name] = kept if len(kept) else np.array([int(s.argmax())])
    return found
