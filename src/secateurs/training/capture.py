"""Run training steps without Python between the kernels: compile the network, with CUDA graphs on a GPU."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from types import FunctionType
from typing import Any

import torch
from torch import nn

from secateurs.graph.inputs import call, tensors
from secateurs.seeds import preserve_rng_state
from secateurs.training.eager import eager_hooks
from secateurs.training.run import TrainingRun

log = logging.getLogger("secateurs")

# Compiling pays off from this many steps: it takes about a minute and saves a few ms per step. Not measured on a GPU.
STEPS = 5000


def trials(device: torch.device) -> int:
    """Return the number of trial passes of a compiled network. On a GPU, one each to warm up, record and replay a graph."""
    return 3 if device.type == "cuda" else 1


def options(device: torch.device) -> dict[str, Any]:
    """Return the arguments of torch.compile."""
    return {"mode": "reduce-overhead"} if device.type == "cuda" else {}


def wanted(run: TrainingRun) -> bool:
    """Whether to compile the network: as the recipe says or, if it says "auto", where compiling pays off."""
    if run.recipe.compile != "auto":
        return run.recipe.compile
    return (
        run.device.type == "cuda"
        and run.world == 1
        and run.recipe.accumulate == 1  # gradients of several batches would share one graph's memory
        and not run.objective.whole  # the user's functions may read values
        and run.total is not None
        and run.total - run.step >= STEPS
        and all(getattr(hook, "captures", True) for hook in run.hooks)
        and importlib.util.find_spec("triton") is not None
    )


class Captured(nn.Module):
    """A network that is compiled for the shapes of its first inputs. Inputs of other shapes, such as an incomplete last batch,
    run in the network itself, because every shape would be compiled again.

    guest: whether it runs within another network's pass.
    """

    def __init__(self, net: nn.Module, device: torch.device, guest: bool = False) -> None:
        super().__init__()
        self.runs = net, torch.compile(_frame(net), **options(device))  # a tuple: parameters have one owner
        self._marks = device.type == "cuda" and not guest
        self._form: list[Any] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        net, compiled = self.runs
        form = [(x.shape, x.stride(), x.dtype, x.device) for x in tensors((args, kwargs))]
        self._form = self._form or form
        if form != self._form:
            return net(*args, **kwargs)
        if self._marks:
            torch.compiler.cudagraph_mark_step_begin()
        with ExitStack() as stack:
            for hook in eager_hooks(net):
                stack.enter_context(hook.called(net, args, kwargs))
            return compiled(*args, **kwargs)


def _frame(net: nn.Module) -> Callable[..., Any]:
    """Return a function that calls the network, with a separate code object. PyTorch compiles one code object for at most eight
    networks, and runs the ninth without compiling it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return net(*args, **kwargs)

    return FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)


class Beside(Captured):
    """A compiled network that runs without gradients. If its first pass fails, the network itself runs instead."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._form is not None:
            return super().forward(*args, **kwargs)
        try:
            return super().forward(*args, **kwargs)
        except Exception as error:
            warn(error)
            self.runs = self.runs[0], self.runs[0]
            return self.runs[0](*args, **kwargs)


def warn(error: Exception) -> None:
    reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
    log.warning("The training step is not compiled (compile=False silences this): %s", reason)


class Compiler:
    """Compiles the networks of a run at its first batch, and again after one has been cut or frozen."""

    def __init__(self) -> None:
        self._made: list[Captured] = []
        self._of: Any = None  # the networks and shapes that they were made for
        self._tried: set[tuple[bool, ...]] = set()  # combinations of trained parameters that were tried
        self._beside: dict[nn.Module, Captured] = {}
        self._failed = False

    def compile_(self, run: TrainingRun, inputs: Any) -> None:
        """Compile the networks of all parts, and try them forward and backward on these inputs. If that fails, warn and leave
        them as they are. Neither their state nor the generators change."""
        if self._failed:
            return
        parts = list(run.parts.values())
        nets = [part.net for part in parts]
        parameters = [p for part in parts for p in part.module.parameters()]
        of, trained = (nets, [p.shape for p in parameters]), tuple(p.requires_grad for p in parameters)
        if of != self._of:
            self._made = [Captured(part.net, run.device, guest=part.name != "main") for part in parts]
            self._of = of
            self._tried.clear()
        for part, made in zip(parts, self._made, strict=True):
            part.net = made
        if trained in self._tried:
            return
        self._tried.add(trained)
        try:
            self._try(run, inputs)
        except Exception as error:
            # A compiler raises many types of errors. The network's own errors occur again without it.
            warn(error)
            self._failed = True
            for part, net in zip(parts, nets, strict=True):
                part.net = net

    def beside(self, net: nn.Module, device: torch.device) -> nn.Module:
        """Return the callable for a network that runs on the same inputs without gradients: compiled if the others are."""
        if self._failed or not self._made:
            return net
        if net not in self._beside:
            self._beside[net] = Beside(net, device, guest=True)
        return self._beside[net]

    def _try(self, run: TrainingRun, inputs: Any) -> None:
        modules = [m for part in run.parts.values() for m in part.module.modules()]
        buffers = [(m, dict(m._buffers)) for m in modules]
        values = [(x, x.detach().clone()) for _, own in buffers for x in own.values() if x is not None]
        main = run.parts["main"]
        try:
            with preserve_rng_state(), warnings.catch_warnings():
                # PyTorch's compiler looks at the gradients of gates.
                warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
                for _ in range(trials(run.device)):
                    with run.runtime.autocast():
                        out = call(main.net, inputs)
                    if sums := [x.float().sum() for x in tensors(out) if x.requires_grad]:
                        torch.stack(sums).sum().backward()
                    self._clear(run)
        finally:
            self._clear(run)
            with torch.no_grad():
                for module, own in buffers:
                    module._buffers.clear()
                    module._buffers.update(own)
                for x, before in values:
                    x.copy_(before)

    @staticmethod
    def _clear(run: TrainingRun) -> None:
        """Restore the state before the pass, so that the next pass, or the first step, runs the same graph."""
        run.clear_gradients()
        for hook in eager_hooks(run.parts["main"].module):
            hook.forget()
