"""The machines of a Ray cluster: each cell is a task with its resources. This process, the head, collects and writes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch

from secateurs.errors import ConfigError, Setting, TrainingError
from secateurs.studies.comparison.bench import Bench, Job, Probe, Record, outcome
from secateurs.studies.comparison.contestants import Cell
from secateurs.studies.comparison.crew import Jobs, Results, probed
from secateurs.studies.comparison.work import Work

RETRIES = 3  # of a cell whose worker is lost
POLL = 10.0  # seconds after which nodes that have joined are used

_benches: dict[str, Bench] = {}  # in a worker: its bench, which later cells use, too


def library() -> Any:
    """Return Ray. Raises ConfigError if it is not installed."""
    if find_spec("ray") is None:
        raise ConfigError(
            Setting("workers", "ray"), " needs Ray: pip install 'secateurs[cluster]', on every machine of the cluster."
        )
    import ray

    return ray


class Cluster:
    """The cluster that this process is connected to, or that `RAY_ADDRESS` names, or that runs on this machine; else one of
    this machine's cores, for as long as the comparison runs.

    resources: `num_cpus` and `num_gpus` of each cell: by default one CPU, and one GPU if the cluster has any.
    """

    def __init__(self, work: Work, resources: Mapping[str, float] | None = None, device: str | None = None) -> None:
        self.ray = library()
        packed = work.packed(away=True)
        self._ours = not self.ray.is_initialized()
        if self._ours:
            self.ray.init(log_to_driver=work.progress, configure_logging=False)
        gpus = 1.0 if self.ray.cluster_resources().get("GPU") and device != "cpu" else 0.0
        self.needs = {"num_cpus": 1.0, "num_gpus": gpus, **(resources or {})}
        self._device = "cpu" if not self.needs["num_gpus"] else device
        self._name, self._work = hashlib.sha256(packed).hexdigest(), self.ray.put(packed)

    @cached_property
    def _options(self) -> dict[str, Any]:
        return {**self.needs, "max_retries": RETRIES}

    @property
    def size(self) -> int:
        """How many cells fit on the existing nodes at a time; at least one, for which Ray waits."""
        return max(1, sum(self._slots(node["Resources"]) for node in self.ray.nodes() if node["Alive"]))

    def _slots(self, there: Mapping[str, float]) -> int:
        named = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        return min(int(there.get(named[name], 0.0) // need) for name, need in self.needs.items() if need)

    @property
    def fits(self) -> bool:
        """Whether a cell fits on any node."""
        return any(self._slots(node["Resources"]) for node in self.ray.nodes() if node["Alive"])

    def prepare(self, cells: Sequence[Cell]) -> Probe:
        if not self.fits:
            wanted = [part for name, need in self.needs.items() if need for part in (", ", Setting(name, need))]
            raise ConfigError(
                "No node of the Ray cluster has what a cell needs (", *wanted[1:], "): ask for less, or add a node."
            )
        task = self.ray.remote(**self._options)(_probe)
        try:
            found = self.ray.get(task.remote(self._work, self._name, self._device, self._threads, list(cells)))
        except self.ray.exceptions.RayError as error:
            raise TrainingError(f"The cluster could not measure the original: {_first_line(error)}") from error
        if isinstance(found, Exception):
            raise found
        probe: Probe = found
        return probe

    @property
    def _threads(self) -> int:
        return max(1, int(self.needs["num_cpus"]))

    def run(self, jobs: Jobs) -> Results:
        task = self.ray.remote(**self._options)(_measure)
        running: dict[Any, Job] = {}
        try:
            while True:
                while len(running) < self.size and (job := next(jobs, None)) is not None:
                    away = replace(job, folder=None)  # whose machine may not have it
                    running[task.remote(self._work, self._name, self._device, self._threads, away)] = job
                if not running:
                    return
                ready, _ = self.ray.wait(list(running), num_returns=1, timeout=POLL)
                for reference in ready:
                    yield running.pop(reference), self._result(reference)
        finally:
            for reference in running:
                self.ray.cancel(reference, force=True)

    def _result(self, reference: Any) -> Record:
        try:
            found: Record = self.ray.get(reference)
            return found
        except self.ray.exceptions.RayError as error:  # lost more often than it is retried
            return {"failed": f"its worker was lost: {_first_line(error)}"}

    def close(self) -> None:
        if self._ours:
            self.ray.shutdown()


def _bench(packed: bytes, name: str, device: str | None, threads: int) -> Bench:
    """The bench of a worker process. Ray hands processes on from task to task."""
    if name not in _benches:
        _benches.clear()
        torch.set_num_threads(threads)
        _benches[name] = Bench(Work.unpacked(packed), device)
    return _benches[name]


def _probe(packed: bytes, name: str, device: str | None, threads: int, cells: Sequence[Cell]) -> Probe | Exception:
    return probed(lambda: _bench(packed, name, device, threads), cells)


def _measure(packed: bytes, name: str, device: str | None, threads: int, job: Job) -> Record:
    return outcome(lambda: _bench(packed, name, device, threads), job)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
