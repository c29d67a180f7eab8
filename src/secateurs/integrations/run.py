"""The common part of the callbacks: a pruner that any trainer can step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateurs.api import attach
from secateurs.budget import Budget
from secateurs.data import Data
from secateurs.errors import ArtifactError, ConfigError, SpecError
from secateurs.graph.structures import map_tensors
from secateurs.methods.limits import Counts, Cuts, Limits, Ratios
from secateurs.methods.matching import Layers
from secateurs.methods.method import Method, Scope, check_budget, check_scope
from secateurs.methods.pruner import Pruner, TrainingMethod
from secateurs.methods.registry import resolve
from secateurs.plans import Plan
from secateurs.surgery import cut_
from secateurs.training.state import misfit
from secateurs.zoo import vision

with contextlib.suppress(SpecError):
    vision.torchvision()  # trainers import torchvision if it is installed, and not every build can be imported directly


class PruningRun:
    """A pruning run that is driven by a third-party loop: `begin`, `penalty` and `before_step` and `after_step`, `finish`.

    The callbacks take these settings:

    method: a method that prunes during training, by name or configured: `"npn"`, `sc.NPN(epochs=10)`.
    budget: the maximum cost of the pruned network.
    network: the CNN within the trained module: a path such as `"model"` or `"backbone"`, or a function that returns it.
        None means the trained module itself.
    example_inputs: inputs for the trace; by default, the first example of a training batch.
    exclude, only, ratios, min_channels, max_cut: as for `prune`; names are those within the network.
    data: `(inputs, targets)` batches for the method's measurements; by default, the trainer's training batches.
    cut: cut the network in place at the end, together with the trainer's optimizer. Otherwise, it is not cut, and
        `plan` has the channels to keep.
    stop: end training when the pruner is done. Otherwise, training continues with the cut network.
    steps: number of optimizer steps for pruning; by default, all steps of the trainer.
    """

    def __init__(
        self,
        method: str | Method,
        budget: Budget | None = None,
        *,
        network: str | Callable[[Any], nn.Module] | None = None,
        example_inputs: Any = None,
        data: Any = None,
        scope: Scope | None = None,
        exclude: Layers = (),
        only: Layers | None = None,
        ratios: Ratios | None = None,
        min_channels: int | Counts | None = None,
        max_cut: Cuts | None = None,
        seed: int = 0,
        allow_inexact: bool = False,
        cut: bool = True,
        stop: bool = True,
        steps: int | None = None,
    ) -> None:
        chosen = resolve(method)
        if not isinstance(chosen, TrainingMethod):
            raise ConfigError(f"{chosen.name} does not prune during training: call secateurs.prune(…) instead.")
        check_budget(budget)
        check_scope(scope)
        if steps is not None and steps < 1:
            raise ConfigError(f"steps={steps} must be at least 1.")
        self.method, self.budget = chosen, budget
        self.network, self.example_inputs, self.data = network, example_inputs, data
        limits = Limits(exclude, only, ratios, min_channels, max_cut).options()
        self.settings: dict[str, Any] = {"scope": scope, "seed": seed, "allow_inexact": allow_inexact, **limits}
        self.cut, self.stop, self.steps = cut, stop, steps
        self.pruner: Pruner | None = None
        self.plan: Plan | None = None
        self.model: nn.Module | None = None
        self._before: _Before | None = None  # while the pruner is attached
        self.loaded: dict[str, Any] | None = None  # the state of a resumed run

    @property
    def active(self) -> bool:
        return self.pruner is not None and self.plan is None

    def check(self, batches: Any, processes: int) -> None:
        """Raise ConfigError if training cannot continue with the cut network: with several processes, or with a DataLoader
        that cannot be iterated a second time while an iteration is in progress."""
        if self.stop:
            return
        if processes > 1:
            raise ConfigError(
                "stop=False continues with the cut network, which is not supported with several processes."
            )
        persistent = bool(getattr(batches, "num_workers", 0) and getattr(batches, "persistent_workers", False))
        if self.data is None and persistent:
            raise ConfigError(
                "stop=False is not supported with a loader with persistent workers: pass a separate loader as data=…."
            )

    def begin(self, module: nn.Module, *, steps: int, epoch_steps: int, batches: Any) -> None:
        """Start pruning. batches: the trainer's, as `(inputs, targets)`. They are iterated as often as needed."""
        self.abandon()  # an earlier training of this callback may not have reached its end
        self.plan = None
        self.model = find(module, self.network)
        self._before = _Before(self.model)
        data = Data.of(batches if self.data is None else self.data)
        example = self.example_inputs
        if example is None:
            example = map_tensors(lambda x: x[:1], next(iter(data.batches("train")))[0])
        self.pruner = attach(
            self.model, example, self.method, self.budget, steps=self.steps or steps,
            epoch_steps=epoch_steps, data=data, **self.settings,
        )  # fmt: skip
        self._before.attached()
        if self.loaded is not None:
            self._load(self.loaded)
            self.loaded = None

    def penalty(self) -> Tensor | float:
        return self.pruner.penalty() if self.pruner is not None and self.active else 0.0

    def before_step(self, scale: float = 1.0) -> None:
        """Call before each optimizer step. Applies the trainer's gradient processing to the pruner's own networks, which the
        trainer does not know about. scale: the loss scale in float16."""
        if self.pruner is None or not self.active:
            return
        self.pruner.average()
        for _network, optimizer in self.pruner.networks.values():
            grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            if scale != 1.0 and grads:
                torch._foreach_div_(grads, scale)
                if not all(bool(g.isfinite().all()) for g in grads):  # skip the step, as a loss scaler does
                    optimizer.zero_grad()

    def after_step(self, optimizers: list[Optimizer]) -> bool:
        """Call after each optimizer step. Returns whether training should end."""
        if self.pruner is None or not self.active:
            return False
        self.pruner.step()
        if not self.pruner.done:
            return False
        if not self.stop:
            self.finish(optimizers)
        return self.stop

    def finish(self, optimizers: list[Optimizer]) -> None:
        """Detach the pruner, create the plan, and cut the network."""
        if self.pruner is None or self.model is None or not self.active:
            return
        if self.cut and len(optimizers) > 1:
            raise ConfigError(
                f"The network is trained by {len(optimizers)} optimizers: pass cut=False, and cut it with .plan afterward."
            )
        self.plan = self.pruner.plan()
        if self.cut:
            cut_(self.model, self.plan, *optimizers)
        if self._before is not None:
            self._before.restore_modes()
        self._before = None

    def abandon(self) -> None:
        """Call when training ends with an exception. Detaches the pruner from the network, which keeps the parameters that it
        has now and is not cut. `state` still returns what a checkpoint needs."""
        if self._before is not None:
            self._before.restore()
        self._before = None

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values, from which `_load` resumes the run."""
        if self.pruner is None or not self.active:
            return {}
        networks = {
            name: {"module": dict(network.state_dict()), "optimizer": optimizer.state_dict()}
            for name, (network, optimizer) in self.pruner.networks.items()
        }
        return {"pruner": self.pruner.state(), "networks": networks}

    def _load(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state`. Raises ArtifactError for a state that does not fit this pruner."""
        assert self.pruner is not None
        networks = self.pruner.networks
        whole = {
            name: {"module": dict(network.state_dict()), "optimizer": {}} for name, (network, _) in networks.items()
        }
        fault = misfit(state, {"pruner": self.pruner.state(), "networks": whole}, "")
        try:
            if fault is None:
                for name, (network, optimizer) in networks.items():
                    network.load_state_dict(state["networks"][name]["module"])
                    optimizer.load_state_dict(state["networks"][name]["optimizer"])
                self.pruner.load(state["pruner"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            fault = f"{type(error).__name__}: {error}"
        if fault is not None:
            raise ArtifactError(
                f"The pruner's state in the checkpoint does not fit: {fault}. Continue from an earlier checkpoint, or start "
                "over."
            )


class _Before:
    """A network before a pruner is attached to it: what the pruner changes besides values is restored from this, whatever the
    method. Unlike its `finish`, this needs no data and no other process, and either may be what failed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modes = [(m, m.training) for m in model.modules()]  # methods may leave it in eval mode
        self.trainable = [(p, p.requires_grad) for p in model.parameters()]
        self.known = self._keys()
        self.added: set[int] | None = None  # None: attaching failed

    def _hooks(self) -> Iterator[dict[int, Any]]:
        for module in self.model.modules():
            yield from (module._forward_pre_hooks, module._forward_hooks)

    def _keys(self) -> set[int]:
        return {key for hooks in self._hooks() for key in hooks}

    def attached(self) -> None:
        """Call when the pruner is attached: hooks that others add later are not its own."""
        self.added = self._keys() - self.known

    def restore_modes(self) -> None:
        for module, mode in self.modes:
            module.training = mode

    def restore(self) -> None:
        added = self._keys() - self.known if self.added is None else self.added
        for hooks in self._hooks():
            for key in added & hooks.keys():
                del hooks[key]
        for p, trainable in self.trainable:
            p.requires_grad_(trainable)
        self.restore_modes()


class Pairs:
    """A trainer's batches as `(inputs, targets)` that can be iterated repeatedly."""

    def __init__(self, batches: Any, pair: Callable[[Any], Any]) -> None:
        self.batches, self.pair = batches, pair

    def __iter__(self) -> Iterator[Any]:
        return map(self.pair, self.batches)


def find(module: nn.Module, network: str | Callable[[Any], nn.Module] | None) -> nn.Module:
    """Find the CNN inside a trained module. Raises ConfigError if there is no submodule of that name."""
    if network is None:
        return module
    if callable(network):
        return network(module)
    try:
        return module.get_submodule(network)
    except AttributeError:
        names = ", ".join(name for name, _ in module.named_children()) or "nothing"
        raise ConfigError(
            f"{type(module).__name__} has no network {network!r}: pass network=…. Its submodules are {names}."
        ) from None
