"""Processes of a test's own: forked from a server that has imported everything once, singly or in a group that `torchrun` would
start. Those that test launchers themselves use `torchrun`."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_model
from torch import Tensor

import secateurs as sc

_IMPORTED = [
    *("accelerate", "pytest", "torch._dynamo", "torch.nn.parallel"),
    *("secateurs.api", "secateurs.data.loader", "secateurs.methods.onestep.method", "secateurs.zoo"),
    *("secateurs.methods.aofp.pruner", "secateurs.methods.npn.pruner", "secateurs.methods.pff.pruner"),
]


@dataclass(frozen=True)
class Outcome:
    """What is left of a result that came about in one of two processes."""

    plan: str  # as JSON
    history: list[dict[str, Any]]
    top1: float | None
    weights: dict[str, Tensor]


def environment() -> dict[str, str]:
    """On the CPU, by gloo: a machine may have fewer GPUs than there are processes."""
    return {**os.environ, "SECATEURS_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}


@functools.cache
def server() -> ForkServerContext:
    found = mp.get_context("forkserver")
    found.set_forkserver_preload(_IMPORTED)
    return found


def group(world: int = 2) -> dict[str, str]:
    """The environment that a launcher gives to so many processes of one machine, but for their ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    size = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return {**environment(), **size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def launch(function: str, *arguments: str, world: int = 2) -> None:
    """Call `module:function` with these arguments in so many processes, which know each other as `torchrun` would have them."""
    server()
    running = mp.start_processes(
        enter, (group(world), function, *arguments), world, join=False, start_method="forkserver"
    )
    until = time.monotonic() + 150
    while not running.join(timeout=1):  # False as soon as one of them has ended, too
        if time.monotonic() > until:
            for process in running.processes:
                process.kill()
            raise AssertionError("still running")


def enter(rank: int, environment: dict[str, str], function: str, *arguments: str) -> None:
    """Call `module:function` as a process of a group."""
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    gc.freeze()  # what the server has imported
    _found(function)(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_two(function: str, cases: Iterable[str], folder: Path) -> dict[str, tuple[Outcome, Outcome]]:
    """What `case(name, rank, world, folder / name)` answers in both processes, for each case. function: 'module:case'."""
    cases = list(cases)
    launch(f"{__name__}:child", function, str(folder), *cases)
    return {name: (_read(folder / f"{name}-0"), _read(folder / f"{name}-1")) for name in cases}


def child(function: str, folder: str, *cases: str) -> None:
    """In one of the processes: all cases, one after another."""
    case = _found(function)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for which in cases:
        result: sc.Result = case(which, rank, world, Path(folder) / which)
        to = Path(folder) / f"{which}-{rank}"
        save_model(result.model, f"{to}.safetensors")
        record = {"plan": result.plan.to_json(), "history": result.history, "top1": result.after.top1}
        Path(f"{to}.json").write_text(json.dumps(record))


def _found(function: str) -> Callable[..., Any]:
    """What 'module:name' names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def _read(at: Path) -> Outcome:
    return Outcome(**json.loads(Path(f"{at}.json").read_text()), weights=load_file(f"{at}.safetensors"))
