"""Prepare a network to run on a target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.deploy.clock import Program
from secateurs.deploy.export import export
from secateurs.deploy.memory import peak
from secateurs.deploy.target import DTYPES, Target
from secateurs.devices import channels_last_, device_of
from secateurs.graph.copies import copied
from secateurs.graph.inputs import call, map_tensors
from secateurs.stripes import StripeConv, tune


@dataclass(frozen=True)
class Runner:
    """A prepared network. program: what to time. memory: measures the peak memory of a run in bytes; None if the runtime does
    not report it."""

    program: Program
    memory: Callable[[], int] | None = None


@contextmanager
def runner(model: nn.Module, inputs: Any, target: Target) -> Iterator[Runner]:
    """Prepare a copy of the model, in eval mode, to run on the target with these inputs. Use as a context manager.

    Raises ConfigError if the target cannot be used on this machine, and ExportError if the network cannot be exported to it.
    """
    target.check()
    target = target.suited(model)
    format = target.format
    if format is None:
        yield _in_torch(model, inputs, target)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{format.suffix}")
        export(model, path, inputs, dynamic_batch=False)
        file = format.open(path, target.used_threads, target.precision)
        yield Runner(Program(file.bound(inputs)))


def program(model: nn.Module, inputs: Any) -> Program:
    """Return a program that runs a network in eval mode. The inputs are on its device."""

    def run() -> None:
        with torch.inference_mode():
            call(model, inputs)

    return Program(run, torch.cuda.synchronize if device_of(model).type == "cuda" else lambda: None)


def _in_torch(model: nn.Module, inputs: Any, target: Target) -> Runner:
    dtype, device = DTYPES[target.precision], target.device
    model = copied(model).to(device).eval()
    inputs = map_tensors(lambda x: x.to(device), inputs)
    mixed = len({p.dtype for p in model.parameters() if p.is_floating_point()}) > 1
    if not mixed or dtype is not torch.float32:  # a network with several precisions runs as it is
        {"fp32": model.float, "fp16": model.half, "bf16": model.bfloat16}[target.precision]()
        inputs = map_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    if target.channels_last:
        channels_last_(model)
        inputs = map_tensors(_laid_out, inputs)
    if any(isinstance(m, StripeConv) for m in model.modules()) and target.mode == "eager":
        tune(model, inputs, rounds=3)
    eager = program(model, inputs)
    memory = partial(peak, model, eager.run, inputs)
    if target.mode == "eager":
        return Runner(eager, memory)
    torch._dynamo.reset()  # its cache has a limit, which earlier compilations may have reached
    compiled: nn.Module = torch.compile(  # type: ignore[assignment]
        model, mode="reduce-overhead" if target.mode == "cudagraphs" else None
    )
    return Runner(program(compiled, inputs), memory)


def _laid_out(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
