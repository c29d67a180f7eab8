"""Random networks: each is traced, cut at random, compared with its masked twin, counted and trained for a step, and what
is the caller's must be as it was. About 130 kinds of blocks in 15 frames; the network of a seed is always the same.

    python benchmarks/fuzz.py --quick
    python benchmarks/fuzz.py --n 10000 --seed 1 --out fuzz.jsonl     # stop it at any time, and run it again: it continues
    python benchmarks/fuzz.py --show 1000042                          # one network, and a program for each of its faults

What is checked is listed in `fuzzing.judge.FAULTS`, and `fuzzing.parts.Block` says what a block declares.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing.judge import FAULTS, judge
from fuzzing.networks import Spec, network
from fuzzing.shrink import culprit, named, program, shrunk

QUICK = 40
STRIDE = 1_000_000  # networks of one --seed
SOURCES = ("blocks/*.py", "frames.py", "kinds.py", "networks.py", "parts.py")

Record = dict[str, Any]


def generator() -> str:
    """A digest of what makes networks of seeds: with other sources, a seed is another network."""
    folder = Path(__file__).parent / "fuzzing"
    files = sorted(path for pattern in SOURCES for path in folder.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def examine(seed: int, known: set[tuple[str, str]], console: Console, always: bool = False) -> Record:
    """Judge one network. Each fault is brought down to the least network that has it, with a program the first time."""
    began = time.monotonic()
    spec = network(seed)
    verdict = judge(spec)
    record: Record = {
        "seed": seed, "blocks": named(spec.blocks), "frame": spec.frame, "groups": verdict.groups,
        "prunable": verdict.prunable, "faults": [list(f) for f in verdict.faults], "least": {},
    }  # fmt: skip
    for fault in sorted(verdict.kinds):
        least, smaller = shrunk(spec, fault)
        shown = smaller or verdict
        name = culprit(least)
        record["least"][fault] = {"culprit": name, **least.to_json()}
        if always or (fault, name) not in known:
            known.add((fault, name))
            text = next(text for f, text in shown.faults if f == fault)
            console.print(f"\n── {seed}: {fault} ── {name}", style="bold", markup=False)
            console.print(_program(least, fault, text, shown.kept), markup=False, highlight=False, soft_wrap=True)
    record["seconds"] = round(time.monotonic() - began, 2)
    return record


def _program(least: Spec, fault: str, text: str, kept: dict[str, list[int]]) -> str:
    try:
        return program(least, fault, text, kept)
    except Exception as error:  # blocks that do not fit together: a fault of the generator, which must not end the run
        return f"# {fault}: {text}\n# no program: {type(error).__name__}: {error}"


class Log:
    """The records of a file of JSON lines, to which each network's is added. Beside it a note of the one that is being judged,
    so that one that kills the process is known the next time, and passed over the time after."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.digest = path, generator()
        self.records: dict[int, Record] = {}
        self.foreign = 0
        text = path.read_text() if path is not None and path.exists() else ""
        self.torn = not text.endswith("\n") and text != ""  # the process was killed while it wrote
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record.get("generator") == self.digest:
                self.records[record["seed"]] = record
            else:
                self.foreign += 1
        self.now = None if path is None else path.with_name(path.name + ".now")
        self.died = self._note() if self.now is not None and self.now.exists() else {}

    def _note(self) -> dict[int, int]:
        assert self.now is not None
        seed, _, times = self.now.read_text().partition(" ")
        return {int(seed): int(times or 1)} if seed.isdigit() else {}

    def begin(self, seed: int) -> bool:
        """Whether to judge this one: not if the process died in it twice."""
        times = self.died.get(seed, 0)
        if times >= 2:
            self.add({"seed": seed, "blocks": [], "frame": "", "faults": [["crash", "the process died"]], "least": {}})
            return False
        if self.now is not None:
            self.now.write_text(f"{seed} {times + 1}")
        return True

    def add(self, record: Record) -> None:
        self.records[record["seed"]] = record
        if self.path is not None:
            with self.path.open("a") as file:
                file.write("\n" * self.torn + json.dumps({"generator": self.digest, **record}) + "\n")
            self.torn = False

    def done(self) -> None:
        if self.now is not None:
            self.now.unlink(missing_ok=True)


def table(records: list[Record]) -> Table:
    """What the least networks consist of × faults, and the number of networks with each."""
    counts: dict[str, collections.Counter[str]] = {}
    for record in records:
        for fault in dict.fromkeys(fault for fault, _ in record["faults"]):
            least = record["least"].get(fault, {}).get("culprit", "?")
            counts.setdefault(least, collections.Counter())[fault] += 1
    columns = [fault for fault in FAULTS if any(fault in each for each in counts.values())]
    made = Table("the least network that has it", *columns, "all")
    rows = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    for name, each in rows:
        made.add_row(name, *(str(each[fault] or "") for fault in columns), str(each.total()))
    if len(rows) > 1:
        made.add_section()
        totals = [sum(each[fault] for each in counts.values()) for fault in columns]
        made.add_row("all", *map(str, totals), str(sum(totals)))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="number of networks")
    parser.add_argument("--seed", type=int, default=0, help=f"the first network is SEED · {STRIDE:,}")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} networks")
    parser.add_argument(
        "--out", type=Path, help="JSON lines, one for each network; those that it holds are not run again"
    )
    parser.add_argument(
        "--show", type=int, metavar="NETWORK", help="only this network, with a program for each of its faults"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if args.show is not None:
        record = examine(args.show, set(), console, always=True)
        console.print_json(json.dumps(record))
        return bool(record["faults"])
    log = Log(args.out)
    if log.foreign:
        console.print(f"{log.foreign} records of {args.out} are of another generator, and left out")
    seeds = range(args.seed * STRIDE, args.seed * STRIDE + (QUICK if args.quick else args.n))
    known = {(fault, least["culprit"]) for r in log.records.values() for fault, least in r["least"].items()}
    began, new = time.monotonic(), 0
    for seed in seeds:
        if seed in log.records or not log.begin(seed):
            continue
        log.add(examine(seed, known, console))
        new += 1
        if new % 100 == 0:
            faulty = sum(bool(log.records[s]["faults"]) for s in seeds if s in log.records)
            each = (time.monotonic() - began) / new
            console.print(f"{seed - seeds.start + 1:,} of {len(seeds):,}: {faulty} with a fault, {each:.2f} s each")
    log.done()
    records = [log.records[seed] for seed in seeds]
    if any(r["faults"] for r in records):
        console.print(table(records))
    kinds = {kind for r in records for kind in r["blocks"]}
    groups, prunable = (sum(r.get(key, 0) for r in records) for key in ("groups", "prunable"))
    faulty = sum(bool(r["faults"]) for r in records)
    console.print(
        f"{len(records):,} networks of {len(kinds)} kinds of blocks, {groups:,} groups, {prunable:,} of them prunable: "
        f"{faulty} networks with a fault"
    )
    return bool(faulty)


if __name__ == "__main__":
    sys.exit(main())
