"""What `torchrun` does: two processes at once, each with half of each batch."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_model
from torch import Tensor

import secateurs as sc

_LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
_CHILD = "from tests.processes import child; child()"


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


def launch(*command: str, world: int = 2) -> None:
    """Run Python with these arguments in so many processes."""
    done = subprocess.run(
        [*_LAUNCH, f"--nproc-per-node={world}", sys.executable, *command],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, timeout=150, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def on_two(function: str, cases: Iterable[str], folder: Path) -> dict[str, tuple[Outcome, Outcome]]:
    """What `case(name, rank, world, folder / name)` answers in both processes, for each case. function: 'module:case'."""
    cases = list(cases)
    launch("-c", _CHILD, function, str(folder), *cases)
    return {name: (_read(folder / f"{name}-0"), _read(folder / f"{name}-1")) for name in cases}


def child() -> None:
    """In one of the processes: all cases, one after another."""
    function, folder, *cases = sys.argv[1:]
    module, _, name = function.partition(":")
    case = getattr(importlib.import_module(module), name)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for which in cases:
        result: sc.Result = case(which, rank, world, Path(folder) / which)
        to = Path(folder) / f"{which}-{rank}"
        save_model(result.model, f"{to}.safetensors")
        record = {"plan": result.plan.to_json(), "history": result.history, "top1": result.after.top1}
        Path(f"{to}.json").write_text(json.dumps(record))
    torch.distributed.destroy_process_group()


def _read(at: Path) -> Outcome:
    return Outcome(**json.loads(Path(f"{at}.json").read_text()), weights=load_file(f"{at}.safetensors"))
