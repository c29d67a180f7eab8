"""Check that the processes of a launcher (torchrun, accelerate) fit the machine, and detect lost processes."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from secateurs.devices import default_device, usable
from secateurs.errors import ConfigError, Setting, TrainingError

Place = tuple[str, str, str]  # host, boot, process namespace: a process id is unique within them
CPU = Setting("device", "cpu")
PATIENCE = 2.0  # seconds to wait for a process to end after its connections closed


def several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this process is the one that prints and writes: rank 0 of torchrun and accelerate."""
    return os.environ.get("RANK", "0") == "0"


def on_cpu(device: str | torch.device | None) -> bool:
    """Whether training is on the CPU. With several processes, accelerate must be told so, even without a GPU."""
    return (default_device() if device is None else torch.device(device)).type == "cpu"


def check(device: str | torch.device | None) -> None:
    """Raise ConfigError, before any process group starts, if this machine has more processes than GPUs."""
    if not several() or on_cpu(device):
        return
    if not torch.accelerator.is_available():
        usable(device)  # raises with the reason
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    count = torch.accelerator.device_count()
    if here > count:
        gpus = "1 GPU" if count == 1 else f"{count} GPUs"
        most = "1 process" if count == 1 else f"{count} processes"
        raise ConfigError(
            f"{here} processes, but this machine has {gpus}: start at most {most} here, or pass ", CPU, "."
        )


def check_group(device: str | torch.device | None, world: int) -> None:
    """Raise ConfigError if the process group is not the requested one, for example because it already existed."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if world < started:
        raise ConfigError(
            f"{started} processes were started, but accelerate sees {world} on this device: start one, or pass ",
            CPU,
            " before anything else uses accelerate.",
        )
    if world > 1 and on_cpu(device) and dist.get_backend() == "nccl":
        raise ConfigError(
            CPU,
            " cannot use the existing process group, which is for GPUs (nccl): initialize it with gloo, or do not "
            "initialize one.",
        )


class LostError(TrainingError):
    """Another process of the run has ended. `what` says which."""

    def __init__(self, what: str, where: str = "", last: str = "") -> None:
        self.what = what
        super().__init__(
            f"{what}{where and f' ({where})'}; see its own error message for the cause.{last}",
            hint=("The same command, including the launcher, resumes with ", Setting("resume", True), "."),
        )


@dataclass(frozen=True)
class Peers:
    """The other processes on this machine."""

    world: int
    ids: dict[int, int]  # rank → process id

    @classmethod
    def gather(cls, rank: int, world: int) -> Peers:
        """Gather the process ids on this machine. Collective: every process must call this."""
        found: list[tuple[Place, int]] = [(("", "", ""), 0)] * world
        here = (_place(), os.getpid())
        dist.all_gather_object(found, here)
        return cls(world, {r: pid for r, (place, pid) in enumerate(found) if r != rank and place == here[0]})

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Replace a communication error in this context by a LostError if another process has ended."""
        try:
            yield
        except RuntimeError as error:
            if what := self.lost(error):
                raise LostError(what) from error
            raise

    def lost(self, error: BaseException) -> str | None:
        """Describe the lost process if the error is a communication error; otherwise, return None."""
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(word in text for word in ("gloo", "NCCL", "c10d")):
            return None
        if gone := self._gone():
            ranks = " and ".join(map(str, gone))
            return f"Rank {ranks} of the {self.world} processes has ended"
        late = any(word in text.lower() for word in ("timed out", "timeout"))
        if not late and len(self.ids) == self.world - 1:
            return None  # all processes are running: a different error
        return f"Another of the {self.world} processes has ended or does not respond"

    def _gone(self) -> list[int]:
        end = time.monotonic() + PATIENCE
        while not (gone := [rank for rank, pid in self.ids.items() if not _runs(pid)]):
            if not self.ids or time.monotonic() > end:
                return []
            time.sleep(0.02)
        return gone


def gathered(value: Any) -> list[Any]:
    """Gather a value from all processes in the process group, by rank. Without a group, only this process's. Collective: every
    process must call this."""
    if world() == 1:
        return [value]
    every: list[Any] = [None] * world()
    with Peers(len(every), {}).watched():
        dist.all_gather_object(every, value)
    return every


def world() -> int:
    """Return the number of processes in the process group; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean(x: Tensor, device: torch.device) -> Tensor:
    """Average a tensor over the processes in the process group, which communicate on this device. Collective."""
    if world() == 1:
        return x
    total = x.detach().to(device, copy=True)
    with Peers(world(), {}).watched():
        dist.all_reduce(total)
    return (total / world()).to(x.device)


def _runs(pid: int) -> bool:
    """Whether the process is running. A zombie still has its id, but does not count."""
    if os.name == "nt":  # signal 0 is not available there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        pass
    stat = _read(f"/proc/{pid}/stat")
    return stat.rpartition(")")[2].split()[:1] not in (["Z"], ["X"])


def _place() -> Place:
    with contextlib.suppress(OSError):
        return socket.gethostname(), _read("/proc/sys/kernel/random/boot_id"), os.readlink("/proc/self/ns/pid")
    return socket.gethostname(), "", ""


def _read(path: str) -> str:
    """Return the file's content; empty if the system has no such file."""
    with contextlib.suppress(OSError), open(path) as file:
        return file.read()
    return ""
