"""What the benchmarks share: kinds of work, timed in turn in one process."""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secateurs.caching import cache_folder


def in_turn(
    kinds: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each kind, turn by turn; the first turn warms up. What else the machine does falls on all of them."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    gc.collect()
    gc.disable()
    for turn in range(-1, turns):
        for kind in list(kinds) if turn % 2 else list(reversed(kinds)):  # none is always first
            began = clock()
            kinds[kind]()
            if turn >= 0:
                seconds[kind].append(clock() - began)
    gc.enable()
    return seconds


def add_clock(parser: argparse.ArgumentParser) -> None:
    """--cpu-time"""
    parser.add_argument(
        "--cpu-time", action="store_true", help="time of the processor, on a machine that others use; one thread"
    )


def set_clock(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """With --cpu-time, seconds are from here on those of this process on the processor, for one thread, and what was measured
    is kept apart from what is measured on the wall. Returns what to call the clock."""
    if not options.cpu_time:
        return "wall time"
    if options.threads != 1:
        parser.error("--cpu-time is for --threads 1: the time of several threads adds up")
    time.perf_counter = time.process_time
    os.environ["XDG_CACHE_HOME"] = str(cache_folder() / "cpu-time")
    return "time of the processor"


class Cells:
    """What was measured, a line of JSON for each cell, so that a run that was stopped resumes with the next one. file: None
    keeps nothing."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.done = [json.loads(line) for line in file.read_text().splitlines()] if file and file.exists() else []

    def get(self, cell: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell's settings and figures: those in the file, if it has them."""
        found = next((line for line in self.done if all(line[k] == value for k, value in cell.items())), None)
        if found is None:
            found = {**cell, **measure()}
            if self.file:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a") as file:
                    file.write(json.dumps(found) + "\n")
        return found
