"""The workers that measure the cells: this process, or several processes on this machine. For a Ray cluster, see `cluster`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from secateurs.devices import VARIABLE, accelerator
from secateurs.errors import SecateursError, TrainingError
from secateurs.studies.comparison.bench import Bench, Job, Probe, Record, outcome
from secateurs.studies.comparison.contestants import Cell
from secateurs.studies.comparison.work import Work, check_sent

ATTEMPTS = 3  # at a cell whose process is lost


Jobs = Iterator[Job]
Results = Iterator[tuple[Job, Record]]


class Crew(Protocol):
    """Workers that measure cells."""

    @property
    def size(self) -> int:
        """How many cells are measured at a time."""

    def prepare(self, cells: Sequence[Cell]) -> Probe:
        """Check the cells and measure the original. Raises before any work if something cannot be done."""

    def run(self, jobs: Jobs) -> Results:
        """Yield the results as they come. A job is taken when a worker is free."""

    def close(self) -> None:
        """Stop the workers."""


class Here:
    """This process, one cell after another."""

    size = 1

    def __init__(self, work: Work, device: str | torch.device | None) -> None:
        self.work, self.device = work, device

    @cached_property
    def bench(self) -> Bench:
        return Bench(self.work, self.device)

    def prepare(self, cells: Sequence[Cell]) -> Probe:
        self.bench.check(cells)
        return self.bench.probe()

    def run(self, jobs: Jobs) -> Results:
        for job in jobs:
            yield job, outcome(lambda: self.bench, job)

    def close(self) -> None:
        pass


# -- processes ---------------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """A process, and the end of the pipe to it."""

    process: Any
    pipe: Connection
    device: str | None
    job: Job | None = None


@dataclass
class Processes:
    """Processes on this machine, each with its device from `devices`. They are started afresh, so that threads and accelerators
    work in them; what they need is sent through a pipe."""

    work: Work
    devices: Sequence[str | None]
    workers: list[Worker] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)  # cell → how often its process was lost

    @property
    def size(self) -> int:
        return len(self.devices)

    @cached_property
    def _packed(self) -> bytes:
        return self.work.packed(away=False)

    def _start(self) -> Worker:
        """A worker on the first device that has none."""
        free = list(self.devices)
        for worker in self.workers:
            free.remove(worker.device)
        device = free[0]
        threads = max(1, torch.get_num_threads() // self.size)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, device, threads))
        process.start()
        theirs.close()
        worker = Worker(process, ours, device)
        self.workers.append(worker)
        # Not among the arguments: if the process ended without reading them, `start` would never return.
        with contextlib.suppress(ConnectionError):  # it is lost, which reading from it tells
            ours.send_bytes(self._packed)
        return worker

    def prepare(self, cells: Sequence[Cell]) -> Probe:
        check_sent("methods", [cell.contestant for cell in cells], "classes of a module")
        first = self._start()
        _send(first, list(cells))
        try:
            found = first.pipe.recv()
        except (EOFError, ConnectionError):
            how = _how(first.process)
            guard = "In a script, call compare under `if __name__ == '__main__':`, since each process runs the script first."
            raise TrainingError(
                f"The first worker process ended {how} before any cell was measured.",
                hint=guard if first.process.exitcode == 1 else (),
            ) from None
        if isinstance(found, BaseException):
            raise found
        probe: Probe = found
        return probe

    def run(self, jobs: Jobs) -> Results:
        again: list[Job] = []
        while True:
            idle = [worker for worker in self.workers if worker.job is None]
            while (idle or len(self.workers) < self.size) and (job := again.pop() if again else next(jobs, None)):
                worker = idle.pop() if idle else self._start()
                worker.job = job
                _send(worker, job)
            busy = [worker for worker in self.workers if worker.job is not None]
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy])
            for worker in [one for one in busy if one.pipe in ready]:
                done = worker.job
                assert done is not None
                try:
                    found = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    found = self._without(worker, done)
                    if found is None:
                        again.append(done)
                        continue
                worker.job = None
                yield done, found

    def _without(self, worker: Worker, job: Job) -> Record | None:
        """Go on without a process that is lost. None: its cell is to be measured again; else the cell's failure."""
        how = _how(worker.process)
        worker.pipe.close()
        self.workers.remove(worker)
        self.lost[job.cell.label] = self.lost.get(job.cell.label, 0) + 1
        if self.lost[job.cell.label] < ATTEMPTS:
            return None
        return {"failed": f"its process ended {how}, {ATTEMPTS} times: is there enough memory?"}

    def close(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.pipe.close()
        self.workers.clear()


def _send(worker: Worker, job: Job | list[Cell]) -> None:
    with contextlib.suppress(ConnectionError):  # it is lost, which reading from it tells
        worker.pipe.send(job)


def _how(process: Any) -> str:
    """How a process ended, as a message has it."""
    process.join(5)
    code = process.exitcode
    if code is not None and code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"with status {code}"


def _serve(pipe: Connection, device: str | None, threads: int) -> None:
    """In a worker process: measure what comes through the pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    packed = pipe.recv_bytes()
    bench = _once(lambda: Bench(Work.unpacked(packed), device))
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        except Exception as error:  # a method's class that this process does not find
            text = f"A worker process cannot read the cells: {type(error).__name__}: {error}."
            pipe.send(TrainingError(text, hint="Define methods in a module."))
            continue
        if isinstance(job, Job):
            pipe.send(outcome(bench, job))
        else:
            pipe.send(probed(bench, job))


def _follow_parent() -> None:
    """End with the parent, however it ends: whoever resumes must not meet a worker of the last call at its cells."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def probed(bench: Callable[[], Bench], cells: Sequence[Cell]) -> Probe | Exception:
    """Return what `prepare` finds, or the error that it raises, to be raised elsewhere."""
    try:
        bench().check(cells)
        return bench().probe()
    except SecateursError as error:
        return error
    except Exception as error:
        return TrainingError(f"{type(error).__name__}: {error}")


def _once(make: Callable[[], Bench]) -> Callable[[], Bench]:
    made: list[Bench] = []

    def get() -> Bench:
        if not made:
            made.append(make())
        return made[0]

    return get


def devices(device: str | torch.device | None, processes: int | None) -> list[str | None]:
    """Return the device of each process. None: one process for each accelerator, or else one process on the CPU. Several
    processes on `cuda` get a GPU each as long as there are enough; on `cuda:1`, they share it."""
    there, named = accelerator(), None if device is None else str(device)
    chosen = named is None and not os.environ.get(VARIABLE)
    if there is None or not (chosen or (named == there.type and processes is not None)):
        return [named] * (processes or 1)
    count = torch.accelerator.device_count()
    return [f"{there.type}:{i % count}" for i in range(processes or count)]
